"""Keeping a store sound: ``verify`` finds damage, ``gc`` removes what nothing needs."""

from featurestore.storage.garbage import Garbage, GcReport, gc
from featurestore.storage.verification import Fault, VerifyReport, verify, verify_store

__all__ = ["Fault", "Garbage", "GcReport", "VerifyReport", "gc", "verify", "verify_store"]

"""Keeping a store sound: ``verify`` finds damage, ``gc`` removes what nothing needs."""

from featurestore.storage.faults import Fault, VerifyReport
from featurestore.storage.garbage import Garbage, GcReport, gc
from featurestore.storage.verification import verify, verify_again, verify_store

__all__ = [
    "Fault",
    "Garbage",
    "GcReport",
    "VerifyReport",
    "gc",
    "verify",
    "verify_again",
    "verify_store",
]

"""Stored definitions as care looks at them: whether they can be read, what values they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from featurestore.errors import CorruptionError, FeatureStoreError, FormatError
from featurestore.plan.definition import MALFORMED, FeatureDefinition
from featurestore.storage.fileset import with_definition
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import GroupEntry

_REMEDY: Final = "restore the store from a backup, or drop the feature"


def accepted_fingerprints(store: ObjectStore, group: GroupEntry) -> frozenset[str]:
    """Return the fingerprints of the definition that values of a feature may carry.

    The one it was stored with, and the one it has here: a newer version of a transformer computes
    the stale values of an old one again.

    Raises
    ------
    CorruptionError
        If the definition cannot be read. One that is merely not known here is readable.
    """
    stored = with_definition(store, group).definition
    if stored is None:
        raise CorruptionError(f"feature {list(group.names)} has no definition", _REMEDY)
    try:
        known = FeatureDefinition.from_json(stored)
    except FormatError:  # of a package that is not imported here
        return frozenset({group.definition_fingerprint})
    except (FeatureStoreError, *MALFORMED) as error:
        raise CorruptionError(
            f"the definition of {list(group.names)} cannot be read: {error}", _REMEDY
        ) from error
    return frozenset({group.definition_fingerprint, known.fingerprint})


def fingerprint_of(stored: Mapping[str, Any]) -> str | None:
    """Return the fingerprint of what may be a definition as JSON; None if it is none known here."""
    try:
        return FeatureDefinition.from_json(stored).fingerprint
    except (FeatureStoreError, *MALFORMED):
        return None

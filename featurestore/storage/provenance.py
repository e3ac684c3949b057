"""What values were computed from, as fingerprints: the name that says whether they are still right.

Always true: equal provenance means equal values. It is written with every partition of a column group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featurestore.fingerprint import fingerprint
from featurestore.storage.record_checks import text, texts, whole


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a partition's values were computed from; equal provenance means equal values.

    Parameters
    ----------
    definition : str
        Fingerprint of the feature's definition; for ingested data ``"ingest"``.
    inputs : str
        Fingerprint of the inputs' values in this partition; for ingested data of bytes, key and time.
    state : str
        Fingerprint of the state ``apply`` was given, or ``""``.
    until : int, optional
        Of values that look at later rows without a fixed reach: no row after this time can change them.
        None if any later row may. Not part of what the values are: it was learnt as they were computed.
    seen : str
        Fingerprint of the later rows until then.
    """

    definition: str
    inputs: str
    state: str = ""
    until: int | None = field(default=None, compare=False)
    seen: str = field(default="", compare=False)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.definition, self.inputs, self.state)

    @property
    def settled(self) -> tuple[int, str] | tuple[()]:
        """Until when they look at later rows, and at which; nothing if that is not known."""
        return () if self.until is None else (self.until, self.seen)

    @classmethod
    def from_json(cls, names: Sequence[Any], settled: Sequence[Any]) -> Provenance:
        """Return what an entry says: fingerprints, and what :attr:`settled` was; more is ignored."""
        definition, inputs, state = texts([*names[:3], *[""] * (3 - len(names))])
        until, seen = settled[:2] or (None, "")
        return cls(definition, inputs, state, whole(until), text(seen))

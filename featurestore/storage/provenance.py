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
    def from_json(cls, value: Sequence[Any]) -> Provenance:
        """Read the list of an entry's provenance."""
        names = texts(value[:3])
        return cls(*names, *((whole(value[3]), text(value[4])) if len(value) > 4 else ()))

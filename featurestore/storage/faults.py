"""What a verification tells: how much was looked at, and each thing that is wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from featurestore.storage.states import STATES
from featurestore.units import format_bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    ``table``, ``group``, ``columns`` and ``partition`` are empty for files that belong to none.
    """

    file: str
    problem: str
    remedy: str
    table: str = ""
    group: str = ""
    columns: tuple[str, ...] = ()
    partition: str = ""

    @property
    def mends_itself(self) -> bool:
        """Whether it is in a state: one that a power loss took is computed again when needed."""
        return self.file.startswith(f"{STATES}/")

    def __str__(self) -> str:
        where = " ".join(
            f"{what} {value}"
            for what, value in (
                ("table", self.table),
                ("columns", ", ".join(self.columns)),
                ("partition", self.partition),
            )
            if value
        )
        return f"{self.file}: {self.problem}{f' ({where})' if where else ''}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and what is wrong.

    Parameters
    ----------
    full : bool
        Whether bytes were compared, or sizes only.
    snapshots, groups, partitions, files, bytes : int
        How many were looked at; ``bytes`` is the size of those files.
    faults : tuple of Fault
    """

    full: bool
    snapshots: int = 0
    groups: int = 0
    partitions: int = 0
    files: int = 0
    bytes: int = 0
    faults: tuple[Fault, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, apart from what mends itself."""
        return all(one.mends_itself for one in self.faults)

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        head = (
            f"{'full' if self.full else 'quick'} verification of {self.snapshots} snapshots, "
            f"{self.groups} column groups, {self.partitions} partitions, {self.files} files "
            f"({format_bytes(self.bytes)}): "
        )
        return "\n".join(
            [head + ("no fault" if not self.faults else f"{len(self.faults)} faults")]
            + [f"  {fault}" for fault in self.faults]
        )

"""Checkpoints: folders of files that appear complete, of which the newest few are kept.

    checkpoints/
      000002-000000340    epoch 2, after 340 of its steps
        state.json ...

Always true: a process killed at any moment, or a machine that loses power, leaves the checkpoints that were
there and perhaps the new one, never a part of it: files are written beside, flushed to the disk, then
renamed. What was begun and not finished is removed by the next save.

Trade-off: one process writes a folder; two would remove each other's unfinished checkpoints.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featurestore.errors import CorruptionError, FormatError, InvalidInputError
from training.durable import flush

STATE: Final = "state.json"
STATE_VERSION: Final = 1
_NAME: Final = re.compile(r"\d{6,}-\d{9,}")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints in a folder, which is made when the first is saved.

    Parameters
    ----------
    folder : Path
    keep : int
        How many of the newest stay.

    Raises
    ------
    InvalidInputError
        If ``keep`` is not at least 1.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> scratch = TemporaryDirectory()
    >>> checkpoints = Checkpoints(Path(scratch.name) / "run", keep=1)
    >>> for step in (10, 20):
    ...     _ = checkpoints.save(0, step, lambda folder: write_state(folder, {"a": 1}))
    >>> [one.name for one in checkpoints.all()], read_state(checkpoints.newest())
    (['000000-000000020'], {'version': 1, 'a': 1})
    >>> scratch.cleanup()
    """

    folder: Path
    keep: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or self.keep < 1:
            raise InvalidInputError(f"keep={self.keep!r} checkpoints", "keep at least 1")

    def all(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (one for one in self.folder.iterdir() if _NAME.fullmatch(one.name))
        return sorted(found, key=lambda one: tuple(map(int, one.name.split("-"))))

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, None if there is none."""
        found = self.all()
        return found[-1] if found else None

    def save(self, epoch: int, step: int, write: Callable[[Path], None]) -> Path:
        """Save a checkpoint of a place in training; ``write`` fills an empty folder with files.

        One that is there already for this place stays.
        """
        target = self.folder / f"{epoch:06}-{step:09}"
        if target.exists():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        building = self.folder / f".building-{uuid.uuid4().hex[:8]}"
        building.mkdir()
        try:
            write(building)
            for one in (*building.iterdir(), building):
                flush(one)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        flush(self.folder)
        for old in self.all()[: -self.keep]:
            # Renamed first: what is half removed must not look complete.
            gone = self.folder / f".removing-{old.name}"
            old.rename(gone)
            shutil.rmtree(gone)
        return target

    def _remove_unfinished(self) -> None:
        for pattern in (".building-*", ".removing-*"):
            for one in self.folder.glob(pattern):
                shutil.rmtree(one)


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint's own facts as JSON."""
    content = json.dumps({"version": STATE_VERSION, **state}, indent=1)
    (folder / STATE).write_text(content, "utf-8")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return what :func:`write_state` wrote.

    Raises
    ------
    CorruptionError, FormatError
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text("utf-8"))
        version = state["version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise damaged(checkpoint, error) from error
    if version != STATE_VERSION:
        raise FormatError(
            f"checkpoint {checkpoint} has format version {version!r}, this package reads "
            f"{STATE_VERSION}",
            "use the version of featurestore that wrote it, or train anew in another folder",
        )
    return state


def damaged(checkpoint: Path, why: object) -> CorruptionError:
    """Return the error to raise for a checkpoint that cannot be used."""
    return CorruptionError(
        f"checkpoint {checkpoint} cannot be read: {why}",
        "delete that folder: training goes on from the checkpoint before it, or begins anew",
    )

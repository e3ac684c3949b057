"""The folder of a comparison: made, kept from a second process, and gone on with.

    comparison/
      compare.json       the resolved configuration, snapshot, task and leaks; from the first cell on

Always true: one process at a time works in it. The lock is the kernel's, so that it goes with the process that
has it, however that ends.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from featurestore.errors import CorruptionError, InvalidInputError, NameTakenError
from training.comparison.config import CompareConfig
from training.durable import building, read_json, write_json
from training.unfinished import different_keys

COMPARISONS: Final = Path("comparisons")
"""Where comparisons go that are not told where."""
_BEGUN: Final = "compare.json"
_SNAPSHOT: Final = "data.snapshot"


@dataclass(frozen=True, slots=True)
class Begun:
    """What a comparison was begun with.

    Parameters
    ----------
    snapshot : str
        Of the store, which all cells see.
    task : str
    leaks : tuple of str
        Features that know what was not known yet.
    unchecked : mapping of str to str
        Features that were not checked for that, and why.
    """

    snapshot: str
    task: str
    leaks: tuple[str, ...] = ()
    unchecked: Mapping[str, str] = field(default_factory=dict)


def folder_of(config: CompareConfig, output: str | Path | None, *, resume: bool) -> Path:
    """Return the folder that a comparison is to have.

    Raises
    ------
    InvalidInputError
        If a comparison is to go on, and nobody says which.
    """
    if output is not None:
        return Path(output).expanduser()
    if resume:
        raise InvalidInputError(
            "there is no telling which comparison to go on with", "name its folder as output"
        )
    now = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
    return COMPARISONS / f"{now}-{config.run.data.table}-{uuid.uuid4().hex[:4]}"


def begun(folder: Path, config: CompareConfig, *, resume: bool) -> Begun | None:
    """Return what a folder's comparison was begun with; None if there is none.

    Raises
    ------
    NameTakenError
        If the folder is of something else, or of a comparison that is not to go on.
    CorruptionError
        If what it was begun with cannot be read.
    InvalidInputError
        If there can be no such folder.
    """
    with written(folder):
        if not folder.exists():
            return None
    if not (folder / _BEGUN).is_file():
        # Killed while that file was written, it holds the beginning of one.
        if folder.is_dir() and {one.name for one in folder.iterdir()} <= {building(_BEGUN)}:
            return None
        raise NameTakenError(
            f"{folder} exists and is no comparison", "name another output, or delete it"
        )
    if not resume:
        raise NameTakenError(
            f"{folder} holds a comparison already",
            "go on with it with --resume (resume=True), name another output, or delete it",
        )
    return _gone_on_with(folder, config)


def _gone_on_with(folder: Path, config: CompareConfig) -> Begun:
    remedy = f"delete {folder}, or name another output"
    content = read_json(folder / _BEGUN, remedy)
    known, wanted = content.get("config"), config.to_json()
    if not isinstance(known, Mapping) or not all(
        isinstance(one, Mapping) for one in known.values()
    ):
        raise CorruptionError(f"{folder / _BEGUN} holds no configuration", remedy)
    leaks, unchecked = content.get("leaks", []), content.get("unchecked", {})
    if not isinstance(leaks, list) or not isinstance(unchecked, Mapping):
        raise CorruptionError(f"{folder / _BEGUN} does not say what leaks", remedy)
    found = Begun(content.get("snapshot", ""), content.get("task", ""), tuple(leaks), unchecked)
    if not all(isinstance(one, str) and one for one in (found.snapshot, found.task)):
        raise CorruptionError(f"{folder / _BEGUN} names no snapshot or no task", remedy)
    different = different_keys(known, wanted)
    if different == [_SNAPSHOT]:  # somebody wrote to the store meanwhile
        version = known["data"].get("snapshot") or found.snapshot
        raise NameTakenError(
            f"{folder} compares at version {version} of the store, and the table given is at "
            f"{config.run.data.snapshot}",
            f"go on with store.checkout({version!r}).table({config.run.data.table!r}), or name another "
            "output",
        )
    if different:
        raise NameTakenError(
            f"{folder} is of another comparison: {different} differ",
            "name another output, or undo the change",
        )
    return found


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, and keep others from working in it inside the block.

    Raises
    ------
    NameTakenError
        If another process works in it.
    InvalidInputError
        If it cannot be made.
    """
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NameTakenError(
                f"another process works on the comparison {folder}",
                "wait for it, or name another output",
            ) from error
        yield
    finally:
        os.close(handle)


def note(folder: Path, config: CompareConfig, found: Begun) -> None:
    """Write what a comparison is begun with."""
    with written(folder):
        write_json(
            folder / _BEGUN,
            {
                "snapshot": found.snapshot,
                "task": found.task,
                "leaks": list(found.leaks),
                "unchecked": dict(found.unchecked),
                "config": config.to_json(),
            },
        )


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Say in words that a path cannot be written, inside the block.

    Raises
    ------
    InvalidInputError
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise InvalidInputError(
            f"{path} cannot be written: {error}",
            "name an output in a folder that can be written to, on a disk with room",
        ) from error

"""Runs that were begun and did not end: a hidden folder beside the run folder to be, with its checkpoints.

    runs/.first.unfinished/
      config.json       the resolved configuration      begun.json    snapshot it trains on, measured choices
      checkpoints/      see ``checkpoints``

Always true: it is there from before training until the run folder is complete, and goes with it; a run that
fails before its first checkpoint leaves none.

Trade-off: one process works on a run; a second one that resumes it meanwhile is not noticed.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from featurestore.errors import CorruptionError, InvalidInputError, NameTakenError
from training.checkpoints import Checkpoints
from training.config import RunConfig
from training.durable import read_json, write_json

UNFINISHED: Final = ".unfinished"
FREE: Final = {
    "data": {"memory_limit"},
    "loader": {"cache_limit", "hold"},
    "train": {"epochs", "checkpoint_steps", "checkpoint_keep", "tensorboard"},
}
"""Keys that may differ when a run goes on."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The working folder of a run.

    Parameters
    ----------
    path : Path
    target : Path
        The run folder to be.
    """

    path: Path
    target: Path

    @classmethod
    def of(cls, target: Path) -> Unfinished:
        return cls(target.with_name(f".{target.name}{UNFINISHED}"), target)

    @classmethod
    def newest(cls, config: RunConfig, runs: Path) -> Unfinished | None:
        """Return the newest unfinished run of a configuration among ``runs``."""
        found = [
            (one.stat().st_mtime_ns, cls(one, runs / one.name[1 : -len(UNFINISHED)]))
            for one in runs.glob(f".*{UNFINISHED}")
            if (one / "config.json").exists()
        ]
        for _, one in sorted(found, key=lambda pair: pair[0], reverse=True):
            try:
                if not one.differences(config):
                    return one
            except CorruptionError as error:
                warnings.warn(f"left alone: {error}", stacklevel=2)
        return None

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def has_checkpoints(self) -> bool:
        return Checkpoints(self.checkpoints).newest() is not None

    def differences(self, config: RunConfig) -> list[str]:
        """Return the keys, as ``train.seed``, in which a configuration is not this run's."""
        return different_keys(self._read(self.path / "config.json"), config.to_json())

    def begun(self) -> dict[str, Any]:
        """Return what was found out when the run began: see :meth:`note`."""
        path = self.path / "begun.json"
        return self._read(path) if path.exists() else {}

    def note(self, **facts: Any) -> None:
        """Remember facts that the run is to go on with."""
        write_json(self.path / "begun.json", {**self.begun(), **facts})

    def check(self, config: RunConfig, *, resume: bool) -> None:
        """Refuse to go on with what is there, if it is another run or was not asked for.

        Raises
        ------
        NameTakenError, InvalidInputError
        """
        if not self.has_checkpoints:
            return
        if not resume:
            raise NameTakenError(
                f"{self.target} was begun and is not finished",
                f"go on with --resume, name another output, or delete {self.path}",
            )
        different = self.differences(config)
        if different:
            raise InvalidInputError(
                f"{self.target} was begun with another configuration: {different} differ",
                f"restore them, name another output, or delete {self.path} to begin anew",
            )

    @contextmanager
    def open(self, config: RunConfig) -> Iterator[None]:
        """Have the folder inside the block; it stays after an error if it holds a checkpoint."""
        if not self.has_checkpoints:
            shutil.rmtree(self.path, ignore_errors=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "config.json", config.to_json())
        except OSError as error:
            raise InvalidInputError(
                f"the run {self.target} cannot be written: {error}",
                "name an output in a folder that can be written to",
            ) from error
        try:
            yield
        except BaseException:
            if not self.has_checkpoints:
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        shutil.rmtree(self.path)

    def discard(self) -> None:
        """Remove the folder, if it is there."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _read(self, path: Path) -> dict[str, Any]:
        return read_json(path, f"delete {self.path} to begin anew")


def different_keys(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two resolved configurations differ, free ones left out.

    A key that one of them lacks, as those of older runs may, has its default.
    """
    defaults = RunConfig.defaults()

    def value(config: Mapping[str, Any], section: str, key: str) -> Any:
        return config.get(section, {}).get(key, defaults.get(section, {}).get(key))

    return [
        f"{section}.{key}"
        for section in sorted({*one, *other})
        for key in sorted({*one.get(section, {}), *other.get(section, {})})
        if key not in FREE.get(section, set())
        and value(one, section, key) != value(other, section, key)
    ]

"""Keras: all variables of a model and its optimizer as files, and back into a model that was made alike.

    model.weights.h5    Keras' own format: weights and optimizer
    rest.npz            what Keras leaves out: seed generators, and metrics of the epoch under way

Always true: what is read back has the digest that was taken when it was written, over every variable; nothing
that is read runs code. One variable at a time is copied.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR, global_seed_generator

from featurestore.errors import DiskFullError, InvalidInputError
from featurestore.fingerprint import fingerprint
from featurestore.units import format_bytes
from training.checkpoints import damaged
from training.hooks.keras import keras

WEIGHTS: Final = "model.weights.h5"
REST: Final = "rest.npz"
_OF_FILES: Final = 8192
"""Bytes that a variable takes in files beside its values, at most."""


@dataclass(frozen=True, slots=True)
class Written:
    """What is to be remembered of a written state: which variables there are, and their digest."""

    shapes: str
    digest: str


def write(model: Any, folder: Path) -> Written:
    """Write all variables of a compiled model into a folder."""
    _require_room(model, folder)
    model.save_weights(folder / WEIGHTS)
    metrics = {f"metric_{i:06}": one for i, one in enumerate(model.metrics_variables)}
    rest = {name: _numpy(one) for name, one in {**_seeds(model), **metrics}.items()}
    with (folder / REST).open("wb") as file:
        np.savez(file, allow_pickle=False, **rest)
    return Written(_shapes(model), _digest(itertools.chain(_kept(model), _metrics(rest))))


def read(model: Any, folder: Path, written: Written) -> list[Any]:
    """Put a model, all of whose variables are made, in the state that was written.

    Returns
    -------
    list of arrays
        Values of the model's metrics, which are not set: ``fit`` resets them as it begins.

    Raises
    ------
    InvalidInputError
        If it was another model.
    CorruptionError
    """
    rest = _read_rest(folder)
    if "global_seed" in rest:
        global_seed_generator()  # makes it
    if _shapes(model) != written.shapes:
        raise InvalidInputError(
            f"checkpoint {folder} is of another model: its variables have other shapes",
            "make and compile the model as then, or name another folder",
        )
    load_weights(model, folder / WEIGHTS)
    for name, variable in _seeds(model).items():
        variable.assign(rest[name])
    metrics = _metrics(rest)
    if _digest(itertools.chain(_kept(model), metrics)) != written.digest:
        raise damaged(folder, "its variables do not have the digest that was written with them")
    return metrics


def load_weights(model: Any, path: Path) -> None:
    """Load a file of weights and optimizer.

    Raises
    ------
    CorruptionError
    """
    with warnings.catch_warnings():
        # Keras warns of what a file lacks and goes on; the digest says so afterwards.
        warnings.simplefilter("ignore", UserWarning)
        try:
            model.load_weights(path)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise damaged(path.parent, error) from error


def _require_room(model: Any, folder: Path) -> None:
    """Refuse to write what the disk has no room for: HDF5 ends the process where it cannot write."""
    size = sum(math.prod(one.shape) * 8 for one in (*model.variables, *model.optimizer.variables))
    needed = size + _OF_FILES * (len(model.variables) + len(model.optimizer.variables) + 1)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"a checkpoint in {folder.parent} may take {format_bytes(needed)} and the disk has "
            f"{format_bytes(free)} left",
            "make room, or name a folder on another disk",
        )


def _seeds(model: Any) -> dict[str, Any]:
    """Return the state of a model's seed generators, and of Keras' own, used where there is no seed."""
    known = {id(one) for one in model.weights}
    found = [one for one in model.variables if id(one) not in known]
    seeds = {f"seed_{i}": one for i, one in enumerate(found)}
    shared = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    return seeds if shared is None else {**seeds, "global_seed": shared.state}


def _metrics(rest: dict[str, Any]) -> list[Any]:
    return [value for name, value in sorted(rest.items()) if name.startswith("metric_")]


def _kept(model: Any) -> Iterator[Any]:
    """Yield all variables that decide how training goes on, as NumPy, one at a time."""
    for one in (*model.weights, *model.optimizer.variables, *_seeds(model).values()):
        yield _numpy(one)


def _shapes(model: Any) -> str:
    """Return a fingerprint of what variables there are; their names differ from run to run."""
    metrics = model.metrics_variables
    found = (*model.weights, *model.optimizer.variables, *_seeds(model).values(), *metrics)
    return fingerprint(*(f"{one.dtype}{tuple(one.shape)}" for one in found))


def _numpy(variable: Any) -> Any:
    return np.asarray(keras.ops.convert_to_numpy(variable))


def _digest(values: Iterator[Any]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for one in values:
        found.update(f"{one.dtype}{one.shape}".encode())
        found.update(np.ascontiguousarray(one).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _read_rest(folder: Path) -> dict[str, Any]:
    try:
        with (folder / REST).open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise damaged(folder, error) from error

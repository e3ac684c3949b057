"""FromArray: rows of an array on disk, chosen by a column, as a tensor.

Embeddings often come as one file beside the data, ``embeddings.npy``, and a column that says which of
its rows belongs to which row of the table. Always true: values are those of the file as it was when the
feature was defined; a file that changed since is refused. Trade-off: the file is copied into the table,
so that the golden set stays whole when it is moved away.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa

from featurestore.arguments import shown
from featurestore.engines.arrow import HostArray
from featurestore.engines.protocol import Engine
from featurestore.errors import DefinitionError, InvalidInputError, SchemaError
from featurestore.fingerprint import Json, fingerprint
from featurestore.schema import Field, TableSchema
from featurestore.transforms.base import (
    Columns,
    Partition,
    Scope,
    Slicing,
    State,
    Transformer,
    encode,
)
from featurestore.transforms.extent import Extent
from featurestore.transforms.footprint import fixed_bytes

_READ: Final = 4 * 2**20
_TYPES: Final = tuple(
    [f"{kind}{bits}" for bits in (8, 16, 32, 64) for kind in ("int", "uint")]
    + [f"float{bits}" for bits in (16, 32, 64)]
)
_MOST_NUMBERS: Final = 2**31
"""In one row."""
_checked: Final[dict[tuple[str, int, int], str]] = {}
"""Digests of files that this process has read, by path, size and time of change."""


@dataclass(frozen=True, init=False)
class FromArray(Transformer):
    """The row of an array that a column names, as a tensor of the array's type.

    Scope: none; no state. Null rule: a null, a negative position and one beyond the array give
    ``fill_value`` throughout. Boundary rule: a value depends on the row's own position only.
    State: none. Memory: 9 bytes per row, and the rows of the array that are taken; the array itself is
    mapped, not read.

    Parameters
    ----------
    path : str or Path
        An ``.npy`` file with an array ``[n, ...]`` of numbers, on a disk that every worker sees.
    index : str
        An integer column: positions in the array, from 0.
    fill_value : float, optional
        By default NaN for floats, 0 for integers.
    output : str, optional
        By default the file's name without ``.npy``.

    Raises
    ------
    InvalidInputError
        If the file cannot be read as an array of numbers, or changed since the feature was defined.

    Examples
    --------
    >>> import tempfile
    >>> from featurestore.engines.selection import get_engine
    >>> engine = get_engine("polars")
    >>> schema = TableSchema((Field("article", pa.int64()),))
    >>> part = Partition(engine.from_arrow(pa.table({"article": [1, None, 0]})), schema)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "topics.npy"
    ...     np.save(path, np.array([[1, 2], [3, 4]], dtype="float32"))
    ...     FromArray(path, "article", fill_value=0).apply(part, {}, engine).tensors["topics"].tolist()
    [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]
    """

    path: str
    index: str
    output: str
    fill_value: float | None
    digest: str
    dtype: str
    shape: tuple[int, ...]

    stored_as: ClassVar[Mapping[str, str]] = {"fill_value": "missing"}

    def __init__(
        self,
        path: str | Path,
        index: str,
        *,
        fill_value: float | None = None,
        output: str | None = None,
    ) -> None:
        whole = str(Path(path).expanduser().absolute())
        array = _mapped(whole)
        floats = array.dtype.kind == "f"
        values: dict[str, Any] = {
            "path": whole,
            "index": index,
            "output": Path(whole).stem if output is None else output,
            # NaN is the default of floats; as such it equals itself.
            "fill_value": None if floats and math.isnan(fill_value or 0) else fill_value,
            "digest": _digest(whole),
            "dtype": array.dtype.name,
            "shape": tuple(int(one) for one in array.shape[1:]),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        for name in ("path", "index", "output", "digest"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise DefinitionError(f"FromArray has {name}={shown(value)}", "give a text")
        sizes = isinstance(self.shape, tuple) and all(
            type(one) is int and one >= 0 for one in self.shape
        )
        if self.dtype not in _TYPES or not sizes or math.prod(self.shape) > _MOST_NUMBERS:
            raise DefinitionError(
                f"FromArray has rows {self.shape!r} of type {self.dtype!r}",
                f"write an array of {', '.join(_TYPES)} with numpy.save",
            )
        _ = self._fill  # says now what cannot be filled in

    def __hash__(self) -> int:
        return hash(self.fingerprint())

    @property
    def scope(self) -> Scope:
        return Scope.NONE

    @property
    def slicing(self) -> Slicing:
        return Slicing.ROWS

    @property
    def _fill(self) -> Any:
        dtype = np.dtype(self.dtype)
        if self.fill_value is None:
            return dtype.type(np.nan if dtype.kind == "f" else 0)
        with np.errstate(over="ignore", invalid="ignore"):
            held = np.float64(self.fill_value).astype(dtype)
        if dtype.kind != "f" and float(held) != float(self.fill_value):
            raise DefinitionError(
                f"FromArray cannot fill {self.dtype} with fill_value={self.fill_value!r}",
                "give a value of the array's type",
            )
        return held

    def inputs(self, schema: TableSchema) -> tuple[str, ...]:
        one = schema[self.index]
        if one.is_tensor or not pa.types.is_integer(one.type):
            raise SchemaError(
                f"FromArray takes positions; column {self.index!r} is {one.type}",
                "name an integer column, or cast it",
            )
        return (self.index,)

    def outputs(self, schema: TableSchema) -> tuple[Field, ...]:
        self.inputs(schema)
        return (Field(self.output, pa.from_numpy_dtype(np.dtype(self.dtype)), self.shape),)

    def apply(self, partition: Partition, state: State, engine: Engine) -> Columns:
        if _digest(self.path) != self.digest:
            raise InvalidInputError(
                f"array {self.path} is not the one that feature {self.output!r} was defined with",
                "put it back, or define the feature again with replace=True",
            )
        array = _mapped(self.path)
        values, valid = engine.values(partition.frame[self.index])
        positions, known = engine.to_host(values), engine.to_host(valid)
        known = known & (positions >= 0) & (positions < len(array))
        out = np.full((len(positions), *self.shape), self._fill, self.dtype)
        out[known] = array[positions[known]]
        return Columns(tensors={self.output: engine.from_host(out)})

    def memory(self, schema: TableSchema, extent: Extent) -> int:
        return 20 * extent.rows + self.output_bytes(schema, extent)

    def output_bytes(self, schema: TableSchema, extent: Extent) -> int:
        return sum(fixed_bytes(one, extent.rows) for one in self.outputs(schema))

    def fingerprint(self) -> str:
        """Return the fingerprint of what makes its values: the array's content, not its place."""
        values: list[Json] = [
            self.index,
            self.output,
            encode(self.fill_value),
            self.digest,
            self.dtype,
            encode(self.shape),
        ]
        return fingerprint("definition", "FromArray", self.version, values)


def _mapped(path: str) -> HostArray:
    """Return the array of a file without reading it; objects in it are refused, never loaded."""
    try:
        array: HostArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInputError(
            f"{path} cannot be read as an array: {error}", "write it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim < 2 or array.dtype.kind not in "iuf":
        shown = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no .npy file"
        raise InvalidInputError(
            f"{path} holds {shown}", "write an array [n, ...] of integers or floats with numpy.save"
        )
    return array


def _digest(path: str) -> str:
    """Return the digest of a file's bytes; they are read once per process, unless the file changes."""
    try:
        about = os.stat(path)  # noqa: PTH116 - what a definition holds is text
        if not stat.S_ISREG(about.st_mode):  # a device has no end
            raise InvalidInputError(f"array {path} is no file", "put the file where it was")
        key = (path, about.st_size, about.st_mtime_ns)
        if key not in _checked:
            digest = hashlib.blake2b(digest_size=16)
            with open(path, "rb") as file:  # noqa: PTH123
                while piece := file.read(_READ):
                    digest.update(piece)
            _checked[key] = digest.hexdigest()
    except OSError as error:
        raise InvalidInputError(
            f"array {path} cannot be read: {error}", "put the file where it was"
        ) from error
    return _checked[key]

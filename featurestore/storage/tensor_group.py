"""Tensor columns as Zarr v3 arrays: one array per column and partition, chunked along the rows.

Chunks are neither compressed nor sharded, so a chunk file is exactly the C-order bytes of its rows;
the array is written and read without the zarr package, and any Zarr reader opens it. Chunks are
whole: the last one is padded with zeros, as the format asks. All chunk files exist and are listed
in the partition's entry with their checksums, because a missing chunk would silently read as zeros.

Reads of whole chunks are compared with their checksums. A read that takes only part of a chunk is
checked for sizes only; ``verify`` reads everything. That is the price of not reading 16 MiB for one
row.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from featurestore.errors import CorruptionError, InvalidInputError, NotFoundError, SchemaError
from featurestore.fingerprint import canonical_json
from featurestore.storage.checksum import hasher_of, is_checksum, write_data
from featurestore.storage.fileset import read_checked
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, StoredFile

CHUNK_BYTES: Final = 16 * 2**20
_TYPES: Final = frozenset(
    [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    + ["float16", "float32", "float64"]
)
_METADATA_BYTES: Final = 64 * 2**10
_REMEDY: Final = "restore it from a backup, or build the feature again"


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """What ``zarr.json`` says: element type, shape of the whole array, rows per chunk."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk_rows: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def chunk_bytes(self) -> int:
        """The bytes of every chunk file."""
        return self.chunk_rows * self.row_bytes

    @property
    def chunks(self) -> int:
        return -(-self.shape[0] // self.chunk_rows)

    def metadata(self, column: str) -> bytes:
        """Return the bytes of ``zarr.json``; the column's name is kept as an attribute."""
        rank = len(self.shape)
        swaps = self.dtype.itemsize > 1
        return canonical_json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": list(self.shape),
                "data_type": self.dtype.name,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [self.chunk_rows, *self.shape[1:]]},
                },
                # One directory per array: nested chunk directories would each need a sync.
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": 0.0 if self.dtype.kind == "f" else 0,
                "codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}}
                    if swaps
                    else {"name": "bytes"}
                ],
                "attributes": {"column": column},
                "storage_transformers": [],
                "dimension_names": ["row", *[None] * (rank - 1)],
            }
        )

    @classmethod
    def parse(cls, data: bytes, path: str) -> TensorLayout:
        """Read ``zarr.json``: anything that means an array as this package writes them.

        Further attributes, names of dimensions, and members that say of themselves that readers need
        not understand them, change nothing and are passed over.

        Raises
        ------
        CorruptionError
            If it is malformed, or means another array: other chunks or keys, other codecs than
            little-endian bytes, transformers, or a fill value other than 0.
        """
        try:
            content = json.loads(data)
            dtype, shape = content["data_type"], tuple(content["shape"])
            chunk_rows = content["chunk_grid"]["configuration"]["chunk_shape"][0]
            if dtype not in _TYPES or any(type(one) is not int for one in (*shape, chunk_rows)):
                raise ValueError(f"{dtype!r} of shape {shape} in chunks of {chunk_rows!r} rows")
            if len(shape) < 2 or shape[0] < 0 or min(*shape[1:], chunk_rows) < 1:
                raise ValueError(f"shape {shape} in chunks of {chunk_rows} rows")
            if not isinstance(content["attributes"]["column"], str):
                raise ValueError(f"column {content['attributes']['column']!r}")
            found = cls(np.dtype(dtype), shape, chunk_rows)
            differing = found._differing(content)
        except (
            ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError,
        ) as error:  # fmt: skip
            raise CorruptionError(f"{path} is no metadata of an array: {error}", _REMEDY) from error
        if differing:
            raise CorruptionError(
                f"{path} means another array than this package writes: {', '.join(differing)} differ",
                _REMEDY,
            )
        return found

    def _differing(self, content: dict[str, Any]) -> list[str]:
        """Return the members that mean something else than those of :meth:`metadata`."""
        own = json.loads(self.metadata(""))
        given = {"storage_transformers": [], **content}
        if self.dtype.itemsize == 1 and [one["name"] for one in given["codecs"]] == ["bytes"]:
            given["codecs"] = own["codecs"]  # a single byte has no order
        passed = {"attributes", "dimension_names"}
        passed |= {
            name
            for name, one in given.items()
            if name not in own and isinstance(one, dict) and one.get("must_understand") is False
        }
        names = (own.keys() | given.keys()) - passed
        return sorted(name for name in names if name not in own or given[name] != own[name])


class TensorWriter:
    """Writes one column of one partition as a Zarr array, in runs of rows; nothing is synced.

    At most one chunk is in memory: rows that do not fill one wait for the next ones.

    Parameters
    ----------
    store : ObjectStore
    directory : str
        The array's folder, ending in ``.zarr``; must not exist.
    column : str
        Its name, for people who open the array.
    layout : TensorLayout
        With the number of rows to come.
    """

    def __init__(
        self, store: ObjectStore, directory: str, column: str, layout: TensorLayout
    ) -> None:
        self._store = store
        self._directory = directory
        self._column = column
        self._layout = layout
        self._dtype = layout.dtype.newbyteorder("<")
        self._files = [write_data(store, f"{directory}/zarr.json", layout.metadata(column))]
        self._begun: npt.NDArray[Any] | None = None
        self._rows = 0

    def write(self, values: npt.NDArray[Any]) -> None:
        """Write the next rows.

        Raises
        ------
        SchemaError
            If element type or inner shape are not those of the layout.
        """
        found = values.dtype.newbyteorder("="), values.shape[1:]
        if found != (self._layout.dtype, self._layout.shape[1:]):
            raise SchemaError(
                f"rows of tensor {self._column!r} have type and shape {found}, the rows before "
                f"{(self._layout.dtype, self._layout.shape[1:])}",
                "give all rows of a column one type and shape",
            )
        size, done = self._layout.chunk_rows, 0
        while done < len(values):
            filled = self._rows % size
            part = values[done : done + size - filled]
            self._rows += len(part)
            done += len(part)
            if len(part) == size:
                self._write_chunk(np.ascontiguousarray(part, dtype=self._dtype))
                continue
            if self._begun is None:
                self._begun = np.zeros((size, *self._layout.shape[1:]), dtype=self._dtype)
            self._begun[filled : filled + len(part)] = part
            if filled + len(part) == size:
                self._write_begun()

    def finish(self) -> tuple[StoredFile, ...]:
        """Write what is left; return ``zarr.json``, then the chunks in order.

        Raises
        ------
        InvalidInputError
            If there were fewer or more rows than the layout says.
        """
        if self._rows != self._layout.shape[0]:
            raise InvalidInputError(
                f"tensor {self._column!r} got {self._rows} rows, {self._layout.shape[0]} were due"
            )
        if self._begun is not None:
            self._write_begun()
        return tuple(self._files)

    def _write_begun(self) -> None:
        begun, self._begun = self._begun, None
        assert begun is not None
        self._write_chunk(begun)

    def _write_chunk(self, chunk: npt.NDArray[Any]) -> None:
        suffix = ".0" * (len(self._layout.shape) - 1)
        path = f"{self._directory}/c.{len(self._files) - 1}{suffix}"
        data = chunk.reshape(-1).view(np.uint8).data
        self._files.append(write_data(self._store, path, data))


def tensor_layout(column: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> TensorLayout:
    """Return how an array is laid out: equal chunks of at most about 16 MiB, at least one row each.

    Raises
    ------
    SchemaError
        If it has no row dimension, an empty inner dimension, or elements that are not numbers.
    """
    dtype = dtype.newbyteorder("=")
    if dtype.name not in _TYPES:
        raise SchemaError(
            f"tensor {column!r} has elements of type {dtype}", f"use one of {sorted(_TYPES)}"
        )
    if len(shape) < 2 or 0 in shape[1:]:
        raise SchemaError(
            f"tensor {column!r} has shape {shape}",
            "it needs a row dimension and inner dimensions of at least 1",
        )
    rows, row_bytes = shape[0], math.prod(shape[1:]) * dtype.itemsize
    chunks = max(1, -(-rows * row_bytes // CHUNK_BYTES))
    return TensorLayout(dtype, shape, max(1, -(-rows // chunks)))


def read_tensor(
    store: ObjectStore,
    entry: PartitionEntry,
    name: str,
    start: int = 0,
    stop: int | None = None,
) -> npt.NDArray[Any]:
    """Return rows of a tensor column.

    Parameters
    ----------
    store : ObjectStore
    entry : PartitionEntry
    name : str
        The column.
    start, stop : int
        The rows ``start <= row < stop``; ``None`` is the end of the partition.

    Returns
    -------
    array of shape ``[stop - start, ...]``
        A new, writable array in C order and native byte order.

    Raises
    ------
    NotFoundError
        If the partition has no such tensor.
    InvalidInputError
        If the range is not within the partition.
    CorruptionError
        If a file is missing, has the wrong size, or (read as a whole) the wrong bytes.
    """
    files = _tensor_files(entry, name)
    layout = stored_layout(store, entry, name)
    stop = entry.rows if stop is None else stop
    if not 0 <= start <= stop <= entry.rows:
        raise InvalidInputError(
            f"rows {start} to {stop} are not within partition {entry.partition} of {entry.rows}"
        )
    out = np.empty((stop - start, *layout.shape[1:]), dtype=layout.dtype)
    flat = out.reshape(-1).view(np.uint8).data if out.size else memoryview(b"")
    for index in range(start // layout.chunk_rows, -(-stop // layout.chunk_rows)):
        first = index * layout.chunk_rows
        low = max(start, first)
        high = min(stop, first + layout.chunk_rows)
        if low < high:
            target = flat[(low - start) * layout.row_bytes : (high - start) * layout.row_bytes]
            # Reaching the partition's end takes the padding along, to check the whole file.
            whole = low == first and high == min(entry.rows, first + layout.chunk_rows)
            _read_chunk(store, files[1 + index], (low - first) * layout.row_bytes, target, whole)
    if sys.byteorder == "big":
        out.byteswap(inplace=True)
    return out


def open_tensor(store: ObjectStore, entry: PartitionEntry, name: str) -> Any:
    """Return a tensor column of one partition as a read-only ``zarr.Array``, nothing read yet.

    The files are looked at, as zarr takes a missing chunk for zeros; their bytes are not compared
    with checksums when the array is read.

    Raises
    ------
    NotFoundError
        If the group has no such tensor.
    CorruptionError
        If its metadata are not those of a tensor that was written, or a file is missing or has
        another size.
    """
    import zarr

    stored_layout(store, entry, name)  # zarr is about to parse the same file
    metadata, *chunks = _tensor_files(entry, name)
    folder, _, file = metadata.path.rpartition("/")
    if file != "zarr.json":
        raise CorruptionError(f"{metadata.path} is no metadata of a Zarr array", _REMEDY)
    for chunk in chunks:
        _require_size(store, chunk)
    try:
        return zarr.open_array(store.zarr_store(), path=folder, mode="r")
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise CorruptionError(f"{metadata.path} cannot be opened: {error}", _REMEDY) from error


def _require_size(store: ObjectStore, file: StoredFile) -> None:
    try:
        size = store.size(file.path)
    except NotFoundError as error:
        raise CorruptionError(f"{file.path} is missing", _REMEDY) from error
    if size != file.bytes:
        raise CorruptionError(f"{file.path} has {size} bytes, not {file.bytes}", _REMEDY)


def _read_chunk(
    store: ObjectStore, file: StoredFile, start: int, target: memoryview, whole: bool
) -> None:
    """Fill ``target`` with the bytes of a chunk file from ``start`` on."""
    _require_size(store, file)
    try:
        with store.open_read(file.path) as stream:
            stream.seek(start)
            _fill(stream, target, file.path)
            if whole:
                hasher = hasher_of(file)
                hasher.update(target)
                hasher.update(stream.read())
                if not is_checksum(hasher, file):
                    raise CorruptionError(f"{file.path} does not match its checksum", _REMEDY)
    except NotFoundError as error:
        raise CorruptionError(f"{file.path} is missing", _REMEDY) from error


def _fill(stream: BinaryIO, target: memoryview, path: str) -> None:
    done = 0
    while done < len(target):
        count: int = stream.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise CorruptionError(f"{path} ends too early", _REMEDY)
        done += count


def _tensor_files(entry: PartitionEntry, name: str) -> Sequence[StoredFile]:
    if name not in entry.tensors:
        raise NotFoundError(
            f"partition {entry.partition} holds no tensor {name!r}",
            f"its tensors are {sorted(entry.tensors)}",
        )
    return entry.tensors[name]


def stored_layout(store: ObjectStore, entry: PartitionEntry, name: str) -> TensorLayout:
    """Return a tensor's layout, checked against the partition and its files.

    Raises
    ------
    CorruptionError
        If rows, chunks and their sizes do not fit.
    """
    files = _tensor_files(entry, name)
    if not files or files[0].bytes > _METADATA_BYTES:
        raise CorruptionError(
            f"tensor {name!r} of partition {entry.partition} has no usable metadata", _REMEDY
        )
    layout = _cached_layout(_ByUrl(store), files[0])
    sizes = {file.bytes for file in files[1:]}
    if (
        layout.shape[0] != entry.rows
        or len(files) - 1 != layout.chunks
        or sizes - {layout.chunk_bytes}
    ):
        raise CorruptionError(
            f"tensor {name!r} of partition {entry.partition}: {entry.rows} rows in "
            f"{len(files) - 1} chunks of {sorted(sizes)} bytes do not fit shape {layout.shape} in "
            f"chunks of {layout.chunk_rows} rows",
            _REMEDY,
        )
    return layout


class _ByUrl:
    """A store as a cache key: equal if it names the same place."""

    __slots__ = ("store",)

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def __hash__(self) -> int:
        return hash(self.store.url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByUrl) and other.store.url == self.store.url


@lru_cache(maxsize=4096)
def _cached_layout(key: _ByUrl, file: StoredFile) -> TensorLayout:
    return TensorLayout.parse(read_checked(key.store, file), file.path)

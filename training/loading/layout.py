"""How a pack lies on disk: names of its directories, its Zarr metadata, its manifest.

Each array is a Zarr v3 array of one shard: blocks of ``block_rows`` rows, uncompressed, one after
the other in one file, and their index at the end. So the file begins with the array's bytes in C
order, which can be mapped as they are, and any Zarr reader opens it block by block.

Always true: paths are made from column names here, never read from a manifest; the manifest carries a
checksum of itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from featurestore.dataset.batch import Batch, DatasetSchema, HostArray, Input
from featurestore.dataset.ragged import Ragged
from featurestore.errors import CorruptionError, SchemaError
from featurestore.fingerprint import Json, canonical_json, digest, fingerprint
from training.loading.arrangement import Arrangement

PACK_VERSION: Final = 2
BLOCK_ROWS: Final = 8192
MANIFEST: Final = "manifest.json"
LABEL: Final = "label"
WEIGHT: Final = "weight"
GROUP: Final = "group"
BASE_MARGIN: Final = "base_margin"
SPAN: Final = "int64"
# Under which the label stands among the inputs; no column can be called that.
LABEL_KEY: Final = ""
_SUPPORTED: Final = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
     "float16", "float32", "float64"]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One array of a pack.

    Parameters
    ----------
    path : str
        Directory of the Zarr array, relative to the pack.
    dtype : str
        NumPy name; stored little-endian.
    row_shape : tuple of int
        Shape of one row's value.
    rows : int
        Rows that hold data.
    """

    path: str
    dtype: str
    row_shape: tuple[int, ...]
    rows: int

    def __post_init__(self) -> None:
        if self.dtype not in _SUPPORTED:
            raise SchemaError(
                f"array {self.path!r} has dtype {self.dtype!r}, which a pack cannot hold",
                f"cast it to one of {sorted(_SUPPORTED)}",
            )

    def of_rows(self, rows: int) -> ArrayLayout:
        """Return the layout of an array of so many rows."""
        return replace(self, rows=rows)

    @property
    def file(self) -> str:
        """The one file that holds the data, relative to the pack."""
        return "/".join([self.path, "c", *["0"] * (1 + len(self.row_shape))])

    @property
    def element(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * self.element.itemsize

    @property
    def block_rows(self) -> int:
        return min(BLOCK_ROWS, max(1, self.rows))

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    @property
    def index_start(self) -> int:
        """Where the index begins: after whole blocks, the last filled up with zeros."""
        return self.blocks * self.block_rows * self.row_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the file: its blocks, then 16 bytes of index for each."""
        return self.index_start + 16 * self.blocks

    def index(self) -> bytes:
        """Return the shard index: offset and length of each block."""
        length = self.block_rows * self.row_bytes
        offsets = np.arange(self.blocks, dtype="<u8") * np.uint64(length)
        return np.stack([offsets, np.full_like(offsets, length)], axis=1).tobytes()

    def zarr_json(self) -> bytes:
        """Return the Zarr v3 metadata of the array."""
        little: Json = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding: Json = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [self.block_rows, *self.row_shape],
                "codecs": [little],
                "index_codecs": [little],
                "index_location": "end",
            },
        }
        shard = [max(1, self.blocks) * self.block_rows, *self.row_shape]
        metadata: Json = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.rows, *self.row_shape],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": False if self.dtype == "bool" else 0,
            "codecs": [sharding],
            "attributes": {},
        }
        return json.dumps(metadata, indent=1).encode()


def pack_layout(schema: DatasetSchema, rows: int) -> dict[str, ArrayLayout]:
    """Return the arrays of a pack: ``inputs/<name>`` each, and ``label`` under ``LABEL_KEY``.

    Several labels are ``labels/<name>`` each, under their names, and so are ``weight``, ``group`` and
    ``base_margin``: no two columns of a dataset have one name. Of a column of lists it is the span of each
    row, under its name; see :func:`items_layout`.
    """
    layout = {
        name: ArrayLayout(f"inputs/{_directory(name, number)}", dtype, shape, rows)
        for number, (name, (dtype, shape)) in enumerate(schema.array_specs().items())
    }
    if schema.label is not None:
        layout[LABEL_KEY] = ArrayLayout(LABEL, schema.label.dtype, schema.label.shape, rows)
    else:
        for number, one in enumerate(schema.labels):
            path = f"labels/{_directory(one.name, number)}"
            layout[one.name] = ArrayLayout(path, one.dtype, one.shape, rows)
    for path, told in _others(schema):
        layout[told.name] = ArrayLayout(path, told.dtype, told.shape, rows)
    for number, one in enumerate(schema.ragged):
        path = f"spans/{_directory(one.name, number)}"
        layout[one.name] = ArrayLayout(path, SPAN, (2,), rows)
    return layout


def items_layout(schema: DatasetSchema, counts: Mapping[str, int]) -> dict[str, ArrayLayout]:
    """Return the arrays of all items of each column of lists, of which there are so many; 0 if not said."""
    return {
        one.name: ArrayLayout(
            f"items/{_directory(one.name, number)}", one.dtype, (), counts.get(one.name, 0)
        )
        for number, one in enumerate(schema.ragged)
    }


def _others(schema: DatasetSchema) -> list[tuple[str, Input]]:
    """Return what a model is told beside labels, with the names of its arrays."""
    told = ((WEIGHT, schema.weight), (GROUP, schema.group), (BASE_MARGIN, schema.base_margin))
    return [(path, one) for path, one in told if one is not None]


def arrays_of(batch: Batch, schema: DatasetSchema) -> dict[str, HostArray]:
    """Return the arrays of a batch under the keys of :func:`pack_layout`, lists left out."""
    arrays = {**batch.inputs, **batch.labels}
    if batch.label is not None:
        arrays[LABEL_KEY] = batch.label
    for path, one in _others(schema):
        values = {WEIGHT: batch.weight, GROUP: batch.group, BASE_MARGIN: batch.base_margin}[path]
        if values is not None:
            arrays[one.name] = values
    return arrays


def batch_of(
    arrays: Mapping[str, HostArray],
    schema: DatasetSchema,
    lists: Mapping[str, Ragged] | None = None,
) -> Batch:
    """Return the batch that some arrays of a pack are, and the lists of its rows."""
    told = {path: arrays[one.name] for path, one in _others(schema)}
    return Batch(
        {name: arrays[name] for name in schema.array_specs()},
        arrays.get(LABEL_KEY),
        told.get(WEIGHT),
        {one.name: arrays[one.name] for one in schema.labels if schema.label is None},
        told.get(GROUP),
        told.get(BASE_MARGIN),
        lists or {},
    )


def _directory(name: str, number: int) -> str:
    quoted = quote(name, safe="")
    if len(quoted) > 200 or quoted.startswith((".", "~", "__", "column-")) or quoted == "zarr.json":
        return f"column-{number}"
    return quoted


def pack_key(part_digest: str, arrangement: Arrangement) -> str:
    """Return the name of the directory in which the pack of a dataset part lies."""
    return fingerprint("pack", PACK_VERSION, BLOCK_ROWS, part_digest, arrangement.digest)


GROUP_JSON: Final = json.dumps(
    {"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=1
).encode()


def encode_manifest(content: Mapping[str, Json]) -> bytes:
    """Return a manifest with its own checksum."""
    return json.dumps(
        {"checksum": digest(canonical_json(content)), "content": content}, indent=1
    ).encode()


def decode_manifest(data: bytes) -> dict[str, Any]:
    """Return the content of a manifest.

    Raises
    ------
    CorruptionError
        If it is torn, altered, or of another version.
    """
    try:
        outer = json.loads(data)
        content: dict[str, Any] = outer["content"]
        intact = outer["checksum"] == digest(canonical_json(content))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"the pack's manifest cannot be read: {error}") from error
    if not intact or content.get("version") != PACK_VERSION:
        raise CorruptionError("the pack's manifest is altered or of another version")
    return content

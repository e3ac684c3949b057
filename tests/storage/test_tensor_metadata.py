"""``zarr.json`` is read by what it means: additions pass, another array does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featurestore.errors import CorruptionError
from featurestore.storage.tensor_group import TensorLayout, tensor_layout

LAYOUT = TensorLayout(np.dtype("float32"), (5, 3, 2), 2)
Change = Callable[[dict[str, Any]], object]


def metadata(layout: TensorLayout = LAYOUT, change: Change = lambda content: None) -> bytes:
    content = json.loads(layout.metadata("e"))
    change(content)
    return json.dumps(content, indent=2).encode()


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint64", "float16", "float64"])
@pytest.mark.parametrize("shape", [(0, 1), (1, 1), (7, 4), (4, 3, 2, 5)])
def test_what_is_written_is_read(dtype: str, shape: tuple[int, ...]) -> None:
    layout = tensor_layout("e", np.dtype(dtype), shape)
    assert TensorLayout.parse(layout.metadata("e"), "zarr.json") == layout
    assert TensorLayout.parse(metadata(layout), "zarr.json") == layout  # other white space


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["attributes"].update(unit="m/s", history=[1, {"a": None}]),
        lambda c: c.update(provenance={"must_understand": False, "by": "somebody"}),
        lambda c: c.update(dimension_names=None),
        lambda c: c.update(dimension_names=["row", "x", "y"]),
        lambda c: c.pop("dimension_names"),
        lambda c: c.pop("storage_transformers"),
        lambda c: c.update(fill_value=0),
    ],
)
def test_additions_that_change_no_meaning_pass(change: Change) -> None:
    assert TensorLayout.parse(metadata(change=change), "zarr.json") == LAYOUT


@pytest.mark.parametrize("codec", [{}, {"configuration": {}}, {"configuration": {"endian": "big"}}])
def test_single_bytes_have_no_order(codec: dict[str, Any]) -> None:
    layout = TensorLayout(np.dtype("int8"), (5, 3), 2)
    data = metadata(layout, lambda c: c.update(codecs=[{"name": "bytes", **codec}]))
    assert TensorLayout.parse(data, "zarr.json") == layout


BIG = {"name": "bytes", "configuration": {"endian": "big"}}
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
GZIP = {"name": "gzip", "configuration": {"level": 1}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(codecs=[BIG]), "codecs differ"),
        (lambda c: c.update(codecs=[{"name": "bytes"}]), "codecs differ"),
        (lambda c: c.update(codecs=[LITTLE, GZIP]), "codecs differ"),
        (lambda c: c.update(codecs=[]), "codecs differ"),
        (lambda c: c.update(storage_transformers=[{"name": "x"}]), "storage_transformers differ"),
        (lambda c: c.update(fill_value=1.0), "fill_value differ"),
        (lambda c: c.update(fill_value="NaN"), "fill_value differ"),
        (lambda c: c.update(zarr_format=2), "zarr_format differ"),
        (lambda c: c.update(node_type="group"), "node_type differ"),
        (lambda c: c["chunk_grid"].update(name="rectangular"), "chunk_grid differ"),
        (lambda c: c["chunk_grid"]["configuration"].update(chunk_shape=[2, 3, 1]), "chunk_grid"),
        (lambda c: c["chunk_key_encoding"].update(name="v2"), "chunk_key_encoding differ"),
        (lambda c: c["chunk_key_encoding"].update(configuration={"separator": "/"}), "key_encoding"),
        (lambda c: c.update(sharding={}), "sharding differ"),
        (lambda c: c.update(sharding={"must_understand": True}), "sharding differ"),
        (lambda c: c.update(sharding=False), "sharding differ"),
        (lambda c: c.pop("codecs"), "codecs"),
        (lambda c: c.pop("fill_value"), "fill_value"),
        (lambda c: c.pop("attributes"), "attributes"),
        (lambda c: c["attributes"].update(column=7), "column 7"),
        (lambda c: c.update(data_type="bool"), "bool"),
        (lambda c: c.update(data_type=["float32"]), "unhashable"),
        (lambda c: c.update(shape=[5]), "shape"),
        (lambda c: c.update(shape=[5, 0, 2]), "shape"),
        (lambda c: c.update(shape=[-5, 3, 2]), "shape"),
        (lambda c: c.update(shape=[5, 3, 2.0]), "shape"),
        (lambda c: c.update(shape=[True, 3, 2]), "shape"),
        (lambda c: c["chunk_grid"]["configuration"].update(chunk_shape=[0, 3, 2]), "0 rows"),
        (lambda c: c["chunk_grid"]["configuration"].update(chunk_shape=[]), "index"),
    ],
)  # fmt: skip
def test_another_array_is_refused(change: Change, said: str) -> None:
    with pytest.raises(CorruptionError, match=said):
        TensorLayout.parse(metadata(change=change), "zarr.json")


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"7", b"null", b"[" * 60_000])
def test_what_is_no_metadata_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="no metadata"):
        TensorLayout.parse(data, "zarr.json")

"""Embed and FromArray: tensors of contents and of arrays on disk."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.selection import get_engine
from featurestore.errors import (
    CorruptionError,
    DefinitionError,
    FeatureStoreError,
    InvalidInputError,
    NotPartitionIndependentError,
    SchemaError,
)
from featurestore.storage.vector_cache import VectorCache, content_digest
from featurestore.testing.partitions import cut_table
from featurestore.testing.strategies import tables
from featurestore.transforms.base import transformer_from_spec

SIZE = 3


def vectors(texts: list[str], scale: float = 1.0) -> Any:
    """Encode texts, each by itself, and note which in a file."""
    with Path(os.environ["CALLS"]).open("a") as file:
        file.writelines(f"{one}\n" for one in texts)
    return np.array([[scale * len(one), hash_of(one), one.count("a")] for one in texts])


def hash_of(text: str) -> int:
    return sum((i + 1) * byte for i, byte in enumerate(text.encode())) % 1009


def centred(texts: list[str]) -> Any:
    out = np.array([[hash_of(one)] for one in texts], dtype=np.float32)
    return out - out.mean()


def sums(arrays: Any) -> Any:
    return arrays.sum(axis=1, keepdims=True)


def flat(texts: list[str]) -> Any:
    return np.array([len(one) for one in texts])


def ragged(texts: list[str]) -> Any:
    return [[1.0] * (i + 1) for i in range(len(texts))]


def gone(texts: list[str]) -> Any:
    raise KeyError("the model is gone")


def fails_late(texts: list[str]) -> Any:
    if "late" in texts:
        raise RuntimeError("out of memory")
    return np.ones((len(texts), 1))


def vast(texts: list[str]) -> Any:
    return np.array([[1e300, len(one)] for one in texts])


BUFFER = np.zeros((9, 1), np.float32)


def reused(texts: list[str]) -> Any:
    for place, one in enumerate(texts):
        BUFFER[place] = len(one)
    return BUFFER[: len(texts)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEATURESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "cache" / "vectors"


def noted() -> list[str]:
    """Return which texts were encoded since this was last asked."""
    path = Path(os.environ["CALLS"])
    texts = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    return texts


def brute_force(texts: list[str | None], scale: float = 1.0) -> Any:
    rows = [
        [np.nan] * SIZE if one is None else [scale * len(one), hash_of(one), one.count("a")]
        for one in texts
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, SIZE)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(tables(), st.lists(st.integers(0, 40), max_size=4), st.integers(1, 5), st.booleans())
def test_vectors_equal_brute_force_however_cut(
    table: pa.Table, cuts: list[int], batch: int, cached: bool
) -> None:
    embed = fs.Embed("s", vectors, SIZE, batch_size=batch, cache=cached, params={"scale": 0.5})
    parts = cut_table(table, cuts, time="t")
    engine = get_engine("polars")
    made = [embed.apply(one, {}, engine).tensors["s_embedded"] for one in parts]
    wanted = brute_force(table["s"].to_pylist(), 0.5)
    np.testing.assert_array_equal(np.concatenate(made), wanted)
    assert transformer_from_spec(embed.spec()) == embed
    assert transformer_from_spec(embed.spec()).fingerprint() == embed.fingerprint()


def news(first: int, rows: int) -> pl.DataFrame:
    days = pl.Series("t", [(first + i) * 3_600_000 for i in range(rows)], pl.Datetime("ms"))
    texts = [None if i % 7 == 0 else f"news {i % 10} a" for i in range(first, first + rows)]
    return pl.DataFrame({"t": days, "text": pl.Series(texts, dtype=pl.String)})


def test_no_content_is_encoded_twice_whatever_is_built() -> None:
    def table() -> fs.Table:
        store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
        return store.ingest("news", news(0, 60), time="t", partition_bytes=300)

    one = table()
    assert one.partitions > 2
    one.add(fs.Embed("text", vectors, SIZE, output="vector", batch_size=2))
    made = noted()
    assert len(set(made)) == 10
    assert len(made) <= 10 + 16  # a few are tried alone and together first, and not kept
    one.append(news(60, 40))
    one.build()
    one.replace(news(10, 5), ("1970-01-01T10:00", "1970-01-01T15:00"))
    one.build()
    assert noted() == []
    again = table()
    again.add(fs.Embed("text", vectors, SIZE, output="vector", batch_size=64))
    assert len(noted()) <= 16  # the trial
    rows = np.concatenate([np.asarray(part[:]) for part in one.tensor("vector")])
    np.testing.assert_array_equal(rows, brute_force(one.read(["text"])["text"].to_list()))


def test_another_encoder_size_or_parameter_is_another_cache(cache: Path) -> None:
    (part,) = cut_table(pa.table({"s": ["a", "b"]}))
    for embed in (
        fs.Embed("s", vectors, SIZE),
        fs.Embed("s", vectors, SIZE, params={"scale": 2.0}),
        fs.Embed("s", vectors, SIZE, output="other", batch_size=1),
    ):
        embed.apply(part, {}, get_engine("polars"))
    assert noted() == ["a", "b"] * 2
    assert len(list(cache.glob("*.sqlite"))) == 2


def test_arrays_are_encoded_row_by_row() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 2)
    table = store.ingest("rows", pa.table({"id": range(6), "pair": pairs}), key="id")
    table.add(fs.Embed("pair", sums, 1, output="total"))
    (made,) = table.tensor("total")
    np.testing.assert_array_equal(np.asarray(made[:]), values.sum(axis=1, keepdims=True))


def test_what_depends_on_the_batch_is_refused() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("news", news(0, 30), time="t")
    with pytest.raises(NotPartitionIndependentError, match="alone"):
        table.add(fs.Embed("text", centred, 1, cache=False))


def test_what_it_cannot_take_or_give_is_said() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("news", news(0, 30), time="t")
    with pytest.raises(DefinitionError, match=r"returned int64 \(\d+,\)"):
        table.add(fs.Embed("text", flat, 1))
    with pytest.raises(SchemaError, match="takes a text or a tensor"):
        table.add(fs.Embed("t", vectors, SIZE))
    for size, batch in ((0, 1), (1, 0), (True, 1), (2.0, 1)):
        with pytest.raises(DefinitionError, match="whole number"):
            fs.Embed("text", vectors, size, batch_size=batch)  # type: ignore[arg-type]


def test_what_an_encoder_raises_is_shown_with_what_to_do() -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    table = store.ingest("news", news(0, 30), time="t")
    for encoder, cause in ((ragged, ValueError), (gone, KeyError)):
        with pytest.raises(
            DefinitionError, match=rf"failed on \d+ contents: {cause.__name__}"
        ) as one:
            table.add(fs.Embed("text", encoder, 1, cache=False))
        assert isinstance(one.value.__cause__, cause)
    with pytest.raises(DefinitionError, match="unexpected keyword"):
        table.add(fs.Embed("text", reused, 1, params={"no": 1}, cache=False))
    texts = ["a"] * 300 + ["late"]
    rows = pl.DataFrame({"t": pl.Series(range(301), dtype=pl.Datetime("ms")), "text": texts})
    late = store.ingest("late", rows, time="t", partition_bytes=2000)
    for kept in (False, True):
        with pytest.raises(DefinitionError, match=r"fails_late.*out of memory"):
            late.add(fs.Embed("text", fails_late, 1, cache=kept))
        assert late.columns == ("t", "text")


def test_an_encoder_may_use_its_array_again_and_exceed_float32() -> None:
    (part,) = cut_table(pa.table({"s": ["a", "bb", "ccc"]}))
    engine = get_engine("polars")
    one = fs.Embed("s", reused, 1, batch_size=1, cache=False).bound(part, engine)
    assert one.apply(part, {}, engine).tensors["s_embedded"].tolist() == [[1], [2], [3]]
    far = fs.Embed("s", vast, 2, cache=False).bound(part, engine)
    assert far.apply(part, {}, engine).tensors["s_embedded"][2].tolist() == [np.inf, 3]


def test_hostile_definitions_of_encoders_are_refused() -> None:
    spec: dict[str, Any] = dict(fs.Embed("s", vectors, SIZE).spec())
    hostile: list[tuple[str, Any]] = [
        ("function", 5), ("function", None), ("function", {"kind": "x"}), ("params", [1]),
        ("params", None), ("column", 5), ("output", None), ("size", "8"), ("size", True),
        ("batch_size", 0), ("missing", "x"), ("fill_value", "x"), ("cache", "yes"),
    ]  # fmt: skip
    for name, value in hostile:
        if name in spec["params"]:
            with pytest.raises(FeatureStoreError):
                transformer_from_spec({**spec, "params": {**spec["params"], name: value}})


# --- the cache ------------------------------------------------------------------------------------


def counted(calls: list[int], width: int) -> Any:
    def encode(positions: Any) -> Any:
        calls.extend(positions)
        return np.array([[one] * width for one in positions], dtype=np.float32)

    return encode


def test_a_changed_vector_is_found(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite"
    keys = [content_digest(bytes([one])) for one in range(4)]
    VectorCache(path, 2).get(keys, counted([], 2))
    with sqlite3.connect(path) as database:
        (blob,) = database.execute(
            "SELECT vector FROM vectors WHERE digest = ?", keys[:1]
        ).fetchone()
        changed = bytes([blob[0] ^ 1]) + blob[1:]
        database.execute("UPDATE vectors SET vector = ? WHERE digest = ?", (changed, keys[0]))
    database.close()
    assert VectorCache(path, 2).get(keys[1:], counted([], 2)).shape == (3, 2)
    with pytest.raises(CorruptionError, match="not as it was written"):
        VectorCache(path, 2).get(keys, counted([], 2))


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(CorruptionError, match="is damaged"):
        VectorCache(path, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="FEATURESTORE_CACHE"):
        VectorCache(tmp_path / "file" / "below" / "x.sqlite", 2)


def test_threads_that_want_the_same_encode_it_once(tmp_path: Path) -> None:
    path, calls = tmp_path / "one.sqlite", list[int]()
    keys = [content_digest(f"{one}".encode()) for one in range(600)]
    found: list[Any] = []

    def work() -> None:
        found.append(VectorCache(path, 4).get(keys, counted(calls, 4), 50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(calls) == list(range(600))
    assert all((one == found[0]).all() for one in found)
    assert len(found) == 4


def test_an_encoder_that_fails_keeps_what_was_made_before(tmp_path: Path) -> None:
    path, calls = tmp_path / "one.sqlite", list[int]()
    keys = [content_digest(f"{one}".encode()) for one in range(10)]

    def failing(positions: Any) -> Any:
        if 4 in positions:
            raise ValueError("out of memory")
        return counted(calls, 1)(positions)

    with pytest.raises(ValueError, match="out of memory"):
        VectorCache(path, 1).get(keys, failing, 2)
    assert calls == [0, 1, 2, 3]
    VectorCache(path, 1).get(keys, counted(calls, 1), 2)
    assert calls == list(range(10))


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from featurestore.engines.selection import get_engine
from featurestore.storage.vector_cache import VectorCache, content_digest

def encode(positions):
    if 6 in positions:
        os.kill(os.getpid(), 9)
    return np.array([[one] for one in positions], dtype=np.float32)

VectorCache(Path(sys.argv[1]), 1).get([content_digest(b"%d" % one) for one in range(10)], encode, 2)
"""


def test_a_kill_while_encoding_loses_one_batch(tmp_path: Path) -> None:
    path, calls = tmp_path / "one.sqlite", list[int]()
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -9
    keys = [content_digest(b"%d" % one) for one in range(10)]
    made = VectorCache(path, 1).get(keys, counted(calls, 1), 2)
    assert calls == [6, 7, 8, 9]
    assert made[:, 0].tolist() == list(range(10))


# --- arrays on disk ---------------------------------------------------------------------------------


@pytest.fixture
def array(tmp_path: Path) -> Path:
    path = tmp_path / "topics.npy"
    np.save(path, np.arange(20, dtype=np.float32).reshape(5, 4))
    return path


def chosen(array: Path, positions: list[int | None], **options: Any) -> Any:
    (part,) = cut_table(pa.table({"i": pa.array(positions, pa.int64())}))
    one = fs.FromArray(array, "i", **options)
    assert transformer_from_spec(one.spec()) == one
    return one.apply(part, {}, get_engine("polars")).tensors["topics"]


def test_rows_of_an_array_are_taken_by_position(array: Path) -> None:
    rows = np.load(array)
    made = chosen(array, [4, None, 0, -1, 5, 2**62, 4])
    nothing = np.full(4, np.nan, np.float32)
    wanted = [rows[4], nothing, rows[0], nothing, nothing, nothing, rows[4]]
    np.testing.assert_array_equal(made, np.stack(wanted))
    assert chosen(array, []).shape == (0, 4)


@given(st.lists(st.one_of(st.none(), st.integers(-3, 8)), max_size=12))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_integers_are_filled_with_what_is_said(array: Path, positions: list[int | None]) -> None:
    whole = array.with_name("whole") / "topics.npy"
    whole.parent.mkdir(exist_ok=True)
    values = np.arange(12, dtype=np.int16).reshape(6, 2, 1)
    if not whole.exists():
        np.save(whole, values)
    made = chosen(whole, positions, fill_value=-7)
    known = [one is not None and 0 <= one < 6 for one in positions]
    wanted = [
        values[one] if good else np.full((2, 1), -7)
        for one, good in zip(positions, known, strict=True)
    ]
    assert made.dtype == np.int16
    np.testing.assert_array_equal(made, np.array(wanted).reshape(-1, 2, 1))


def test_an_array_in_a_table_and_a_file_that_changed(array: Path) -> None:
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=1)
    rows = pa.table({"t": pa.array(range(6), pa.timestamp("ms")), "i": [0, 1, 2, 3, 4, 9]})
    table = store.ingest("rows", rows, time="t", partition_bytes=40)
    table.add(fs.FromArray(array, "i"))
    made = np.concatenate([np.asarray(one[:]) for one in table.tensor("topics")])
    np.testing.assert_array_equal(made[:5], np.load(array))
    np.save(array, np.zeros((5, 4), np.float32))
    table.append(pa.table({"t": pa.array([10], pa.timestamp("ms")), "i": [0]}))
    with pytest.raises(InvalidInputError, match="not the one that feature"):
        table.build()
    np.save(array, np.arange(20, dtype=np.float32).reshape(5, 4))
    table.build()
    made = np.concatenate([np.asarray(one[:]) for one in table.tensor("topics")])
    np.testing.assert_array_equal(made[[0, 6]], [[0, 1, 2, 3]] * 2)


def test_files_that_are_no_arrays_are_refused(tmp_path: Path, array: Path) -> None:
    evil = tmp_path / "evil.npy"
    np.save(evil, np.array([[{"run": 1}]], dtype=object), allow_pickle=True)
    for name, value in (("line", np.zeros(3)), ("text", np.array([["a"]]))):
        np.save(tmp_path / f"{name}.npy", value)
    (tmp_path / "short.npy").write_bytes(array.read_bytes()[:90])
    (tmp_path / "none.npy").write_bytes(b"")
    np.savez(tmp_path / "many.npz", a=np.zeros((2, 2)))
    for name in (
        "evil.npy",
        "line.npy",
        "text.npy",
        "short.npy",
        "none.npy",
        "many.npz",
        "gone.npy",
    ):
        with pytest.raises(InvalidInputError):
            fs.FromArray(tmp_path / name, "i")
    np.save(tmp_path / "whole.npy", np.zeros((2, 2), np.int8))
    for missing in (1.5, 300, float("nan")):
        with pytest.raises(DefinitionError, match="cannot fill int8"):
            fs.FromArray(tmp_path / "whole.npy", "i", fill_value=missing)


def test_the_cache_is_used_by_another_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\nimport numpy as np, sys\n"
        "from featurestore.storage.vector_cache import VectorCache, content_digest\n"
        "VectorCache(Path(sys.argv[1]), 1).get([content_digest(b'x')], lambda p: np.ones((1, 1)))\n"
    )
    path = tmp_path / "one.sqlite"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert VectorCache(path, 1).get([content_digest(b"x")], counted([], 1)).tolist() == [[1.0]]


def test_hostile_definitions_of_arrays_are_refused(tmp_path: Path, array: Path) -> None:
    np.save(tmp_path / "long.npy", np.ones((2, 2), np.longdouble))
    with pytest.raises(DefinitionError, match="of type"):
        fs.FromArray(tmp_path / "long.npy", "i")
    spec: dict[str, Any] = dict(fs.FromArray(array, "i").spec())
    hostile: list[tuple[str, Any]] = [("dtype", one) for one in ("object", "V8", "bogus", 5, None)]
    hostile += [("shape", one) for one in (5, ["x"], None, [-1], [10**12], [10**6, 10**6])]
    for name, value in [*hostile, ("path", None), ("index", 5), ("digest", [])]:
        with pytest.raises(FeatureStoreError):
            transformer_from_spec({**spec, "params": {**spec["params"], name: value}})
    # A device has no end, and is never read to it.
    endless = transformer_from_spec({**spec, "params": {**spec["params"], "path": "/dev/zero"}})
    (part,) = cut_table(pa.table({"i": [0]}))
    with pytest.raises(InvalidInputError, match="is no file"):
        endless.apply(part, {}, get_engine("polars"))

"""Packs: what they hold, who else can read them, and what damage, crashes and races lead to."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.dataset.batch import Batch, DatasetSchema, Input, Role
from featurestore.errors import (
    CorruptionError,
    DiskFullError,
    FeatureStoreError,
    InvalidInputError,
    SchemaError,
)
from featurestore.storage.vector_cache import CACHE_VARIABLE
from featurestore.testing.datasets import ArrayPart, numbered_part
from training import Loader
from training.loading import layout as layout_module
from training.loading import pack as pack_module
from training.loading import scratch
from training.loading.layout import decode_manifest, encode_manifest
from training.loading.pack import Pack
from training.loading.pack_cache import cache_directory, list_packs


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packs"


def leftovers(cache: Path) -> list[str]:
    return [one.name for one in cache.iterdir() if one.name.startswith(".")]


@settings(deadline=None, max_examples=40)
@given(
    cuts=st.lists(st.integers(1, 40), max_size=5),
    data=st.data(),
    block=st.sampled_from([1, 7, 16, 8192]),
)
def test_gather_and_read_equal_numpy(
    cuts: list[int], data: st.DataObject, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = sum(cuts)
    part = numbered_part(rows, partitions=cuts, cardinalities=(3,), tensor=(2, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "BLOCK_ROWS", block)
        pack = Pack.for_part(part, tmp_path_factory.mktemp("packs"))
        chosen = np.array(
            data.draw(st.lists(st.integers(0, max(rows - 1, 0)), max_size=50 if rows else 0)),
            dtype=np.int64,
        )
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows))
        pack.verify()
    for found, where in (
        (pack.gather(chosen), chosen),
        (pack.read(start, stop), slice(start, stop)),
    ):
        for name, values in part.inputs.items():
            np.testing.assert_array_equal(found.inputs[name], values[where])
        assert part.label is not None
        np.testing.assert_array_equal(found.label, part.label[where])


@pytest.mark.parametrize("rows", [0, 1, 8192, 20_000])
def test_plain_zarr_opens_a_pack(rows: int, cache: Path) -> None:
    part = numbered_part(rows, cardinalities=(3,), tensor=(2, 2))
    pack = Pack.for_part(part, cache)
    group = zarr.open_group(pack.path, mode="r")
    for name, values in part.inputs.items():
        np.testing.assert_array_equal(group[f"inputs/{name}"][...], values)
        np.testing.assert_array_equal(group[f"inputs/{name}"][-3:], values[-3:])
    np.testing.assert_array_equal(group["label"][...], part.label)


def test_any_column_name_has_a_directory(cache: Path) -> None:
    names = ["label", "zarr.json", "a/b", "..", "ünïcode 花", "x" * 300, "~", "c", "%2F"]
    columns = [Input(name, Role.CATEGORICAL, "int32", (), 9) for name in names]
    inputs = {name: np.full(5, number, dtype=np.int32) for number, name in enumerate(names)}
    schema = DatasetSchema((*columns, Input("y", Role.LABEL, "float32")))
    part = ArrayPart(schema, inputs, np.ones(5, dtype=np.float32), (5,), "names")
    pack = Pack.for_part(part, cache)
    batch = Pack.for_part(part, cache).read(0, 5)
    for number, name in enumerate(names):
        assert (batch.inputs[name] == number).all()
    assert all(one.is_relative_to(pack.path) for one in pack.path.rglob("*"))


def test_names_like_those_of_the_layout_do_not_collide() -> None:
    names = ["column-1", "x" * 300, "column-0", "column-", "Column-1"]
    columns = tuple(Input(name, Role.CATEGORICAL, "int32", (), 9) for name in names)
    layout = layout_module.pack_layout(DatasetSchema(columns), 5)
    assert len({one.path for one in layout.values()}) == len(names)


def test_rows_outside_are_refused(cache: Path) -> None:
    pack = Pack.for_part(numbered_part(5), cache)
    for bad in ([5], [-1], [0, 7]):
        with pytest.raises(InvalidInputError, match="outside a pack of 5"):
            pack.gather(np.array(bad))
    with pytest.raises(InvalidInputError):
        pack.read(3, 6)


def test_a_second_open_reads_nothing_of_the_part(cache: Path) -> None:
    Pack.for_part(numbered_part(50, partitions=(20, 30)), cache)
    again = numbered_part(50, partitions=(20, 30))
    Pack.for_part(again, cache)
    assert again.reads == []


def test_a_pickle_maps_the_same_files_and_builds_nothing(cache: Path) -> None:
    part = numbered_part(500, tensor=(7,))
    pack = Pack.for_part(part, cache)
    pickled = pickle.dumps(pack)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.read(3, 9).inputs["vector"], part.inputs["vector"][3:9])
    manifest = pack.path / "manifest.json"
    content = decode_manifest(manifest.read_bytes())
    manifest.write_bytes(encode_manifest({**content, "rows": 499}))
    with pytest.raises(CorruptionError, match="was built again"):
        pickle.loads(pickled)
    manifest.write_bytes(encode_manifest(content))
    (pack.path / "label" / "c" / "0").write_bytes(b"short")
    with pytest.raises(CorruptionError, match="has 5 bytes"):
        pickle.loads(pickled)
    pack.delete()
    with pytest.raises(CorruptionError, match="no readable manifest"):
        pickle.loads(pickled)
    assert not list(cache.iterdir())
    assert len(part.reads) == 1


def test_another_part_has_another_pack(cache: Path) -> None:
    one = Pack.for_part(numbered_part(5, name="a"), cache)
    two = Pack.for_part(numbered_part(5, name="b"), cache)
    assert one.path != two.path
    assert [path for path, _, _ in list_packs(cache)] == sorted([one.path, two.path])


# --- damage ------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


DAMAGE: list[Any] = [
    pytest.param("manifest.json", Path.unlink, id="manifest missing"),
    pytest.param("manifest.json", _truncate, id="manifest torn"),
    pytest.param("manifest.json", lambda path: path.write_bytes(b""), id="manifest empty"),
    pytest.param("manifest.json", lambda path: path.write_text("[]"), id="manifest not ours"),
    pytest.param("inputs/numeric/c/0/0", Path.unlink, id="data missing"),
    pytest.param("inputs/numeric/c/0/0", _truncate, id="data torn"),
    pytest.param("label/c/0", _grow, id="data longer"),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_pack_is_built_again(name: str, damage: Any, cache: Path) -> None:
    part = numbered_part(100, partitions=(60, 40))
    pack = Pack.for_part(part, cache)
    expected = pack.read(0, 100).inputs["numeric"]
    damage(pack.path / name)
    with pytest.raises(CorruptionError):
        Pack.open(pack.path, part)
    part.reads.clear()
    again = Pack.for_part(part, cache)
    assert sorted(part.reads) == [0, 1]
    again.verify()
    np.testing.assert_array_equal(again.read(0, 100).inputs["numeric"], expected)
    assert leftovers(cache) == []


def test_an_altered_manifest_is_not_believed(cache: Path) -> None:
    part = numbered_part(10)
    pack = Pack.for_part(part, cache)
    outer = json.loads((pack.path / "manifest.json").read_bytes())
    outer["content"]["rows"] = 11
    (pack.path / "manifest.json").write_text(json.dumps(outer))
    with pytest.raises(CorruptionError, match="altered"):
        Pack.open(pack.path, part)


def test_manifest_round_trip() -> None:
    content = {"version": layout_module.PACK_VERSION, "rows": 3}
    assert decode_manifest(encode_manifest(content)) == content
    with pytest.raises(CorruptionError, match="another version"):
        decode_manifest(encode_manifest({**content, "version": 99}))


def test_verify_finds_any_flipped_byte(cache: Path) -> None:
    part = numbered_part(30)
    pack = Pack.for_part(part, cache)
    file = pack.path / "inputs/numeric/c/0/0"
    data = bytearray(file.read_bytes())
    for position in range(0, len(data), 37):
        data[position] ^= 1
        file.write_bytes(data)
        with pytest.raises(CorruptionError, match="numeric"):
            pack.verify()
        data[position] ^= 1
    file.write_bytes(data)
    pack.verify()


# --- crashes, races, full disks --------------------------------------------------------------------------


class _FailsAt(ArrayPart):
    at = 1

    def arrays(self, partition: int) -> Batch:
        if partition == self.at:
            raise CorruptionError("a partition is damaged")
        return super().arrays(partition)


def test_a_flipped_byte_is_found_by_the_next_process(cache: Path) -> None:
    part = numbered_part(500)
    expected = Pack.for_part(part, cache).read(0, 500)
    path = Pack.for_part(part, cache).path
    victim = next(one for one in sorted(path.rglob("0")) if one.is_file())
    content = bytearray(victim.read_bytes())
    content[100] ^= 1
    victim.write_bytes(content)
    pack_module._trusted.clear()  # as in another process
    found = Pack.for_part(part, cache).read(0, 500)
    for name, values in expected.inputs.items():
        np.testing.assert_array_equal(found.inputs[name], values)
    assert part.reads == [0, 0]  # built again


def test_a_failed_build_leaves_nothing(cache: Path) -> None:
    part = numbered_part(50, partitions=(20, 30))
    failing = _FailsAt(part.schema, part.inputs, part.label, part.partition_rows, part.name)
    with pytest.raises(CorruptionError, match="a partition is damaged"):
        Pack.for_part(failing, cache)
    assert list(cache.iterdir()) == []


_KILLED = """
import os, sys
from pathlib import Path
from featurestore.testing.datasets import ArrayPart, numbered_part
from training.loading.pack import Pack

class Dies(ArrayPart):
    def arrays(self, partition):
        if partition == 1:
            os.kill(os.getpid(), 9)
        return super().arrays(partition)

part = numbered_part(50, partitions=(20, 30))
Pack.for_part(Dies(part.schema, part.inputs, part.label, part.partition_rows, part.name), sys.argv[1])
"""


def test_what_a_killed_build_left_is_removed_by_the_next(cache: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(cache)], check=False)
    assert killed.returncode == -9
    assert len(leftovers(cache)) == 1
    part = numbered_part(50, partitions=(20, 30))
    Pack.for_part(part, cache).verify()
    assert leftovers(cache) == []


def test_a_running_build_is_left_alone(cache: Path) -> None:
    other = scratch.scratch_directory(cache)
    Pack.for_part(numbered_part(5), cache)
    assert other.is_dir()


_PARALLEL = """
import sys
from featurestore.testing.datasets import numbered_part
from training.loading.pack import Pack

pack = Pack.for_part(numbered_part(5000, partitions=(1000,) * 5), sys.argv[1])
pack.verify()
print(int(pack.read(0, 5000).inputs["numeric"][:, 0].sum()))
"""


def test_processes_that_build_the_same_pack_agree(cache: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", _PARALLEL, str(cache)], stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for one in running:
        out, _ = one.communicate(timeout=60)
        assert one.returncode == 0
        assert int(out) == 4999 * 5000 // 2
    assert len(list(cache.iterdir())) == 1


def test_threads_that_build_the_same_pack_agree(cache: Path) -> None:
    part = numbered_part(300, partitions=(100,) * 3)
    with ThreadPoolExecutor(6) as pool:
        packs = list(pool.map(lambda _: Pack.for_part(part, cache), range(6)))
    for one in packs:
        one.verify()
    assert len(list(cache.iterdir())) == 1


def test_a_full_disk_is_said_before_the_first_byte(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.parent)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    part = numbered_part(1000)
    with pytest.raises(DiskFullError, match="100 B left"):
        Pack.for_part(part, cache)
    assert part.reads == []
    assert list(cache.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="the pack needs"):
        Pack.for_part(numbered_part(1000), cache)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureStoreError, match=r"(?s)cannot be written.*FEATURESTORE_CACHE"):
        Pack.for_part(numbered_part(5), tmp_path / "file" / "packs")


def test_packs_not_used_for_longest_make_room(cache: Path) -> None:
    def made(name: str, limit: int | None = None) -> Path:
        return Pack.for_part(numbered_part(1000, name=name), cache, limit=limit).path

    first, second, third = made("a"), made("b"), made("c")
    (size,) = {one for _, one, _ in list_packs(cache)}
    for age, path in enumerate((second, first, third)):
        os.utime(path / "manifest.json", (age, age))
    fourth = made("d", limit=3 * size)
    assert {path for path, _, _ in list_packs(cache)} == {first, third, fourth}
    assert made("d", limit=1) == fourth  # what is there is opened, whatever the limit
    with pytest.raises(DiskFullError, match=r"(?s)packs may take.*cache_limit="):
        made("e", limit=size // 2)
    assert len(list(list_packs(cache))) == 3


def test_packs_in_use_stay_whoever_uses_them(cache: Path) -> None:
    part = numbered_part(1000, name="a")
    held = Pack.for_part(part, cache)
    ((_, size, _),) = list_packs(cache)
    with pytest.raises(DiskFullError):
        Pack.for_part(numbered_part(1000, name="b"), cache, limit=size)
    script = (
        "import pickle, sys; pack = pickle.loads(bytes.fromhex(sys.argv[1])); print(1, flush=True);"
        "sys.stdin.read(); print(int(pack.read(999, 1000).inputs['numeric'][0, 0]))"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, pickle.dumps(held).hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "1\n"
    del held
    gc.collect()
    with pytest.raises(DiskFullError):
        Pack.for_part(numbered_part(1000, name="b"), cache, limit=size)
    out, _ = other.communicate("", timeout=60)
    assert out == "999\n"
    Pack.for_part(numbered_part(1000, name="b"), cache, limit=size)
    assert len(list(list_packs(cache))) == 1


def test_a_full_disk_lets_unused_packs_go(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Pack.for_part(numbered_part(1000, name="a"), cache).path
    usage = shutil.disk_usage(cache)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    new = Pack.for_part(numbered_part(1000, name="b"), cache).path
    assert [path for path, _, _ in list_packs(cache)] == [new]
    assert old != new


def test_the_limit_of_a_cache_is_named_or_in_the_environment(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(numbered_part(1000), 10, cache=cache, cache_limit="1kB")
    for one in (loader, loader.shard(0, 2)):
        with pytest.raises(DiskFullError, match=r"packs may take 1000 B"):
            next(iter(one))
    monkeypatch.setenv("FEATURESTORE_CACHE_LIMIT", "2kB")
    with pytest.raises(DiskFullError, match=r"packs may take 2.0 KiB|packs may take 2000 B"):
        Loader(numbered_part(1000), 10, cache=cache).pack  # noqa: B018
    with pytest.raises(InvalidInputError):
        Loader(numbered_part(1000), 10, cache=cache, cache_limit="much")


def test_delete_frees_the_disk_and_open_packs_go_on(cache: Path) -> None:
    part = numbered_part(10)
    kept, deleted = Pack.for_part(part, cache), Pack.for_part(part, cache)
    deleted.delete()
    assert list(cache.iterdir()) == []
    assert kept.read(0, 10).inputs["numeric"][9, 0] == 9
    part.reads.clear()
    Pack.for_part(part, cache)
    assert part.reads == [0]


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: Batch({**batch.inputs, "extra": batch.label}, batch.label),
        lambda batch: Batch({"numeric": batch.inputs["numeric"]}, batch.label),
        lambda batch: Batch(batch.inputs, None),
        lambda batch: Batch(
            {**batch.inputs, "numeric": batch.inputs["numeric"].astype("float64")}, batch.label
        ),
        lambda batch: Batch(
            {name: one[:-1] for name, one in batch.inputs.items()}, batch.label[:-1]
        ),
    ],
)
def test_arrays_that_are_not_what_the_schema_says_are_refused(change: Any, cache: Path) -> None:
    class Wrong(ArrayPart):
        def arrays(self, partition: int) -> Batch:
            return change(super().arrays(partition))  # type: ignore[no-any-return]

    part = numbered_part(5)
    wrong = Wrong(part.schema, part.inputs, part.label, part.partition_rows)
    with pytest.raises(SchemaError, match=r"schema says|instead of 5"):
        Pack.for_part(wrong, cache)
    assert list(cache.iterdir()) == []


def test_where_packs_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache/featurestore/packs"
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "c"))
    assert cache_directory() == tmp_path / "c"
    assert cache_directory(tmp_path / "d") == tmp_path / "d"


def test_building_holds_one_partition_at_a_time(cache: Path) -> None:
    import tracemalloc

    rows, width = 40_000, 50
    part = numbered_part(rows, partitions=(rows // 20,) * 20, numeric=width, cardinalities=())
    tracemalloc.start()
    Pack.for_part(part, cache)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = rows * width * 4
    assert peak < whole / 3

"""What is said once for all calls: found in its places, in order, and refused where not understood."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import narwhals as nw
import pyarrow as pa
import pytest

import featurestore as fs
from featurestore.configuration import (
    NAME,
    Configuration,
    find_file,
    load_configuration,
    read_file,
)
from featurestore.errors import InvalidInputError, LimitError, MemoryLimitError, NotFoundError
from featurestore.limits import memory_limit
from featurestore.testing.tables import plus_one

VARIABLES = ("CONFIG", "MEMORY_LIMIT", "SCRATCH", "SCRATCH_LIMIT")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory, a home and an environment that say nothing."""
    for name in VARIABLES:
        monkeypatch.delenv(f"FEATURESTORE_{name}", raising=False)
    for folder in ("work", "home", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, folder: str = "work") -> Path:
        path = tmp_path / folder / NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def limited(text: str) -> str:
    return f'[limits]\nmemory_limit = "{text}"\n'


def test_where_nothing_is_said_nothing_is_set() -> None:
    assert load_configuration() == Configuration()


def test_an_empty_file_sets_nothing(write: Callable[..., Path]) -> None:
    assert read_file(write("")) == read_file(write("[limits]\n")) == Configuration()


def test_all_that_may_be_said(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "work" / "tmp").mkdir()
    write('[limits]\nmemory_limit = 1048576\nscratch = "tmp"\nscratch_limit = "2.5 GB"\n')
    found = load_configuration()
    assert found == Configuration(2**20, tmp_path / "work" / "tmp", 2_500_000_000)
    assert found.scratch_folder == tmp_path / "work" / "tmp"


def test_the_nearest_file_counts_alone(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(limited("1MiB") + "scratch_limit = 7\n", "home/.config/featurestore")
    assert load_configuration() == Configuration(2**20, None, 7)
    write(limited("2MiB"), "xdg/featurestore")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert load_configuration() == Configuration(2 * 2**20)
    write(limited("3MiB"))
    assert load_configuration() == Configuration(3 * 2**20)
    named = write(limited("4MiB"), "elsewhere")
    monkeypatch.setenv("FEATURESTORE_CONFIG", str(named))
    assert load_configuration() == Configuration(4 * 2**20)


def test_a_directory_of_that_name_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "work" / NAME).mkdir()
    assert find_file({}) is None


def test_variables_come_before_the_file_each_for_itself(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(limited("1MiB") + 'scratch = "."\nscratch_limit = 9\n')
    monkeypatch.setenv("FEATURESTORE_MEMORY_LIMIT", "5MiB")
    monkeypatch.setenv("FEATURESTORE_SCRATCH", str(tmp_path / "elsewhere"))
    assert load_configuration() == Configuration(5 * 2**20, tmp_path / "elsewhere", 9)
    monkeypatch.setenv("FEATURESTORE_MEMORY_LIMIT", "")  # as good as not set
    monkeypatch.setenv("FEATURESTORE_SCRATCH_LIMIT", "1kB")
    assert load_configuration() == Configuration(2**20, tmp_path / "elsewhere", 1000)


def test_an_argument_comes_before_everything(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert memory_limit(None) > 2**20
    write(limited("1MiB"))
    assert memory_limit(None) == 2**20
    monkeypatch.setenv("FEATURESTORE_MEMORY_LIMIT", "2MiB")
    assert memory_limit(None) == 2 * 2**20
    assert memory_limit("3MiB") == 3 * 2**20


def test_scratch_begins_at_the_folder_of_the_file(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('[limits]\nscratch = "../elsewhere"\n', "home/.config/featurestore")
    with pytest.raises(InvalidInputError, match=r"\.config/elsewhere"):
        load_configuration()
    (tmp_path / "home" / ".config" / "elsewhere").mkdir()
    found = load_configuration().scratch
    assert found is not None
    assert found.samefile(tmp_path / "home" / ".config" / "elsewhere")
    write('[limits]\nscratch = "~"\n')
    assert load_configuration().scratch == tmp_path / "home"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits", "cannot be read as TOML"),
        ("limits = 3", "limits is 3, no section"),
        ('memory_limit = "2GiB"', r"no section or key 'memory_limit'[\s\S]*\[limits\]"),
        ("[limit]\n", r"no section or key 'limit'[\s\S]*did you mean 'limits'"),
        ("[limits]\nmemory_limt = 5", r"no 'memory_limt'[\s\S]*did you mean 'memory_limit'"),
        ("[limits]\nworkers = 5", r"no 'workers'[\s\S]*memory_limit"),
        ("[limits]\nmemory_limit = true", "memory_limit: True is not a number of bytes"),
        ("[limits]\nmemory_limit = 0", "must be positive"),
        ('[limits]\nmemory_limit = ""', "memory_limit: '' is not a number of bytes"),
        ("[limits]\nmemory_limit = [1]", "memory_limit"),
        ('[limits]\nmemory_limit = "lots"', r"memory_limit: 'lots'[\s\S]*512MiB"),
        ("[limits]\nscratch_limit = 1.5", "scratch_limit: 1.5 is not"),
        ("[limits]\nscratch_limit = 2026-11-22", "scratch_limit"),
        ("[limits]\nscratch = 5", "scratch: 5 is no directory"),
        ('[limits]\nscratch = ""', "scratch: '' is no directory"),
        ('[limits]\nscratch = "missing"', "scratch: there is no directory"),
        ('[limits]\nscratch = "~nobody-here/x"', "nobody-here"),
    ],
    ids=lambda text: re.sub(r"\W+", "-", text)[:40],
)
def test_what_is_not_understood_is_refused_with_the_file(
    write: Callable[..., Path], text: str, said: str
) -> None:
    path = write(text)
    with pytest.raises(InvalidInputError, match=said) as caught:
        read_file(path)
    assert str(path) in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = '\x00'", b"\xef\xbb"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "work" / NAME
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=NAME):
        load_configuration()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(write: Callable[..., Path]) -> None:
    write(limited("1MiB")).chmod(0)
    with pytest.raises(InvalidInputError, match="Permission"):
        load_configuration()


def test_a_named_file_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (tmp_path / "missing.toml", tmp_path):
        monkeypatch.setenv("FEATURESTORE_CONFIG", str(missing))
        with pytest.raises(NotFoundError, match="FEATURESTORE_CONFIG"):
            load_configuration()


@pytest.mark.parametrize("name", ["MEMORY_LIMIT", "SCRATCH", "SCRATCH_LIMIT"])
def test_a_wrong_variable_is_refused_by_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FEATURESTORE_{name}", "nonsense")
    with pytest.raises(InvalidInputError, match=f"FEATURESTORE_{name}"):
        load_configuration()


# --- what a store makes of it --------------------------------------------------------------------------


def rows(count: int = 20_000) -> pa.RecordBatchReader:
    """A stream that can be read once: it is kept in scratch space."""
    table = pa.table({"id": range(count), "x": [0.5] * count})
    return table.to_reader(max_chunksize=1000)


def test_a_store_keeps_to_the_scratch_limit_of_the_file(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    write(f'[limits]\nscratch = "{tmp_path / "elsewhere"}"\nscratch_limit = "64KiB"\n')
    store = fs.FeatureStore.create("memory://scratch-limit")
    with pytest.raises(LimitError, match="scratch limit") as caught:
        store.ingest("t", rows(), key="id")
    assert str(tmp_path / "elsewhere") in str(caught.value)
    assert store.tables() == ()
    enough = fs.FeatureStore.open("memory://scratch-limit", scratch_limit="64MiB")
    assert enough.ingest("t", rows(), key="id").rows == 20_000
    with pytest.raises(LimitError, match="scratch limit"):
        store.table("t").append(rows())


def test_a_store_refuses_a_scratch_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no directory"):
        fs.FeatureStore.create("memory://scratch-missing", scratch=tmp_path / "missing")
    with pytest.raises(InvalidInputError, match="number of bytes"):
        fs.FeatureStore.create("memory://scratch-missing", scratch_limit="lots")


def test_a_limit_of_one_call_is_of_that_call() -> None:
    store = fs.FeatureStore.create("memory://limits-of-calls", memory_limit="4GiB")
    with pytest.raises(MemoryLimitError):
        store.ingest("t", rows(), key="id", memory_limit="1MiB")
    table = store.ingest("t", rows(), key="id", memory_limit="2GiB")
    table.feature(plus_one, inputs=["x"], output="more")
    with pytest.raises(MemoryLimitError):
        table.build(memory_limit="1MiB")
    with pytest.raises(MemoryLimitError):
        table.add(fs.Expression(twice=nw.col("x") * 2), memory_limit="1MiB")
    small = store.with_limit("1MiB")
    assert (small.memory_limit, store.memory_limit) == (2**20, 4 * 2**30)
    with pytest.raises(MemoryLimitError):
        small.table("t").read("x")
    assert table.read("x").height == 20_000
    assert table.build().computed == 1

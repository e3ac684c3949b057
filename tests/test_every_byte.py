"""Every byte of a small store is damaged, one at a time: verify finds it, and no read is wrong.

Small files are damaged at every byte, larger ones at a sample whose seed is printed (``--slow``: at
every byte as well). After each damage a full verification must name a fault, and reading everything
must give the right values or an error of the package. Files of a data set this small are compared
with their checksums when they are read; the last test looks at files too large for that, of which
only parts are read, and measures what their own checks leave.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.errors import FeatureStoreError
from featurestore.storage import column_group, fileset, tensor_group
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.journal import Journal
from featurestore.storage.local import LocalStore
from featurestore.storage.maintenance import verify_store
from featurestore.testing.tables import observations, two_wide

SEED = 20_260
WHOLE = 1024
SAMPLE = 40
READ_EVERY = 25
READS = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every kind of file: two tables, two partitions each, tensor, states, tag, journal."""
    path = tmp_path_factory.mktemp("bytes") / "store"
    store = fs.FeatureStore.create(path, workers=1)
    rows = observations(16).sort("t", "k").drop("word")
    other = store.ingest("other", rows.head(8), key="k", time="t", partition_bytes=150)
    table = store.ingest("rows", rows, key="k", time="t", partition_bytes=300)
    table.add(
        fs.Expression(double=nw.col("x") * 2),
        fs.Function(two_wide, inputs="x", output="pair", shape=(2,)),
        fs.Lag("x", 1),
    )
    table.add(fs.Standardize("n", prefix="std_"), fit_on="all")
    store.tag("kept")
    other.add(fs.Expression(half=nw.col("x") / 2))
    files = store._session.files("rows")
    group = next(one for one in files.entries if one != "base")
    entry = files.entries[group][files.base[0].partition]
    Journal(store._session.objects, "rows").record_all([("interrupted", entry)])
    assert table.partitions == other.partitions == 2
    shutil.rmtree(path / "tmp", ignore_errors=True)
    shutil.rmtree(path / "leases", ignore_errors=True)
    assert not verify_store(CommitLog.open(LocalStore(path))).faults
    return path


def files_of(root: Path) -> list[Path]:
    found = sorted(one for one in root.rglob("*") if one.is_file())
    # What is being written, and leases of readers, come and go while they are looked at.
    found = [one for one in found if one.relative_to(root).parts[0] not in ("tmp", "leases")]
    kinds = {one.relative_to(root).parts[0] for one in found}
    assert kinds >= {"data", "filesets", "journal", "snapshots", "states", "store.json", "tags"}
    return found


def forget() -> None:
    """Empty what this process keeps of files that it checked before."""
    fileset._cache.clear()
    tensor_group._cached_layout.cache_clear()


def everything(root: Path) -> dict[str, Any]:
    """Return all that a reader gets from a store."""
    store = fs.FeatureStore.open(root, workers=1)
    found: dict[str, Any] = {"tags": store.tags()}
    for version in (store, store.checkout("kept")):
        for name in ("other", "rows"):
            found[f"{version.version} {name}"] = version.table(name).read()
    return found


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].equals(value, null_equal=True)
        if isinstance(value, pl.DataFrame)
        else found[name] == value
        for name, value in expected.items()
    )


def verify_finds(root: Path, path: Path | None = None) -> bool:
    """Whether a full verification names a fault; ``path`` is the one file that may be damaged."""
    if path is None or path.parent.name == "filesets":  # others are never kept by a process
        forget()
    try:
        return bool(verify_store(CommitLog.open(LocalStore(root))).faults)
    except FeatureStoreError:  # of a store that does not even open
        return True


def read_is_right(root: Path, expected: dict[str, Any]) -> str:
    """Return ``right``, ``refused`` or ``WRONG``; any error of another tree is raised."""
    forget()
    try:
        return "right" if same(everything(root), expected) else "WRONG"
    except FeatureStoreError:
        return "refused"


def positions(size: int, draw: random.Random, whole: int, sample: int) -> list[int]:
    """Return every byte of a file that is not larger than ``whole``, and a sample of others."""
    return list(range(size)) if size <= whole else sorted(draw.sample(range(size), sample))


@pytest.fixture(scope="module")
def expected(root: Path) -> dict[str, Any]:
    return everything(root)


@pytest.fixture
def seed() -> random.Random:
    print(f"seed {SEED}")
    return random.Random(SEED)


def test_every_flipped_byte_is_found_and_never_read_as_right(
    root: Path, expected: dict[str, Any], seed: random.Random, request: pytest.FixtureRequest
) -> None:
    slow = request.config.getoption("--slow")
    outcomes: Counter[str] = Counter()
    flips = 0
    for path in files_of(root):
        data = path.read_bytes()
        for position in positions(len(data), seed, sys.maxsize if slow else WHOLE, SAMPLE):
            mask = seed.randrange(1, 256)
            where = f"{path.relative_to(root)} byte {position} of {len(data)} xor {mask}"
            write_byte(path, position, data[position] ^ mask)
            assert verify_finds(root, path), where
            if flips % READ_EVERY == 0:
                outcome = read_is_right(root, expected)
                assert outcome != "WRONG", where
                outcomes[outcome] += 1
            write_byte(path, position, data[position])
            flips += 1
    print(f"{flips} bytes flipped, verify found all; reads: {dict(outcomes)}")
    assert flips > 5000
    assert outcomes["refused"] > 0
    assert not verify_finds(root)
    assert read_is_right(root, expected) == "right"


def write_byte(path: Path, position: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([value]))


DAMAGES = ("cut", "empty", "missing", "longer")


def damaged(data: bytes, damage: str, draw: random.Random) -> bytes | None:
    """Return what is left of a file; None if nothing."""
    return {
        "cut": data[: draw.randrange(1, len(data))] if len(data) > 1 else b"",
        "empty": b"",
        "missing": None,
        "longer": data + b"\0",
    }[damage]


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_were_cut_or_lost(
    root: Path, expected: dict[str, Any], seed: random.Random, damage: str
) -> None:
    last = str(max(root.glob("snapshots/*")).relative_to(root))
    for path in files_of(root):
        name = str(path.relative_to(root))
        data = path.read_bytes()
        left = damaged(data, damage, seed)
        path.unlink()
        if left is not None:
            path.write_bytes(left)
        try:
            found = verify_finds(root)  # before a read, which computes a damaged state again
            outcome = read_is_right(root, expected)
            # Nothing names a cache; a tag that is gone was removed, as far as anybody can tell; and
            # a version is there because its file is.
            unnamed = name.startswith(("states/", "journal/", "tags/"))
            if damage != "missing" or not unnamed:
                assert found or (damage == "missing" and name == last), name
                # A newest version whose file is lost was never there, as far as anybody can tell.
                assert outcome != "WRONG" or (damage == "missing" and name == last), name
        finally:
            path.write_bytes(data)
    assert not verify_finds(root)


def test_files_that_were_exchanged(
    root: Path, expected: dict[str, Any], seed: random.Random
) -> None:
    """Two files of a kind, of one size if there are such: each is sound, and not what it should be."""
    by_kind: dict[tuple[str, ...], list[Path]] = {}
    for path in files_of(root):
        relative = path.relative_to(root)
        by_kind.setdefault((relative.parts[0], path.suffix, str(path.stat().st_size)), []).append(
            path
        )
        by_kind.setdefault((relative.parts[0], path.suffix), []).append(path)
    exchanged = 0
    for kind, paths in by_kind.items():
        for a, b in pairwise(paths):
            first, second = a.read_bytes(), b.read_bytes()
            if first == second:
                continue
            a.write_bytes(second)
            b.write_bytes(first)
            try:
                names = f"{a.relative_to(root)} and {b.relative_to(root)}"
                assert verify_finds(root), names
                assert read_is_right(root, expected) != "WRONG", names
                exchanged += len(kind) == 3
            finally:
                a.write_bytes(first)
                b.write_bytes(second)
    print(f"{exchanged} pairs of equal size exchanged")
    assert exchanged > 0


def test_an_old_version_put_back(root: Path, expected: dict[str, Any]) -> None:
    """An earlier snapshot under a later one's name, and an earlier fileset under a later one's."""
    for folder in ("snapshots", "filesets"):
        paths = sorted(root.glob(f"{folder}/*"))
        for old in paths:
            for new in paths:
                data = new.read_bytes()
                if old == new or old.read_bytes() == data:
                    continue
                new.write_bytes(old.read_bytes())
                try:
                    assert verify_finds(root), (old, new)
                    assert read_is_right(root, expected) != "WRONG", (old, new)
                finally:
                    new.write_bytes(data)


@pytest.fixture
def as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are treated as too large to be compared whole when they are read."""
    monkeypatch.setattr(column_group, "CHECKED_WHOLE", 0)
    monkeypatch.setattr(tensor_group, "CHECKED_WHOLE", 0, raising=False)


@pytest.mark.usefixtures("as_if_large")
def test_large_files_whose_parts_are_read(
    root: Path, expected: dict[str, Any], seed: random.Random, request: pytest.FixtureRequest
) -> None:
    """Pages of Parquet have checksums, and its footer one in the fileset; what is between has none."""
    slow = request.config.getoption("--slow")
    outcomes: dict[str, Counter[str]] = {".parquet": Counter(), "tensor": Counter()}
    for path in (one for one in files_of(root) if one.relative_to(root).parts[0] == "data"):
        data = path.read_bytes()
        kind = path.suffix if path.suffix == ".parquet" else "tensor"
        for position in positions(len(data), seed, sys.maxsize if slow else 0, READS):
            write_byte(path, position, data[position] ^ seed.randrange(1, 256))
            outcomes[kind][read_is_right(root, expected)] += 1
            write_byte(path, position, data[position])
    for kind, found in outcomes.items():
        wrong = found["WRONG"] / found.total()
        print(f"{kind}: {dict(found)}, {wrong:.1%} read as wrong values")
        assert wrong == 0, kind

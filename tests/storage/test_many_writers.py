"""Many processes commit to one store at once: one linear history, and every acknowledged commit in it.

The writers are processes of their own, started together. Each prints what was acknowledged to it; a
commit that is not in the history afterwards, is there twice, or whose entry is not that of its
writer's last commit, was lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pytest

import featurestore as fs
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.maintenance import verify_store
from featurestore.testing.loopback_s3 import LoopbackS3, loopback_s3
from featurestore.testing.tables import observations

WRITERS = 16
COMMITS = 100
COMMITS_WITH_LOSSES = 25
HOURS = 400

COMMIT = """
import json, sys
from featurestore.storage.backends import open_object_store
from featurestore.storage.commit_log import CommitLog
url, me, commits = sys.argv[1], sys.argv[2], int(sys.argv[3])
log = CommitLog.open(open_object_store(url))
acknowledged, calls = [], []
def change(head, number):
    calls.append(head.version)
    return {f"writer:{me}": {"number": number, "seen": head.version}}
print("ready", flush=True)
sys.stdin.readline()
for number in range(commits):
    made = log.commit(f"{me}/{number}", lambda head: change(head, number))
    acknowledged.append([made.version, made.commit, f"{me}/{number}"])
    assert log.head().version >= made.version
print(json.dumps({"acknowledged": acknowledged, "calls": len(calls)}))
"""


LOSING = "s3 with lost answers"


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[LoopbackS3 | None]:
    """A server of object storage, or None for a local directory."""
    if request.param == "local":
        yield None
        return
    loses = request.param == LOSING
    with loopback_s3(lose_every=40 if loses else 0) as running:
        yield running
        print(f"{running.lost} answers were lost")
        assert (running.lost > 0) == loses


@pytest.fixture
def place(server: LoopbackS3 | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL that other processes open too; their ``AWS_*`` variables are set."""
    if server is None:
        return (tmp_path / "store").as_uri()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return "s3://bucket/many/writers"


def run_together(script: str, arguments: list[list[str]]) -> list[Any]:
    """Run a script in several processes that begin at once; return what each prints at the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, *one],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in arguments
    ]
    try:
        for one in writers:
            assert one.stdout is not None
            one.stdout.readline()  # all have imported and opened the store
        for one in writers:
            assert one.stdin is not None
            one.stdin.write("\n")
            one.stdin.flush()
        outputs = [one.communicate(timeout=300) for one in writers]
    finally:
        for one in writers:
            one.kill()
    for one, (_, errors) in zip(writers, outputs, strict=True):
        assert one.returncode == 0, errors
    return [json.loads(output) for output, _ in outputs]


def check_history(log: CommitLog, acknowledged: Mapping[str, tuple[int, str]]) -> None:
    """Assert that a history is linear and holds each acknowledged commit, by operation, once.

    Parameters
    ----------
    log : CommitLog
        Opened anew.
    acknowledged : mapping of str to (int, str)
        Version and commit of each operation.
    """
    files = [log.read_file(version) for version in range(1, log.newest_version() + 1)]
    assert [one.version for one in files] == list(range(1, len(files) + 1))
    assert not files or files[0].parent == log.store_id
    for before, after in pairwise(files):
        assert after.parent == before.commit
    assert len({one.commit for one in files}) == len(files)
    landed = Counter(one.operation for one in files)
    assert all(landed[name] == 1 for name in acknowledged)
    found = {one.operation: (one.version, one.commit) for one in files}
    assert {name: found.get(name) for name in acknowledged} == acknowledged


@pytest.mark.parametrize(
    ("server", "commits"),
    [("local", COMMITS), ("s3", COMMITS), (LOSING, COMMITS_WITH_LOSSES)],
    indirect=["server"],
)
def test_sixteen_processes_commit_many_times_each(place: str, commits: int) -> None:
    CommitLog.create(open_object_store(place))
    arguments = [[place, str(writer), str(commits)] for writer in range(WRITERS)]
    answers = run_together(COMMIT, arguments)
    log = CommitLog.open(open_object_store(place))
    acknowledged = {
        operation: (version, commit)
        for one in answers
        for version, commit, operation in one["acknowledged"]
    }
    assert len(acknowledged) == WRITERS * commits
    check_history(log, acknowledged)
    assert log.newest_version() == WRITERS * commits  # and nothing that nobody acknowledged
    expected: dict[str, Any] = {}
    by_version = {version: name for name, (version, _) in acknowledged.items()}
    for version, operation in sorted(by_version.items()):
        writer, _, number = operation.partition("/")
        # What was published had been computed on the version right before it, whose rest it kept.
        expected[f"writer:{writer}"] = {"number": int(number), "seen": version - 1}
        assert log.read(version).entries == expected
    calls = sum(one["calls"] for one in answers)
    print(f"{WRITERS * commits} commits took {calls} attempts")
    assert calls > WRITERS * commits  # there were races
    assert verify_store(log).ok


WORK = """
import json, random, sys
import narwhals as nw
import polars as pl
import featurestore as fs
from featurestore.errors import ConflictError, CorruptionError, LateRowsError, NotFoundError
url, me, path, rounds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store = fs.FeatureStore.open(url, workers=1)
rows = pl.read_parquet(path)
own, shared = store.table(f"own{me}"), store.table("shared")
draw = random.Random(me)
done = {"own": 0, "shared": [], "features": [], "tags": {}, "gc": 0}
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    done["own"] += own.append(rows.slice(number * 8, 8))
    name = f"f{me}_{number}"
    shared.add(fs.Expression(**{name: nw.col("x") * (10 * me + number)}))
    done["features"].append(name)
    while True:
        newest = shared.read("t")["t"].max()
        later = rows.head(3).with_columns(
            t=(newest + pl.duration(hours=pl.int_range(1, 4))).cast(pl.Datetime("ms")),
            n=pl.lit(me, pl.Int64),
        )
        try:
            shared.append(later)
            break
        except (ConflictError, LateRowsError):
            continue
    done["shared"].append(3)
    version = draw.randrange(1, store.version + 1)
    try:
        store.tag(f"tag{me}_{number}", version)
        done["tags"][f"tag{me}_{number}"] = version
    except NotFoundError:
        pass  # gc let it go first, and said so
    try:
        store.gc(safety_age="60s", keep_versions=2)
        done["gc"] += 1
    except CorruptionError as error:
        assert "tagged" in str(error), error
print(json.dumps(done))
"""


@pytest.mark.parametrize("server", ["local", LOSING], indirect=True)
def test_four_processes_append_add_tag_and_collect_garbage(
    place: str, server: LoopbackS3 | None, tmp_path: Path
) -> None:
    """Versions and files that lie there for long are collected while others tag and publish."""
    rounds, workers = 5, 4
    rows = observations(180, 3).sort("t", "k").with_columns(k=pl.lit("a")).unique("t").sort("t")
    store = fs.FeatureStore.create(place, workers=1)
    shared = store.ingest("shared", rows, key="k", time="t", partition_bytes=600)
    for number in range(workers):
        store.ingest(f"own{number}", rows.head(4), key="k", time="t")
    for number in range(6):
        shared.add(fs.Expression(old=nw.col("x") + number), replace=True)
    shared.drop("old")
    make_old(place, server)
    path = tmp_path / "rows.parquet"
    later = rows.with_columns(pl.col("t") + pl.duration(hours=HOURS))
    later.write_parquet(path)
    arguments = [[place, str(worker), str(path), str(rounds)] for worker in range(workers)]
    answers = run_together(WORK, arguments)

    store = fs.FeatureStore.open(place, workers=1)
    check_history(store._session.log, {})
    shared = store.table("shared")
    for number, done in enumerate(answers):
        assert done["own"] == 8 * rounds
        own = store.table(f"own{number}").read()
        assert own.equals(pl.concat([rows.head(4), later.head(8 * rounds)]), null_equal=True)
    assert shared.rows == len(rows) + sum(sum(done["shared"]) for done in answers)
    assert shared.read("n")["n"].slice(len(rows)).value_counts().sort("n").rows() == [
        (worker, 3 * rounds) for worker in range(workers)
    ]
    shared.build()
    values = shared.read()
    for name in (name for done in answers for name in done["features"]):
        worker, number = (int(one) for one in name[1:].split("_"))
        expected = values["x"] * (10 * worker + number)
        assert values[name].equals(expected, null_equal=True), name
    tags = {name: version for done in answers for name, version in done["tags"].items()}
    assert store.tags() == tags
    for name, version in tags.items():
        then = store.checkout(name)
        assert then.version == version
        for table in then.tables():
            assert len(then.table(table).read("x")) == then.table(table).rows
    collected = sum(done["gc"] for done in answers)
    print(f"{len(tags)} tags, {collected} collections")
    assert collected > 0
    assert not all(record.kept for record in store.history())  # they did let old versions go
    assert store.verify(all_versions=True).ok


def make_old(place: str, server: LoopbackS3 | None) -> None:
    """Make every file of a store an hour old."""
    hour_ago = time.time() - 3600
    if server is not None:
        with server.lock:
            server.modified = dict.fromkeys(server.modified, hour_ago)
        return
    for one in Path(place.removeprefix("file://")).rglob("*"):
        os.utime(one, (hour_ago, hour_ago))

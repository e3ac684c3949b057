"""What a commit and an opening cost as a store grows: versions up to 10,000, features up to 2,000.

*Versions*: a store of 20 column groups gets one commit after the other, each replacing the files of
one group. *Features*: a table of 200 partitions gets features that are not computed but published as
if they had been (``featurestore.testing.wide_tables``); then more of them one by one, an append, and
one column is read by a store that was just opened. Requests and bytes are counted beneath the store,
so they do not depend on the machine; milliseconds are those of a local disk, syncs included.

    python benchmarks/commits.py [--small]

Prints tables; writes ``commits.json`` and ``commits.md`` to ``benchmarks/out``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

from measuring import OUT, described, parse, print_table, run_case, save

GROUPS = 20


def _forget() -> None:
    from featurestore.storage import fileset

    fileset._cache.clear()


def _repeated(
    requests: Callable[[], Any], work: Callable[[int], Any], times: int
) -> dict[str, Any]:
    """Run ``work`` some times and return bytes and milliseconds of each, as mean and maximum."""
    found: dict[str, list[float]] = {"bytes": [], "snapshot_bytes": [], "ms": []}
    for number in range(times):
        counted = requests()
        before = time.perf_counter()
        work(number)
        found["ms"].append((time.perf_counter() - before) * 1000)
        found["bytes"].append(counted.written.total())
        found["snapshot_bytes"].append(counted.written["snapshots"])
    return {
        f"{what}_{name}": value
        for what, values in found.items()
        for name, value in (("mean", sum(values) / len(values)), ("max", max(values)))
    }


def versions(arguments: dict[str, Any]) -> dict[str, Any]:
    """Commit ``until`` versions; measure the next 100 and what it takes to open and look back."""
    import pyarrow as pa

    from featurestore.schema import Field
    from featurestore.storage.commit_log import CommitLog
    from featurestore.storage.fileset import write_fileset
    from featurestore.storage.local import LocalStore
    from featurestore.storage.records import GroupEntry, TableEntry, group_key, table_key
    from featurestore.testing.counting import CountingStore
    from featurestore.testing.entries import partition_entry
    from featurestore.testing.unsynced_disk import UnsyncedDisk

    place = arguments["place"]
    entry = TableEntry("t", (), None, 2**27)

    def commit(log: Any, number: int) -> None:
        name = f"g{number % GROUPS:02d}"
        ref = write_fileset(log.store, [partition_entry(f"p{number:08d}-00000000", 10)])
        group = GroupEntry("t", name, (Field(name, pa.float64()),), ref)
        log.commit(
            f"write {name}",
            lambda head: {table_key("t"): entry.to_json(), group_key("t", name): group.to_json()},
        )

    log = CommitLog.create(LocalStore(place, UnsyncedDisk()))  # what is measured later is synced
    for number in range(arguments["until"]):
        commit(log, number)
    counting = CountingStore(LocalStore(place))
    log = CommitLog.open(counting)
    result = _repeated(counting.start, lambda number: commit(log, number), 100)

    def measured(work: Callable[[], Any]) -> tuple[int, int, float]:
        counted, before = counting.start(), time.perf_counter()
        work()
        seconds = time.perf_counter() - before
        return counted.total, counted.read.total(), seconds * 1000

    fresh: list[Any] = []
    opened = measured(lambda: fresh.append(CommitLog.open(counting).head()))
    snapshot_reads = len(counting.requests.reads("snapshots/"))
    known = CommitLog.open(counting)
    known.head()
    last = measured(lambda: known.history(20))
    old = measured(lambda: known.read(arguments["until"] // 2))
    return {
        **result,
        "open_requests": opened[0], "open_bytes": opened[1], "open_ms": opened[2],
        "snapshot_reads": snapshot_reads,
        "history_requests": last[0], "checkout_requests": old[0],
    }  # fmt: skip


def features(arguments: dict[str, Any]) -> dict[str, Any]:
    """Measure commits, opening, reading and status of a table of very many features."""
    import polars as pl

    from featurestore.storage.backends import open_object_store
    from featurestore.store import FeatureStore
    from featurestore.table import Table
    from featurestore.testing import wide_tables
    from featurestore.testing.counting import CountingStore

    partitions, count = arguments["partitions"], arguments["features"]
    store = FeatureStore.create(arguments["place"], workers=1)
    wide_tables.narrow_table(store, partitions)
    counting = CountingStore(open_object_store(arguments["place"]))
    session = wide_tables.session_of(counting)
    wide_tables.add_unbuilt(session, range(count))
    more = arguments["more"]
    commits = _repeated(
        counting.start, lambda n: wide_tables.add_unbuilt(session, [count + n]), more
    )

    def appended(number: int) -> None:
        at = (partitions + number) * 4
        rows = pl.DataFrame(
            {"at": [(at + n) * 3_600_000 for n in range(4)], "x": [1.0] * 4},
            schema={"at": pl.Datetime("ms"), "x": pl.Float64},
        )
        Table(session, "t").append(rows)

    def measured(work: Callable[[], Any]) -> tuple[Any, float]:
        _forget()
        counted, before = counting.start(), time.perf_counter()
        work()
        return counted, (time.perf_counter() - before) * 1000

    opened, open_ms = measured(lambda: wide_tables.session_of(counting).snapshot())
    table = Table(wide_tables.session_of(counting), "t")
    counting.start()
    table._session.snapshot()
    columns, columns_ms = measured(lambda: table.columns)
    read, read_ms = measured(lambda: table.read("one"))
    before = time.perf_counter()
    table.read("one")
    again_ms = (time.perf_counter() - before) * 1000
    _, status_ms = measured(table.status)
    appends = _repeated(counting.start, appended, 5)
    return {
        **commits,
        "append_bytes_mean": appends["bytes_mean"], "append_ms_mean": appends["ms_mean"],
        "append_snapshot_bytes_max": appends["snapshot_bytes_max"],
        "open_requests": opened.total, "open_bytes": opened.read.total(), "open_ms": open_ms,
        "snapshot_reads": len(opened.reads("snapshots/")),
        "columns_filesets": len(columns.reads("filesets/")), "columns_ms": columns_ms,
        "read_filesets": len(read.reads("filesets/")), "read_ms": read_ms,
        "read_again_ms": again_ms, "read_bytes": read.read.total(),
        "status_s": status_ms / 1000,
    }  # fmt: skip


CASES = {"versions": versions, "features": features}
VERSION_COLUMNS = {
    "versions": "until", "bytes/commit": "bytes_mean", "max": "bytes_max", "ms/commit": "ms_mean",
    "open: requests": "open_requests", "snapshots": "snapshot_reads", "bytes": "open_bytes",
    "ms": "open_ms", "history(20)": "history_requests", "old version": "checkout_requests",
}  # fmt: skip
FEATURE_COLUMNS = {
    "features": "features", "bytes/add": "bytes_mean", "max": "bytes_max",
    "of it snapshot": "snapshot_bytes_mean", "ms/add": "ms_mean", "bytes/append": "append_bytes_mean",
    "open: bytes": "open_bytes", "snapshots": "snapshot_reads", "ms": "open_ms",
    "columns: ms": "columns_ms", "read 1: filesets": "read_filesets", "ms (first)": "read_ms",
    "ms (again)": "read_again_ms", "status: s": "status_s",
}  # fmt: skip


def _cells(columns: dict[str, str], results: list[dict[str, Any]]) -> list[list[str]]:
    def text(value: Any) -> str:
        return f"{value:,.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"

    return [
        [one["error"]] if "error" in one else [text(one[key]) for key in columns.values()]
        for one in results
    ]


def _markdown(title: str, columns: dict[str, str], results: list[dict[str, Any]]) -> str:
    lines = [f"## {title}", "", "| " + " | ".join(columns) + " |", "| ---: " * len(columns) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in _cells(columns, results)]
    return "\n".join(lines) + "\n"


def curve(case: str, name: str, points: list[int], given: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a case at each point, each in a fresh process and a store of its own."""
    results = []
    for point in points:
        with tempfile.TemporaryDirectory(prefix="commits-") as folder:
            arguments = {**given, name: point, "place": f"{folder}/store"}
            results.append(
                {"case": case, **given, name: point, **run_case(__file__, case, arguments)}
            )
    return results


def main() -> None:
    parser = described(__doc__)
    given = parse(parser, CASES, "to 300 versions and 50 features")
    if given is None:
        return
    small = given.small
    partitions, more = (20, 20) if small else (200, 100)
    titles = ("As versions grow", f"As features grow, {partitions} partitions")
    results = [
        curve("versions", "until", [10, 100, 300] if small else [10, 100, 1_000, 10_000], {}),
        curve(
            "features", "features", [10, 50] if small else [10, 100, 500, 2_000],
            {"partitions": partitions, "more": more},
        ),
    ]  # fmt: skip
    pages = []
    for title, columns, found in zip(
        titles, (VERSION_COLUMNS, FEATURE_COLUMNS), results, strict=True
    ):
        print_table(title, tuple(columns), _cells(columns, found))
        pages.append(_markdown(title, columns, found))
    saved = save("commits", {"small": small, "groups": GROUPS}, [*results[0], *results[1]])
    page = OUT / "commits.md"
    page.write_text("# Commits and openings as a store grows\n\n" + "\n".join(pages))
    print(f"saved {saved} and {page}")


if __name__ == "__main__":
    main()

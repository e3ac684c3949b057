"""Feeding a model: shuffled batches of a stored table, here, elsewhere, and as plain reads of a file.

A table of N rows, M float32 columns and a label; batches of 4,096 rows. Each loader gives whole epochs
in a fresh process, and every value of every batch is read: a checksum, the same for all. The seconds
are those of the median epoch after a first, in which the memory is measured; rows for each second that the
loader's process computes tell more where others use the machine. Three tables:

* the packed rows: ``featurestore`` in its three orders, beside plain block-shuffled reads of the same
  row-major file (one through a map, one with ``pread``; the faster is the limit) and other libraries,
  those that are installed (``peers.txt``);
* a first epoch, that is from Parquet, beside Polars decoding the same columns;
* embeddings: one tensor of 384 float32 a row, beside the same plain reads.

What is compared most closely runs several times in turn (``--rounds``), and the median counts. Needs
disk for the table twice, and memory for the system to keep it in: what is measured is not the disk.

    python benchmarks/loader.py [--small] [--rows N] [--columns M] [--seconds S] [--rounds R]

Writes tables to the terminal, and ``loader.json`` and ``loader.png`` to ``benchmarks/out``.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

import loader_peers as peers
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from comparison import Measure, Result, ingested, keep, mebibytes, run_cases, show
from feeding import TRAINING, Arrays, Epoch, fed, ingest, open_dataset
from measuring import described, parse, run_case, stored_files, write_data

BATCH_ROWS = 4096
EMBEDDING = 384
LIMITS = {"map": "plain reads of blocks, mapped", "pread": "plain reads of blocks, pread"}
OURS = {
    "window": "featurestore, shuffle=True",
    "global": 'featurestore, shuffle="global"',
    "ordered": "featurestore, shuffle=False",
}
PEERS = {
    "torch": "PyTorch DataLoader, mapped NumPy",
    "tensorflow": "tf.data, fixed-length records",
    "datasets": "Hugging Face datasets",
    "petastorm": "Petastorm, row groups only",
    "ray": "Ray Data",
}
FIRST = {"first": "featurestore, first epoch", "polars": "Polars, decoding alone"}
VECTORS = {**LIMITS, "window": OURS["window"]}
LABELS = {**LIMITS, **OURS, **PEERS, **FIRST}
ADDED = mebibytes("added_anonymous_bytes", "anonymous MiB above imports", 1)


def write_vectors(path: Path, rows: int) -> Path:
    """Write ``entity``, ``time``, a tensor ``e`` and ``y``."""
    random = np.random.default_rng(0)
    type_ = pa.list_(pa.float32(), EMBEDDING)
    schema = pa.schema(
        [
            ("entity", pa.int32()), ("time", pa.timestamp("ms")), ("e", type_), ("y", pa.float32()),
        ]
    )  # fmt: skip
    with pq.ParquetWriter(path, schema, compression="none") as writer:
        for start in range(0, rows, 16_384):
            position = np.arange(start, min(start + 16_384, rows))
            values = random.standard_normal(len(position) * EMBEDDING, dtype=np.float32)
            arrays = [
                pa.array(np.zeros(len(position), np.int32)),
                pa.array(position * 1000).cast(pa.timestamp("ms")),
                pa.FixedSizeListArray.from_arrays(pa.array(values), EMBEDDING),
                pa.array((position % 2).astype(np.float32)),
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return path


def with_featurestore(arguments: dict[str, Any], shuffle: bool | str) -> dict[str, Any]:
    def prepare() -> Epoch:
        loader = opened(arguments, shuffle)
        key = "e" if arguments.get("tensor") else "numeric"

        def epoch() -> Iterator[Arrays]:
            for batch in loader:
                assert batch.label is not None
                yield batch.inputs[key], batch.label

        return epoch

    return fed(arguments, prepare, TRAINING)


def opened(arguments: dict[str, Any], shuffle: bool | str) -> Any:
    from training import Loader

    part = open_dataset(arguments).all
    return Loader(part, arguments["batch_size"], shuffle=shuffle, cache=arguments["cache"])


def shuffled(arguments: dict[str, Any]) -> dict[str, Any]:
    return with_featurestore(arguments, True)


def shuffled_globally(arguments: dict[str, Any]) -> dict[str, Any]:
    return with_featurestore(arguments, "global")


def in_order(arguments: dict[str, Any]) -> dict[str, Any]:
    return with_featurestore(arguments, False)


def first_epoch(arguments: dict[str, Any]) -> dict[str, Any]:
    """The one epoch that begins without a pack: all of it, the pack that it leaves included."""
    shutil.rmtree(arguments["cache"], ignore_errors=True)
    return shuffled({**arguments, "epochs": 0})


def pack(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the files of the pack's values and labels, which begin with these as they are."""
    from training.loading.layout import LABEL_KEY, pack_layout

    made = opened(arguments, True).pack
    layout = pack_layout(made.schema, made.rows)
    values = layout["e" if arguments.get("tensor") else "numeric"]
    return {
        "rows_file": str(made.path / values.file),
        "labels_file": str(made.path / layout[LABEL_KEY].file),
    }


CASES = {
    "ingest": ingest,
    "pack": pack,
    "first": first_epoch,
    "window": shuffled,
    "global": shuffled_globally,
    "ordered": in_order,
    "map": peers.with_plain_map,
    "pread": peers.with_plain_reads,
    "polars": peers.with_polars,
    "torch": peers.with_torch,
    "tensorflow": peers.with_tensorflow,
    "datasets": peers.with_datasets,
    "petastorm": peers.with_petastorm,
    "ray": peers.with_ray,
}


def rate(one: Result) -> float:
    """Return million rows a second."""
    return float(one["rows"] / one["seconds"] / 1e6)


def in_turn(cases: Mapping[str, str], arguments: dict[str, Any], rounds: int) -> list[Result]:
    """Run cases one after the other several times; return the median run of each."""
    runs = [run_cases(__file__, cases, arguments) for _ in range(rounds)]
    return [median(list(each)) for each in zip(*runs, strict=True)]


def median(runs: list[Result]) -> Result:
    failed = [one for one in runs if "error" in one]
    if failed:
        return failed[0]
    middle = statistics.median_low([rate(one) for one in runs])
    chosen = next(one for one in runs if rate(one) == middle)
    return {**chosen, "rates": [rate(one) for one in runs]}


def measures(results: list[Result], columns: int) -> tuple[Measure, ...]:
    """Return what is shown of loaders of rows as wide as this, as a share of the faster plain reads."""
    limits = [rate(one) for one in results if one["case"] in LIMITS and "error" not in one]
    shown = [
        Measure("million rows/s", rate),
        Measure("per CPU second", lambda one: one["rows"] / one["cpu_seconds"] / 1e6),
        Measure("GB/s", lambda one: rate(one) * columns * 4e-3),
        Measure("rows seen", lambda one: one["rows"], 0),
        ADDED,
    ]
    if limits:
        shown.insert(3, Measure("share of the limit", lambda one: rate(one) / max(limits)))
    return tuple(shown)


def differing(results: list[Result]) -> list[str]:
    """Return who saw other values than the first who saw all of them."""
    whole = [one for one in results if one.get("complete")]
    return [
        f"{one['case']}: {one['rows']} rows, {one['check']}"
        for one in whole
        if (one["rows"], one["check"]) != (whole[0]["rows"], whole[0]["check"])
    ]


def vectors(folder: Path, rows: int, given: dict[str, Any], rounds: int) -> list[Result]:
    """Make a table of embeddings, go through it, and remove it."""
    source = write_vectors(folder / "vectors.parquet", rows)
    arguments = {
        **given, "source": str(source), "store": f"{folder}/vectors", "cache": f"{folder}/packs",
        "rows": rows, "columns": EMBEDDING, "tensor": True,
    }  # fmt: skip
    ingested(__file__, arguments)
    source.unlink()
    arguments.update(run_case(__file__, "pack", arguments))
    results = in_turn(VECTORS, arguments, rounds)
    for one in ("vectors", "packs"):
        shutil.rmtree(folder / one)
    return results


def rows_of(folder: Path, given: dict[str, Any], rounds: int) -> tuple[list[Result], list[Result]]:
    """Make a table of scalars; return results of first epochs and of packed ones."""
    source = write_data(
        folder / "source.parquet", given["rows"], given["columns"], entities=1000, label=True
    )
    arguments = {
        **given, "source": str(source), "store": f"{folder}/store", "cache": f"{folder}/packs",
        "scratch": f"{folder}/scratch",
    }  # fmt: skip
    ingested(__file__, arguments)
    source.unlink()
    arguments["files"] = stored_files(arguments["store"])
    first = in_turn(FIRST, arguments, rounds)
    arguments.update(run_case(__file__, "pack", arguments))
    packed = in_turn({**LIMITS, **OURS}, arguments, rounds)
    packed += run_cases(__file__, PEERS, {**arguments, "seconds": given["peer_seconds"]})
    return first, packed


def compare(rows: int, columns: int, given: dict[str, Any], rounds: int) -> None:
    vector_rows = max(BATCH_ROWS, rows // 16)
    arguments = {
        **given, "rows": rows, "columns": columns, "batch_size": BATCH_ROWS, "seconds": inf,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="loader-") as folder:
        embedded = vectors(Path(folder), vector_rows, arguments, rounds)
        first, packed = rows_of(Path(folder), arguments, rounds)
    title = f"batches of {BATCH_ROWS:,} of {rows:,} rows x {columns} float32"
    show(title, LABELS, packed, measures(packed, columns))
    show("the first epoch, without a pack", LABELS, first, measures(first, columns))
    show(
        f"embeddings: {vector_rows:,} rows x {EMBEDDING} float32",
        LABELS, embedded, measures(embedded, EMBEDDING),
    )  # fmt: skip
    wrong = differing([*first, *packed]) + differing(embedded)
    if wrong:
        raise SystemExit("the values differ: " + "; ".join(wrong))
    keep(
        "loader", title, LABELS, packed, (Measure("million rows/s", rate), ADDED),
        {"rows": rows, "columns": columns, **given, "first_epoch": first, "embeddings": embedded},
        others=(*LIMITS, *PEERS),
    )  # fmt: skip


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--columns", type=int, default=64, help="an even number")
    parser.add_argument("--memory-limit", default="2GiB")
    parser.add_argument("--seconds", type=float, default=30, help="after which a peer is stopped")
    parser.add_argument("--epochs", type=int, default=5, help="after the first")
    parser.add_argument("--rounds", type=int, default=3)
    given = parse(parser, CASES, "200,000 rows x 16 columns, one round, 3 seconds for each peer")
    if given is None:
        return
    options = {
        "memory_limit": given.memory_limit, "peer_seconds": given.seconds, "epochs": given.epochs,
    }  # fmt: skip
    if given.small:
        compare(200_000, 16, {**options, "peer_seconds": 3, "epochs": 2}, 1)
    else:
        compare(given.rows, given.columns, options, given.rounds)


if __name__ == "__main__":
    main()

"""How well a loader shuffles: batches of a table that is sorted by its label, beside independent draws.

The label of row ``i`` of ``n`` is ``i / n``: the worst a table can be sorted by. Independent draws give
batch means with the deviation ``sqrt(1/12 / batch)``; shown is how many times as large the deviation of
a loader's batch means is, in a first epoch, which goes from stripe to stripe of the pack, and in the
one after it. 1 is as good as drawing lots. Plain block shuffles of the table (what a pack in table order
would give) are shown beside them. Nothing is read: places and orders are computed.

    python benchmarks/shuffle.py [--small] [--rows N] [--partitions P] [--columns M] [--batch B]

Writes a table to the terminal, and ``shuffle.json`` to ``benchmarks/out``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from measuring import described

OUT = Path(__file__).parent / "out"
Values = np.ndarray[Any, np.dtype[np.float64]]


def labels_by_place(arrangement: Any) -> Values:
    """Return the label of the row at each place of a pack."""
    first = np.concatenate([[0], np.cumsum(arrangement.partition_rows)])
    found = np.empty(arrangement.rows)
    for stripe in arrangement.stripes:
        for partition in stripe.partitions:
            for chunk in arrangement.chunks(stripe, partition):
                rows = (first[partition] + chunk.first + chunk.order) / arrangement.rows
                done = 0
                for start, length in zip(chunk.starts, chunk.lengths, strict=True):
                    found[start : start + length] = rows[done : done + length]
                    done += length
    return found


def deviation(labels: Values, order: Any, batch: int) -> float:
    """Return the deviation of an epoch's batch means, in units of that of independent draws."""
    means = [
        labels[order.indices(start, start + batch)].mean()
        for start in range(0, len(labels) - batch + 1, batch)
    ]
    return float(np.std(means) / np.sqrt(1 / 12 / batch))


def measure(rows: int, partitions: int, columns: int, batch: int) -> list[dict[str, Any]]:
    from training.loading.arrangement import Arrangement
    from training.loading.order import EpochOrder, Shuffle
    from training.loading.steps import Steps

    sizes = tuple(len(one) for one in np.array_split(np.arange(rows), partitions))
    found = []
    for mixed in (False, True):
        arrangement = Arrangement(sizes, 4 * columns, mixed)
        labels = labels_by_place(arrangement)
        stripes = tuple(one.rows for one in arrangement.stripes) if mixed else ()
        for shuffle in (Shuffle.WINDOW, Shuffle.GLOBAL):
            steps = Steps(EpochOrder(rows, shuffle=shuffle), batch, stripes=stripes)
            found.append(
                {
                    "pack": "mixed" if mixed else "in table order",
                    "shuffle": str(shuffle),
                    "stripes": len(stripes) or None,
                    **{
                        f"epoch {epoch}": deviation(labels, steps.order_of(epoch), batch)
                        for epoch in (0, 1)
                    },
                }
            )
    return found


def main() -> None:
    parser = described(__doc__)
    parser.add_argument("--rows", type=int, default=32_000_000)
    parser.add_argument("--partitions", type=int, default=64)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--small", action="store_true", help="2,000,000 rows in 16 partitions")
    given = parser.parse_args()
    rows, partitions = (2_000_000, 16) if given.small else (given.rows, given.partitions)
    results = measure(rows, partitions, given.columns, given.batch)
    print(f"batches of {given.batch} of {rows:,} rows sorted by the label, {partitions} partitions")
    print(f"{'pack':<16}{'shuffle':<10}{'stripes':>8}{'epoch 0':>10}{'epoch 1':>10}")
    for one in results:
        print(
            f"{one['pack']:<16}{one['shuffle']:<10}{one['stripes'] or '':>8}"
            f"{one['epoch 0']:>10.2f}{one['epoch 1']:>10.2f}"
        )
    OUT.mkdir(exist_ok=True)
    said = {"rows": rows, "partitions": partitions, "columns": given.columns, "batch": given.batch}
    (OUT / "shuffle.json").write_text(json.dumps({**said, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

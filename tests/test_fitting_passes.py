"""Everything fitted that depends on nothing fitted shares one pass, and states that are the same are learnt once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest

import featurestore as fs
from featurestore.execution import states
from featurestore.transforms import moments, quantiles

ROWS = 600


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count partitions read, and columns that something was learnt of."""
    from featurestore.execution.reading import PartitionSource

    found: Counter[str] = Counter()

    def counted(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def work(*arguments: Any, **named: Any) -> Any:
            found[what] += 1
            return original(*arguments, **named)

        monkeypatch.setattr(owner, name, work)

    counted(PartitionSource, "read", "reads")
    counted(states, "summarize_partition", "tasks")
    counted(moments, "_of_column", "moments")
    counted(quantiles, "sketch_sorted", "quantiles")
    return found


def rows_of(start: int, stop: int) -> pl.DataFrame:
    random = np.random.default_rng(start)
    size = stop - start
    return pl.DataFrame(
        {
            "id": range(start, stop),
            "at": pl.int_range(start, stop, eager=True).cast(pl.Datetime("us")),
            **{name: random.normal(size=size) for name in "xyz"},
        }
    )


def table(name: str) -> fs.Table:
    store = fs.FeatureStore.create(f"memory://{name}", workers=2)
    return store.ingest("rows", rows_of(0, ROWS), key="id", time="at", partition_bytes=6000)


def fitted() -> list[Any]:
    return [
        fs.Standardize("x", prefix="a_"), fs.MinMax("x", prefix="b_"), fs.Impute("x", prefix="c_"),
        fs.RobustScale("x", prefix="d_"), fs.QuantileTransform("x", prefix="e_"),
        fs.QuantileBin("x", prefix="f_"), fs.Winsorize("x", prefix="g_"),
        fs.Impute("x", "median", prefix="h_"), fs.Winsorize("x", deviations=3.0, prefix="i_"),
        fs.PCA(["x", "y"], 1),
    ]  # fmt: skip


def test_a_pipeline_reads_each_partition_once_and_learns_each_state_once(
    learnt: Counter[str],
) -> None:
    rows = table("passes-of-a-pipeline")
    count = rows.describe().partitions
    assert count > 2
    pipeline = fs.Pipeline(*fitted())
    assert pipeline.passes(rows.schema) == [list(range(10))]
    split = fs.TimeSplit(valid="1970-01-01T00:00:00.000500")
    learnt.clear()
    data = rows.dataset(["x", "y"], label="z", split=split, pipeline=pipeline)
    assert data.schema
    within = learnt["reads"]
    assert 0 < within <= count
    assert learnt == {"reads": within, "moments": within, "quantiles": within}
    # Another split: what is cut is read, the rest is put together.
    learnt.clear()
    other = fs.TimeSplit(valid="1970-01-01T00:00:00.000300")
    assert rows.dataset(["x", "y"], label="z", split=other, pipeline=pipeline).schema
    assert learnt["reads"] <= 1


def test_a_build_learns_of_each_partition_once(learnt: Counter[str]) -> None:
    rows = table("passes-of-a-build")
    count = rows.describe().partitions
    learnt.clear()
    rows.add(*fitted(), fit_on="all")
    del learnt["reads"]  # applying has its own
    assert learnt == {"tasks": count, "moments": count, "quantiles": count}
    rows.append(rows_of(ROWS, ROWS + 50))
    new = rows.describe().partitions - count
    steps = rows.plan().steps
    # One pass, which learns of the new rows only, and applies to all of them.
    assert {one.level for one in steps} == {1}
    assert sum(one.partitions for one in steps if one.work == "summarize") == new
    learnt.clear()
    rows.build()
    del learnt["reads"]
    assert learnt == {"tasks": new, "moments": new, "quantiles": new}

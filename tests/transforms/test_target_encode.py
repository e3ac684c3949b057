"""TargetEncode: brute force, scikit-learn, random labels, and who may see which targets."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import featurestore as fs
from featurestore.engines.hashing import hash_columns
from featurestore.engines.polars import PolarsEngine
from featurestore.errors import DefinitionError, SchemaError
from featurestore.schema import Field, TableSchema
from featurestore.testing.oracles import Row
from featurestore.testing.transformer_contract import TransformerContract
from featurestore.transforms.base import Partition, Transformer

Rows = Sequence[Row]
ENGINE = PolarsEngine()
BORDER = datetime(2024, 1, 10, tzinfo=UTC)


def encoded(
    one: fs.TargetEncode, columns: Sequence[str], target: str, rows: Rows, folds: Sequence[int]
) -> list[float | None]:
    """Return the encoding of rows that were learnt from, one by one."""
    known = [row[target] is not None and math.isfinite(row[target]) for row in rows]
    out: list[float | None] = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if folds[j] != folds[i] and known[j]]
        same = [j for j in others if all(rows[j][name] == row[name] for name in columns)]
        if any(row[name] is None for name in columns):
            out.append(None)
            continue
        if not others:
            out.append(None)
            continue
        prior = sum((Fraction(rows[j][target]) for j in others), Fraction(0)) / len(others)
        total = sum((Fraction(rows[j][target]) for j in same), Fraction(0))
        weight = Fraction(one.smoothing)
        value = (total + weight * prior) / (len(same) + weight) if len(same) + weight else prior
        out.append(float(value))
    return out


class TestTargetEncode(TransformerContract):
    examples = 40
    tables_driven = 2

    def transformers(self) -> st.SearchStrategy[Transformer]:
        return st.builds(
            fs.TargetEncode,
            st.sampled_from([["s"], ["g", "s"], ["k", "g"]]),
            st.sampled_from(["x", "n", ["x", "n"]]),
            jointly=st.booleans(),
            smoothing=st.sampled_from([0.0, 1.0, 10.0]),
            folds=st.sampled_from([2, 5]),
            fold_by=st.sampled_from([None, ["n"]]),
        )

    def expected(self, transformer: Any, rows: Rows, other: Rows) -> Mapping[str, Sequence[Any]]:
        by = list(transformer.fold_by or ["k", "t"])
        types = {"k": pa.string(), "t": pa.int64(), "n": pa.int64()}
        table = pa.table({name: pa.array([row[name] for row in rows], types[name]) for name in by})
        hashed = hash_columns(ENGINE, ENGINE.from_arrow(table), by, 0)
        folds = (hashed % np.uint64(transformer.folds)).tolist()
        groups = [[name] for name in transformer.columns]
        groups = [list(transformer.columns)] if transformer.jointly else groups
        return {
            f"{'_'.join(names)}_{target}_mean": encoded(transformer, names, target, rows, folds)
            for names in groups
            for target in transformer.targets
        }


def part_of(columns: Mapping[str, Any], key: Sequence[str] = ("id",)) -> Partition:
    table = pa.table(dict(columns))
    fields = tuple(Field(one.name, one.type) for one in table.schema)
    return Partition(ENGINE.from_arrow(table), TableSchema(fields, tuple(key)))


def learnt(one: fs.TargetEncode, *parts: Partition) -> Any:
    return one.finish(one.combine_all([one.summarize(part, ENGINE) for part in parts]))


def values(one: fs.TargetEncode, part: Partition, state: Any) -> list[Any]:
    columns = one.apply(part, state, ENGINE)
    assert columns.frame is not None
    return list(columns.frame[columns.frame.columns[0]].to_list())


def test_other_rows_get_what_scikit_learn_gives_them() -> None:
    from sklearn import preprocessing

    rng = np.random.default_rng(0)
    city, y = rng.integers(0, 30, 2000), rng.standard_normal(2000)
    part = part_of({"id": np.arange(2000), "city": city, "y": y})
    new = part_of({"id": np.arange(40), "city": np.arange(40)})
    one = fs.TargetEncode("city", "y", smoothing=7.5)
    reference = preprocessing.TargetEncoder(target_type="continuous", smooth=7.5).fit(
        city[:, None], y
    )
    wanted = reference.transform(np.arange(40)[:, None])[:, 0]
    assert values(one, new, learnt(one, part)) == pytest.approx(wanted.tolist(), rel=1e-12)


@pytest.mark.parametrize("pieces", [1, 7, 60])
@pytest.mark.parametrize("categories", [2, 50, 5000])
def test_random_labels_are_not_seen_whatever_the_partitions(pieces: int, categories: int) -> None:
    rows = 20_000
    rng = np.random.default_rng(1)
    table = pa.table(
        {
            "id": rng.permutation(rows),
            "c": rng.integers(0, categories, rows),
            "y": rng.integers(0, 2, rows).astype(bool),
        }
    )
    cuts = np.linspace(0, rows, pieces + 1).astype(int)
    spans = list(pairwise(cuts.tolist()))
    parts = [part_of(dict(zip(table.column_names, table.slice(a, b - a).columns, strict=True)))
             for a, b in spans]  # fmt: skip
    one = fs.TargetEncode("c", "y", smoothing=1.0)
    state = learnt(one, *parts)
    made = [v for p in parts for v in values(one, replace(p, learnt_from=True), state)]
    label = table["y"].to_numpy().astype(float)
    seen = np.array([np.nan if v is None else v for v in made])
    assert abs(np.corrcoef(seen, label)[0, 1]) < 0.02
    if categories == 5000:  # what encoding them with all targets would show
        leaked = np.array([v for p in parts for v in values(one, p, state)])
        assert np.corrcoef(leaked, label)[0, 1] > 0.3


def test_no_row_sees_targets_of_its_own_fold() -> None:
    rng = np.random.default_rng(2)
    ids, city = np.arange(500), rng.integers(0, 20, 500)
    y = rng.standard_normal(500)
    one = fs.TargetEncode("city", "y", folds=3)
    fold = hash_columns(ENGINE, part_of({"id": ids}).frame, ["id"], 0) % np.uint64(3)
    before = part_of({"id": ids, "city": city, "y": y})
    after = part_of({"id": ids, "city": city, "y": np.where(fold == 0, 1e9 * y, y)})
    shown = [
        values(one, replace(part, learnt_from=True), learnt(one, part)) for part in (before, after)
    ]
    same = np.array([a == b for a, b in zip(*shown, strict=True)])
    assert same[fold == 0].all()
    assert not same[fold != 0].any()


def dataset_rows(count: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    return pl.DataFrame(
        {
            "id": [f"r{one % 37}" for one in range(count)],
            "at": [start + timedelta(hours=one) for one in range(count)],
            "city": rng.integers(0, 8, count),
            "y": rng.standard_normal(count),
        }
    )


@pytest.mark.parametrize("size", ["1KiB", "1GiB"])
def test_a_dataset_encodes_training_rows_out_of_fold_and_others_with_all_of_it(size: str) -> None:
    rows = dataset_rows()
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    table = store.ingest("rows", rows, key="id", time="at", partition_bytes=size)
    one = fs.TargetEncode("city", "y")
    data = table.dataset(
        features=["city"],
        label="y",
        split=fs.TimeSplit(valid="2024-01-10"),
        pipeline=fs.Pipeline(one),
    )
    train = rows.filter(pl.col("at") < BORDER)
    schema = TableSchema(tuple(Field(f.name, f.type) for f in table_of(rows).schema), ("id",), "at")
    parts = {
        "train": replace(Partition(ENGINE.from_arrow(table_of(train)), schema), learnt_from=True),
        "valid": Partition(
            ENGINE.from_arrow(table_of(rows.filter(pl.col("at") >= BORDER))), schema
        ),
    }
    state = learnt(one, replace(parts["train"], learnt_from=False))
    for name, part in parts.items():
        found = data.part(name).read()["city_y_mean"].to_list()
        assert found == values(one, part, state)
    assert data.train.read()["city_y_mean"].n_unique() > 8


def table_of(rows: pl.DataFrame) -> pa.Table:
    table = rows.to_arrow()
    return table.set_column(0, "id", table["id"].cast(pa.string()))


def test_stored_values_of_a_fit_range_are_out_of_fold_and_new_rows_are_not() -> None:
    rows = dataset_rows()
    store = fs.FeatureStore.create(f"memory://{uuid.uuid4().hex}", workers=2)
    table = store.ingest("rows", rows, key="id", time="at", partition_bytes="2KiB")
    one = fs.TargetEncode("city", "y")
    table.add(one, fit_on=("2024-01-01", "2024-01-10"))
    held = table.read(["city", "city_y_mean", "at"])
    late = held.filter(pl.col("at") >= BORDER)
    early = held.filter(pl.col("at") < BORDER)
    assert late.n_unique(["city", "city_y_mean"]) == late["city"].n_unique()
    assert early.n_unique(["city", "city_y_mean"]) > 8
    new = rows.filter(pl.col("at") >= BORDER).drop("y")
    served = table.compute(new, ["city_y_mean"])
    assert served["city_y_mean"].to_list() == late["city_y_mean"].to_list()


def test_what_cannot_be_encoded_is_refused() -> None:
    plain = TableSchema(
        (Field("c", pa.string()), Field("y", pa.float64()), Field("s", pa.string()))
    )
    with pytest.raises(DefinitionError, match="neither"):
        fs.TargetEncode("c", "y").inputs(plain)
    with pytest.raises(SchemaError, match="numeric"):
        fs.TargetEncode("c", "s", fold_by="c").learns_from(plain)
    with pytest.raises(DefinitionError, match="by themselves"):
        fs.TargetEncode(["c", "y"], "c", fold_by="c").inputs(
            plain.with_fields((Field("y", pa.int64()),))
        )
    for wrong in ({"targets": ()}, {"smoothing": -1.0}, {"folds": 1}, {"fold_by": ()}):
        with pytest.raises(DefinitionError):
            fs.TargetEncode("c", **{"targets": "y", **wrong})  # type: ignore[arg-type]

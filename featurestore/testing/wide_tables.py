"""Tables of very many features, made without computing them.

The first feature is built; all others are given its files under names of their own, with the
provenance that building them would give. So everything that works on metadata (opening, status,
commits) sees a wide table that is fresh, and values of the first feature can be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import narwhals as nw
import polars as pl

from featurestore.execution.dask import Executor
from featurestore.execution.publish import publish_features
from featurestore.execution.states import Workplace
from featurestore.plan.definition import Feature, FeatureDefinition, bind
from featurestore.plan.staleness import Assessor
from featurestore.session import Session
from featurestore.storage.commit_log import CommitLog
from featurestore.storage.object_store import ObjectStore
from featurestore.storage.records import PartitionEntry, StoredFile
from featurestore.store import FeatureStore
from featurestore.table import Table
from featurestore.transforms.base import Transformer
from featurestore.transforms.expression import Expression
from featurestore.transforms.function import Function
from featurestore.transforms.window import Rolling


def scaled(frame: Any, factor: float) -> Any:
    """Return ``x`` times a factor: the function of every fourth feature."""
    return frame["x"] * factor


def session_of(store: ObjectStore) -> Session:
    """Open what a store object holds, to work in one thread of this process."""
    return Session(CommitLog.open(store), Workplace(store, "polars", Executor(1), 4 * 2**30))


def narrow_table(store: FeatureStore, partitions: int, rows: int = 4) -> Table:
    """Ingest a table ``t`` of some partitions of a few rows, with one built feature ``one``."""
    count = partitions * rows
    hours = [hour * 3_600_000 for hour in range(count)]
    frame = pl.DataFrame(
        {"at": hours, "x": [float(one) for one in range(count)]},
        schema={"at": pl.Datetime("ms"), "x": pl.Float64},
    )
    table = store.ingest("t", frame, time="at", partition_bytes=16 * rows)
    assert table.partitions == partitions, table.partitions
    table.add(Expression(one=nw.col("x") + 1))
    return table


def transformer(number: int) -> Transformer:
    """Return a definition: of ``number`` follow its column's name and its kind."""
    name = f"f{number:05d}"
    if number % 4 == 1:
        return Rolling("x", "12h", stats=["mean"], by=[], rename={"x_mean_12h": name})
    if number % 4 == 3:
        return Function(
            scaled, "x", output=name, frame="polars", dtypes="float64", params={"factor": number}
        )
    return Expression(**{name: nw.col("x") * number + 1})


def add_unbuilt(session: Session, numbers: Sequence[int]) -> tuple[Feature, ...]:
    """Publish features in one commit as if they had been built; see the module."""
    files = session.files("t")
    features = tuple(bind(FeatureDefinition(transformer(n)), files.schema) for n in numbers)
    wide = files.with_features(features)
    assessor = Assessor({"t": wide}, check_code=False)
    (model,) = (one.group for one in files.graph.features() if "one" in one.names)
    built = {}
    for feature in features:
        assessed = assessor.group("t", feature.group)
        built[feature.group] = {
            base.partition: _renamed(wide.entries[model][base.partition], feature, one.provenance)
            for base, one in zip(wide.base, assessed, strict=True)
        }
    new = frozenset(built)
    session.commit(
        f"define {len(features)} features",
        publish_features(session.objects, wide, features, built, new),
    )
    return features


def _renamed(entry: PartitionEntry, feature: Feature, provenance: Any) -> PartitionEntry:
    (name,), (old,) = feature.names, entry.nulls
    return replace(
        entry,
        files=tuple(
            StoredFile(
                f"data/t/{feature.group}/{one.path.rsplit('/', 1)[1]}",
                one.bytes,
                one.checksum,
                one.footer,
            )
            for one in entry.files
        ),
        provenance=provenance,
        column_bytes={name: entry.column_bytes[old]},
        nulls={name: entry.nulls[old]},
    )

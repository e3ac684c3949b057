"""What is done with a hostile table, each in a process of its own under a limit that the kernel keeps.

    python hostile_steps.py WORK SET FOLDER LIMIT

``FOLDER`` holds a store that ``python hostile_steps.py write SET FOLDER SIZE`` made, ``SIZE`` being that of
partitions (``-`` for each table's own). The kernel kills the process where it keeps limits and the work goes beyond
its own. The last line written is a JSON object: what keeps the limit (``mechanism``), why the work was
``refused`` (``""`` if it was not), how many ``tasks`` had begun by then, projections that were too
small (``warnings``), and ``values`` of sampled rows where the work leaves none behind.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import featurestore as fs
from featurestore.errors import EnforcementWarning, MemoryLimitError, MemoryProjectionWarning
from featurestore.execution.events import Event, TaskStarted, observed_by
from featurestore.testing.hostile_tables import (
    FAMILIES,
    LEARNT,
    TABLE,
    sampled,
    shown,
    transformer,
    value_columns,
    write_set,
)
from featurestore.units import parse_bytes

BATCH_ROWS: Final = 2048
_OF_XGBOOST: Final = 192 * 2**20
"""Bytes: what XGBoost allocates itself while it builds a matrix is not under our limit."""


class Begun:
    """Counts the tasks that began."""

    def __init__(self) -> None:
        self.tasks = 0

    def __call__(self, event: Event) -> None:
        self.tasks += isinstance(event, TaskStarted)


@dataclass(frozen=True)
class Place:
    """Where work is done: on a set, in a folder, within a limit."""

    name: str
    folder: Path
    limit: str
    begun: Begun = field(default_factory=Begun)

    @property
    def table(self) -> fs.Table:
        store = fs.FeatureStore.open(
            self.folder / "store", memory_limit=self.limit, workers=2, scratch=self.folder
        )
        return store.table(TABLE)

    def data(self) -> Any:
        """Return the table's rows with a pipeline over what is hostile."""
        values, text = value_columns(self.name), self.name == "long_text"
        numbers = ["x0", "x3"] if text else values
        categories = "text" if text else "c0" if self.name == "many_columns" else "k"
        pipeline = fs.Pipeline(
            fs.Impute(numbers), fs.Standardize(numbers), fs.Categorify(categories)
        )
        part = self.table.dataset([*numbers, categories, "row"], pipeline=pipeline).all
        assert part.schema.columns  # learns what is to be learnt
        self.begun.tasks = 0  # which is work of its own, done or refused before any reading
        return part

    def loader(self, shuffle: bool) -> Any:
        import training

        cache = self.folder / "packs"
        return training.Loader(self.data(), BATCH_ROWS, shuffle=shuffle, seed=3, cache=cache)


def build(family: str, place: Place) -> dict[str, Any]:
    fit_on = "all" if family in LEARNT else None
    place.table.add(transformer(family, place.name), fit_on=fit_on)
    return {}


def read(place: Place) -> dict[str, Any]:
    rows = place.data().read("arrow")
    positions = sampled(rows.num_rows)
    return {name: rows[name].take(positions).to_pylist() for name in shown(rows.column_names)}


def epoch(place: Place) -> dict[str, Any]:
    return _collected(place, iter(place.loader(shuffle=True)))


def feed(place: Place) -> dict[str, Any]:
    """Hand pages to XGBoost, of which nothing is here: what it allocates is its own."""
    from training.hooks.xgboost import XGBoostPages

    pages = XGBoostPages(place.loader(shuffle=False), "16MiB")
    collected = _Collected(place)

    def input_data(data: Any, feature_names: Sequence[str], **_: Any) -> None:
        at = feature_names.index("row")
        collected.add(data[:, at], {name: data[:, one] for one, name in enumerate(feature_names)})

    while pages.next(input_data):
        pass
    return collected.values(passes=1)


def matrix(place: Place) -> dict[str, Any]:
    """Build XGBoost's matrix, for which it passes over the pages several times."""
    from training.hooks import xgboost as hook

    loader, collected, page = place.loader(shuffle=False), _Collected(place), hook.page

    def seen(batch: Any, schema: Any) -> Any:
        data, names = page(batch, schema), hook.feature_columns(schema)[0]
        columns = {name: data[:, one] for one, name in enumerate(names)}
        collected.add(columns["row"], columns)
        return data

    hook.page = seen
    found = hook.dmatrix(loader, max_bin=16, page_bytes="16MiB", nthread=2)
    assert found.num_row() == place.table.rows
    assert found.num_col() == len(hook.feature_columns(loader.schema)[0])
    return collected.values()


def _collected(place: Place, batches: Iterator[Any]) -> dict[str, Any]:
    collected = _Collected(place)
    names = place.data().schema.numeric
    for batch in batches:
        numeric = batch.inputs["numeric"]
        columns = {name: numeric[:, one] for one, name in enumerate(names)}
        columns |= {name: values for name, values in batch.inputs.items() if values.ndim == 1}
        collected.add(columns["row"], columns)
    return collected.values(passes=1)


class _Collected:
    """Picks sampled rows out of batches, and counts that each row comes once in every pass."""

    def __init__(self, place: Place) -> None:
        rows = place.table.rows
        self._seen = np.zeros(rows, np.int32)
        self._wanted = set(sampled(rows).tolist())
        self._found: dict[str, dict[int, float]] = {}

    def add(self, rows: Any, columns: dict[str, Any]) -> None:
        places = rows.astype(np.int64)
        np.add.at(self._seen, places, 1)
        wanted = [at for at, row in enumerate(places) if int(row) in self._wanted]
        for name in shown(list(columns)):
            found = self._found.setdefault(name, {})
            found |= {int(places[at]): float(columns[name][at]) for at in wanted}

    def values(self, passes: int | None = None) -> dict[str, Any]:
        assert (self._seen == (passes or self._seen[0])).all()
        assert self._seen[0] > 0
        return {name: [one[row] for row in sorted(one)] for name, one in self._found.items()}


WORK: Final[dict[str, Callable[[Place], dict[str, Any]]]] = {
    **{family: partial(build, family) for family in FAMILIES},
    **{one.__name__: one for one in (read, epoch, feed, matrix)},
}


def main() -> None:
    work, name, folder, limit = sys.argv[1:]
    if work == "write":
        write_set(name, Path(folder), None if limit == "-" else limit)
        return
    place, refused, values = Place(name, Path(folder), limit), "", {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", MemoryProjectionWarning)
        warnings.simplefilter("always", EnforcementWarning)
        own = _OF_XGBOOST if work == "matrix" else 0
        with fs.enforced(parse_bytes(limit) + own) as enforcement, observed_by(place.begun):
            mechanism = enforcement.mechanism
            try:
                values = WORK[work](place)
            except MemoryLimitError as error:
                refused = str(error)
    found = {
        "mechanism": mechanism,
        "refused": refused,
        "tasks": place.begun.tasks,
        "warnings": [str(one.message) for one in caught
                     if issubclass(one.category, MemoryProjectionWarning)],
        "values": values,
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()

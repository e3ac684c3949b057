"""A dataset part in memory, for tests of whatever loads from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from featurestore.dataset.batch import Batch, DatasetSchema, HostArray, Input, Role
from featurestore.dataset.ragged import Ragged
from featurestore.fingerprint import fingerprint
from featurestore.limits import resident_bytes


@dataclass
class ArrayPart:
    """A ``DatasetPart`` over arrays.

    Parameters
    ----------
    schema : DatasetSchema
    inputs : mapping of str to array
        As in ``schema.array_specs``.
    label : array, optional
    partition_rows : tuple of int
        How the rows are cut; partitions of 0 rows are left out.
    name : str
        Part of the digest.
    memory_limit : int
    workers : int
        Partitions that may be read at once.
    weight, group, base_margin : array, optional
    labels : mapping of str to array
        Several labels, by name.
    others : mapping of str to array
        Columns of the table that are not of the dataset.
    reads : list of int
        The partitions that ``arrays`` was called for, in order.
    lists : mapping of str to Ragged
        Inputs that are lists of any length.
    """

    schema: DatasetSchema
    inputs: Mapping[str, HostArray]
    label: HostArray | None
    partition_rows: tuple[int, ...]
    name: str = "part"
    snapshot_id: str = "1-test"
    memory_limit: int = 2**40
    workers: int = 2
    weight: HostArray | None = None
    labels: Mapping[str, HostArray] = field(default_factory=dict)
    others: Mapping[str, HostArray] = field(default_factory=dict)
    group: HostArray | None = None
    base_margin: HostArray | None = None
    reads: list[int] = field(default_factory=list)
    lists: Mapping[str, Ragged] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(self.partition_rows)

    @property
    def digest(self) -> str:
        return fingerprint(
            self.name, self.snapshot_id, list(self.partition_rows), self.schema.to_json()
        )

    @property
    def reserved_bytes(self) -> int:
        return resident_bytes()

    def entities(self, partition: int, by: Sequence[str] | None = None) -> HostArray:
        columns = [self._column(one)[self._rows_of(partition)] for one in by or ()]
        found = np.zeros(self.partition_rows[partition], dtype=np.uint64)
        for values in columns:  # few and small numbers: sums of unlike multiples tell them apart
            found = found * np.uint64(1_000_003) + (values * 2).astype(np.int64).view(np.uint64)
        return found

    def numbers(self, partition: int, column: str) -> HostArray:
        return self._column(column)[self._rows_of(partition)].astype(np.float64)

    def times(self, partition: int) -> HostArray:
        """Each row is of a time of its own: its place."""
        rows = self._rows_of(partition)
        return np.arange(rows.start, rows.stop, dtype=np.int64)

    def _rows_of(self, partition: int) -> slice:
        start = sum(self.partition_rows[:partition])
        return slice(start, start + self.partition_rows[partition])

    def _column(self, name: str) -> HostArray:
        """Return the values of a scalar column."""
        label, weight = self.schema.label, self.schema.weight
        if label is not None and name == label.name and self.label is not None:
            return self.label
        if weight is not None and name == weight.name and self.weight is not None:
            return self.weight
        if name in self.schema.numeric:
            return self.inputs["numeric"][:, self.schema.numeric.index(name)]
        return {**self.others, **self.labels, **self.inputs}[name]

    def list_items(self, partition: int, column: str) -> tuple[int, int]:
        rows = self._rows_of(partition)
        lengths = self.lists[column].slice(rows.start, rows.stop).lengths
        return int(lengths.max(initial=0)), int(lengths.sum())

    def slices(self, partition: int, within: int) -> Iterator[Batch]:
        yield self.arrays(partition)

    def memory(self, partition: int, within: int) -> int:
        rows = self.partition_rows[partition]
        others = (self.label, self.weight, self.group, self.base_margin)
        told = [one for one in others if one is not None]
        values = [*self.inputs.values(), *told, *self.labels.values()]
        items = sum(
            8 * (rows + 1) + self.list_items(partition, name)[1] * one.values.itemsize
            for name, one in self.lists.items()
        )
        return items + rows * sum(int(one.nbytes) // max(1, len(one)) for one in values)

    def arrays(self, partition: int) -> Batch:
        self.reads.append(partition)
        rows = self._rows_of(partition)
        return Batch(
            {name: value[rows] for name, value in self.inputs.items()},
            None if self.label is None else self.label[rows],
            None if self.weight is None else self.weight[rows],
            {name: value[rows] for name, value in self.labels.items()},
            None if self.group is None else self.group[rows],
            None if self.base_margin is None else self.base_margin[rows],
            {name: one.slice(rows.start, rows.stop) for name, one in self.lists.items()},
        )


def numbered_part(
    rows: int,
    *,
    partitions: Sequence[int] | None = None,
    numeric: int = 3,
    cardinalities: Sequence[int] = (5,),
    tensor: tuple[int, ...] | None = None,
    seed: int = 0,
    name: str = "part",
    labels: int = 1,
    weight: bool = False,
    queries: Sequence[int] | None = None,
    margin: tuple[int, ...] | None = None,
    lists: bool = False,
) -> ArrayPart:
    """Return a part whose first numeric column is the row number, the rest random.

    A second label, ``odd``, is whether the row number is; the weight ``share`` is the row number
    halved. A column that is not of the dataset, ``importance``, goes from a half to two.
    ``queries`` are the rows of each query of the group ``query``, whose ids fall; all rows of one
    weigh the same. ``margin`` is the shape of a row's base margin ``score``. With ``lists``,
    each row has a list ``tags`` of the row number and integers after it, up to six, or of nothing, and one
    of random floats, ``rates``.

    The label is 1 where the sum of the other numeric columns and the first category's parity is
    positive, so that a model can learn it.

    Examples
    --------
    >>> part = numbered_part(4, partitions=(3, 1))
    >>> part.arrays(1).inputs["numeric"][0, 0]
    np.float32(3.0)
    """
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, numeric)).astype(np.float32)
    inputs: dict[str, HostArray] = {"numeric": values}
    columns = [Input(f"x{number}", Role.NUMERIC, "float32") for number in range(numeric)]
    score = values[:, 1:].sum(axis=1)
    values[:, 0] = np.arange(rows)
    for number, cardinality in enumerate(cardinalities):
        codes = random.integers(0, cardinality, size=rows).astype(np.int32)
        score = score + (codes % 2 - 0.5) if number == 0 else score
        inputs[f"c{number}"] = codes
        columns.append(Input(f"c{number}", Role.CATEGORICAL, "int32", (), cardinality))
    if tensor is not None:
        inputs["vector"] = random.normal(size=(rows, *tensor)).astype(np.float32)
        columns.append(Input("vector", Role.TENSOR, "float32", tensor))
    if lists:
        columns += [Input("tags", Role.RAGGED, "int64"), Input("rates", Role.RAGGED, "float32")]
    columns.append(Input("late", Role.LABEL, "float32"))
    if labels == 2:
        columns.append(Input("odd", Role.LABEL, "uint8"))
    numbers = np.arange(rows)
    group, shares = None, (numbers / 2).astype(np.float32)
    if weight:
        columns.append(Input("share", Role.WEIGHT, "float32"))
    if queries is not None:
        columns.append(Input("query", Role.GROUP, "int64"))
        group = np.repeat(-np.arange(len(queries)), queries)
        shares = (1 - group % 3 / 2).astype(np.float32)
    if margin is not None:
        columns.append(Input("score", Role.BASE_MARGIN, "float32", margin))
    cuts = tuple(partitions) if partitions is not None else ((rows,) if rows else ())
    label = (score > 0).astype(np.float32)
    return ArrayPart(
        DatasetSchema(tuple(columns)),
        inputs,
        label if labels == 1 else None,
        cuts,
        f"{name}-{seed}",
        weight=shares if weight else None,
        labels={"late": label, "odd": (numbers % 2).astype(np.uint8)} if labels == 2 else {},
        others={"importance": (numbers % 4 + 1) / 2},
        group=group,
        base_margin=None
        if margin is None
        else random.normal(size=(rows, *margin)).astype(np.float32),
        lists=_numbered_lists(rows, random) if lists else {},
    )


def _numbered_lists(rows: int, random: np.random.Generator) -> dict[str, Ragged]:
    found = {}
    for name in ("tags", "rates"):
        lengths = random.integers(0, 7, size=rows)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        items = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - np.arange(rows), lengths)
        found[name] = Ragged(items, offsets)
    rates = random.normal(size=len(found["rates"].values)).astype(np.float32)
    return {**found, "rates": Ragged(rates, found["rates"].offsets)}

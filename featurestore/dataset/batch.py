"""What a model is fed, and how its arrays are called.

Numeric scalar features are one ``float32 [rows, n]`` array named ``numeric``, in the order asked
for; each categorical one is ``int32 [rows]`` under its own name; each tensor ``[rows, ...]`` under
its own name; lists of any length are values and offsets under their own names, beside these arrays;
the label is an array of its own, several are one each under their names, and so are the weight of
rows, the query that each belongs to, and its base margin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol, TypeAlias

import numpy as np

from featurestore.dataset.ragged import Ragged
from featurestore.errors import DefinitionError
from featurestore.fingerprint import Json

NUMERIC: Final = "numeric"
HostArray: TypeAlias = "np.ndarray[Any, Any]"


class Role(StrEnum):
    """How a model uses a column."""

    NUMERIC = "numeric"
    CATEGORICAL = "categorical"
    TENSOR = "tensor"
    RAGGED = "ragged"
    LABEL = "label"
    WEIGHT = "weight"
    GROUP = "group"
    BASE_MARGIN = "base_margin"


TARGETS: Final = frozenset([Role.LABEL, Role.WEIGHT, Role.GROUP, Role.BASE_MARGIN])
"""What a model is told beside what it is fed."""


@dataclass(frozen=True, slots=True)
class Input:
    """One column as a model sees it.

    Parameters
    ----------
    name : str
    role : Role
    dtype : str
        NumPy name of its elements in a batch: ``float32`` for numeric (``float16`` for all of them
        where a loader was asked for that), ``int32`` for categorical; of lists, that of their items.
    shape : tuple of int
        Shape of one row's value: ``()`` for scalars, and for lists, which have none.
    cardinality : int, optional
        For categorical inputs the number of codes, which lie in ``[0, cardinality)``.
    """

    name: str
    role: Role
    dtype: str
    shape: tuple[int, ...] = ()
    cardinality: int | None = None

    def to_json(self) -> dict[str, Json]:
        return {
            "name": self.name,
            "role": str(self.role),
            "dtype": self.dtype,
            "shape": list(self.shape),
            "cardinality": self.cardinality,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Input:
        return cls(
            value["name"],
            Role(value["role"]),
            value["dtype"],
            tuple(value["shape"]),
            value["cardinality"],
        )


@dataclass(frozen=True, slots=True)
class DatasetSchema:
    """The columns of a dataset in the order asked for: inputs, labels, weight, group, base margin."""

    columns: tuple[Input, ...]
    # Every batch asks for these: of many columns, looking through them takes as long as a batch does.
    _roles: Mapping[Role, tuple[Input, ...]] = field(init=False, repr=False, compare=False)
    _arrays: Mapping[str, tuple[str, tuple[int, ...]]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        names = [one.name for one in self.columns]
        if len(set(names)) != len(names):
            raise DefinitionError(f"a dataset names a column twice: {names}", "name each once")
        if any(one.name == NUMERIC for one in self.columns if one.role != Role.NUMERIC):
            raise DefinitionError(
                f"a column cannot be called {NUMERIC!r}: batches use that name", "rename the column"
            )
        roles = {role: tuple(one for one in self.columns if one.role == role) for role in Role}
        object.__setattr__(self, "_roles", roles)
        object.__setattr__(self, "_arrays", self._specs())

    def of_role(self, role: Role) -> tuple[Input, ...]:
        return self._roles[role]

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the columns of the ``numeric`` array, in its order."""
        return tuple(one.name for one in self.of_role(Role.NUMERIC))

    @property
    def ragged(self) -> tuple[Input, ...]:
        """The inputs that are lists of any length."""
        return self.of_role(Role.RAGGED)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The columns that a model is fed: neither labels nor what else it is told."""
        return tuple(one for one in self.columns if one.role not in TARGETS)

    @property
    def labels(self) -> tuple[Input, ...]:
        return self.of_role(Role.LABEL)

    @property
    def label(self) -> Input | None:
        """The label, if there is exactly one."""
        return self.labels[0] if len(self.labels) == 1 else None

    @property
    def weight(self) -> Input | None:
        """What says how much each row counts."""
        return next(iter(self.of_role(Role.WEIGHT)), None)

    @property
    def group(self) -> Input | None:
        """What says which query each row belongs to."""
        return next(iter(self.of_role(Role.GROUP)), None)

    @property
    def base_margin(self) -> Input | None:
        """What a model's raw predictions begin from."""
        return next(iter(self.of_role(Role.BASE_MARGIN)), None)

    def array_specs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return ``{array name: (dtype, shape of one row)}`` of the inputs; lists have no such shape."""
        return dict(self._arrays)

    def _specs(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        specs: dict[str, tuple[str, tuple[int, ...]]] = {}
        numeric = self.of_role(Role.NUMERIC)
        if numeric:
            specs[NUMERIC] = (numeric[0].dtype, (len(numeric),))
        for one in self.columns:
            if one.role in (Role.CATEGORICAL, Role.TENSOR):
                specs[one.name] = (one.dtype, one.shape)
        return specs

    def to_json(self) -> list[Json]:
        return [one.to_json() for one in self.columns]

    @classmethod
    def from_json(cls, value: list[Any]) -> DatasetSchema:
        return cls(tuple(Input.from_json(one) for one in value))


@dataclass(frozen=True, slots=True)
class Batch:
    """Arrays with a common first dimension.

    Parameters
    ----------
    inputs : mapping of str to array
        As in ``DatasetSchema.array_specs``, C-contiguous.
    label : array, optional
        ``[rows]``; ``None`` when the dataset has no label, or several.
    weight : array, optional
        float32 ``[rows]``: how much each row counts; ``None`` where all count the same. Rows that
        only fill up a batch weigh 0.
    labels : mapping of str to array
        Several labels by name, ``[rows]`` each; empty when there is one or none.
    group : array, optional
        Integers ``[rows]``, equal where rows belong to one query of a ranking; dates and times as
        int64. Shuffled batches have rows of many queries.
    base_margin : array, optional
        float32 ``[rows]`` or ``[rows, classes]``: what a model's raw predictions begin from.
    lists : mapping of str to Ragged
        Inputs that are lists of any length, by name: values ``[items]``, offsets int64 ``[rows + 1]``.
    """

    inputs: Mapping[str, HostArray]
    label: HostArray | None
    weight: HostArray | None = None
    labels: Mapping[str, HostArray] = field(default_factory=dict)
    group: HostArray | None = None
    base_margin: HostArray | None = None
    lists: Mapping[str, Ragged] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        if self.label is not None:
            return int(self.label.shape[0])
        if self.inputs:
            return int(next(iter(self.inputs.values())).shape[0])
        return next(iter(self.lists.values())).rows


class DatasetPart(Protocol):
    """What a loader needs of ``data.train`` and its siblings."""

    @property
    def schema(self) -> DatasetSchema:
        """The columns, after the pipeline."""

    @property
    def rows(self) -> int:
        """Number of selected rows."""

    @property
    def partition_rows(self) -> tuple[int, ...]:
        """Selected rows in each partition, in table order; partitions without any are left out."""

    @property
    def digest(self) -> str:
        """Fingerprint of snapshot, features, label, rows, split part and fitted pipeline."""

    @property
    def snapshot_id(self) -> str:
        """The snapshot the values come from."""

    @property
    def memory_limit(self) -> int:
        """Bytes that this process may hold while the rows are read and fed."""

    @property
    def reserved_bytes(self) -> int:
        """Bytes that this process holds before any row is read."""

    @property
    def workers(self) -> int:
        """How many partitions may be read at once, if they fit the memory limit."""

    def arrays(self, partition: int) -> Batch:
        """Return all selected rows of the i-th entry of ``partition_rows``, in table order."""

    def entities(self, partition: int, by: Sequence[str] | None = None) -> HostArray:
        """Return a hash of each selected row's entity, ``uint64``: of its key, or of other columns."""

    def numbers(self, partition: int, column: str) -> HostArray:
        """Return a number of each selected row, ``float64``; NaN where there is none."""

    def times(self, partition: int) -> HostArray:
        """Return the event time of each row of a partition, ``int64``, in steps of the time column."""

    def list_items(self, partition: int, column: str) -> tuple[int, int]:
        """Return how many items one row of an input of lists has at most, and all rows of a partition.

        Said from what was recorded; nothing is read.
        """

    def slices(self, partition: int, within: int) -> Iterator[Batch]:
        """Yield the same rows in order, in as few slices as take at most ``within`` bytes each."""

    def memory(self, partition: int, within: int) -> int:
        """Return the bytes that the largest of :meth:`slices` takes; nothing is read.

        More than ``within`` if the partition cannot be cut that small.
        """

"""Lists of any length as a loader gives them: as values and offsets, or padded.

    Loader(data.train, 4096, shuffle=True, ragged="offsets")
    Loader(data.train, 4096, shuffle=True, ragged="padded")

A batch of a column ``tags`` has, as offsets, ``batch.lists["tags"]``, which frameworks get as two inputs
``tags__values`` ``[items]`` and ``tags__offsets`` int64 ``[batch + 1]``; padded, ``tags``
``[batch, longest]``, zeros behind the items, and ``tags__mask``, bool, where items are. ``longest`` is that
of the batch, 1 at least.

Always true: a null list is an empty one; items keep their order.

The trade-off: offsets take no more room than there are items, and cut along the first dimension they are
no rows, which Keras and JAX cannot take; padded batches are as wide as their longest list.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeAlias

import numpy as np

from featurestore.arguments import shown
from featurestore.dataset.batch import Batch, DatasetPart, DatasetSchema, HostArray, Input
from featurestore.dataset.ragged import Ragged
from featurestore.errors import DefinitionError, InvalidInputError, UnsupportedError
from training.loading.buffers import aligned_empty
from training.loading.mixing import Rows
from training.loading.steps import KeptSamples

VALUES: Final = "__values"
OFFSETS: Final = "__offsets"
MASK: Final = "__mask"
OFFSET_BYTES: Final = 8
ListSpecs: TypeAlias = dict[str, tuple[str, tuple[None, ...]]]


class Form(StrEnum):
    """How batches have lists of any length."""

    OFFSETS = "offsets"
    PADDED = "padded"


@dataclass(frozen=True, slots=True)
class RaggedInputs:
    """The lists of a loader's batches, and their form.

    Parameters
    ----------
    columns : tuple of Input
        Without any where no feature is a list.
    form : Form, optional
        None only without columns.
    """

    columns: tuple[Input, ...] = ()
    form: Form | None = None

    @classmethod
    def of(cls, schema: DatasetSchema, ragged: str | None) -> RaggedInputs:
        """Return what a loader's ``ragged=`` means for its columns.

        Raises
        ------
        InvalidInputError
            If it is no form, or there are lists and no form was given.
        DefinitionError
            If a column has a name that its arrays need.
        """
        if ragged not in (None, *Form):
            raise InvalidInputError(
                f"ragged={shown(ragged)} is no form of lists", "use 'offsets' or 'padded'"
            )
        columns = schema.ragged
        if not columns:
            return cls()
        if ragged is None:
            raise InvalidInputError(
                f"feature {columns[0].name!r} has lists of any length, and this loader was not told "
                "in which form batches have them",
                "give ragged='offsets' (values and offsets) or ragged='padded', or make them one "
                "length with fs.ListPad",
            )
        found = cls(columns, Form(ragged))
        names = list(schema.array_specs())
        for one in columns:
            names += replace(found, columns=(one,)).specs()
        if twice := sorted({one for one in names if names.count(one) > 1}):
            raise DefinitionError(
                f"two inputs would be called {twice[0]!r}, one of them for a column of lists",
                "rename a column",
            )
        return found

    @property
    def padded(self) -> bool:
        return self.form is Form.PADDED

    def specs(self) -> ListSpecs:
        """Return ``{array name: (dtype, shape)}`` of their inputs; None is what differs between batches."""
        found: ListSpecs = {}
        for one in self.columns:
            if self.padded:
                found[one.name] = (one.dtype, (None, None))
                found[one.name + MASK] = ("bool", (None, None))
            else:
                found[one.name + VALUES] = (one.dtype, (None,))
                found[one.name + OFFSETS] = ("int64", (None,))
        return found

    def sample_bytes(self, part: DatasetPart) -> int:
        """Return the most bytes that the lists of a row take in a batch, where two batches exist at least."""
        found = 0
        for one in self.columns:
            items = most_items(part, one.name)
            size = np.dtype(one.dtype).itemsize
            lists = OFFSET_BYTES + items * size
            # Of those that exist at once, each reader pads one, and lets its lists go then.
            found += max(1, items) * (size + 1) + -(-lists // 2) if self.padded else lists
        return found

    def require(self, **others: bool) -> None:
        """Refuse lists beside options that do not go with them: those that are True.

        Raises
        ------
        UnsupportedError
        """
        reasons = {
            "pack": ("pack=False streams rows of one width", "leave pack=False out"),
            "hold": ("hold= holds rows of one width", "leave hold= out: a pack has lists"),
            "window": ("window= gives rows of one width as sequences", "leave window= out"),
        }
        for name, refused in others.items():
            if refused and self.columns:
                why, remedy = reasons[name]
                raise UnsupportedError(
                    f"{why}, and feature {self.columns[0].name!r} has lists of any length",
                    f"{remedy}, or make them one length with fs.ListPad",
                )

    def refuse(self, who: str, *, padded: bool = False) -> None:
        """Refuse a consumer that takes no lists; with ``padded``, none that are padded either.

        Raises
        ------
        UnsupportedError
        """
        if self.columns and (padded or not self.padded):
            name = self.columns[0].name
            remedy = "" if padded else "make the loader with ragged='padded', or "
            raise UnsupportedError(
                f"{who} takes arrays of one row after the other, and feature {name!r} has lists"
                + (" of any length" if padded else " as values and offsets"),
                f"{remedy}make them one length with fs.ListPad",
            )


def most_items(part: DatasetPart, column: str) -> int:
    """Return how many items a list of a column has at most."""
    partitions = range(len(part.partition_rows))
    return max((part.list_items(one, column)[0] for one in partitions), default=0)


def ragged_arrays(name: str, lists: Ragged) -> dict[str, HostArray]:
    """Return the two inputs that lists are, as frameworks get them."""
    return {name + VALUES: lists.values, name + OFFSETS: lists.offsets}


def padded(batch: Batch) -> Batch:
    """Return a batch whose lists are padded arrays and masks among its inputs.

    Examples
    --------
    >>> lists = Ragged(np.array([7, 8, 9], np.int32), np.array([0, 2, 2, 3]))
    >>> inputs = padded(Batch({}, None, lists={"tags": lists})).inputs
    >>> inputs["tags"].tolist(), inputs["tags__mask"].tolist()
    ([[7, 8], [0, 0], [9, 0]], [[True, True], [False, False], [True, False]])
    """
    inputs = dict(batch.inputs)
    for name, lists in batch.lists.items():
        lengths = lists.lengths
        shape = (lists.rows, max(1, int(lengths.max(initial=0))))
        mask = aligned_empty(shape, np.dtype(np.bool_))
        np.less(np.arange(shape[1]), lengths[:, None], out=mask)
        rows = aligned_empty(shape, lists.values.dtype)
        rows[...] = 0
        rows[mask] = lists.values
        inputs[name], inputs[name + MASK] = rows, mask
    return replace(batch, inputs=inputs, lists={})


class PaddedPack:
    """A pack whose lists are given padded: what ``Steps`` reads from.

    Parameters
    ----------
    pack : KeptSamples
    """

    def __init__(self, pack: KeptSamples) -> None:
        self.pack = pack
        self.schema = pack.schema
        self.shared = pack.shared

    def read(self, start: int, stop: int) -> Batch:
        """Return rows ``[start, stop)`` as they lie."""
        return padded(self.pack.read(start, stop))

    def gather(self, rows: Rows) -> Batch:
        """Return some rows in the order given."""
        return padded(self.pack.gather(rows))

    def prefetch(self, starts: Rows, count: int) -> None:
        """Ask for runs of ``count`` rows ahead."""
        self.pack.prefetch(starts, count)

    def ahead(self, stripes: Iterable[int]) -> AbstractContextManager[None]:
        """Write what is missing of the pack; see :meth:`Pack.ahead`."""
        return self.pack.ahead(stripes)

    def complete(self) -> PaddedPack:
        """Return it when the pack's rows are all written."""
        self.pack.complete()
        return self

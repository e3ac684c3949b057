"""A column of a partition, as folds of single rows, with what a state has of it (:mod:`nodes`).

Always true: what the state has stands before the partition's rows, and only its folds of the same names do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from featurestore.engines.protocol import Array, Engine, Series
from featurestore.engines.running import Fold, added_before
from featurestore.engines.time_trees import Nodes, Parts
from featurestore.engines.time_views import View
from featurestore.engines.windows import Groups, canonical
from featurestore.transforms.base import EMPTY_STATE, State
from featurestore.transforms.nodes import earlier_parts, folded_nodes
from featurestore.transforms.tails import TAIL

Seen: TypeAlias = "Mapping[str, Parts]"
"""Folds of what each row sees, by the fold's name; rows in sorted order."""
Results: TypeAlias = "Callable[[Seen, Array], Iterator[tuple[Array, Array]]]"
"""What is made of the folds that rows see and of their times: values and validity, one by one."""


@dataclass(frozen=True, slots=True)
class FoldedColumn:
    """The values of a column in a partition, and what a state has of it."""

    engine: Engine
    values: Array
    valid: Array
    folds: Mapping[str, Fold]
    counter: str | None
    earlier: Mapping[str, Parts]
    before: int

    @classmethod
    def of(
        cls,
        engine: Engine,
        column: Series,
        folds: Mapping[str, Fold],
        counter: str | None,
        state: State = EMPTY_STATE,
        source: int = 0,
    ) -> FoldedColumn:
        """Return a partition's column, and what a state has of it as its ``source``-th."""
        earlier = earlier_parts(engine, state, source, tuple(folds))
        before = len(state[TAIL]) if earlier else 0
        return cls(engine, *engine.values(column), folds, counter, earlier, before)

    def leaves(self, order: Array, begin: Array, times: Array) -> Iterator[tuple[str, Parts]]:
        """Yield the folds of single rows at sorted positions, by name, and of what the state has."""
        xp = self.engine.xp
        own, old = order, None
        if self.before:
            own = order - self.before
            old = xp.flatnonzero(own < 0)
            own = xp.maximum(own, 0, out=own)
        values, valid = self.values[own], self.valid[own]
        if old is not None:
            valid[old] = False
        numbers = times
        for name, fold in self.folds.items():
            places = times if fold.shift is None else numbers
            parts = fold.leaves(xp, values, valid, places)
            if old is not None:
                known = tuple(part[order[old]] for part in self.earlier[name])
                if fold.shift is not None:
                    known = fold.shift(xp, known, places[old])
                # Some may be what the next fold is made of.
                parts = tuple(part.copy() for part in parts)
                for part, one in zip(parts, known, strict=True):
                    part[old] = one
            if name == self.counter:
                (numbers,) = added_before(xp, parts, begin)
            yield name, parts

    def results(self, views: Sequence[View], results: Results) -> list[tuple[Array, Array]]:
        """Return values and validity of the outputs, in the order of the partition's rows."""
        xp = self.engine.xp
        out: list[tuple[Array, Array]] = []
        for view in views:
            rows, seen = view.rows, {}
            for name, parts in self.leaves(rows.order, rows.begin, rows.times):
                seen[name] = view.seen(parts, self.folds[name])
            for number, (values, valid) in enumerate(results(seen, rows.times[rows.own])):
                if number == len(out):
                    size = self.valid.shape[0]
                    out.append((xp.empty(size, values.dtype), xp.empty(size, dtype=xp.bool_)))
                out[number][0][rows.target] = canonical(xp, values, valid)
                out[number][1][rows.target] = valid
        return out

    def folded(self, groups: Groups, times: Array, nodes: Nodes) -> dict[str, Parts]:
        """Return the folds of what is left of the rows, which are all of the partition's, by name."""
        xp = self.engine.xp
        places = {
            name: xp.zeros(times.shape[0], dtype=xp.int64)
            for name, fold in self.folds.items()
            if fold.shift is not None
        }

        def leaves(where: slice) -> dict[str, Parts]:
            order, begin = groups.order[where], groups.begin[where] - where.start
            made = dict(self.leaves(order, begin, times[order]))
            for one in places.values():
                (one[where],) = added_before(xp, made[cast("str", self.counter)], begin)
            return made

        return folded_nodes(xp, nodes, leaves, self.folds, places)

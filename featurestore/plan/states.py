"""Which states a feature needs, and the keys under which they are kept.

A state's key is a fingerprint of what it is computed from, so a key that exists is a state that
need not be computed again: after a crash, for another split, for the partitions before an append.

* *summary*: ``summarize`` of one partition.
* *prefix*: ``combine`` of the summaries of all earlier partitions within reach.
* *suffix*: what a partition needs of ``combine`` of all later ones (``plan.ahead``).
* *fit*: ``finish`` of the combined summaries of the fit scope.
* *carry*: ``combine`` of the summaries of another table's partitions below a window.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from featurestore.errors import DefinitionError
from featurestore.fingerprint import fingerprint
from featurestore.plan.definition import Feature
from featurestore.plan.stretch import Stretch
from featurestore.plan.table_files import TableFiles
from featurestore.schema import TableSchema
from featurestore.storage.records import PartitionEntry
from featurestore.times import to_steps
from featurestore.transforms.base import Scope, SourceTransformer, Transformer

_BEFORE_ALL: Final = -(2**63) - 1


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary to be computed or found.

    Parameters
    ----------
    key : str
    partition : int
        Position among the table's partitions.
    time_range : (int, int), optional
        Only rows with ``start <= time < stop`` belong to it; None for all.
    """

    key: str
    partition: int
    time_range: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class StateNeed:
    """The state ``apply`` needs in one partition.

    Parameters
    ----------
    fingerprint : str
        Part of the values' provenance; ``""`` for the empty state of scope ``none``.
    key : str
        Where the combined state is kept; ``""`` for the empty state.
    members : sequence of Summary
        The summaries it is combined of, in order: of the own table, or for a source transformer of
        the other table's carry.
    rows : sequence of int
        For a source transformer: the other table's partitions that are handed over as rows.
    since : int, optional
        For a prefix state of limited reach: older rows do not matter, and may be in it or not.
    own : Summary, optional
        For a suffix state of unlimited reach: that of the partition itself.
    horizon : int, optional
        For a suffix state of limited reach: the newest time that counts.
    """

    fingerprint: str = ""
    key: str = ""
    members: Sequence[Summary] = ()
    rows: Sequence[int] = ()
    since: int | None = None
    own: Summary | None = None
    horizon: int | None = None

    @property
    def summaries(self) -> Sequence[Summary]:
        """All that must be there before it is combined."""
        return self.members if self.own is None else (self.own, *self.members)

    def span(self, scope: Scope) -> tuple[int, int]:
        """Between which partitions the rows lie that it may hold: the first, and the one after the last.

        A prefix state that is made from the one before may hold rows from before its members.
        """
        if not self.members:
            return 0, 0
        first = 0 if scope is Scope.PREFIX else self.members[0].partition
        return first, self.members[-1].partition + 1


@dataclass(frozen=True, slots=True)
class Learner:
    """A transformer that summarises some columns of a table: what all keys of its states share.

    Parameters
    ----------
    transformer : Transformer
    schema : TableSchema
        Of the table that is summarised: its key and time are what a transformer groups and orders
        by unless told otherwise, so two tables of equal bytes do not share states.
    columns : tuple of str
    """

    transformer: Transformer
    schema: TableSchema
    columns: tuple[str, ...]
    _own: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_own", self.transformer.state_fingerprint())

    def summary_key(self, inputs: str, time_range: tuple[int, int] | None = None) -> str:
        """Return the key of the summary of a partition whose columns have a fingerprint."""
        return fingerprint(
            "summary",
            self._own,
            list(self.columns),
            [list(self.schema.key), self.schema.time],
            inputs,
            None if time_range is None else list(time_range),
        )


def prefix_key(state: str, since: int | None) -> str:
    """Return where a prefix state is kept.

    One of limited reach is made from the one before it, so it may hold rows older than ``since`` of
    partitions that it is not named after. They do no harm to whoever looks back as far, and would to
    who looks back further.
    """
    return state if since is None else fingerprint("prefix since", [state, since])


def chain_key(key: str, summary: str) -> str:
    """Return the key of the prefix state that includes one more summary."""
    return fingerprint("prefix", key, summary)


def fit_needs(feature: Feature, files: TableFiles, inputs: Sequence[str]) -> StateNeed:
    """Return the one state that a fitted feature needs in every partition; of no rows, no members."""
    learner = Learner(feature.transformer, files.schema, feature.inputs)
    members = tuple(
        Summary(learner.summary_key(inputs[position], cut), position, cut)
        for position, cut in fit_scope(feature, files.schema, files.base)
    )
    key = fingerprint("fit", feature.transformer.fingerprint(), [one.key for one in members])
    return StateNeed(key, key, members)


def fit_scope(
    feature: Feature, schema: TableSchema, base: Sequence[PartitionEntry]
) -> list[tuple[int, tuple[int, int] | None]]:
    """Return the partitions a fitted feature learns from, and the time range where one is cut.

    Raises
    ------
    DefinitionError
        If the scope is a time range and the table has no time.
    """
    within = fit_range(feature, schema)
    if within is None:
        found: list[tuple[int, tuple[int, int] | None]] = [
            (position, None) for position, one in enumerate(base) if one.rows
        ]
    else:
        start, stop = within
        found = []
        for position, one in enumerate(base):
            if one.time_min is None or one.time_max is None:
                continue
            if one.time_max >= start and one.time_min < stop:
                whole = one.time_min >= start and one.time_max < stop
                found.append((position, None if whole else (start, stop)))
    return found


def fit_range(feature: Feature, schema: TableSchema) -> tuple[int, int] | None:
    """Return the times ``start <= time < stop`` that a fitted feature learns from; None for all rows.

    Raises
    ------
    DefinitionError
        If there is such a range and the table has no time.
    """
    fit_on = feature.definition.fit_on
    if not isinstance(fit_on, tuple):
        return None
    if schema.time is None:
        raise DefinitionError(
            f"fit_on={fit_on} is a time range and the table has no time column",
            "use fit_on='all'",
        )
    type_ = schema[schema.time].type
    start, stop = (to_steps(one, type_, schema.time) for one in fit_on)
    return start, stop


def require_fit_rows(feature: Feature, need: StateNeed) -> None:
    """Refuse to learn from no rows; a table may have lost those of a fit scope.

    Raises
    ------
    DefinitionError
    """
    if feature.transformer.scope is Scope.FIT and not need.members:
        raise DefinitionError(
            f"fit_on={feature.definition.fit_on!r} holds no rows of {feature.names}",
            "choose another range (add with replace=True), append or replace such rows, or drop it",
        )


@dataclass(frozen=True, slots=True)
class SourceSummaries:
    """Another table as a source transformer sees it: its partitions that have rows.

    Parameters
    ----------
    base : sequence of PartitionEntry
    prints : sequence of str
        Fingerprint that the columns it reads have, or will have once built, per partition.
    summaries : sequence of Summary
        Of each partition that has rows, in order.
    chains : sequence of str
        ``chains[n]`` is the key of the carry of the first n of them.
    """

    base: Sequence[PartitionEntry]
    prints: Sequence[str]
    summaries: Sequence[Summary]
    chains: Sequence[str]
    _positions: Sequence[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_positions", [one.partition for one in self.summaries])

    @classmethod
    def of(
        cls, learner: Learner, base: Sequence[PartitionEntry], prints: Sequence[str]
    ) -> SourceSummaries:
        summaries: list[Summary] = []
        chains = [""]
        for position, one in enumerate(base):
            if one.rows:
                summaries.append(Summary(learner.summary_key(prints[position]), position))
                chains.append(chain_key(chains[-1], summaries[-1].key))
        return cls(base, prints, summaries, chains)

    def carried(self, lower: int | None) -> Stretch[Summary]:
        """Return the leading partitions that lie wholly before a time."""
        if lower is None:
            return Stretch(self.summaries, 0, 0)
        # Without times they are compared with nothing: all of them may lie before.
        return Stretch(self.summaries, 0, bisect_left(self.summaries, lower, key=self._ends))

    def rows(self, after: int, upper: int | None) -> Stretch[int]:
        """Return the partitions after so many that begin by a time, as positions in the table."""
        stop = len(self.summaries)
        if upper is not None:
            stop = bisect_right(self.summaries, upper, lo=after, key=self._begins)
        return Stretch(self._positions, after, stop)

    def _ends(self, one: Summary) -> int:
        end = self.base[one.partition].time_max
        return _BEFORE_ALL if end is None else end

    def _begins(self, one: Summary) -> int:
        begin = self.base[one.partition].time_min
        return _BEFORE_ALL if begin is None else begin


def source_need(
    transformer: SourceTransformer,
    schema: TableSchema,
    entry: PartitionEntry,
    source: SourceSummaries,
) -> StateNeed:
    """Return what a source transformer needs of the other table for one partition."""
    if not entry.rows:
        return StateNeed()
    window = transformer.source_window(schema, entry.time_min, entry.time_max)
    before = source.carried(window.lower)
    rows = source.rows(len(before), window.upper)
    carry = source.chains[len(before)] if window.carry else ""
    return StateNeed(
        fingerprint("source", carry, [source.prints[position] for position in rows]),
        carry,
        before if window.carry else (),
        rows,
    )

"""What remains of damaged tables, and what can be computed again from it; metadata only.

Always true: a value is taken for computable only if all it needs is sound, was mended before, or is
computed with it. Remains are a value: what is mended gives new ones, which are judged anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from featurestore.errors import DefinitionError
from featurestore.plan.ahead import is_settled
from featurestore.plan.damage import Damage, GroupDamage
from featurestore.plan.definition import Feature
from featurestore.plan.staleness import CODE, Assessment, Freshness, Standing
from featurestore.plan.states import Summary
from featurestore.plan.table_files import TableFiles, summarized_of
from featurestore.storage.provenance import Provenance
from featurestore.storage.records import BASE_GROUP, PartitionEntry
from featurestore.transforms.base import UnknownTransformer
from featurestore.transforms.function import Function

At: TypeAlias = tuple[str, str, str]
"""Values of one column group in one partition: table, group, partition id."""
_Need: TypeAlias = tuple[TableFiles, tuple[str, ...], int]  # table, columns, position


@dataclass(frozen=True, slots=True)
class Remains:
    """Damaged tables and all that they read, without what is damaged.

    Parameters
    ----------
    standing : Standing
        Of the tables; damaged values of features are missing there, ingested ones are not.
    lost_rows : frozenset of (str, str)
        Table and partition id of ingested values that are damaged.
    unreadable : mapping of str to str
        Tables that cannot be read at all, and why.
    state_exists : callable
        Whether a state is there and sound, by its key; asked once for each.
    """

    standing: Standing
    lost_rows: frozenset[tuple[str, str]]
    unreadable: Mapping[str, str]
    state_exists: Callable[[str], bool]
    _states: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        damage: Damage,
        tables: Mapping[str, TableFiles],
        unreadable: Mapping[str, str],
        state_exists: Callable[[str], bool],
    ) -> Remains:
        """Return what remains if nothing was mended yet; damaged values are not among ``tables``."""
        lost = frozenset(
            (one.table, name)
            for one in damage.groups
            if one.group == BASE_GROUP
            for name in one.partitions
        )
        return cls(Standing.of(tables, check_code=True), lost, unreadable, state_exists)

    @property
    def tables(self) -> Mapping[str, TableFiles]:
        return self.standing.tables

    def with_values(self, new: Mapping[tuple[str, str], Mapping[str, PartitionEntry]]) -> Remains:
        """Return what there is once values were mended, by table and group, then partition id."""
        tables = dict(self.tables)
        for (table, group), values in new.items():
            entries = tables[table].entries
            changed = {**entries, group: {**entries[group], **values}}
            tables[table] = tables[table].with_entries(changed)
        mended = {
            (table, name)
            for (table, group), values in new.items()
            if group == BASE_GROUP
            for name in values
        }
        standing = Standing.of(tables, check_code=True)
        return replace(self, standing=standing, lost_rows=self.lost_rows - mended)

    def has_group(self, table: str, group: str) -> bool:
        """Whether a column group is known: its table can be read, its definition is not lost."""
        return table in self.tables and group in self.tables[table].groups

    def assessed(self, table: str, group: str) -> dict[str, Assessment]:
        """Return how a feature stands, by partition id."""
        found = self.standing.assessor.group(table, group)
        names = [one.partition for one in self.tables[table].base]
        return dict(zip(names, found, strict=True))

    def provenance(self, damaged: GroupDamage) -> dict[str, Provenance]:
        """Return the provenance of damaged values, by partition; of lost ones, as if fresh."""
        known = {name: entry.provenance for name, entry in damaged.entries.items()}
        if damaged.group == BASE_GROUP or not damaged.unreadable:
            return {name: known[name] for name in damaged.partitions}
        fresh = self.assessed(damaged.table, damaged.group)
        return {name: fresh[name].provenance for name in damaged.partitions if name in fresh}

    def is_sound(self, files: TableFiles, group: str, position: int) -> bool:
        """Whether a column group's values can be read in a partition, and are what they should be."""
        if group == BASE_GROUP:
            return (files.name, files.base[position].partition) not in self.lost_rows
        return self.standing.is_fresh(files.name, group, (position,))

    def obstacle(
        self,
        files: TableFiles,
        feature: Feature,
        position: int,
        planned: Mapping[str, Collection[int]],
    ) -> str:
        """Return why a value cannot be computed now, or nothing.

        Parameters
        ----------
        files : TableFiles
            Of the feature.
        feature : Feature
        position : int
            Of the partition.
        planned : mapping of str to collection of int
            Positions that are computed before it, by group of the same table.
        """
        assessment = self.standing.assessor.group(files.name, feature.group)[position]
        if assessment.reason == CODE:
            return "its function computes something else now than when the feature was defined"
        unknown = feature.transformer.unknown_code()
        if unknown is not None:
            return unknown.problem
        for table, columns, at in self._needs(files, feature, position, assessment):
            for group in table.groups_of(columns):
                if table.name == files.name and at in planned.get(group, ()):
                    continue
                if not self.is_sound(table, group, at):
                    names = ", ".join(table.groups[group].names)
                    return (
                        f"it needs {names} of table {table.name!r} in partition "
                        f"{table.base[at].partition}, which is damaged or not built"
                    )
        return ""

    def _needs(
        self, files: TableFiles, feature: Feature, position: int, assessment: Assessment
    ) -> Iterator[_Need]:
        """Yield what has to be read: inputs, another table's rows, and what a state is made of."""
        yield files, feature.inputs, position
        source, columns = summarized_of(feature, files, self.tables)
        for at in assessment.need.rows:  # of what it joins
            yield source, columns, at
        if assessment.need.key and not self._has_state(assessment.need.key):
            for member in assessment.need.summaries:
                if not self._has_state(member.key):
                    yield source, _summarised(source, columns, member), member.partition

    def _has_state(self, key: str) -> bool:
        if key not in self._states:
            self._states[key] = self.state_exists(key)
        return self._states[key]


def _summarised(files: TableFiles, columns: tuple[str, ...], member: Summary) -> tuple[str, ...]:
    """Return the columns that a summary is computed from."""
    if member.time_range is None or files.schema.time is None:
        return columns
    return (*columns, files.schema.time)


@dataclass(frozen=True, slots=True)
class Targets:
    """What is to become of damaged values of features that have no copy.

    Parameters
    ----------
    computed : frozenset of At
        Those that were fresh: to be computed again.
    missing : frozenset of At
        Those that were stale, or whose partitions are gone.
    """

    computed: frozenset[At]
    missing: frozenset[At]

    @classmethod
    def of(cls, damage: Damage, remains: Remains, copied: Collection[At]) -> Targets:
        """Sort the damaged values of all features that are known."""
        computed: set[At] = set()
        missing: set[At] = set()
        for one in damage.groups:
            if one.group == BASE_GROUP or not remains.has_group(one.table, one.group):
                continue
            found = remains.assessed(one.table, one.group)
            base = remains.tables[one.table].base
            for name in one.partitions:
                at = (one.table, one.group, name)
                old, wanted = one.entries.get(name), found.get(name)
                if wanted is None:
                    missing.add(at)
                elif at in copied:
                    continue
                elif (
                    old is None
                    or old.provenance == wanted.provenance
                    or is_settled(old.provenance, wanted.provenance, wanted.need, base)
                    or wanted.reason == CODE
                ):
                    computed.add(at)
                else:
                    missing.add(at)
        return cls(frozenset(computed), frozenset(missing))


@dataclass(frozen=True, slots=True)
class TableRound:
    """What can be computed of one table now.

    Parameters
    ----------
    positions : mapping of str to set of int
        By group of the feature; what they need is there, or computed before in the same round.
    reasons : mapping of At to str
        Of every value that was looked at: why it cannot be computed, or nothing.
    """

    positions: Mapping[str, set[int]]
    reasons: Mapping[At, str]

    @classmethod
    def of(cls, remains: Remains, table: str, targets: AbstractSet[At]) -> TableRound:
        """Look at the targets of a table, in the order in which its features need each other."""
        files = remains.tables[table]
        wanted: dict[str, set[str]] = defaultdict(set)
        for of, group, partition in targets:
            if of == table:
                wanted[group].add(partition)
        positions: dict[str, set[int]] = {}
        reasons: dict[At, str] = {}
        for feature in (one for level in files.graph.levels for one in level):
            if feature.group not in wanted:
                continue
            problem = _function_problem(feature)
            for position, base in enumerate(files.base):
                if base.partition not in wanted[feature.group]:
                    continue
                found = problem or remains.obstacle(files, feature, position, positions)
                reasons[table, feature.group, base.partition] = found
                if not found:
                    positions.setdefault(feature.group, set()).add(position)
        return cls(positions, reasons)

    def assessments(self, remains: Remains, table: str) -> dict[str, tuple[Assessment, ...]]:
        """Return how a table's features stand for a build that computes these positions alone."""
        return {
            group: tuple(
                one if at in self.positions[group] else replace(one, freshness=Freshness.FRESH)
                for at, one in enumerate(found)
            )
            if group in self.positions
            else ()
            for group, found in remains.standing.assessor.table(table).items()
        }


def _function_problem(feature: Feature) -> str:
    """Return why a feature cannot be computed in this process at all, or nothing."""
    transformer = feature.transformer
    if isinstance(transformer, UnknownTransformer):
        return transformer.problem.problem
    if isinstance(transformer, Function):
        try:
            transformer.function.resolve()
        except DefinitionError as error:
            return error.problem
    return ""

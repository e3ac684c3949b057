"""What the tables of a store will be once they are as their definitions say.

Definitions are bound to the newest snapshot, in memory: a table after those that it reads, so that a
feature may read what is only defined. Always true: nothing is computed but trials on a sample of
rows, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from featurestore.errors import DefinitionError, DependencyCycleError, InvalidInputError
from featurestore.execution.sampling import bind_to_sample
from featurestore.plan.definition import Feature
from featurestore.plan.table_files import TableFiles, source_of
from featurestore.project.definitions import Stated
from featurestore.schema import TableSchema
from featurestore.session import Session
from featurestore.storage.records import BASE_GROUP, Snapshot


@dataclass(frozen=True, slots=True)
class IntendedTable:
    """A table as it is and as it will be.

    Parameters
    ----------
    before, files : TableFiles
        As it is; as it will be.
    new : tuple of Feature
        Those that are not there yet, each after those it needs.
    kept : tuple of Feature
    removed : tuple of Feature
        Those that are there and not to be, whether or not others take their place.
    """

    before: TableFiles
    files: TableFiles
    new: tuple[Feature, ...]
    kept: tuple[Feature, ...]
    removed: tuple[Feature, ...]


def intended_tables(
    session: Session,
    snapshot: Snapshot,
    wanted: Mapping[str, Sequence[Stated]],
    without: Iterable[str] = (),
) -> dict[str, IntendedTable]:
    """Return the tables of a snapshot as definitions want them, each after those whose features it reads.

    Parameters
    ----------
    session : Session
    snapshot : Snapshot
    wanted : mapping of str to sequence of Stated
        A table that is not named there is to have no feature.
    without : iterable of str
        Tables that stay as they are.

    Raises
    ------
    DefinitionError
        For what ``Table.add`` refuses: names taken, cycles, missing columns, functions that fail on a sample.
    InvalidInputError
        If a feature that stays reads a column that goes or becomes of another type.
    """
    names = [one for one in snapshot.tables() if one not in set(without)]
    found: dict[str, IntendedTable] = {}
    for name in _by_reading({one: wanted.get(one, ()) for one in names}):
        files = _seeing(session.files(name, snapshot), found)
        try:
            found[name] = _intended(session, files, wanted.get(name, ()))
        except InvalidInputError as error:
            problem = f"the definitions of table {name!r}: {error.problem}"
            raise DefinitionError(problem, error.remedy) from error
    for one in found.values():
        _check_read(one, found)
    return _in_order(found)


def _by_reading(wanted: Mapping[str, Sequence[Stated]]) -> list[str]:
    """Return tables, each after those that its definitions name, as far as that can be."""
    waiting = {
        name: {one.definition.source_table for one in stated} - {name, None}
        for name, stated in wanted.items()
    }
    ordered: list[str] = []
    while waiting:
        ready = [name for name, reads in waiting.items() if not reads & waiting.keys()]
        for name in ready or [next(iter(waiting))]:  # two may read what the other was ingested with
            ordered.append(name)
            del waiting[name]
    return ordered


def _seeing(files: TableFiles, others: Mapping[str, IntendedTable]) -> TableFiles:
    """Return a table that finds others with the columns that they will have."""
    schema = files.schema
    later = {
        name: TableSchema(one.files.schema.fields, one.files.schema.key, one.files.schema.time)
        for name, one in others.items()
    }
    sources = {**schema.sources, **later}
    return replace(files, schema=TableSchema(schema.fields, schema.key, schema.time, sources))


def _intended(session: Session, files: TableFiles, stated: Sequence[Stated]) -> IntendedTable:
    there = _by_fingerprint(files)
    found = [(one.definition, there.get(one.definition.fingerprint)) for one in stated]
    unknown = [definition for definition, feature in found if feature is None]
    kept = {feature.group for _, feature in found if feature is not None}
    made, _ = bind_to_sample(unknown, _showing(files, kept), session.place, replacing=True)
    bound = (*(feature for _, feature in found if feature is not None), *made)
    _refuse_twice(files.name, bound, stated)
    groups = {one.group for one in bound}
    removed = tuple(one for one in files.graph.features() if one.group not in groups)
    new = tuple(one for one in bound if one.group not in files.groups)
    after = files.with_features(new, frozenset(one.group for one in removed))
    fresh = {one.group for one in new}
    features = after.graph.features()
    return IntendedTable(
        files,
        after,
        tuple(one for one in features if one.group in fresh),
        tuple(one for one in features if one.group not in fresh),
        removed,
    )


def _showing(files: TableFiles, groups: AbstractSet[str]) -> TableFiles:
    """Return a table that shows new definitions its ingested columns and these groups' only.

    What goes, or is about to be another, is neither selected nor read by them.
    """
    schema, owners = files.schema, files.graph.owners
    fields = tuple(one for one in schema.fields if owners[one.name] in {BASE_GROUP, *groups})
    return replace(files, schema=TableSchema(fields, schema.key, schema.time, schema.sources))


def _by_fingerprint(files: TableFiles) -> dict[str, Feature]:
    """Return the features of a table by their definitions' fingerprints, as stored and as asked for."""
    found = {}
    for one in files.graph.features():
        entry = files.groups[one.group]
        found[entry.definition_fingerprint] = one
        if entry.asked:
            found[entry.asked] = one
    return found


def _refuse_twice(table: str, bound: Sequence[Feature], stated: Sequence[Stated]) -> None:
    owners: dict[str, Feature] = {}
    for one in bound:
        for name in one.names:
            other = owners.setdefault(name, one)
            if other is one:
                continue
            lines = sorted(
                given.line
                for given in stated
                for feature in (one, other)
                if feature.stated.is_what_was_asked(given.definition.fingerprint)
            )
            raise DefinitionError(
                f"two definitions give column {name!r} of table {table!r} (lines "
                f"{', '.join(map(str, lines))})",
                "rename one: output=, prefix= or rename=",
            )


def _check_read(table: IntendedTable, tables: Mapping[str, IntendedTable]) -> None:
    """Refuse that a feature reads a column that will not be what the feature was bound to."""
    files = {name: one.files for name, one in tables.items()}
    for feature, stays in [
        *((one, True) for one in table.kept),
        *((one, False) for one in table.new),
    ]:
        bound = (table.before if stays else table.files).schema
        read = [(table.files, bound, name) for name in feature.inputs]
        source = source_of(feature, table.files, files)
        if source is not None:
            other = tables[source[0].name].before.schema if stays else bound.source(source[0].name)
            read += [(source[0], other, name) for name in source[1]]
        for now, then, name in read:
            if name in now.schema and name in then and now.schema[name] == then[name]:
                continue
            what = "has another type in" if name in now.schema else "is missing from"
            raise InvalidInputError(
                f"feature {feature.names[0]!r} of table {table.files.name!r} reads {name!r} of "
                f"table {now.name!r}, which {what} the new definitions",
                "keep the column and its type, or give the new one another name and read that",
            )


def _in_order(tables: Mapping[str, IntendedTable]) -> dict[str, IntendedTable]:
    """Return the tables, each after those of which it reads features: so they can be built."""
    files = {name: one.files for name, one in tables.items()}
    waiting: dict[str, set[str]] = {}
    for name, one in tables.items():
        waiting[name] = set()
        for feature in one.files.graph.features():
            source = source_of(feature, one.files, files)
            if source is None or source[0].name == name:
                continue
            if set(source[0].groups_of(source[1])) != {BASE_GROUP}:
                waiting[name].add(source[0].name)
    ordered: dict[str, IntendedTable] = {}
    while waiting:
        ready = [name for name, reads in waiting.items() if not reads & waiting.keys()]
        if not ready:
            raise DependencyCycleError(
                f"tables {sorted(waiting)} read features of each other, so none can be built first",
                "let one of them read ingested columns only",
            )
        for name in ready:
            ordered[name] = tables[name]
            del waiting[name]
    return ordered

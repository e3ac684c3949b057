"""What a column is computed from: definitions of it and of all it reads, and one fingerprint of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurestore.fingerprint import Json, fingerprint
from featurestore.plan.table_files import TableFiles, source_of


def lineage(
    files: TableFiles, sources: Mapping[str, TableFiles], columns: Sequence[str]
) -> dict[str, str]:
    """Return for each column the fingerprint of its definition and of its inputs' in turn.

    Equal fingerprints mean the same computation on the same ingested columns; rows may differ.

    Parameters
    ----------
    files : TableFiles
    sources : mapping of str to TableFiles
        The tables that features read, directly or not.
    columns : sequence of str
    """
    found: dict[tuple[str, str], str] = {}
    features = {
        (one.name, name): feature
        for one in (files, *sources.values())
        for feature in one.graph.features()
        for name in feature.names
    }

    def trace(table: TableFiles, column: str) -> str:
        at = (table.name, column)
        if at not in found:
            feature = features.get(at)
            if feature is None:
                found[at] = fingerprint("ingested", column)
            else:
                inputs = [trace(table, name) for name in feature.inputs]
                joined = source_of(feature, table, sources)
                if joined is not None:
                    inputs += [trace(joined[0], name) for name in joined[1]]
                found[at] = fingerprint(feature.definition.fingerprint, inputs, column)
        return found[at]

    for name in columns:
        files.schema[name]
    return {name: trace(files, name) for name in columns}


def definitions(
    files: TableFiles, sources: Mapping[str, TableFiles], columns: Sequence[str]
) -> dict[str, Json]:
    """Return the definitions of the features that columns are computed from, by table.

    Parameters
    ----------
    files, sources, columns
        As of :func:`lineage`.

    Returns
    -------
    dict
        Of each table that has such a feature a list of ``{"columns": [...], "transformer": ...,
        "fit_on": ...}``, inputs before what reads them; of the same columns always the same.
    """
    found: dict[str, list[Json]] = {}
    seen: set[tuple[str, str]] = set()
    features = {
        (one.name, name): feature
        for one in (files, *sources.values())
        for feature in one.graph.features()
        for name in feature.names
    }

    def visit(table: TableFiles, column: str) -> None:
        feature = features.get((table.name, column))
        if feature is None or (table.name, column) in seen:
            return
        seen.update((table.name, name) for name in feature.names)
        for name in feature.inputs:
            visit(table, name)
        joined = source_of(feature, table, sources)
        if joined is not None:
            for name in joined[1]:
                visit(joined[0], name)
        said = {"columns": list(feature.names), **feature.definition.to_json()}
        found.setdefault(table.name, []).append(said)

    for name in columns:
        files.schema[name]
        visit(files, name)
    return {name: list(found[name]) for name in sorted(found)}

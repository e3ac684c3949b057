"""What a column is computed from, as one fingerprint: its definition and those of all it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurestore.fingerprint import fingerprint
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

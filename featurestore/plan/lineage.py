"""What a column is computed from, as one fingerprint: its definition and those of all it reads."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.fingerprint import fingerprint
from featurestore.plan.table_files import TableFiles
from featurestore.storage.records import BASE_GROUP


def lineage(files: TableFiles, columns: Sequence[str]) -> dict[str, str]:
    """Return for each column the fingerprint of its definition and of its inputs' in turn.

    Equal fingerprints mean the same computation on the same ingested columns; rows may differ.
    Columns of other tables count by name.
    """
    for name in columns:
        files.schema[name]
    found = {
        name: fingerprint("ingested", name)
        for name, group in files.graph.owners.items()
        if group == BASE_GROUP
    }
    for feature in files.graph.features():
        inputs = [found[name] for name in feature.inputs]
        for name in feature.names:
            found[name] = fingerprint(feature.definition.fingerprint, inputs, name)
    return {name: found[name] for name in columns}

"""An ingest in a process of its own, and the memory it took: what tests of memory share.

The child first ingests a few rows of the same kind, so that modules, thread pools and pages of
libraries are there before the kernel's high-water mark is reset.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from featurestore.allocators import release_freed
from featurestore.errors import FeatureStoreError
from featurestore.ingest.partitioner import write_partitions
from featurestore.ingest.sources import open_source
from featurestore.storage.backends import open_object_store
from featurestore.storage.records import TableEntry
from featurestore.storage.scratch import Scratch
from featurestore.watermark import watermark

MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class IngestRun:
    """What an ingest in a process of its own did.

    Parameters
    ----------
    start_bytes, peak_bytes : int
        What the process held before, and at its peak.
    rows, partitions : int
    refused : str
        The error, if there was one.
    scratch : int
        The most bytes of scratch files.
    """

    start_bytes: int
    peak_bytes: int
    rows: int
    partitions: int
    refused: str
    scratch: int

    @property
    def added_bytes(self) -> int:
        return self.peak_bytes - self.start_bytes


def run_ingest(
    folder: Path,
    source: Path,
    tiny: Path,
    *,
    limit: int,
    key: Sequence[str] = (),
    time: str | None = None,
    duplicates: str = "error",
    partition_bytes: int = 16 * MIB,
    environment: Mapping[str, str] | None = None,
) -> IngestRun:
    """Ingest a file in a fresh process.

    Parameters
    ----------
    folder : Path
        For the store; scratch files go there too.
    source, tiny : Path
        What is measured, and a few rows like it.
    limit : int
        Bytes above what the process holds after imports.
    key, time, duplicates, partition_bytes
        As for ``FeatureStore.ingest``.
    environment : mapping of str to str, optional
        Further variables.

    Raises
    ------
    subprocess.CalledProcessError
        If the process fails otherwise than by refusing; its output is printed.
    """
    given = {
        "folder": str(folder),
        "sources": [str(tiny), str(source)],
        "limit": limit,
        "key": list(key),
        "time": time,
        "duplicates": duplicates,
        "partition_bytes": partition_bytes,
    }
    done = subprocess.run(
        [sys.executable, "-m", "featurestore.testing.ingest_process", json.dumps(given)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode:
        print(done.stderr)
        done.check_returncode()
    return IngestRun(**json.loads(done.stdout))


def _ingest(given: Mapping[str, Any], path: str, name: str, scratch: Scratch) -> list[Any]:
    table = TableEntry(
        name, tuple(given["key"]), given["time"], given["partition_bytes"], given["duplicates"]
    )
    with open_source(path, scratch=scratch) as opened:
        return write_partitions(
            open_object_store(Path(given["folder"]) / "store"),
            opened,
            table,
            schema=None,
            after=None,
            first_sequence=0,
            memory_limit=given["limit"] if name == "whole" else 256 * MIB,
            scratch=scratch,
        )


def _main(given: Mapping[str, Any]) -> None:
    tiny, source = given["sources"]
    scratch = Scratch(Path(given["folder"]))
    _ingest(given, tiny, "tiny", scratch)
    release_freed()
    entries, refused = [], ""
    with watermark() as mark:
        try:
            entries = _ingest(given, source, "whole", scratch)
        except FeatureStoreError as error:
            refused = f"{type(error).__name__}: {error}"
    rows = sum(one.rows for one in entries)
    result = IngestRun(mark.start_bytes, mark.peak_bytes, rows, len(entries), refused, scratch.most)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

"""Files for a chain from ingest to training: wide readings and narrow quotes, of any size in little memory.

Row ``i`` of the readings is one of sensor ``i % SENSORS`` at second ``i // SENSORS``, so key and time are
unique. Each file holds every ``files``-th row: all files cover the whole time, and whoever wants the
rows in order has to sort all of them. Values follow from seed, file and chunk alone.

Trade-off: each file draws the numbers of one row group, and later row groups have them in other
columns. What is measured is what is done with the files, not how random numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SENSORS: Final = 1000
PLACES: Final = 20_000
_CHUNK_ROWS: Final = 16_384


def write_readings(
    folder: Path, rows: int, columns: int, *, files: int = 8, seed: int = 0, wide: bool = False
) -> list[Path]:
    """Write readings: ``sensor`` and ``place`` (text), ``time``, ``x0``... (float32) and ``label``.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.
    rows, columns : int
        All rows, and how many ``x`` columns.
    files : int
        How many Parquet files, uncompressed, in row groups of 16,384 rows.
    seed : int
    wide : bool
        Whether the ``x`` columns are float64.

    Returns
    -------
    list of Path
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = [("sensor", pa.string()), ("time", pa.timestamp("ms")), ("place", pa.string())]
    fields += [(f"x{one}", pa.float64() if wide else pa.float32()) for one in range(columns)]
    schema = pa.schema([*fields, ("label", pa.float32())])
    paths = []
    for number in range(files):
        path = folder / f"readings-{number}.parquet"
        # Dictionaries of numbers that never repeat cost more than all else.
        texts = ["sensor", "place"]
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=texts) as writer:
            mine = np.arange(number, rows, files)
            for chunk in _readings(
                mine, columns, [seed, number], np.float64 if wide else np.float32
            ):
                writer.write_table(pa.table(chunk, schema=schema))
        paths.append(path)
    return paths


def write_quotes(path: Path, seconds: int, *, seed: int = 0) -> Path:
    """Write quotes: ``sensor``, ``time`` and ``quote`` (float32), one per sensor every ten seconds."""
    random = np.random.default_rng(seed)
    schema = pa.schema(
        [("sensor", pa.string()), ("time", pa.timestamp("ms")), ("quote", pa.float32())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for second in range(0, seconds, 10):
            values = random.random(SENSORS, dtype=np.float32)
            when = pa.array(np.full(SENSORS, second * 1000)).cast(pa.timestamp("ms"))
            chunk = [_names("sensor", np.arange(SENSORS)), when, values]
            writer.write_table(pa.table(chunk, schema=schema))
    return path


def _readings(positions: Any, columns: int, seed: list[int], dtype: Any) -> Iterator[list[Any]]:
    random = np.random.default_rng(seed)
    drawn = random.standard_normal((columns, min(_CHUNK_ROWS, len(positions))), dtype=dtype)
    for chunk, start in enumerate(range(0, len(positions), _CHUNK_ROWS)):
        here = positions[start : start + _CHUNK_ROWS]
        values = [drawn[(one + chunk) % columns, : len(here)] for one in range(columns)]
        label = (values[0] + values[-1] > 0).astype(np.float32)
        # Few places are frequent and most are rare, as words are.
        place = (PLACES * random.random(len(here)) ** 3).astype(np.int64)
        when = pa.array(here // SENSORS * 1000).cast(pa.timestamp("ms"))
        yield [
            _names("sensor", here % SENSORS),
            when,
            _names("a place of the number", place),
            *values,
            label,
        ]


def _names(kind: str, numbers: Any) -> pa.Array:
    known, codes = np.unique(numbers, return_inverse=True)
    return pa.array([f"{kind} {one:06d}" for one in known]).take(pa.array(codes))

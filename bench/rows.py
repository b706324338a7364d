"""The tables of the workloads, and their rows: the same on every side.

kv    id INT, v VARCHAR(100)                      point reads
ins   id BIGINT, v VARCHAR(100)                   single inserts
bulk  as wide                                     inserts of BULK_ROWS rows
wide  8 columns, the shape of TPC-H's LINEITEM    fetches; numbers are doubles, as PostgreSQL's ADBC driver gives numeric as text
"""

import functools
import random

KV_ROWS = 100_000
WIDE_ROWS = 600_000
BULK_ROWS = 1_000
"""Rows of one multi-row INSERT; bounds between ranges are multiples of it, so that no statement touches two."""
WIDE_RANGES = 3
VALUE = "x" * 100

KV_TABLE = "CREATE TABLE kv (id INT PRIMARY KEY, v VARCHAR(100))"
INS_TABLE = "CREATE TABLE ins (id BIGINT PRIMARY KEY, v VARCHAR(100))"
_WIDE_COLUMNS = (
    "id BIGINT PRIMARY KEY, supplier INT, quantity DOUBLE PRECISION, price DOUBLE PRECISION, discount DOUBLE PRECISION, "
    "shipped DATE, flag VARCHAR(1), mode VARCHAR(25)"
)
WIDE_TABLE = f"CREATE TABLE wide ({_WIDE_COLUMNS})"
BULK_TABLE = f"CREATE TABLE bulk ({_WIDE_COLUMNS})"
SUPPLIER_TABLE = "CREATE TABLE supplier (id INT PRIMARY KEY, region VARCHAR(25))"
SUPPLIERS = 1_000
LOAD_TABLE = "CREATE TABLE load (id BIGINT PRIMARY KEY, v VARCHAR(100))"
LOAD_ROWS = 8_192
"""Rows of about 122 bytes as text: one statement is 1 MB."""
AGGREGATE_JOIN = (
    "SELECT s.region, count(*), sum(w.price * (1 - w.discount)), avg(w.quantity) "
    "FROM wide w JOIN supplier s ON w.supplier = s.id GROUP BY s.region ORDER BY s.region"
)
WIDE_COLUMNS = 8

_MODES = ("AIR", "FOB", "MAIL", "RAIL", "REG AIR", "SHIP", "TRUCK")
_FLAGS = "ANR"
_TAILS = 9_973
"""Different rows but for their keys; a prime, so that they do not repeat with the blocks of a column store."""


def kv_insert(first: int, count: int) -> str:
    """Give an INSERT of rows of `kv`."""
    return "INSERT INTO kv VALUES " + ",".join(f"({key},'{VALUE}')" for key in range(first, first + count))


def load_insert(first: int) -> str:
    """Give an INSERT of LOAD_ROWS rows of `load`."""
    return "INSERT INTO load VALUES " + ",".join([f"({key},'{VALUE}')" for key in range(first, first + LOAD_ROWS)])


def supplier_insert() -> str:
    """Give the INSERT of all rows of `supplier`."""
    return "INSERT INTO supplier VALUES " + ",".join(f"({key},'region {key % 25}')" for key in range(SUPPLIERS))


def wide_insert(table: str, first: int, count: int = BULK_ROWS) -> str:
    """Give an INSERT of rows of `wide` or `bulk`; a key always has the same row."""
    tails = _wide_tails()
    return f"INSERT INTO {table} VALUES " + ",".join([f"({key},{tails[key % len(tails)]})" for key in range(first, first + count)])


def wide_fill(count: int) -> list[str]:
    """Give statements that fill `wide` with the rows that `wide_insert` would, inside a server that can SELECT into it."""
    columns = _WIDE_COLUMNS.partition(", ")[2]
    tails = ",".join(f"({number},{tail})" for number, tail in enumerate(_wide_tails()))
    return [
        f"CREATE TABLE tail (number INT, {columns})",
        f"INSERT INTO tail VALUES {tails}",
        "INSERT INTO wide SELECT k, supplier, quantity, price, discount, shipped, flag, mode "
        f"FROM generate_series(0, {count - 1}) AS g(k) JOIN tail ON number = k % {_TAILS} ORDER BY k",
        "DROP TABLE tail",
    ]


@functools.cache
def _wide_tails() -> list[str]:
    # Written once: a client that makes texts while it is measured would be measured itself.
    chance = random.Random(1)
    tails = []
    for _ in range(_TAILS):
        bits = chance.getrandbits(48)
        tails.append(
            f"{bits % SUPPLIERS},{bits % 50 + 1}.0,{bits % 9_999_991 / 100},{bits % 11 / 100},"
            f"'199{bits % 8}-{bits % 12 + 1:02d}-{bits % 28 + 1:02d}','{_FLAGS[bits % 3]}','{_MODES[bits % 7]}'"
        )
    return tails


def wide_bounds(rows: int) -> list[int]:
    """Give the keys that begin the second and further ranges of `wide`."""
    return [rows // WIDE_RANGES * number // BULK_ROWS * BULK_ROWS for number in range(1, WIDE_RANGES)]

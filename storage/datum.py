"""Datums: the plain Python values by which storage, sql and the wire speak of SQL values.

Each kind has one exact, cheap Python form; None is SQL's NULL in all of them:

    kind          Python form                                     meaning
    BOOL          bool
    INT           int                                             −2^63 … 2^63 − 1 (all three SQL integer types)
    FLOAT         float                                           IEEE 754 double; REAL is held rounded to single
    DECIMAL       decimal.Decimal                                 finite, or NaN; the spelling (1.50) is kept
    TEXT          str                                             no NUL characters
    BYTES         bytes
    DATE          int                                             days since 1970-01-01
    TIME          int                                             microseconds since midnight, 0 … 86,400,000,000
    TIMESTAMP     int                                             microseconds since 1970-01-01 00:00 (UTC for TIMESTAMPTZ)
    INTERVAL      (months, days, microseconds): tuple of 3 ints   compared with 1 month = 30 days, 1 day = 24 h
    UUID          bytes of length 16

Not here: which SQL type has which kind (`dsdb.sql.types`), and how users see values (`dsdb.driver`, `dsdb.sql`).
"""

import decimal
import enum
from typing import TypeAlias

Interval: TypeAlias = tuple[int, int, int]
Datum: TypeAlias = bool | int | float | decimal.Decimal | str | bytes | Interval | None


class Kind(enum.IntEnum):
    """How a value is stored.  The numbers are on disk: they never change and are never reused."""

    BOOL = 1
    INT = 2
    FLOAT = 3
    DECIMAL = 4
    TEXT = 5
    BYTES = 6
    DATE = 7
    TIME = 8
    TIMESTAMP = 9
    INTERVAL = 10
    UUID = 11


INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
DAY_MICROSECONDS = 86_400_000_000
MONTH_DAYS = 30

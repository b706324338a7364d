"""PEP 249's type objects and constructors.

A column's type code in `Cursor.description` is a `dsdb.sql.types.TypeName`; a type object equals the type codes that it stands for.
"""

import datetime
import time

Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime
Binary = bytes


def DateFromTicks(ticks: float) -> datetime.date:  # noqa: N802, RUF100
    """Give the local date of seconds since the epoch."""
    return datetime.date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> datetime.time:  # noqa: N802, RUF100
    """Give the local time of day of seconds since the epoch."""
    return datetime.time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime.datetime:  # noqa: N802, RUF100
    """Give the local time of seconds since the epoch."""
    return datetime.datetime(*time.localtime(ticks)[:6])


class TypeObject:
    """Equal to each type code of a group."""

    def __init__(self, name: str, *codes: int) -> None:
        self.name = name
        self.codes = frozenset(codes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TypeObject):
            return self.codes == other.codes
        return isinstance(other, int) and other in self.codes

    def __hash__(self) -> int:
        return hash(self.codes)

    def __repr__(self) -> str:
        return f"dsdb.{self.name}"


# The numbers are those of TypeName, which is not imported here: `import dsdb` must stay light.  A test holds them equal.
STRING = TypeObject("STRING", 8, 9, 10, 18)
BINARY = TypeObject("BINARY", 11)
NUMBER = TypeObject("NUMBER", 2, 3, 4, 5, 6, 7)
DATETIME = TypeObject("DATETIME", 12, 13, 14, 15, 16)
ROWID = TypeObject("ROWID")

"""dsdb: a distributed SQL database in Python.

    import dsdb
    connection = dsdb.connect("dsdb://root@localhost:7432/defaultdb")     # a cluster
    connection = dsdb.connect("path/")                                    # an embedded node over a directory
    connection = dsdb.connect()                                           # one in memory

The names here are those of PEP 249; `dsdb.driver` has the driver, `dsdb.node` the node.  Importing this imports neither.
"""

import os
from typing import TYPE_CHECKING

from dsdb.driver.errors import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    SerializationFailure,
    UnknownOutcome,
    Warning,
)
from dsdb.driver.typeobjects import (
    BINARY,
    DATETIME,
    NUMBER,
    ROWID,
    STRING,
    Binary,
    Date,
    DateFromTicks,
    Time,
    TimeFromTicks,
    Timestamp,
    TimestampFromTicks,
)

if TYPE_CHECKING:
    from dsdb.driver.connection import Connection

__version__ = "0.1.0"

apilevel = "2.0"
threadsafety = 2
"""Threads may share the module and connections."""
paramstyle = "qmark"


def connect(target: str | os.PathLike[str] | None = None, *, autocommit: bool | None = None) -> "Connection":
    """Connect to a cluster (a dsdb:// URL), to an embedded node over a directory (a path), or to one in memory (None).

    Without `autocommit=True` the first statement begins a transaction, which `commit()` ends.
    """
    from dsdb.driver.connection import connect as connect_driver  # noqa: PLC0415, RUF100

    return connect_driver(target, autocommit=autocommit)


__all__ = [
    "BINARY",
    "DATETIME",
    "NUMBER",
    "ROWID",
    "STRING",
    "Binary",
    "DataError",
    "DatabaseError",
    "Date",
    "DateFromTicks",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "SerializationFailure",
    "Time",
    "TimeFromTicks",
    "Timestamp",
    "TimestampFromTicks",
    "UnknownOutcome",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "threadsafety",
]

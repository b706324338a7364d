"""SQL's types: what each is called, how it is stored, and what it is in Arrow and in the engine.

    SQL                      kind (storage)   Arrow                      engine (DuckDB)
    BOOL                     BOOL             bool                       BOOLEAN
    SMALLINT INT BIGINT      INT              int16 int32 int64          SMALLINT INTEGER BIGINT
    REAL DOUBLE PRECISION    FLOAT            float32 float64            FLOAT DOUBLE
    DECIMAL(p,s)             DECIMAL          decimal128(p, s)           DECIMAL(p,s)
    DECIMAL                  DECIMAL          string (plain spelling)    DECIMAL(38, 12), see `numeric`
    TEXT VARCHAR(n) CHAR(n)  TEXT             string                     VARCHAR
    BYTEA                    BYTES            binary                     BLOB
    DATE TIME                DATE TIME        date32 time64[us]          DATE TIME
    TIMESTAMP TIMESTAMPTZ    TIMESTAMP        timestamp[us] (UTC)        TIMESTAMP TIMESTAMPTZ
    INTERVAL                 INTERVAL         month_day_nano_interval    INTERVAL
    UUID                     UUID             fixed_size_binary(16)      UUID

Invariants:
- A type is a value: two types are the same iff they are equal.
- The binder alone decides types; the engine's output is cast to what the binder said.
"""

import enum

import msgspec

from dsdb.storage.datum import Kind


class TypeName(enum.IntEnum):
    """A SQL type without its length or precision.  The numbers are in stored descriptors and on the wire: they never change."""

    BOOL = 1
    SMALLINT = 2
    INT = 3
    BIGINT = 4
    REAL = 5
    DOUBLE = 6
    DECIMAL = 7
    TEXT = 8
    VARCHAR = 9
    CHAR = 10
    BYTEA = 11
    DATE = 12
    TIME = 13
    TIMESTAMP = 14
    TIMESTAMPTZ = 15
    INTERVAL = 16
    UUID = 17
    UNKNOWN = 18
    """Of a NULL or a quoted literal until its context decides; never the type of a column."""


class SqlType(msgspec.Struct, frozen=True, array_like=True):
    """A SQL type.  precision, scale: DECIMAL(p,s) only; length: VARCHAR(n) and CHAR(n) only, in characters."""

    name: TypeName
    precision: int | None = None
    scale: int | None = None
    length: int | None = None

    def __str__(self) -> str:
        """Give the type as Postgres prints it."""
        base = _POSTGRES_NAMES[self.name]
        if self.precision is not None:
            return f"{base}({self.precision},{self.scale or 0})"
        if self.length is not None:
            return f"{base}({self.length})"
        return base

    @property
    def kind(self) -> Kind:
        """Give how its values are stored (UNKNOWN counts as TEXT)."""
        return _KINDS[self.name]

    @property
    def is_integer(self) -> bool:
        """Say whether it is SMALLINT, INT or BIGINT."""
        return self.name in (TypeName.SMALLINT, TypeName.INT, TypeName.BIGINT)

    @property
    def is_float(self) -> bool:
        """Say whether it is REAL or DOUBLE PRECISION."""
        return self.name in (TypeName.REAL, TypeName.DOUBLE)

    @property
    def is_numeric(self) -> bool:
        """Say whether it is a number."""
        return self.is_integer or self.is_float or self.name is TypeName.DECIMAL

    @property
    def is_text(self) -> bool:
        """Say whether it is TEXT, VARCHAR or CHAR."""
        return self.name in (TypeName.TEXT, TypeName.VARCHAR, TypeName.CHAR)


_POSTGRES_NAMES = {
    TypeName.BOOL: "boolean",
    TypeName.SMALLINT: "smallint",
    TypeName.INT: "integer",
    TypeName.BIGINT: "bigint",
    TypeName.REAL: "real",
    TypeName.DOUBLE: "double precision",
    TypeName.DECIMAL: "numeric",
    TypeName.TEXT: "text",
    TypeName.VARCHAR: "character varying",
    TypeName.CHAR: "character",
    TypeName.BYTEA: "bytea",
    TypeName.DATE: "date",
    TypeName.TIME: "time without time zone",
    TypeName.TIMESTAMP: "timestamp without time zone",
    TypeName.TIMESTAMPTZ: "timestamp with time zone",
    TypeName.INTERVAL: "interval",
    TypeName.UUID: "uuid",
    TypeName.UNKNOWN: "unknown",
}

_KINDS = {
    TypeName.BOOL: Kind.BOOL,
    TypeName.SMALLINT: Kind.INT,
    TypeName.INT: Kind.INT,
    TypeName.BIGINT: Kind.INT,
    TypeName.REAL: Kind.FLOAT,
    TypeName.DOUBLE: Kind.FLOAT,
    TypeName.DECIMAL: Kind.DECIMAL,
    TypeName.TEXT: Kind.TEXT,
    TypeName.VARCHAR: Kind.TEXT,
    TypeName.CHAR: Kind.TEXT,
    TypeName.BYTEA: Kind.BYTES,
    TypeName.DATE: Kind.DATE,
    TypeName.TIME: Kind.TIME,
    TypeName.TIMESTAMP: Kind.TIMESTAMP,
    TypeName.TIMESTAMPTZ: Kind.TIMESTAMP,
    TypeName.INTERVAL: Kind.INTERVAL,
    TypeName.UUID: Kind.UUID,
    TypeName.UNKNOWN: Kind.TEXT,
}

BOOL = SqlType(TypeName.BOOL)
SMALLINT = SqlType(TypeName.SMALLINT)
INT = SqlType(TypeName.INT)
BIGINT = SqlType(TypeName.BIGINT)
REAL = SqlType(TypeName.REAL)
DOUBLE = SqlType(TypeName.DOUBLE)
NUMERIC = SqlType(TypeName.DECIMAL)
TEXT = SqlType(TypeName.TEXT)
BYTEA = SqlType(TypeName.BYTEA)
DATE = SqlType(TypeName.DATE)
TIME = SqlType(TypeName.TIME)
TIMESTAMP = SqlType(TypeName.TIMESTAMP)
TIMESTAMPTZ = SqlType(TypeName.TIMESTAMPTZ)
INTERVAL = SqlType(TypeName.INTERVAL)
UUID = SqlType(TypeName.UUID)
UNKNOWN = SqlType(TypeName.UNKNOWN)

"""Type names in SQL to SQL types."""

from sqlglot import exp

from dsdb.sql.errors import FeatureNotSupportedError, InvalidParameterError, UndefinedObjectError
from dsdb.sql.parse import position_of
from dsdb.sql.types import (
    BIGINT,
    BOOL,
    BYTEA,
    DATE,
    DOUBLE,
    INT,
    INTERVAL,
    REAL,
    SMALLINT,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
    SqlType,
    TypeName,
)

DECIMAL_PRECISION_MAX = 38
"""Digits of a DECIMAL(p, s) that Arrow and the engine hold."""
LENGTH_MAX = 10_485_760
"""Characters of VARCHAR(n) and CHAR(n), as Postgres."""

_PLAIN = {
    exp.DType.BOOLEAN: BOOL,
    exp.DType.SMALLINT: SMALLINT,
    exp.DType.INT: INT,
    exp.DType.BIGINT: BIGINT,
    exp.DType.FLOAT: REAL,
    exp.DType.DOUBLE: DOUBLE,
    exp.DType.TEXT: TEXT,
    exp.DType.NAME: TEXT,
    exp.DType.VARBINARY: BYTEA,
    exp.DType.BINARY: BYTEA,
    exp.DType.BLOB: BYTEA,
    exp.DType.DATE: DATE,
    exp.DType.UUID: UUID,
    exp.DType.INTERVAL: INTERVAL,
}
_CLOCKS = {
    exp.DType.TIME: TIME,
    exp.DType.TIMESTAMP: TIMESTAMP,
    exp.DType.TIMESTAMPNTZ: TIMESTAMP,
    exp.DType.TIMESTAMPTZ: TIMESTAMPTZ,
    exp.DType.TIMESTAMPLTZ: TIMESTAMPTZ,
}
_KNOWN_ELSEWHERE = frozenset(
    {"json", "jsonb", "money", "inet", "cidr", "xml", "bit", "point", "oid", "regclass", "tsvector", "timetz", "hstore"}
)


def type_from(node: exp.Expr) -> SqlType:
    """Give the type that a parsed type name means.

    Raises: FeatureNotSupportedError (types that Postgres has), UndefinedObjectError, InvalidParameterError (a bad length).
    """
    assert isinstance(node, exp.DataType), node
    position = position_of(node)
    arguments = [int(argument.name) for argument in node.expressions if isinstance(argument, exp.DataTypeParam) and argument.name.isdigit()]
    if len(arguments) != len(node.expressions) or node.args.get("nested"):
        raise FeatureNotSupportedError(f"the type {_shown(node)} is not supported", position=position)
    kind = node.this
    if kind in _PLAIN and not arguments:
        return _PLAIN[kind]
    if kind is exp.DType.FLOAT and len(arguments) == 1:
        if not 1 <= arguments[0] <= 53:
            raise InvalidParameterError("precision for type float must be between 1 and 53", position=position)
        return REAL if arguments[0] <= 24 else DOUBLE
    if kind in _CLOCKS:
        if arguments and arguments != [6]:
            raise FeatureNotSupportedError(f"{_shown(node)}: only microseconds (6) are supported", position=position)
        return _CLOCKS[kind]
    if kind is exp.DType.DECIMAL:
        return _decimal(arguments, position)
    if kind in (exp.DType.VARCHAR, exp.DType.NVARCHAR):
        return _string(TypeName.VARCHAR, arguments, position)
    if kind in (exp.DType.CHAR, exp.DType.NCHAR, exp.DType.BPCHAR):
        return _string(TypeName.CHAR, arguments or [1], position)
    name = _shown(node).lower()
    if kind is exp.DType.USERDEFINED and name.split("(")[0] not in _KNOWN_ELSEWHERE:
        raise UndefinedObjectError(f'type "{name}" does not exist', position=position)
    raise FeatureNotSupportedError(f"the type {name} is not supported", position=position)


def _shown(node: exp.Expr) -> str:
    return node.sql(dialect="postgres")


def _decimal(arguments: list[int], position: int | None) -> SqlType:
    if not arguments:
        return SqlType(TypeName.DECIMAL)
    precision, scale = arguments[0], arguments[1] if len(arguments) > 1 else 0
    if len(arguments) > 2 or not 1 <= precision <= DECIMAL_PRECISION_MAX:
        raise InvalidParameterError(
            f"NUMERIC precision {precision} must be between 1 and {DECIMAL_PRECISION_MAX}",
            hint="NUMERIC without a precision holds more digits",
            position=position,
        )
    if scale > precision:
        raise InvalidParameterError(f"NUMERIC scale {scale} must be between 0 and precision {precision}", position=position)
    return SqlType(TypeName.DECIMAL, precision, scale)


def _string(name: TypeName, arguments: list[int], position: int | None) -> SqlType:
    if not arguments:
        return SqlType(name)
    if len(arguments) > 1 or not 1 <= arguments[0] <= LENGTH_MAX:
        raise InvalidParameterError(f"length for type {SqlType(name)} must be between 1 and {LENGTH_MAX}", position=position)
    return SqlType(name, length=arguments[0])

"""What output columns are called that have no alias: as Postgres calls them."""

from sqlglot import exp

from dsdb.sql.types import TypeName

UNNAMED = "?column?"
TRIM_CALLS = {"BOTH": "btrim", "LEADING": "ltrim", "TRAILING": "rtrim"}
"""The functions that the sides of TRIM stand for."""

_CAST_NAMES = {
    TypeName.BOOL: "bool",
    TypeName.SMALLINT: "int2",
    TypeName.INT: "int4",
    TypeName.BIGINT: "int8",
    TypeName.REAL: "float4",
    TypeName.DOUBLE: "float8",
    TypeName.DECIMAL: "numeric",
    TypeName.TEXT: "text",
    TypeName.VARCHAR: "varchar",
    TypeName.CHAR: "bpchar",
    TypeName.BYTEA: "bytea",
    TypeName.DATE: "date",
    TypeName.TIME: "time",
    TypeName.TIMESTAMP: "timestamp",
    TypeName.TIMESTAMPTZ: "timestamptz",
    TypeName.INTERVAL: "interval",
    TypeName.UUID: "uuid",
}

_NODE_NAMES: tuple[tuple[type[exp.Expr], str], ...] = (
    (exp.Coalesce, "coalesce"),
    (exp.Nullif, "nullif"),
    (exp.Exists, "exists"),
    (exp.Array, "array"),
    (exp.Extract, "extract"),
    (exp.CurrentDate, "current_date"),
    (exp.CurrentTime, "current_time"),
    (exp.CurrentTimestamp, "current_timestamp"),
    (exp.Boolean, "bool"),
    (exp.Interval, "interval"),
    (exp.AtTimeZone, "timezone"),
    (exp.StrPosition, "position"),
)


_WEAK = (exp.Boolean, exp.Interval, exp.Case)
"""Literals of a named type, and CASE: their names give way to that of a cast or a CASE around them."""


def output_name(node: exp.Expr, type_name: TypeName) -> str:
    """Name the column of an unbound expression whose type is known."""
    return _name(node, type_name) or UNNAMED


def _name(node: exp.Expr, type_name: TypeName | None) -> str | None:
    """Give a name, or None if the expression suggests none."""
    match node:
        case exp.Alias():
            return str(node.alias)
        case exp.Column() | exp.Dot():
            return str(node.name)
        case exp.Paren() | exp.Collate():
            return _name(node.this, type_name)
        case exp.Cast():
            # A typed literal (DATE '…') is a cast too.
            return _strong_name(node.this) or (_CAST_NAMES.get(type_name) if type_name is not None else None)
        case exp.Window() | exp.Filter() | exp.WithinGroup():
            return _name(node.this, None)
        case exp.Anonymous():
            return str(node.name)
        case exp.Trim():
            return TRIM_CALLS[str(node.args.get("position") or "BOTH").upper()]
        case exp.Case():
            default = node.args.get("default")
            return (_strong_name(default) if default is not None else None) or "case"
        case exp.Subquery() if isinstance(node.this, exp.Select) and node.this.expressions:
            return _name(node.this.expressions[0], type_name)
    for node_type, name in _NODE_NAMES:
        if isinstance(node, node_type):
            return name
    if isinstance(node, exp.Func) and not isinstance(node, exp.Connector | exp.Binary):
        return str(node.sql_name()).lower()
    return None


def _strong_name(node: exp.Expr) -> str | None:
    """Give the name that an expression keeps inside a cast or a CASE, or None: a column's or a call's."""
    while isinstance(node, exp.Paren | exp.Collate | exp.Cast):
        node = node.this
    if isinstance(node, exp.Case):
        default = node.args.get("default")
        return _strong_name(default) if default is not None else None
    return None if isinstance(node, _WEAK) else _name(node, None)

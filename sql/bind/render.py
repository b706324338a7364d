"""Prints bound trees in the engine's dialect.

Scalars are printed here, fully parenthesised, each constant and cast with its type, because the engine reads untyped literals in ways of
its own; whole queries are sqlglot's to print, after every bound scalar in them has become its printed text.

Invariants:
- The printed expression has, in the engine, the type that `engine_type` gives for the bound type (a DECIMAL at least its scale).
- A call that the engine cannot make is refused (0A000), unless its arguments are constants: then its value is printed.

Not here: types at the edges of a stage (`engine_input`, `engine_output` say how a stored or sent column enters and leaves).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from sqlglot import exp
from sqlglot.dialects.dialect import Dialect

from dsdb.sql.bind.bound import call_of, constant, constant_of, is_constant, nullable_of, type_of
from dsdb.sql.bind.choose import arguments_of
from dsdb.sql.errors import FeatureNotSupportedError
from dsdb.sql.functions import OVERLOADS, FunctionKind
from dsdb.sql.functions.decimals import ENGINE_SCALE, engine_name, width
from dsdb.sql.text import format_text
from dsdb.sql.types import NUMERIC, SqlType, TypeName
from dsdb.storage.datum import Datum

_DUCKDB = Dialect.get_or_raise("duckdb")
_ENGINE_TYPES = {
    TypeName.BOOL: "BOOLEAN",
    TypeName.SMALLINT: "SMALLINT",
    TypeName.INT: "INTEGER",
    TypeName.BIGINT: "BIGINT",
    TypeName.REAL: "FLOAT",
    TypeName.DOUBLE: "DOUBLE",
    TypeName.TEXT: "VARCHAR",
    TypeName.VARCHAR: "VARCHAR",
    TypeName.CHAR: "VARCHAR",
    TypeName.UNKNOWN: "VARCHAR",
    TypeName.BYTEA: "BLOB",
    TypeName.DATE: "DATE",
    TypeName.TIME: "TIME",
    TypeName.TIMESTAMP: "TIMESTAMP",
    TypeName.TIMESTAMPTZ: "TIMESTAMPTZ",
    TypeName.INTERVAL: "INTERVAL",
    TypeName.UUID: "UUID",
}

_OVERFLOWING = frozenset({"+", "-", "*", "/", "exp", "power", "pow", "^"})
"""Operations on floats that can give infinity out of finite operands."""
CHECKED_CHARS_MAX = 1_000
"""Longer float arithmetic, as printed, is not checked for overflow: its operands are printed, and computed, again for the check, so
that nested checks would multiply."""


def engine_type(type_: SqlType) -> str:
    """Give the engine's name of a type; a DECIMAL without precision is DECIMAL(38,12) there."""
    return engine_name(type_) if type_.name is TypeName.DECIMAL else _ENGINE_TYPES[type_.name]


def quote_text(text: str) -> str:
    """Print a string literal."""
    return "'" + text.replace("'", "''") + "'"


def engine_input(column_sql: str, type_: SqlType) -> str:
    """Print how a column that comes in as Arrow becomes an engine column: plain DECIMALs come as text, UUIDs as 16 bytes.

    A DECIMAL with more digits behind the point than the engine works with is an error there.
    """
    if type_ == NUMERIC:
        check = f"regexp_matches({column_sql}, '\\.[0-9]{{{ENGINE_SCALE}}}[0-9]*[1-9]')"
        problem = f"error('[22003] numeric value ' || {column_sql} || ' has more than {ENGINE_SCALE} digits behind the point')"
        return f"CAST(CASE WHEN {check} THEN {problem} ELSE {column_sql} END AS {engine_type(type_)})"
    return column_sql


def engine_output(column_sql: str, type_: SqlType) -> str:
    """Print how an engine column leaves as Arrow: plain DECIMALs as text without trailing zeros, others in their own type."""
    if type_ == NUMERIC:
        return _trimmed(column_sql)
    return f"CAST({column_sql} AS {engine_type(type_)})"


def _trimmed(numeric_sql: str) -> str:
    return f"regexp_replace(CAST({numeric_sql} AS VARCHAR), '\\.?0+$', '')"


def engine_sql(bound: exp.Expr) -> str:
    """Print a bound scalar, or a query whose scalars are bound, for the engine.

    Raises: FeatureNotSupportedError.
    """
    if "type" in bound.meta and not isinstance(bound, exp.Query):
        return render(bound)
    return engine_tree(bound).sql(dialect=_DUCKDB)


def engine_tree(tree: exp.Expr) -> exp.Expr:
    """Copy a tree with every bound scalar in it replaced by its printed text.

    Raises: FeatureNotSupportedError.
    """
    if "type" in tree.meta and not isinstance(tree, exp.Query | exp.Subquery):
        return exp.Var(this=render(tree))
    if isinstance(tree, exp.Ordered):
        # sqlglot leaves out what it takes for the engine's own order of NULLs, which the engine's settings change.
        nulls = "FIRST" if tree.args.get("nulls_first") else "LAST"
        key = engine_tree(tree.this).sql(dialect=_DUCKDB)
        return exp.Var(this=f"{key} {'DESC' if tree.args.get('desc') else 'ASC'} NULLS {nulls}")
    copied = type(tree)()
    for key, value in tree.args.items():
        if isinstance(value, exp.Expr):
            copied.set(key, engine_tree(value))
        elif isinstance(value, list):
            copied.set(key, [engine_tree(item) if isinstance(item, exp.Expr) else item for item in value])
        else:
            copied.set(key, value)
    return copied


def substitute_parameters(tree: exp.Expr, parameters: Sequence[Datum]) -> exp.Expr:
    """Copy a bound tree with its parameters replaced by constants; statement values stand behind the statement's own."""
    copied = tree.copy()

    def replace(node: exp.Expr) -> exp.Expr:
        number = node.meta.get("parameter") if node._meta else None
        return node if number is None else constant(parameters[number - 1], type_of(node))

    return copied.transform(replace, copy=False)


def render(node: exp.Expr) -> str:
    """Print one bound scalar."""
    if is_constant(node):
        return render_constant(constant_of(node), type_of(node))
    if call_of(node) is not None:
        return _render_call(node, "")
    renderer = _RENDERERS.get(type(node))
    if renderer is not None:
        return renderer(node)
    return f"({_generic(node)})"


def _generic(node: exp.Expr) -> str:
    """Print a node of the query binder's: what is bound below it is printed here."""
    copied = type(node)()
    for key, value in node.args.items():
        if isinstance(value, exp.Expr):
            copied.set(key, engine_tree(value))
        elif isinstance(value, list):
            copied.set(key, [engine_tree(item) if isinstance(item, exp.Expr) else item for item in value])
        else:
            copied.set(key, value)
    return copied.sql(dialect=_DUCKDB)


def render_constant(value: Datum, type_: SqlType) -> str:
    """Print a constant with its type."""
    name = type_.name
    if value is None:
        return f"CAST(NULL AS {engine_type(type_)})"
    if name in (TypeName.TEXT, TypeName.VARCHAR, TypeName.CHAR, TypeName.UNKNOWN):
        return quote_text(str(value))
    if name is TypeName.BOOL:
        return "TRUE" if value else "FALSE"
    if name is TypeName.BYTEA:
        assert isinstance(value, bytes)
        return "CAST('" + "".join(f"\\x{byte:02X}" for byte in value) + "' AS BLOB)"
    if name is TypeName.INTERVAL:
        assert isinstance(value, tuple)
        return f"(to_months({value[0]}) + to_days({value[1]}) + to_microseconds(CAST({value[2]} AS BIGINT)))"
    if name in (TypeName.TIMESTAMP, TypeName.TIMESTAMPTZ, TypeName.DATE):
        assert isinstance(value, int)
        return _render_moment(value, name)
    return f"CAST('{format_text(value, type_)}' AS {engine_type(type_)})"


def _render_moment(value: int, name: TypeName) -> str:
    # By number, not by text: the engine's reading of years before 1 or after 9999 is its own.
    if name is TypeName.DATE:
        return f"(DATE '1970-01-01' + CAST({value} AS INTEGER))"
    timestamp = f"make_timestamp(CAST({value} AS BIGINT))"
    return timestamp if name is TypeName.TIMESTAMP else f"CAST({timestamp} AS TIMESTAMPTZ)"


def _may_overflow(node: exp.Expr) -> bool:
    key = call_of(node)
    return key is not None and OVERLOADS[key].name in _OVERFLOWING and type_of(node).is_float and not is_constant(node)


def _render_checked(node: exp.Expr) -> str:
    """Print float arithmetic so that infinity or NaN out of finite operands is an error, as in the evaluator.

    One check for a whole tree of sums and products: what overflows inside it is not finite any more at its root.
    """
    operands: dict[str, None] = {}
    text = _unchecked(node, operands)
    if len(text) > CHECKED_CHARS_MAX:
        return text
    infinite = " AND ".join([f"NOT isfinite({text})", *(f"isfinite({operand})" for operand in operands)])
    return f"(CASE WHEN {infinite} THEN error('[22003] value out of range: overflow') ELSE {text} END)"


def _unchecked(node: exp.Expr, operands: dict[str, None]) -> str:
    """Print float arithmetic as it is, and gather what is not arithmetic in it."""
    if isinstance(node, exp.Paren):
        return _unchecked(node.this, operands)
    if not _may_overflow(node):
        text = render(node)
        if not is_constant(node) or not _is_finite(constant_of(node)):
            operands[text] = None
        return text
    key = call_of(node)
    assert key is not None
    overload, arguments = OVERLOADS[key], arguments_of(node)
    assert isinstance(overload.engine, str), overload
    printed = []
    for position, argument in enumerate(arguments):
        if overload.name in "+-*" or (overload.name == "/" and position == 0):
            printed.append(_unchecked(argument, operands))
            continue
        # Divided by infinity is 0, and so is e to the power of minus infinity: these have a check of their own.
        printed.append(render(argument))
        if not is_constant(argument):
            operands[printed[-1]] = None
    return overload.engine.format(*printed)


def _is_finite(value: Datum) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _render_call(node: exp.Expr, clause: str) -> str:
    if _may_overflow(node):
        return _render_checked(node)
    key = call_of(node)
    assert key is not None
    overload = OVERLOADS[key]
    nodes = arguments_of(node)
    if overload.engine is None:
        return _render_folded(node, nodes)
    arguments = [render(argument) for argument in nodes]
    template = overload.engine
    if callable(template):
        template = template(arguments, [type_of(argument) for argument in nodes], type_of(node))
        if overload.kind is FunctionKind.SCALAR:
            return template
    fields: dict[str, Any] = {"all": ", ".join(arguments)}
    if overload.kind is not FunctionKind.SCALAR:
        order = node.args.get("order")
        distinct = "DISTINCT " if node.meta.get("distinct") else ""
        fields |= {"d": distinct, "o": "" if order is None else f" ORDER BY {_render_order(order)}", "c": clause}
        fields["t"] = engine_type(type_of(node))
    return template.format(*arguments, **fields)


def _render_folded(node: exp.Expr, arguments: Sequence[exp.Expr]) -> str:
    key = call_of(node)
    assert key is not None
    overload = OVERLOADS[key]
    if overload.evaluate is None or not all(is_constant(argument) for argument in arguments):
        raise FeatureNotSupportedError(f"{overload.name} is not supported over the rows of a query")
    values = [constant_of(argument) for argument in arguments]
    if overload.strict and None in values:
        return render_constant(None, type_of(node))
    function: Callable[..., Any] = overload.evaluate
    if overload.typed:
        function = function([type_of(argument) for argument in arguments], type_of(node))
    return render_constant(function(*values), type_of(node))


def _render_order(order: exp.Expr) -> str:
    items = []
    for item in order.expressions:
        nulls = "FIRST" if item.args.get("nulls_first") else "LAST"
        items.append(f"{render(item.this)} {'DESC' if item.args.get('desc') else 'ASC'} NULLS {nulls}")
    return ", ".join(items)


def _render_filter(node: exp.Expr) -> str:
    return _render_call(node.this, _filter_clause(node))


def _filter_clause(node: exp.Expr) -> str:
    return f" FILTER (WHERE {render(node.args['expression'].this)})"


def _render_window(node: exp.Expr) -> str:
    call, clause = node.this, ""
    if isinstance(call, exp.Filter):
        clause, call = _filter_clause(call), call.this
    parts = []
    if node.args.get("partition_by"):
        parts.append("PARTITION BY " + ", ".join(render(item) for item in node.args["partition_by"]))
    if node.args.get("order") is not None:
        parts.append("ORDER BY " + _render_order(node.args["order"]))
    spec = node.args.get("spec")
    if spec is not None:
        parts.append(_render_frame(spec))
    return _render_call(call, f"{clause} OVER ({' '.join(parts)})")


def _render_frame(spec: exp.Expr) -> str:
    def side(name: str) -> str:
        value = spec.args.get(name)
        bound = render(value) if isinstance(value, exp.Expr) else str(value or "CURRENT ROW")
        return f"{bound} {spec.args.get(f'{name}_side') or ''}".strip()

    end = f"{side('end')}" if spec.args.get("end") else "CURRENT ROW"
    exclude = spec.args.get("exclude")
    tail = f" EXCLUDE {exclude.name if isinstance(exclude, exp.Expr) else exclude}" if exclude else ""
    return f"{spec.args['kind']} BETWEEN {side('start')} AND {end}{tail}"


def _render_column(node: exp.Expr) -> str:
    return exp.to_identifier(node.name, quoted=False).sql(dialect=_DUCKDB)


def _render_parameter(node: exp.Expr) -> str:
    return f"CAST(${node.meta['parameter']} AS {engine_type(type_of(node))})"


def _binary(symbol: str) -> Callable[[exp.Expr], str]:
    return lambda node: f"({render(node.this)} {symbol} {render(node.args['expression'])})"


def _render_comparison(symbol: str) -> Callable[[exp.Expr], str]:
    def printed(node: exp.Expr) -> str:
        right = node.args["expression"]
        if isinstance(right, exp.Any | exp.All):
            quantifier = "ANY" if isinstance(right, exp.Any) else "ALL"
            return f"({render(node.this)} {symbol} {quantifier} {_query(right.this)})"
        return f"({render(node.this)} {symbol} {render(right)})"

    return printed


def _query(node: exp.Expr) -> str:
    text = engine_tree(node).sql(dialect=_DUCKDB) if isinstance(node, exp.Query | exp.Subquery) else _generic(node)
    return text if isinstance(node, exp.Subquery) else f"({text})"


def _render_in(node: exp.Expr) -> str:
    query = node.args.get("query")
    if query is not None:
        return f"({render(node.this)} IN {_query(query)})"
    return f"({render(node.this)} IN ({', '.join(render(item) for item in node.expressions)}))"


def _render_case(node: exp.Expr) -> str:
    branches = " ".join(f"WHEN {render(branch.this)} THEN {render(branch.args['true'])}" for branch in node.args["ifs"])
    return f"(CASE {branches} ELSE {render(node.args['default'])} END)"


def _render_coalesce(node: exp.Expr) -> str:
    return f"coalesce({', '.join(render(item) for item in [node.this, *node.expressions])})"


def _render_cast(node: exp.Expr) -> str:
    return engine_cast(render(node.this), type_of(node.this), type_of(node), explicit=bool(node.meta.get("explicit")))


def engine_cast(text: str, source: SqlType, target: SqlType, *, explicit: bool = False) -> str:
    """Print a cast with Postgres's meaning.

    Raises: FeatureNotSupportedError.
    """
    if target.is_text:
        return _fitted(_as_text(text, source), source, target, explicit)
    if source.is_text:
        return _from_text(text, source, target)
    if target.name is TypeName.INTERVAL and source.name is TypeName.TIME:
        return f"to_microseconds(epoch_us({text}))"
    if target.name is TypeName.TIME and source.name is TypeName.INTERVAL:
        return f"(TIME '00:00:00' + {text})"
    if target.name is TypeName.DECIMAL and source.is_float:
        # Postgres keeps 15 (REAL: 6) significant digits; the engine's own cast would show the double's rest.
        digits = 6 if source.name is TypeName.REAL else 15
        return f"CAST(printf('%.{digits}g', CAST({text} AS DOUBLE)) AS {engine_type(target)})"
    return f"CAST({text} AS {engine_type(target)})"


def _from_text(text: str, source: SqlType, target: SqlType) -> str:
    if target.name in (TypeName.INTERVAL, TypeName.BYTEA):
        raise FeatureNotSupportedError(f"a cast from {source} to {target} is not supported over the rows of a query")
    trimmed = f"trim({text}, ' \t\n\r')"
    if target.name is TypeName.BOOL:
        return (
            f"(CASE WHEN {text} IS NULL THEN NULL WHEN lower({trimmed}) IN ('t','tr','tru','true','y','ye','yes','on','1') THEN TRUE "
            f"WHEN lower({trimmed}) IN ('f','fa','fal','fals','false','n','no','of','off','0') THEN FALSE "
            f"ELSE error('[22P02] invalid input syntax for type boolean: \"' || {text} || '\"') END)"
        )
    if target.is_integer:
        # The engine would also read 1.6, 1e3 and 0x10.
        check = f"regexp_full_match({trimmed}, '[+-]?[0-9]+')"
        problem = f"error('[22P02] invalid input syntax for type {SqlType(target.name)}: \"' || {text} || '\"')"
        return f"CAST(CASE WHEN {text} IS NULL OR {check} THEN {trimmed} ELSE {problem} END AS {engine_type(target)})"
    return f"CAST({trimmed} AS {engine_type(target)})"


def _as_text(text: str, source: SqlType) -> str:
    if source.name in (TypeName.TEXT, TypeName.VARCHAR, TypeName.UNKNOWN):
        return text
    if source.name is TypeName.CHAR:
        return f"rtrim({text}, ' ')"
    if source == NUMERIC:
        return _trimmed(text)
    if source.name is TypeName.DECIMAL:
        return f"CAST(CAST({text} AS DECIMAL(38,{width(source)[1]})) AS VARCHAR)"
    if source.name is TypeName.BYTEA:
        return f"('\\x' || lower(hex({text})))"
    if source.is_float:
        return _float_text(text)
    if source.name is TypeName.INTERVAL:
        raise FeatureNotSupportedError("a cast from interval to text is not supported over the rows of a query")
    if source.name in (TypeName.DATE, TypeName.TIMESTAMP, TypeName.TIMESTAMPTZ):
        # The engine writes an era in parentheses, behind the date.
        return f"regexp_replace(CAST({text} AS VARCHAR), '^(.*) \\(BC\\)(.*)$', '\\1\\2 BC')"
    return f"CAST({text} AS VARCHAR)"


def _float_text(text: str) -> str:
    plain = f"regexp_replace(CAST({text} AS VARCHAR), '\\.0$', '')"
    infinite = f"CASE WHEN {text} > 0 THEN 'Infinity' ELSE '-Infinity' END"
    return f"(CASE WHEN isnan({text}) THEN 'NaN' WHEN isinf({text}) THEN {infinite} ELSE {plain} END)"


def _fitted(text: str, source: SqlType, target: SqlType, explicit: bool) -> str:
    length = target.length
    if length is None:
        return text
    cut = f"left({text}, {length})"
    if not explicit and not (source.length is not None and source.length <= length):
        problem = f"error('[22001] value too long for type {target}')"
        cut = f"(CASE WHEN rtrim(substr({text}, {length + 1}), ' ') <> '' THEN {problem} ELSE {cut} END)"
    return f"rpad({cut}, {length}, ' ')" if target.name is TypeName.CHAR else cut


_RENDERERS: dict[type[exp.Expr], Callable[[exp.Expr], str]] = {
    exp.Column: _render_column,
    exp.Parameter: _render_parameter,
    exp.And: _binary("AND"),
    exp.Or: _binary("OR"),
    exp.Not: lambda node: f"(NOT {render(node.this)})",
    exp.EQ: _render_comparison("="),
    exp.NEQ: _render_comparison("<>"),
    exp.LT: _render_comparison("<"),
    exp.LTE: _render_comparison("<="),
    exp.GT: _render_comparison(">"),
    exp.GTE: _render_comparison(">="),
    exp.NullSafeEQ: _binary("IS NOT DISTINCT FROM"),
    exp.NullSafeNEQ: _binary("IS DISTINCT FROM"),
    exp.Is: lambda node: f"({render(node.this)} IS NULL)",
    exp.In: _render_in,
    exp.Case: _render_case,
    exp.Coalesce: _render_coalesce,
    exp.Cast: _render_cast,
    exp.Filter: _render_filter,
    exp.Window: _render_window,
    exp.Subquery: lambda node: _query(node),
    exp.Paren: lambda node: render(node.this),
    exp.Var: lambda node: node.name,
}


__all__ = [
    "engine_cast",
    "engine_input",
    "engine_output",
    "engine_sql",
    "engine_tree",
    "engine_type",
    "nullable_of",
    "render",
    "render_constant",
    "substitute_parameters",
]

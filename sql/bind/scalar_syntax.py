"""Rules for syntax of its own: CASE, CAST, EXTRACT, SUBSTRING … FROM, TRIM, INTERVAL '…', CURRENT_DATE and their like."""

from sqlglot import exp

from dsdb.sql.bind.binder import Binder, rule
from dsdb.sql.bind.bound import constant, constant_of, is_constant, mark, nullable_of, type_of
from dsdb.sql.bind.choose import make_call
from dsdb.sql.bind.coerce import cast, coerce, is_unknown, unify
from dsdb.sql.bind.scalar_operators import compare
from dsdb.sql.bind.type_names import type_from
from dsdb.sql.errors import FeatureNotSupportedError
from dsdb.sql.functions.casts import CastContext
from dsdb.sql.functions.decimals import decimal_of
from dsdb.sql.parse import position_of
from dsdb.sql.text_time import parse_interval_of
from dsdb.sql.types import DATE, INT, INTERVAL, NUMERIC, TEXT, TIME, TIMESTAMP, SqlType, TypeName


@rule(exp.Case)
def _bind_case(node: exp.Expr, binder: Binder) -> exp.Expr:
    operand = None if node.this is None else binder.bind(node.this)
    conditions = []
    for branch in node.args["ifs"]:
        if operand is None:
            conditions.append(binder.bind_condition(branch.this, "CASE/WHEN"))
        else:
            conditions.append(compare(exp.EQ, operand.copy(), binder.bind(branch.this), position_of(branch)))
    default = node.args.get("default")
    values = [binder.bind(branch.args["true"]) for branch in node.args["ifs"]]
    values.append(constant(None, SqlType(TypeName.UNKNOWN)) if default is None else binder.bind(default))
    values, type_ = unify(values, "CASE")
    branches = [exp.If(this=condition, true=value) for condition, value in zip(conditions, values)]
    case = exp.Case(ifs=branches, default=values[-1])
    return mark(case, type_, nullable=any(nullable_of(value) for value in values))


@rule(exp.Cast)
def _bind_cast(node: exp.Expr, binder: Binder) -> exp.Expr:
    if node.args.get("format") is not None or node.args.get("default") is not None:
        raise FeatureNotSupportedError("CAST takes only a type", position=position_of(node))
    return cast_to(binder.bind(node.this), type_from(node.args["to"]))


def cast_to(operand: exp.Expr, target: SqlType) -> exp.Expr:
    """Cast a bound node explicitly."""
    source = type_of(operand)
    if is_unknown(operand) and "parameter" in operand.meta:
        return coerce(operand, target, CastContext.EXPLICIT)
    if is_unknown(operand) and is_constant(operand) and constant_of(operand) is not None and target.is_text:
        operand = coerce(operand, TEXT)
        return cast(operand, target, explicit=True) if target != TEXT else operand
    if target == NUMERIC and source.is_float:
        return cast(operand, NUMERIC, explicit=True)
    if source.is_text and not is_unknown(operand) and target.is_text and source != target:
        return cast(operand, target, explicit=True)
    return coerce(operand, target, CastContext.EXPLICIT)


@rule(exp.Interval)
def _bind_interval(node: exp.Expr, _: Binder) -> exp.Expr:
    literal, unit = node.this, node.args.get("unit")
    if not isinstance(literal, exp.Literal):
        raise FeatureNotSupportedError("INTERVAL takes a quoted literal", position=position_of(node))
    first, last, digits = _interval_fields(unit)
    return constant(parse_interval_of(str(literal.this), first, last, digits), INTERVAL, position=position_of(node))


def _interval_fields(unit: exp.Expr | None) -> tuple[str | None, str | None, int | None]:
    """Give the first and the last field that INTERVAL '…' is followed by, and the digits of its seconds."""
    if isinstance(unit, exp.IntervalSpan):
        last, _, digits = _interval_fields(unit.args["expression"])
        return unit.name.lower(), last, digits
    if unit is None:
        return None, None, None
    if isinstance(unit, exp.Anonymous):
        # SECOND(2) reads as a call.
        return "second", "second", int(unit.expressions[0].name)
    return unit.name.lower(), unit.name.lower(), None


@rule(exp.Extract)
def _bind_extract(node: exp.Expr, binder: Binder) -> exp.Expr:
    field = constant(node.this.name.lower(), TEXT)
    return make_call("extract", [field, binder.bind(node.args["expression"])], position_of(node))


@rule(exp.Substring)
def _bind_substring(node: exp.Expr, binder: Binder) -> exp.Expr:
    arguments = [binder.bind(node.this)]
    start, length = node.args.get("start"), node.args.get("length")
    if start is None and length is None:
        raise FeatureNotSupportedError("SUBSTRING takes FROM and FOR", position=position_of(node))
    arguments.append(constant(1, INT) if start is None else binder.bind(start))
    if length is not None:
        arguments.append(binder.bind(length))
    return make_call("substring", arguments, position_of(node))


@rule(exp.Trim)
def _bind_trim(node: exp.Expr, binder: Binder) -> exp.Expr:
    if node.args.get("collation") is not None:
        raise FeatureNotSupportedError("TRIM … COLLATE is not supported", position=position_of(node))
    side = str(node.args.get("position") or "BOTH").upper()
    arguments = [binder.bind(node.this)]
    if node.args.get("expression") is not None:
        arguments.append(binder.bind(node.args["expression"]))
    return make_call({"BOTH": "btrim", "LEADING": "ltrim", "TRAILING": "rtrim"}[side], arguments, position_of(node))


@rule(exp.StrPosition)
def _bind_position(node: exp.Expr, binder: Binder) -> exp.Expr:
    return make_call("strpos", [binder.bind(node.this), binder.bind(node.args["substr"])], position_of(node))


@rule(exp.Overlay)
def _bind_overlay(node: exp.Expr, binder: Binder) -> exp.Expr:
    parts = [node.this, node.args["expression"], node.args["from_"], node.args.get("for_")]
    return make_call("overlay", [binder.bind(part) for part in parts if part is not None], position_of(node))


@rule(exp.AtTimeZone)
def _bind_zone(node: exp.Expr, binder: Binder) -> exp.Expr:
    return make_call("timezone", [binder.bind(node.args["zone"]), binder.bind(node.this)], position_of(node))


@rule(exp.CurrentTimestamp, exp.CurrentDate, exp.CurrentTime, exp.Localtime, exp.Localtimestamp)
def _bind_clock(node: exp.Expr, binder: Binder) -> exp.Expr:
    if node.this is not None and node.this.name not in ("", "6"):
        raise FeatureNotSupportedError("only microseconds (6) are supported", position=position_of(node))
    if isinstance(node, exp.CurrentTime):
        raise FeatureNotSupportedError("CURRENT_TIME is not supported", hint="use LOCALTIME", position=position_of(node))
    now = binder.statement_value("now")
    if isinstance(node, exp.CurrentTimestamp):
        return now
    return cast(now, DATE if isinstance(node, exp.CurrentDate) else TIME if isinstance(node, exp.Localtime) else TIMESTAMP, explicit=True)


@rule(exp.CurrentUser, exp.SessionUser, exp.CurrentSchema, exp.CurrentCatalog, exp.CurrentRole)
def _bind_session_name(node: exp.Expr, binder: Binder) -> exp.Expr:
    names: dict[type[exp.Expr], str] = {
        exp.CurrentUser: "current_user",
        exp.SessionUser: "current_user",
        exp.CurrentRole: "current_user",
        exp.CurrentSchema: "current_schema",
        exp.CurrentCatalog: "current_database",
    }
    return setting(names[type(node)], binder)


def setting(name: str, binder: Binder) -> exp.Expr:
    """Give a name of the session as a constant."""
    defaults = {"current_schema": "public"}
    value = binder.context.settings.get(name, defaults.get(name))
    if value is None:
        raise FeatureNotSupportedError(f"{name} cannot be used in {binder.context.clause}")
    return constant(value, TEXT)


@rule(exp.Collate)
def _bind_collate(node: exp.Expr, binder: Binder) -> exp.Expr:
    name = node.args["expression"].name
    if name not in ("C", "POSIX", "default", "ucs_basic"):
        raise FeatureNotSupportedError(f'collation "{name}" is not supported', hint='text sorts by code point: COLLATE "C"')
    return binder.bind(node.this)


@rule(exp.Dot)
def _bind_dot(node: exp.Expr, binder: Binder) -> exp.Expr:
    schema, call = node.this, node.args["expression"]
    if isinstance(schema, exp.Identifier) and schema.name == "pg_catalog" and isinstance(call, exp.Anonymous):
        return binder.bind(call)
    raise FeatureNotSupportedError(f"{node.sql(dialect='postgres')} is not supported", position=position_of(node))


@rule(exp.HexString, exp.BitString)
def _bind_bits(node: exp.Expr, _: Binder) -> exp.Expr:
    raise FeatureNotSupportedError("bit strings are not supported", hint="write a bytea as '\\x…'", position=position_of(node))


__all__ = ["cast_to", "decimal_of", "setting"]

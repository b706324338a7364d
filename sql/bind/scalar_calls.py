"""Rules for calls: functions, aggregates with DISTINCT, ORDER BY and FILTER, and windows.

A bound aggregate or window function is an `exp.Anonymous` whose arguments are plain; DISTINCT is `meta["distinct"]`, ORDER BY inside the
call is its arg "order".  FILTER, WITHIN GROUP and OVER are nodes around it, as parsed; the type of the call is theirs too.
"""

from sqlglot import exp

from dsdb.sql.bind.binder import BindContext, Binder, Scope, rule
from dsdb.sql.bind.bound import call_of, constant, constant_of, is_constant, mark, nullable_of, type_of
from dsdb.sql.bind.choose import make_call
from dsdb.sql.bind.coerce import coerce, is_unknown, unify
from dsdb.sql.bind.scalar_operators import negated
from dsdb.sql.bind.scalar_syntax import cast_to, setting
from dsdb.sql.errors import (
    FeatureNotSupportedError,
    GroupingError,
    InvalidParameterError,
    SqlSyntaxError,
    WindowingError,
    WrongObjectTypeError,
)
from dsdb.sql.functions import OVERLOADS, FunctionKind, is_aggregate_name, is_window_name
from dsdb.sql.functions.casts import CastContext
from dsdb.sql.parse import position_of
from dsdb.sql.types import BIGINT, BOOL, DATE, INTERVAL, REAL, TEXT, TIMESTAMP, TIMESTAMPTZ, SqlType, TypeName

_NOW = frozenset({"now", "transaction_timestamp", "statement_timestamp"})
_SETTINGS = {
    "current_database": "current_database",
    "current_schema": "current_schema",
    "current_user": "current_user",
    "version": "version",
}
_AS_TYPES = {"date": DATE, "timestamp": TIMESTAMP, "timestamptz": TIMESTAMPTZ, "text": TEXT, "float4": REAL}


def is_aggregate(node: exp.Expr) -> bool:
    """Say whether a bound node is a call of an aggregate (inside OVER too)."""
    key = call_of(node)
    return key is not None and OVERLOADS[key].kind is FunctionKind.AGGREGATE


def contains_aggregate(node: exp.Expr) -> bool:
    """Say whether a bound tree calls an aggregate other than as a window function, sub-queries aside."""
    nodes = node.walk(prune=lambda inner: isinstance(inner, exp.Query))
    return any(is_aggregate(child) and not _is_windowed(child) for child in nodes)


def contains_window(node: exp.Expr) -> bool:
    """Say whether a bound tree has OVER, sub-queries aside."""
    return any(isinstance(child, exp.Window) for child in node.walk(prune=lambda inner: isinstance(inner, exp.Query)))


def _is_windowed(node: exp.Expr) -> bool:
    parent = node.parent
    while isinstance(parent, exp.Filter | exp.WithinGroup | exp.IgnoreNulls | exp.RespectNulls):
        parent = parent.parent
    return isinstance(parent, exp.Window)


@rule(exp.Anonymous)
def _bind_call(node: exp.Expr, binder: Binder) -> exp.Expr:
    name = str(node.this)
    position = position_of(node)
    arguments = list(node.expressions)
    special = _SPECIAL.get(name)
    if special is not None:
        return special(node, arguments, binder)
    if is_aggregate_name(name) or is_window_name(name):
        return _bind_aggregate(node, name, arguments, binder)
    for argument in arguments:
        if isinstance(argument, exp.Distinct | exp.Order):
            raise SqlSyntaxError(f"DISTINCT and ORDER BY are for aggregates; {name} is not one", position=position)
        if isinstance(argument, exp.Star):
            raise SqlSyntaxError(f"{name}(*) is not a call", position=position)
        if isinstance(argument, exp.PropertyEQ | exp.Kwarg):
            raise FeatureNotSupportedError("named arguments are not supported", position=position)
    return make_call(name, [binder.bind(argument) for argument in arguments], position)


def _bind_coalesce(node: exp.Expr, arguments: list[exp.Expr], binder: Binder) -> exp.Expr:
    if not arguments:
        raise SqlSyntaxError("COALESCE needs an argument", position=position_of(node))
    values, type_ = unify([binder.bind(argument) for argument in arguments], "COALESCE")
    bound = exp.Coalesce(this=values[0], expressions=values[1:])
    return mark(bound, type_, nullable=all(nullable_of(value) for value in values))


def _bind_now(node: exp.Expr, arguments: list[exp.Expr], binder: Binder) -> exp.Expr:
    if arguments:
        raise SqlSyntaxError(f"{node.this}() takes no argument", position=position_of(node))
    return binder.statement_value("now")


def _bind_setting(node: exp.Expr, _: list[exp.Expr], binder: Binder) -> exp.Expr:
    return setting(_SETTINGS[str(node.this)], binder)


def _bind_as_type(node: exp.Expr, arguments: list[exp.Expr], binder: Binder) -> exp.Expr:
    if len(arguments) != 1:
        raise SqlSyntaxError(f"{node.this}() takes one argument", position=position_of(node))
    return cast_to(binder.bind(arguments[0]), _AS_TYPES[str(node.this)])


def _bind_typeof(node: exp.Expr, arguments: list[exp.Expr], binder: Binder) -> exp.Expr:
    if len(arguments) != 1:
        raise SqlSyntaxError("pg_typeof() takes one argument", position=position_of(node))
    return constant(str(SqlType(type_of(binder.bind(arguments[0])).name)), TEXT)


def _bind_date_part(node: exp.Expr, arguments: list[exp.Expr], binder: Binder) -> exp.Expr:
    if len(arguments) != 2:
        raise SqlSyntaxError("date_part() takes a field and a time", position=position_of(node))
    field = coerce(binder.bind(arguments[0]), TEXT)
    if not is_constant(field):
        raise FeatureNotSupportedError("the field of date_part() must be a literal", position=position_of(node))
    source = binder.bind(arguments[1])
    return make_call("date_part", [constant(str(constant_of(field)).lower(), TEXT), source], position_of(node))


def _bind_concat(node: exp.Expr, arguments: list[exp.Expr], binder: Binder) -> exp.Expr:
    """Let concat and concat_ws take any values, as they print (a BOOL as t or f)."""
    texts = []
    for argument in arguments:
        value = binder.bind(argument)
        if not is_unknown(value) and type_of(value) == BOOL:
            letters = [exp.If(this=value, true=constant("t", TEXT)), exp.If(this=negated(value.copy()), true=constant("f", TEXT))]
            value = mark(exp.Case(ifs=letters, default=constant(None, TEXT)), TEXT)
        texts.append(coerce(value, TEXT, CastContext.ASSIGNMENT))
    return make_call(str(node.this), texts, position_of(node))


_SPECIAL = {
    "coalesce": _bind_coalesce,
    "concat": _bind_concat,
    "concat_ws": _bind_concat,
    "pg_typeof": _bind_typeof,
    "date_part": _bind_date_part,
    **dict.fromkeys(_NOW, _bind_now),
    **dict.fromkeys(_SETTINGS, _bind_setting),
    **dict.fromkeys(_AS_TYPES, _bind_as_type),
}


def _bind_aggregate(node: exp.Expr, name: str, arguments: list[exp.Expr], binder: Binder) -> exp.Expr:
    position = position_of(node)
    context = binder.context
    windowed = _is_windowed(node)
    if is_window_name(name) and not is_aggregate_name(name) and not windowed:
        raise WrongObjectTypeError(f"window function {name} requires an OVER clause", position=position)
    if not windowed and not context.allow_aggregates:
        raise GroupingError(f"aggregate functions are not allowed in {context.clause}", position=position)
    inner = Binder(binder.scope, context.within(f"the arguments of {name}", allow_aggregates=windowed and context.allow_aggregates))
    order: exp.Expr | None = None
    distinct = False
    if arguments and isinstance(arguments[-1], exp.Order):
        order = arguments[-1]
        arguments[-1] = order.this
    if arguments and isinstance(arguments[0], exp.Distinct):
        distinct = True
        if arguments[0].args.get("on") is not None:
            raise SqlSyntaxError("DISTINCT ON is not for aggregates", position=position)
        arguments = [*arguments[0].expressions, *arguments[1:]]
        if arguments and isinstance(arguments[-1], exp.Order):
            order = arguments[-1]
            arguments[-1] = order.this
    if len(arguments) == 1 and isinstance(arguments[0], exp.Star):
        if name != "count" or distinct:
            raise SqlSyntaxError(f"{name}(*) is not a call", position=position)
        arguments = []
    elif not arguments and name == "count":
        raise WrongObjectTypeError("count(*) must be used to call a parameterless aggregate function", position=position)
    bound = [inner.bind(argument) for argument in arguments]
    within = node.parent
    if isinstance(within, exp.WithinGroup):
        ordered = [_bind_ordered(item, inner) for item in within.args["expression"].expressions]
        if len(ordered) != 1:
            raise FeatureNotSupportedError(f"{name} takes one expression in WITHIN GROUP", position=position)
        # The ordered expression takes part in choosing the overload, as in Postgres.
        call = make_call(name, [*bound, ordered[0].this], position)
        last = call.expressions[-1].pop()
        ordered[0].set("this", last)
        call.set("order", exp.Order(expressions=ordered))
    else:
        call = make_call(name, bound, position)
        if order is not None:
            call.set("order", exp.Order(expressions=[_bind_ordered(item, inner) for item in order.expressions]))
    if distinct:
        if name == "sum" and type_of(call) == INTERVAL:
            raise FeatureNotSupportedError("sum(DISTINCT interval) is not supported", position=position)
        call.meta["distinct"] = True
        if windowed:
            raise FeatureNotSupportedError("DISTINCT is not implemented for window functions", position=position)
    return call


def _bind_ordered(node: exp.Expr, binder: Binder) -> exp.Ordered:
    target = node.this if isinstance(node, exp.Ordered) else node
    bound = binder.bind(target)
    if is_unknown(bound):
        bound = coerce(bound, TEXT)
    descending = bool(node.args.get("desc")) if isinstance(node, exp.Ordered) else False
    nulls_first = bool(node.args.get("nulls_first")) if isinstance(node, exp.Ordered) else False
    if isinstance(node, exp.Ordered) and (node.args.get("with_fill") is not None):
        raise FeatureNotSupportedError("WITH FILL is not supported", position=position_of(node))
    return exp.Ordered(this=bound, desc=descending, nulls_first=nulls_first)


def bind_order(node: exp.Expr, scope: Scope, context: BindContext) -> exp.Ordered:
    """Bind one item of an ORDER BY; direction and place of NULLs are explicit in the result."""
    return _bind_ordered(node, Binder(scope, context))


@rule(exp.WithinGroup)
def _bind_within_group(node: exp.Expr, binder: Binder) -> exp.Expr:
    # The call itself reads the order from its parent, and takes it over.
    return binder.bind(node.this)


@rule(exp.Filter)
def _bind_filter(node: exp.Expr, binder: Binder) -> exp.Expr:
    call = binder.bind(node.this)
    if not is_aggregate(call):
        raise WrongObjectTypeError("FILTER specified, but the function is not an aggregate", position=position_of(node))
    inner = Binder(binder.scope, binder.context.within("FILTER"))
    condition = inner.bind_condition(node.args["expression"].this, "FILTER")
    bound = exp.Filter(this=call, expression=exp.Where(this=condition))
    return mark(bound, type_of(call), nullable=nullable_of(call))


@rule(exp.IgnoreNulls, exp.RespectNulls)
def _bind_nulls(node: exp.Expr, binder: Binder) -> exp.Expr:
    if isinstance(node, exp.IgnoreNulls):
        raise FeatureNotSupportedError("IGNORE NULLS is not supported", position=position_of(node))
    return binder.bind(node.this)


@rule(exp.Window)
def _bind_window(node: exp.Expr, binder: Binder) -> exp.Expr:
    position = position_of(node)
    context = binder.context
    if not context.allow_windows:
        raise WindowingError(f"window functions are not allowed in {context.clause}", position=position)
    window = _named(node, context, position)
    inner_context = context.within("a window definition", allow_aggregates=context.allow_aggregates)
    inner = Binder(binder.scope, inner_context)
    call = binder.bind(node.this)
    core = call.this if isinstance(call, exp.Filter) else call
    key = call_of(core)
    if key is None or OVERLOADS[key].kind is FunctionKind.SCALAR:
        raise WrongObjectTypeError("OVER specified, but the function is neither a window function nor an aggregate", position=position)
    if core.args.get("order") is not None:
        raise FeatureNotSupportedError("aggregate ORDER BY is not implemented for window functions", position=position)
    bound = exp.Window(this=call, partition_by=[inner.bind(item) for item in window.args.get("partition_by") or ()])
    order = window.args.get("order")
    if order is not None:
        bound.set("order", exp.Order(expressions=[_bind_ordered(item, inner) for item in order.expressions]))
    spec = window.args.get("spec")
    if spec is not None:
        bound.set("spec", _bind_frame(spec, bound, inner))
    return mark(bound, type_of(call), nullable=nullable_of(call))


def _named(node: exp.Expr, context: BindContext, position: int | None) -> exp.Expr:
    alias = node.args.get("alias")
    if node.args.get("first") is not None and node.args.get("first") is not True:
        raise FeatureNotSupportedError("this window is not supported", position=position)
    if alias is None:
        return node
    definition = context.named_windows.get(alias.name)
    if definition is None:
        raise WindowingError(f'window "{alias.name}" does not exist', position=position)
    if any(node.args.get(part) for part in ("partition_by", "order", "spec")):
        raise FeatureNotSupportedError("a window that refines a named one is not supported", position=position)
    return definition


def _bind_frame(spec: exp.Expr, window: exp.Expr, binder: Binder) -> exp.Expr:
    kind = str(spec.args.get("kind") or "ROWS")
    bound = exp.WindowSpec(kind=kind)
    for side in ("start", "end"):
        value = spec.args.get(side)
        if isinstance(value, exp.Expr):
            order = window.args.get("order")
            if kind == "RANGE":
                if order is None or len(order.expressions) != 1:
                    raise WindowingError("RANGE with offset PRECEDING/FOLLOWING requires exactly one ORDER BY column")
                key = type_of(order.expressions[0].this)
                is_time = key.name in (TypeName.DATE, TypeName.TIMESTAMP, TypeName.TIMESTAMPTZ, TypeName.TIME)
                value = binder.bind_as(value, INTERVAL if is_time else key)
            else:
                value = binder.bind_as(value, BIGINT)
            if is_constant(value) and constant_of(value) is None:
                raise InvalidParameterError("frame offset must not be null")
        bound.set(side, value)
        bound.set(f"{side}_side", spec.args.get(f"{side}_side"))
    exclude = spec.args.get("exclude")
    if exclude is not None:
        bound.set("exclude", exclude)
    return bound

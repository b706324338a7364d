"""Binds functions that give rows: generate_series, in FROM and in the SELECT list.

    generate_series(1, a.n) WITH ORDINALITY  ─▶  (SELECT unnest(generate_series(…)) AS c1, …) AS q2

Invariants:
- A step of zero is an error; a NULL argument gives no rows.
"""

from sqlglot import exp

from dsdb.sql.bind.bound import constant_of, is_constant
from dsdb.sql.bind.query_scope import FromItem, QueryScope, Relation, RelationColumn
from dsdb.sql.bind.query_state import Clause, Environment, QueryState, refuse_clauses
from dsdb.sql.bind.render import engine_type
from dsdb.sql.bind.scalar import coerce
from dsdb.sql.errors import FeatureNotSupportedError, InvalidColumnReferenceError, InvalidParameterError, UndefinedFunctionError
from dsdb.sql.parse import position_of
from dsdb.sql.types import BIGINT, INT, INTERVAL, TIMESTAMP, TIMESTAMPTZ, UNKNOWN, SqlType


def bind_function(state: QueryState, node: exp.Expr, environment: Environment) -> FromItem:
    """Bind a function in FROM.  Raises UndefinedFunctionError, FeatureNotSupportedError."""
    refuse_clauses(node, "this", "alias", "joins", "ordinality", "view", "outer", "cross_apply", "db")
    if node.args.get("joins") or (node.args.get("db") and node.args["db"].name != "pg_catalog"):
        raise FeatureNotSupportedError("this form of a function in FROM is not supported", position=position_of(node))
    function = node.this
    scope = environment.parent or QueryScope((), ())
    name = function.name if isinstance(function, exp.Anonymous) else str(function.key)
    if not _is_series(function):
        return _bind_value(state, node, state.scalar(function, scope, Clause.FUNCTION), name)
    values, element_type = _series(state, [state.scalar(argument, scope, Clause.FUNCTION) for argument in function.expressions], node)
    alias = node.args.get("alias")
    relation_name = alias.name if alias is not None else name
    names = [column.name for column in alias.columns] if alias is not None else []
    columns = [
        RelationColumn(name=names[0] if names else relation_name, engine_name=state.engine_name(), type=element_type, nullable=False)
    ]
    projections = [_unnested(values, columns[0])]
    if node.args.get("ordinality"):
        ordinality = names[1] if len(names) > 1 else "ordinality"
        columns.append(RelationColumn(name=ordinality, engine_name=state.engine_name(), type=BIGINT, nullable=False, ordinal=1))
        length = exp.Anonymous(this="len", expressions=[values.copy()])
        numbers = exp.Anonymous(this="generate_series", expressions=[exp.Literal.number(1), length])
        projections.append(exp.alias_(exp.Anonymous(this="unnest", expressions=[numbers]), columns[1].engine_name, copy=False))
    if len(names) > len(columns):
        raise InvalidColumnReferenceError(
            f'table "{relation_name}" has {len(columns)} columns available but {len(names)} columns specified', position=position_of(node)
        )
    tree = exp.Select(expressions=projections).subquery(state.query_name(), copy=False)
    relation = Relation(alias=relation_name, columns=tuple(columns))
    return FromItem(tree=tree, joins=[], relations=(relation,), visible=relation.columns, filterable=())


def _bind_value(state: QueryState, node: exp.Expr, value: exp.Expr, name: str) -> FromItem:
    """Give a function of one value as a relation of one row."""
    if state.type_of(value) == UNKNOWN or node.args.get("ordinality"):
        raise FeatureNotSupportedError(f"function {name} in FROM is not supported like this", position=position_of(node))
    alias = node.args.get("alias")
    relation_name = alias.name if alias is not None else name
    names = [column.name for column in alias.columns] if alias is not None else []
    if len(names) > 1:
        raise InvalidColumnReferenceError(f'table "{relation_name}" has 1 columns available but {len(names)} columns specified')
    found = RelationColumn(name=names[0] if names else relation_name, engine_name=state.engine_name(), type=state.type_of(value))
    tree = exp.Select(expressions=[exp.alias_(value, found.engine_name, copy=False)]).subquery(state.query_name(), copy=False)
    relation = Relation(alias=relation_name, columns=(found,))
    return FromItem(tree=tree, joins=[], relations=(relation,), visible=relation.columns, filterable=())


SERIES = "series of the query"
"""What the relation of the SELECT list's series is called; its blanks keep it apart from a user's."""


def take_series(state: QueryState, select: exp.Select, scope: QueryScope) -> tuple[exp.Select, QueryScope, list[exp.Expr]]:
    """Take the series out of a SELECT list: give the SELECT with columns in their place, a scope that has these, and the projections.

    Several series run in step, the shorter ones padded with NULL.
    """
    if not any(_is_series(node) for raw in select.expressions for node in _own_nodes(raw)):
        return select, scope, []
    select = select.copy()
    columns: list[RelationColumn] = []
    projections: list[exp.Expr] = []
    for raw in list(select.expressions):
        for node in [node for node in _own_nodes(raw) if _is_series(node)]:
            values, element_type = _series(state, [state.scalar(part, scope, Clause.FUNCTION) for part in node.expressions], node)
            found = RelationColumn(name=str(len(columns) + 1), engine_name=state.engine_name(), type=element_type)
            columns.append(found)
            projections.append(_unnested(values, found))
            reference = exp.column(exp.to_identifier(found.name, quoted=True), table=exp.to_identifier(SERIES, quoted=True))
            node.replace(exp.alias_(reference, node.name) if node is raw else reference)
    relation = Relation(alias=SERIES, columns=tuple(columns))
    return select, QueryScope((*scope.relations, relation), scope.visible, scope.parent, scope.ctes), projections


def _is_series(node: exp.Expr) -> bool:
    return isinstance(node, exp.Anonymous) and node.name == "generate_series"


def _own_nodes(raw: exp.Expr) -> list[exp.Expr]:
    return list(raw.walk(prune=lambda node: isinstance(node, exp.Query) or _is_series(node)))


def _unnested(values: exp.Expr, found: RelationColumn) -> exp.Expr:
    element = exp.Cast(this=exp.Anonymous(this="unnest", expressions=[values]), to=exp.DataType.build(engine_type(found.type), "duckdb"))
    return exp.alias_(element, found.engine_name, copy=False)


def _series(state: QueryState, arguments: list[exp.Expr], node: exp.Expr) -> tuple[exp.Expr, SqlType]:
    """Give the engine's list of a series, and its elements' type."""
    types = [state.type_of(argument) for argument in arguments]
    if len(arguments) in (2, 3) and all(type_.is_integer or type_.name.name == "UNKNOWN" for type_ in types):
        element = BIGINT if BIGINT in types else INT
        cast = [coerce(argument, BIGINT) for argument in arguments]
    elif len(arguments) == 3 and {type_.name.name for type_ in types[:2]} <= {"DATE", "TIMESTAMP", "TIMESTAMPTZ", "UNKNOWN"}:
        element = TIMESTAMPTZ if TIMESTAMPTZ in types[:2] else TIMESTAMP
        cast = [coerce(argument, wanted) for argument, wanted in zip(arguments, (element, element, INTERVAL))]
    else:
        spelled = ", ".join(str(type_) for type_ in types)
        raise UndefinedFunctionError(f"function generate_series({spelled}) does not exist", position=position_of(node))
    if len(cast) == 3 and is_constant(cast[2]) and constant_of(cast[2]) in (0, (0, 0, 0)):
        raise InvalidParameterError("step size cannot equal zero")
    series: exp.Expr = exp.Anonymous(this="generate_series", expressions=cast)
    return series, element

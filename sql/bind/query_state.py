"""What the binding of one statement's queries shares: the catalogue, unique names, the base tables used, and scalars by clause.

Invariants:
- A name that was given out is never given out again.
- Clauses that nobody reads are refused, never ignored (`refuse_clauses`).
"""

import enum
import itertools
from collections.abc import Callable, Mapping

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import constant, mark, type_of
from dsdb.sql.bind.query_rows import expand_rows
from dsdb.sql.bind.query_scope import BaseSource, BoundQuery, QueryScope, Relation, RelationColumn
from dsdb.sql.bind.scalar import BindContext, Scope, bind_scalar, coerce_condition, common_type, contains_aggregate
from dsdb.sql.errors import DatatypeMismatchError, FeatureNotSupportedError, SqlSyntaxError, UndefinedTableError
from dsdb.sql.given_tables import given_descriptor
from dsdb.sql.parse import position_of
from dsdb.sql.ports import CatalogSnapshot
from dsdb.sql.schema import TableDescriptor
from dsdb.sql.system_tables import SYSTEM_SCHEMA, system_table
from dsdb.sql.types import BOOL, SqlType


class Clause(enum.Enum):
    """Where a scalar stands: which decides what may stand in it.  The value is its name in messages."""

    SELECT = "SELECT"
    JOIN = "JOIN conditions"
    WHERE = "WHERE"
    GROUP_BY = "GROUP BY"
    HAVING = "HAVING"
    ORDER_BY = "ORDER BY"
    LIMIT = "LIMIT"
    VALUES = "VALUES"
    FUNCTION = "functions in FROM"


_WITH_AGGREGATES = frozenset({Clause.SELECT, Clause.HAVING, Clause.ORDER_BY})
_WITH_WINDOWS = frozenset({Clause.SELECT, Clause.ORDER_BY})


class Cte(msgspec.Struct, frozen=True, kw_only=True):
    """A common table expression: its name in the engine, and its columns (whose engine names it gives them itself)."""

    engine_name: str
    columns: tuple[RelationColumn, ...]


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What surrounds a query: the scope of the query around it, and the common table expressions in reach."""

    parent: QueryScope | None = None
    ctes: Mapping[str, Cte] = {}

    def inside(self, parent: QueryScope) -> "Environment":
        """Give the environment of a query inside `parent`."""
        return Environment(parent=parent, ctes=self.ctes)

    def with_ctes(self, ctes: Mapping[str, Cte]) -> "Environment":
        """Give the environment with more common table expressions."""
        return Environment(parent=self.parent, ctes={**self.ctes, **ctes})


class QueryState:
    """The state of binding one statement.

    sources: the base tables used, in the order in which they were met.
    """

    def __init__(
        self,
        catalog: CatalogSnapshot,
        database_id: int,
        database: str,
        context: BindContext,
        bind_query: "Callable[[QueryState, exp.Expr, Environment], BoundQuery]",
    ) -> None:
        self.catalog = catalog
        self.database_id = database_id
        self.database = database
        self.context = context
        self.sources: list[BaseSource] = []
        self._bind_query = bind_query
        self._numbers = itertools.count(1)
        self._inputs = itertools.count(1)

    def bind_query(self, node: exp.Expr, environment: Environment) -> BoundQuery:
        """Bind a query inside the statement."""
        return self._bind_query(self, node, environment)

    def engine_name(self) -> str:
        """Give a new name for a column."""
        return f"c{next(self._numbers)}"

    def query_name(self) -> str:
        """Give a new name for a sub-query."""
        return f"q{next(self._numbers)}"

    def input_name(self) -> str:
        """Give a new name for a base table's input."""
        return f"t{next(self._inputs)}"

    def table(self, node: exp.Table) -> TableDescriptor:
        """Find a table of the catalogue, a virtual or a given one.  Raises UndefinedTableError, FeatureNotSupportedError."""
        given = self.context.given
        if isinstance(node.this, exp.Parameter):
            number = int(node.this.this.this)
            if number not in given:
                raise DatatypeMismatchError(
                    f"parameter ${number} stands in FROM and is no table",
                    hint="Give it an Arrow table, or a data frame of pandas or Polars.",
                    position=position_of(node),
                )
            return given_descriptor(given[number][0], f"${number}", given[number][1])
        schema, database = node.db or "public", node.catalog or self.database
        if schema in ("information_schema", "pg_catalog"):
            raise FeatureNotSupportedError(f'schema "{schema}" is not supported', hint="use SHOW", position=position_of(node))
        if schema not in ("public", SYSTEM_SCHEMA):
            raise UndefinedTableError(f'relation "{schema}.{node.name}" does not exist', position=position_of(node))
        if database != self.database:
            raise FeatureNotSupportedError(f'tables of another database ("{database}") are not supported', position=position_of(node))
        if schema == SYSTEM_SCHEMA:
            return system_table(node.name, position=position_of(node))
        table = self.catalog.table(self.database_id, node.name)
        if table is None and node.name in given and not node.db:
            return given_descriptor(given[node.name][0], node.name, given[node.name][1])
        if table is None:
            raise UndefinedTableError(f'relation "{node.name}" does not exist', position=position_of(node))
        return table

    def scalar(self, expr: exp.Expr, scope: QueryScope, clause: Clause, *, expected: SqlType | None = None) -> exp.Expr:
        """Bind a scalar expression of a clause."""
        return bind_scalar(expand_rows(expr), scope, self._context(clause), expected=expected)

    def _context(self, clause: Clause) -> BindContext:
        return self.context.within(
            clause.value,
            allow_aggregates=clause in _WITH_AGGREGATES,
            allow_windows=clause in _WITH_WINDOWS,
            bind_subquery=self._bind_subquery,
        )

    def _bind_subquery(self, node: exp.Expr, scope: Scope) -> exp.Expr:
        """Bind a query inside an expression: EXISTS, or one that gives a value or a column of them."""
        assert isinstance(scope, QueryScope), "scalars of a query are bound in its scope"
        environment = Environment(parent=scope, ctes=scope.ctes)
        if isinstance(node, exp.Exists):
            bound = self.bind_query(node.this, environment)
            _drop_outputs(bound.tree)
            return mark(exp.Exists(this=bound.tree), BOOL, nullable=False)
        bound = self.bind_query(node, environment)
        if len(bound.columns) != 1:
            raise SqlSyntaxError("subquery must return only one column", position=position_of(node))
        return mark(exp.Subquery(this=bound.tree), bound.columns[0].type)

    def condition(self, expr: exp.Expr, scope: QueryScope, clause: Clause) -> exp.Expr:
        """Bind a condition.  Raises DatatypeMismatchError if it is not a BOOL."""
        return coerce_condition(self.scalar(expr, scope, clause), clause.value)

    def type_of(self, node: exp.Expr) -> SqlType:
        """Give a bound node's type."""
        return type_of(node)

    def equality(self, left: RelationColumn, right: RelationColumn) -> exp.Expr:
        """Bind `left = right` of a USING.  Raises DatatypeMismatchError if they do not compare."""
        common_type([left.type, right.type], "JOIN/USING")
        return self.scalar(exp.EQ(this=_column("l"), expression=_column("r")), _pair_scope(left, right), Clause.JOIN)

    def coalesce(self, left: RelationColumn, right: RelationColumn) -> exp.Expr:
        """Bind `COALESCE(left, right)`."""
        return self.scalar(exp.Anonymous(this="coalesce", expressions=[_column("l"), _column("r")]), _pair_scope(left, right), Clause.JOIN)


def _drop_outputs(tree: exp.Query) -> None:
    """Leave out what a query computes of its rows where only whether there are any matters: its columns need not be read."""
    if not isinstance(tree, exp.Select) or any(tree.args.get(name) for name in ("group", "having", "distinct", "order", "with_")):
        return
    if tree.args.get("from_") is not None and not any(contains_aggregate(output) for output in tree.expressions):
        tree.set("expressions", [exp.alias_(constant(True, BOOL), tree.expressions[0].alias, copy=False)])


def _column(name: str) -> exp.Column:
    return exp.column(name)


def _pair_scope(left: RelationColumn, right: RelationColumn) -> QueryScope:
    columns = (msgspec.structs.replace(left, name="l"), msgspec.structs.replace(right, name="r"))
    return QueryScope((Relation(alias="", columns=columns),), columns)


_WORDS = {"locks": "FOR UPDATE or FOR SHARE", "sample": "TABLESAMPLE", "into": "SELECT INTO"}
"""Clauses that the parser calls otherwise than their users."""


def refuse_clauses(node: exp.Expr, *known: str) -> None:
    """Raise FeatureNotSupportedError if a node has a clause that is not among `known`."""
    for name, value in node.args.items():
        if value and name not in known:
            words = _WORDS.get(name) or name.rstrip("_").replace("_", " ").upper()
            raise FeatureNotSupportedError(f"{words} is not supported here", position=position_of(node))

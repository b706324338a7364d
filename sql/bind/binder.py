"""The frame in which scalar rules stand: scopes, the context of a clause, and the binder that finds the rule of a node's class.

Invariants:
- A syntax node without a rule is refused (0A000), never passed on.

Not here: the rules (`scalar_leaves`, `scalar_operators`, `scalar_syntax`, `scalar_calls`).
"""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import mark
from dsdb.sql.bind.coerce import ParameterTypes, coerce, coerce_condition
from dsdb.sql.errors import FeatureNotSupportedError
from dsdb.sql.given_tables import NO_TABLES, GivenTables
from dsdb.sql.parse import position_of
from dsdb.sql.types import TIMESTAMPTZ, SqlType

STATEMENT_VALUES: tuple[tuple[str, SqlType], ...] = (("now", TIMESTAMPTZ),)
"""What is appended to the parameters of each execution, in this order: now, the moment at which the statement began."""


class ScopeColumn(msgspec.Struct, frozen=True, kw_only=True):
    """What a name means.  engine_name: bare and unique in the statement; ordinal: the place in the row, for the evaluator."""

    engine_name: str
    type: SqlType
    nullable: bool
    ordinal: int


class Scope(Protocol):
    """The columns that an expression may name."""

    def resolve(self, parts: tuple[str, ...], position: int | None) -> ScopeColumn:
        """Find a column by (name,), (table, name) or a longer dotted name.

        Raises: UndefinedColumnError, AmbiguousColumnError, UndefinedTableError.
        """


SubqueryBinder: TypeAlias = Callable[[exp.Expr, Scope], exp.Expr]


class BindContext:
    """What binding needs besides names.

    parameters: declared types, and those decided on the way; parameter_count: of the statement's own parameters; clause: for messages;
    bind_subquery: binds a query inside an expression and gives it with the type of its one column (None: refused);
    settings: current_database, current_user and so on, by function name; given: the tables that come with the statement.
    """

    def __init__(
        self,
        *,
        parameters: ParameterTypes | None = None,
        parameter_count: int = 0,
        clause: str = "this clause",
        allow_aggregates: bool = False,
        allow_windows: bool = False,
        bind_subquery: SubqueryBinder | None = None,
        settings: Mapping[str, str] | None = None,
        named_windows: Mapping[str, exp.Window] | None = None,
        given: GivenTables = NO_TABLES,
    ) -> None:
        self.parameters = parameters or ParameterTypes()
        self.parameter_count = parameter_count
        self.clause = clause
        self.allow_aggregates = allow_aggregates
        self.allow_windows = allow_windows
        self.bind_subquery = bind_subquery
        self.settings = settings or {}
        self.named_windows = named_windows or {}
        self.given = given

    def within(
        self, clause: str, *, allow_aggregates: bool = False, allow_windows: bool = False, bind_subquery: SubqueryBinder | None = None
    ) -> "BindContext":
        """Give the context of another clause of the same statement; it shares the parameters."""
        return BindContext(
            parameters=self.parameters,
            parameter_count=self.parameter_count,
            clause=clause,
            allow_aggregates=allow_aggregates,
            allow_windows=allow_windows,
            bind_subquery=bind_subquery or self.bind_subquery,
            settings=self.settings,
            named_windows=self.named_windows,
            given=self.given,
        )


class Binder:
    """Binds the nodes of one expression; the rules by node class are in the table that `rule` fills."""

    def __init__(self, scope: Scope, context: BindContext) -> None:
        self.scope = scope
        self.context = context

    def bind(self, node: exp.Expr) -> exp.Expr:
        """Bind a node and all below it."""
        rule = _RULES.get(type(node))
        if rule is None:
            raise FeatureNotSupportedError(f"the expression {_shown(node)} is not supported", position=position_of(node))
        return rule(node, self)

    def bind_as(self, node: exp.Expr, type_: SqlType) -> exp.Expr:
        """Bind a node and implicitly cast it."""
        return coerce(self.bind(node), type_)

    def bind_condition(self, node: exp.Expr, clause: str) -> exp.Expr:
        """Bind a node that must be a BOOL."""
        return coerce_condition(self.bind(node), clause)

    def bind_subquery(self, node: exp.Expr) -> exp.Expr:
        """Bind a query; the result's type is that of its one column."""
        if self.context.bind_subquery is None:
            raise FeatureNotSupportedError(f"cannot use a sub-query in {self.context.clause}", position=position_of(node))
        return self.context.bind_subquery(node, self.scope)

    def statement_value(self, name: str) -> exp.Expr:
        """Give the parameter that holds a value of the whole statement."""
        index = [value[0] for value in STATEMENT_VALUES].index(name)
        return parameter_node(self.context.parameter_count + index + 1, STATEMENT_VALUES[index][1], self.context.parameters)


def parameter_node(number: int, type_: SqlType, parameters: ParameterTypes) -> exp.Expr:
    """Make a parameter node."""
    node = exp.Parameter(this=exp.Literal.number(number))
    return mark(node, type_, parameter=number, parameters=parameters)


Rule: TypeAlias = Callable[[exp.Expr, Binder], exp.Expr]
_RULES: dict[type[exp.Expr], Rule] = {}


def rule(*classes: type[exp.Expr]) -> Callable[[Rule], Rule]:
    """Register how a class of nodes is bound."""

    def register(function: Rule) -> Rule:
        for class_ in classes:
            assert class_ not in _RULES, class_
            _RULES[class_] = function
        return function

    return register


def _shown(node: exp.Expr) -> str:
    text = node.sql(dialect="postgres")
    return text if len(text) <= 80 else text[:77] + "…"

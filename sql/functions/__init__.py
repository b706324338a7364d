"""The allow-list of functions and operators: types, the engine's text and the Python function of each.

Importing this package fills the table in `dsdb.sql.functions.registry`.
"""

from dsdb.sql.functions import aggregates, conditional, math, operators, strings, times
from dsdb.sql.functions.elsewhere import POSTGRES_FUNCTIONS
from dsdb.sql.functions.registry import BY_NAME, NOT_CONSTANT, OVERLOADS, TYPE_CODES, FunctionKind, Overload, Volatility, choose

TABLES = (operators, math, strings, times, conditional, aggregates)
"""Imported for the overloads that they define."""


def is_aggregate_name(name: str) -> bool:
    """Say whether a name is an aggregate's."""
    return any(overload.kind is FunctionKind.AGGREGATE for overload in BY_NAME.get(name, ()))


def is_window_name(name: str) -> bool:
    """Say whether a name is a pure window function's."""
    return any(overload.kind is FunctionKind.WINDOW for overload in BY_NAME.get(name, ()))


__all__ = [
    "BY_NAME",
    "NOT_CONSTANT",
    "OVERLOADS",
    "POSTGRES_FUNCTIONS",
    "TABLES",
    "TYPE_CODES",
    "FunctionKind",
    "Overload",
    "Volatility",
    "choose",
    "is_aggregate_name",
    "is_window_name",
]

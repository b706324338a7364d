"""The allow-list's form: overloads of functions and operators, and Postgres's rules for choosing one.

An overload is written as a signature and what it means twice: in the engine's SQL and in Python.

    define("strpos(text, text) -> int4", engine="strpos({0}, {1})", evaluate=lambda text, part: text.find(part) + 1)

Type codes in signatures are Postgres's short names; `numeric` takes a DECIMAL of any precision; `any` stands for one type throughout
the call; `each` takes any type by itself; a last argument followed by `...` may repeat.

Invariants:
- Nothing reaches the engine that has no overload here.
- The engine's text and the Python function of one overload agree, on values where both speak; a property test holds that.
- A strict overload (the default) gives NULL when an argument is NULL, and is never called with one.

Not here: the overloads themselves (the other files of this folder), syntax with its own rules (CASE, COALESCE, IN: the binder).
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from dsdb.sql.functions.casts import CastContext, cast_context
from dsdb.sql.types import SqlType, TypeName

TYPE_CODES: Mapping[str, TypeName] = {
    "bool": TypeName.BOOL,
    "int2": TypeName.SMALLINT,
    "int4": TypeName.INT,
    "int8": TypeName.BIGINT,
    "float4": TypeName.REAL,
    "float8": TypeName.DOUBLE,
    "numeric": TypeName.DECIMAL,
    "text": TypeName.TEXT,
    "bpchar": TypeName.CHAR,
    "bytea": TypeName.BYTEA,
    "date": TypeName.DATE,
    "time": TypeName.TIME,
    "timestamp": TypeName.TIMESTAMP,
    "timestamptz": TypeName.TIMESTAMPTZ,
    "interval": TypeName.INTERVAL,
    "uuid": TypeName.UUID,
}
_PREFERRED = frozenset({TypeName.BOOL, TypeName.DOUBLE, TypeName.TEXT, TypeName.TIMESTAMPTZ, TypeName.INTERVAL})
_SIGNATURE = re.compile(r"(\S+?)\((.*)\) -> (\w+)")


class FunctionKind(enum.Enum):
    """Where an overload may stand."""

    SCALAR = "scalar"
    AGGREGATE = "aggregate"
    WINDOW = "window"


class Volatility(enum.Enum):
    """How often a call must be made: by its arguments' values, once a statement, once a row."""

    IMMUTABLE = "immutable"
    STABLE = "stable"
    VOLATILE = "volatile"


ResultRule = Callable[[Sequence[SqlType], Sequence[Any]], SqlType]
"""(argument types, values of constant arguments or CONSTANT_UNKNOWN) → result type."""
EngineRule = Callable[[Sequence[str], Sequence[SqlType], SqlType], str]
"""(printed arguments, their types, result type) → engine SQL."""
NOT_CONSTANT = object()
"""Stands for an argument whose value is not known while binding."""


class Overload(msgspec.Struct, frozen=True, kw_only=True):
    """One function or operator for one list of argument types.

    engine: a template over {0}, {1}, … ({all} is all of them; aggregates also have {d} for DISTINCT, {o} for ORDER BY and {c} for what
    follows the call), or a rule, or None if the engine cannot; evaluate: the Python function, or with `typed` a maker of it from
    (argument types, result type); result_rule: gives the precision of a numeric result.
    """

    name: str
    arguments: tuple[str, ...]
    result: str
    variadic: bool = False
    engine: str | EngineRule | None = None
    evaluate: Callable[..., Any] | None = None
    typed: bool = False
    strict: bool = True
    never_null: bool = False
    volatility: Volatility = Volatility.IMMUTABLE
    kind: FunctionKind = FunctionKind.SCALAR
    result_rule: ResultRule | None = None

    @property
    def key(self) -> str:
        """Give the overload's name in bound trees."""
        return f"{self.name}({','.join(self.arguments)}{'...' if self.variadic else ''})"

    def argument(self, index: int) -> str:
        """Give the type code of an argument."""
        return self.arguments[min(index, len(self.arguments) - 1)]

    def takes(self, count: int) -> bool:
        """Say whether it may be called with so many arguments."""
        return count >= len(self.arguments) if self.variadic else count == len(self.arguments)


OVERLOADS: dict[str, Overload] = {}
"""All overloads by key."""
BY_NAME: dict[str, list[Overload]] = {}
"""All overloads by name, in the order in which they were defined."""


def define(signature: str, **fields: Any) -> None:
    """Add an overload to the table."""
    match = _SIGNATURE.fullmatch(signature)
    assert match is not None, signature
    variadic = match[2].endswith("...")
    arguments = tuple(code.strip() for code in match[2].removesuffix("...").split(",")) if match[2].strip() else ()
    assert all(code in TYPE_CODES or code in ("any", "each") for code in (*arguments, match[3])), signature
    overload = Overload(name=match[1], arguments=arguments, result=match[3], variadic=variadic, **fields)
    assert overload.key not in OVERLOADS, f"{overload.key} is defined twice"
    OVERLOADS[overload.key] = overload
    BY_NAME.setdefault(overload.name, []).append(overload)


def choose(name: str, types: Sequence[SqlType]) -> Overload | None:
    """Choose an overload as Postgres does: most exact matches, then most preferred types, UNKNOWN as text if one takes it.

    Of several that are left the first defined wins.
    """
    candidates = [overload for overload in BY_NAME.get(name, ()) if overload.takes(len(types)) and _accepts(overload, types)]
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    known = {type_.name for type_ in types if type_.name is not TypeName.UNKNOWN}
    if len(known) == 1 and len(types) == 2:
        # One UNKNOWN operand beside a known one is taken to have its type.
        assumed = [type_ if type_.name is not TypeName.UNKNOWN else SqlType(next(iter(known))) for type_ in types]
        same = [overload for overload in candidates if _exact(overload, assumed) == len(types)]
        if same:
            return same[0]
    for score in (_exact, _preferred, _textual):
        best = max(score(overload, types) for overload in candidates)
        candidates = [overload for overload in candidates if score(overload, types) == best]
    return candidates[0]


def _accepts(overload: Overload, types: Sequence[SqlType]) -> bool:
    for index, type_ in enumerate(types):
        code = overload.argument(index)
        if type_.name is TypeName.UNKNOWN or code in ("any", "each"):
            continue
        if cast_context(type_, SqlType(TYPE_CODES[code])) is not CastContext.IMPLICIT:
            return False
    return True


def _exact(overload: Overload, types: Sequence[SqlType]) -> int:
    return sum(TYPE_CODES.get(overload.argument(index)) is _base(type_) for index, type_ in enumerate(types))


def _preferred(overload: Overload, types: Sequence[SqlType]) -> int:
    count = 0
    for index, type_ in enumerate(types):
        name = TYPE_CODES.get(overload.argument(index))
        count += name is _base(type_) or (type_.name is not TypeName.UNKNOWN and name in _PREFERRED)
    return count


def _textual(overload: Overload, types: Sequence[SqlType]) -> int:
    return sum(
        TYPE_CODES.get(overload.argument(index)) is TypeName.TEXT for index, type_ in enumerate(types) if type_.name is TypeName.UNKNOWN
    )


def _base(type_: SqlType) -> TypeName:
    return TypeName.TEXT if type_.name is TypeName.VARCHAR else type_.name

"""Whether two outcomes are the same: names, types, rows as a bag, the order of the ordering columns, or the SQLSTATE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

from dsdb.sql.types import TypeName
from tests.differential.peers import Outcome, Values

_TOLERANCE = {TypeName.REAL: 1e-5, TypeName.DOUBLE: 1e-9, TypeName.DECIMAL: 1e-12}
"""Relative; DECIMALs that differ in value at all differ in a quotient's last digits, or are reported."""


def difference(theirs: Outcome, ours: Outcome, order: Sequence[int] = (), *, is_quotient: bool = False) -> str:
    """Say how two outcomes differ; empty if they do not.  is_quotient: numerics may have other digits at their end."""
    if theirs.sqlstate != ours.sqlstate:
        return f"SQLSTATE {theirs.sqlstate or 'none'} | {ours.sqlstate or 'none'}\n  {theirs.message}\n  {ours.message}"
    if theirs.names != ours.names:
        return f"names {theirs.names} | {ours.names}"
    if theirs.types != ours.types:
        return f"types {[t.name for t in theirs.types]} | {[t.name for t in ours.types]}"
    if len(theirs.rows) != len(ours.rows):
        return f"{len(theirs.rows)} rows | {len(ours.rows)} rows: {_lost(theirs.rows, ours.rows)}"
    loose = {n for n, t in enumerate(theirs.types) if t in _TOLERANCE and (t is not TypeName.DECIMAL or is_quotient)}
    for left, right in zip(_sorted(theirs, loose), _sorted(ours, loose)):
        if not _same(left, right, theirs.types, loose):
            return f"rows {left} | {right}"
    for left, right in zip(theirs.rows, ours.rows):
        kept = [n for n in order if n not in loose]
        if any(_place(left[n], theirs.types[n]) != _place(right[n], theirs.types[n]) for n in kept):
            return f"order {left} | {right}"
    return ""


def _place(value: str | None, type_: TypeName) -> str | Decimal | None:
    """Give what a value is ordered by: decimals of one value may be spelled with more zeros or fewer."""
    return Decimal(value) if value is not None and type_ is TypeName.DECIMAL else value


def _lost(left: Sequence[Values], right: Sequence[Values]) -> str:
    return f"only left {sorted(set(left) - set(right), key=repr)[:2]}, only right {sorted(set(right) - set(left), key=repr)[:2]}"


def _sorted(outcome: Outcome, loose: set[int]) -> list[Values]:
    """Sort rows by their values, the loose ones rounded, and those that are then the same by all their digits."""

    def key(row: Values) -> tuple[list[tuple[bool, str]], list[float]]:
        rounded = [(value is None, _rounded(value) if n in loose and value is not None else value or "") for n, value in enumerate(row)]
        return rounded, [float(row[n] or 0) for n in sorted(loose)]

    return sorted(outcome.rows, key=key)


def _rounded(value: str) -> str:
    # Not −0: which of two equal zeros DISTINCT keeps is open.
    return f"{float(value) + 0.0:.5g}"


def _same(left: Values, right: Values, types: Sequence[TypeName], loose: set[int]) -> bool:
    for n, (a, b) in enumerate(zip(left, right)):
        if a == b:
            continue
        if a is None or b is None or n not in loose:
            return False
        x, y = (Decimal(a), Decimal(b)) if types[n] is TypeName.DECIMAL else (Decimal(repr(float(a))), Decimal(repr(float(b))))
        if not (x.is_finite() and y.is_finite()) or not math.isclose(x, y, rel_tol=_TOLERANCE[types[n]], abs_tol=1e-9):
            return False
    return True

"""Conditions as lists of the parts that AND joins."""

from sqlglot import exp


def conjuncts_of(condition: exp.Expr | None) -> list[exp.Expr]:
    """Cut a condition into the parts that AND joins; none for None."""
    parts: list[exp.Expr] = []
    waiting = [condition] if condition is not None else []
    while waiting:
        part = waiting.pop()
        if isinstance(part, exp.Paren):
            waiting.append(part.this)
        elif isinstance(part, exp.And):
            waiting += (part.expression, part.this)
        else:
            parts.append(part)
    return parts

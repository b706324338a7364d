"""Prints the table of functions as the page that users read (docs/sql-functions.md).

python -m dsdb.sql.functions.describe > docs/sql-functions.md
"""

from dsdb.sql.functions import BY_NAME, FunctionKind, Overload
from dsdb.sql.functions.registry import TYPE_CODES
from dsdb.sql.types import SqlType

_SYNTAX = """\
Syntax of its own, beside the tables below: `AND OR NOT`, comparisons (rows too), `IS [NOT] NULL | TRUE | FALSE | UNKNOWN`,
`IS [NOT] DISTINCT FROM`, `BETWEEN [SYMMETRIC]`, `IN`, `= ANY | ALL`, `CASE`, `CAST` and `::`, `COALESCE`, `EXTRACT(… FROM …)`,
`SUBSTRING(… FROM … FOR …)`, `TRIM(…)`, `POSITION(… IN …)`, `OVERLAY(…)`, `AT TIME ZONE 'UTC'`, `INTERVAL '…'`, `CURRENT_DATE`,
`CURRENT_TIMESTAMP`, `LOCALTIME`, `LOCALTIMESTAMP`, `CURRENT_USER`, `now()`, `current_database()`, `pg_typeof()`.
"""
_PLACES = {(True, True): "rows and queries", (True, False): "rows; queries only over constants", (False, True): "queries"}


def describe() -> str:
    """Give the page as Markdown, in a fixed order."""
    parts = ["# Functions and operators\n", _SYNTAX]
    for kind, title in (
        (FunctionKind.SCALAR, "Functions and operators of values"),
        (FunctionKind.AGGREGATE, "Aggregates"),
        (FunctionKind.WINDOW, "Window functions"),
    ):
        parts.append(f"## {title}\n\n| call | result | runs in |\n|---|---|---|")
        for name in sorted(BY_NAME):
            parts += [_row(overload) for overload in BY_NAME[name] if overload.kind is kind]
        parts.append("")
    return "\n".join(parts)


def _shown(code: str) -> str:
    return str(SqlType(TYPE_CODES[code])) if code in TYPE_CODES else "any"


def _row(overload: Overload) -> str:
    arguments = [_shown(code) for code in overload.arguments]
    if overload.variadic:
        arguments[-1] += " …"
    name = overload.name
    if name[0].isalpha() or not arguments:
        call = f"{name}({', '.join(arguments)})"
    else:
        call = f" {name} ".join(arguments) if len(arguments) == 2 else f"{name} {arguments[0]}"
    if name in ("neg", "pos"):
        call = f"{'-' if name == 'neg' else '+'} {arguments[0]}"
    place = _PLACES[overload.evaluate is not None, overload.engine is not None]
    return f"| `{call}` | {_shown(overload.result)} | {place} |".replace("||", "\\|\\|")


if __name__ == "__main__":
    print(describe())

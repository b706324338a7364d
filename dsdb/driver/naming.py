"""Tables that a statement's text names and the database does not have: files of the client, and variables of its program.

    FROM read_parquet('part-*.parquet')     read here, and given as a table called just that
    FROM df                                 with an embedded node: a variable of whoever calls `execute`, if no table is called so

Invariants:
- A file is looked for at the client, never at a node; a table of the database hides a variable.
- Only columns whose names stand in the text are given, unless `*` asks for all.
"""

import re
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from dsdb.driver.files import files_of, options_of, reader_of
from dsdb.driver.giving import Given
from dsdb.driver.tables import TableSource, is_table

_PLAIN = r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/"""
_OPTION = r"""\s*,\s*(\w+)\s*(?:=>|:=|=)\s*(?:'((?:[^']|'')*)'|(\w+))"""
_FILE_CALL = re.compile(
    rf"(?P<plain>{_PLAIN})|\bread_(?P<format>parquet|csv|json|arrow)\s*\(\s*'(?P<name>(?:[^']|'')*)'(?P<options>(?:{_OPTION})*)\s*\)",
    re.IGNORECASE | re.DOTALL,
)
_MAY_READ = re.compile(r"\bread_(?:parquet|csv|json|arrow)\s*\(", re.IGNORECASE)
_AFTER_FROM = re.compile(r"""(?:\b(?:from|join|using)|,)\s*(?:"((?:[^"]|"")*)"|([^\W\d]\w*))""", re.IGNORECASE)
_WORD = re.compile(rf"""(?P<quoted>"(?:[^"]|"")*")|{_PLAIN}|(?P<word>[^\W\d]\w*)""", re.DOTALL)
_STAR = re.compile(r"(?:\b(?:select|distinct|all|natural)\b|[,.)])\s*\*|\bnatural\b", re.IGNORECASE)


def with_files(sql: str) -> tuple[str, list[Given]]:
    """Open the files that a text reads in FROM; give the text with names in their place, and the tables.  Raises DatabaseError."""
    if _MAY_READ.search(sql) is None:
        return sql, []
    given: dict[str, Given] = {}
    names = mentioned(sql)

    def opened(match: re.Match[str]) -> str:
        if match["plain"] is not None:
            return match[0]
        call = " ".join(match[0].split())
        if call not in given:
            options = {name.lower(): text or word for name, text, word in re.findall(_OPTION, match["options"])}
            aliases = {"delim": "delimiter", "sep": "delimiter", "nullstr": "null"}
            options = {aliases.get(name, name): value for name, value in options.items()}
            path = match["name"].replace("''", "'")
            known = options_of(path, {**options, "format": match["format"].lower()})
            given[call] = Given(TableSource(reader_of(files_of(path), known, columns=names), what=path), name=call)
        doubled = call.replace('"', '""')
        return f'"{doubled}"'

    return _FILE_CALL.sub(opened, sql), list(given.values())


def mentioned(sql: str) -> list[str] | None:
    """Give, in lower case, all names that stand in a text; None if columns are meant that are not named."""
    if _STAR.search(re.sub(_PLAIN, " x ", sql, flags=re.DOTALL)) is not None:
        return None
    found = [name for match in _WORD.finditer(sql) if (name := match["quoted"] or match["word"])]
    return [(name[1:-1].replace('""', '"') if name[:1] == '"' else name).lower() for name in found]


def with_variables(sql: str, known_tables: Callable[[], Iterable[str]]) -> list[Given]:
    """Give the caller's variables that a text means as tables.  known_tables: asks for the names that the database has."""
    frame = _caller()
    if frame is None:
        return []
    variables = {**frame.f_globals, **frame.f_locals}
    names = [quoted.replace('""', '"') if quoted else word for quoted, word in _AFTER_FROM.findall(sql)]
    if not any(_is_given(variables, name) for name in names):
        return []
    wanted = {name: value for name in _tables_in(sql) if (value := _value_of(variables, name)) is not None}
    if not wanted:
        return []
    hidden = set(known_tables())
    found = []
    columns = mentioned(sql)
    for name, value in wanted.items():
        if name not in hidden:
            source = TableSource(value, what=f"the variable {name}")
            if columns is not None:
                source.only(frozenset(columns))
            found.append(Given(source, name=name))
    return found


def _caller() -> FrameType | None:
    """Give the frame of whoever called the driver."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith("dsdb."):
        frame = frame.f_back
    return frame


def _is_given(variables: dict[str, Any], name: str) -> bool:
    return _value_of(variables, name) is not None or _value_of(variables, name.lower()) is not None


def _value_of(variables: dict[str, Any], name: str) -> Any:
    """Give the variable of a name as SQL folds it, if it is a table: exactly so, else the only one that differs by case alone."""
    value = variables.get(name)
    if value is not None and is_table(value):
        return value
    close = [key for key in variables if key.lower() == name and is_table(variables[key])]
    return variables[close[0]] if len(close) == 1 else None


def _tables_in(sql: str) -> list[str]:
    """Give the names without a schema that a text reads as tables; none if it is not SQL: the node will say why."""
    from sqlglot import exp  # noqa: PLC0415, RUF100

    from dsdb.sql.errors import SqlError  # noqa: PLC0415, RUF100
    from dsdb.sql.parse import ExplainStatement, parse_statements  # noqa: PLC0415, RUF100

    try:
        statements = parse_statements(sql)
    except SqlError:
        return []
    if len(statements) != 1:
        return []
    statement = statements[0]
    tree = statement.tree.statement.tree if isinstance(statement.tree, ExplainStatement) else statement.tree
    if not isinstance(tree, exp.Expr):
        return []
    written = tree.this if isinstance(tree, exp.Insert | exp.Update | exp.Delete) else None
    common = {found.alias for found in tree.find_all(exp.CTE)}
    tables = [table for table in tree.find_all(exp.Table) if isinstance(table.this, exp.Identifier) and table is not written]
    return sorted({table.name for table in tables if not table.db and table.name not in common})

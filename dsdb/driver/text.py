"""What the driver reads in a statement's text: little, and only when it errs on the safe side.

Not here: SQL's grammar (`dsdb.sql.parse`, at the node).
"""

import re

_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|\()*([a-z]+)", re.IGNORECASE | re.DOTALL)
_READING = frozenset({"select", "show", "values", "table"})

_INSERT = re.compile(
    r"""\s*insert\s+into\s+                      # nothing clever: no comments, no sub-queries
        (?P<table>[\w."]+)\s*
        (?:\((?P<columns>[\w\s,"]*)\)\s*)?
        values\s*
        (?P<row>\((?:\s*\?\s*,)*\s*\?\s*\))
        \s*(?P<rest>(?:on\s+conflict\s*(?:\([\w\s,"]*\)\s*)?do\s+nothing\s*)?);?\s*""",
    re.IGNORECASE | re.VERBOSE,
)


def first_word(sql: str) -> str:
    """Give the first word of a text in lower case, empty if there is none."""
    match = _FIRST_WORD.match(sql)
    return match.group(1).lower() if match else ""


def is_read_only(sql: str) -> bool:
    """Say whether a text surely writes nothing (a sequence's next value does not count)."""
    return first_word(sql) in _READING and ";" not in sql.rstrip().removesuffix(";")


def is_setting(sql: str) -> bool:
    """Say whether a text is one SET or RESET statement."""
    return first_word(sql) in ("set", "reset") and ";" not in sql.rstrip().removesuffix(";")


_COMMITTING = frozenset({"commit", "end", "alter", ""})


def may_commit(sql: str) -> bool:
    """Say whether a text that runs in a transaction might commit it, or something of its own: COMMIT, SPLIT AT, CREATE DATABASE."""
    word = first_word(sql)
    is_of_database = word in ("create", "drop") and "database" in sql.lower()
    return word in _COMMITTING or is_of_database or ";" in sql.rstrip().removesuffix(";")


def is_pipelined(sql: str) -> bool:
    """Say whether a text may be sent many times before its first answer is read: it changes rows and gives none."""
    return first_word(sql) in ("insert", "update", "delete") and "returning" not in sql.lower()


class InsertText:
    """An INSERT of one row of parameters, which may as well be one of many rows."""

    def __init__(self, head: str, row: str, rest: str) -> None:
        self._head = head
        self._row = row
        self._rest = rest
        self.width = row.count("?")

    def of_rows(self, rows: int) -> str:
        """Give the text for a number of rows."""
        return f"{self._head} VALUES {', '.join([self._row] * rows)} {self._rest}".rstrip()


def insert_text(sql: str) -> InsertText | None:
    """Read a text as an INSERT of one row of `?` parameters, None if it is anything else."""
    match = _INSERT.fullmatch(sql)
    if match is None:
        return None
    columns = match.group("columns")
    head = f"INSERT INTO {match.group('table')}" + (f" ({columns})" if columns is not None else "")
    return InsertText(head, match.group("row"), match.group("rest").strip())

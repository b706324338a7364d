"""`executemany`: many rows in few statements where that means the same, else in few round trips.

    INSERT INTO t (…) VALUES (?, …)     one statement of up to ROWS_MAX rows: all of them, or none
    other INSERT, UPDATE, DELETE        pipelined: sent together, run one by one up to the first that fails
    anything else                       one by one

A chunk whose columns mix types (an int here, a str there) is pipelined: a VALUES list has one type a column, single rows do not need to.
So is a chunk that is refused as one statement, with 0A000 or 54000 (it is too large), unless an open transaction has failed by that.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from dsdb.driver.errors import DatabaseError, ProgrammingError
from dsdb.driver.text import InsertText, insert_text, is_pipelined

ROWS_MAX = 64
"""Of one statement: planning one takes the node some 0.5 ms a row the first time, and beyond this a row gets hardly cheaper."""
PARAMETERS_MAX = 16_384
"""Of one statement."""
PIPELINE_MAX = 128
"""Statements sent before the first answer is read."""
_REFUSED_AS_ONE = ("0A000", "54000")
"""Nothing of such a statement was done, and its rows may still be taken one by one."""


class Runner(Protocol):
    """What runs statements: a cursor's connection."""

    @property
    def has_failed(self) -> bool:
        """Say whether an open transaction has failed, so that nothing more can be run in it."""

    def run_rows(self, sql: str, parameters: Sequence[Any]) -> int:
        """Run one statement that gives no rows; give the rows touched."""

    def run_pipeline(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement with many lists of parameters; give the rows touched."""


def run_many(runner: Runner, sql: str, rows: Iterable[Sequence[Any]]) -> int:
    """Run a statement once for each list of parameters; give the rows touched."""
    insert = insert_text(sql)
    total = 0
    if insert is not None:
        for chunk in _chunks(rows, min(ROWS_MAX, max(1, PARAMETERS_MAX // insert.width))):
            flat = _flattened(chunk, insert.width)
            if flat is None or len(chunk) == 1:
                total += _pipelined(runner, sql, chunk)
            else:
                total += _as_one(runner, sql, insert, chunk, flat)
    elif is_pipelined(sql):
        for chunk in _chunks(rows, PIPELINE_MAX):
            total += runner.run_pipeline(sql, chunk)
    else:
        for parameters in rows:
            total += runner.run_rows(sql, parameters)
    return total


def _as_one(runner: Runner, sql: str, insert: InsertText, chunk: list[Sequence[Any]], flat: list[Any]) -> int:
    try:
        return runner.run_rows(insert.of_rows(len(chunk)), flat)
    except DatabaseError as error:
        if error.sqlstate not in _REFUSED_AS_ONE or runner.has_failed:
            raise
        return _pipelined(runner, sql, chunk)


def _pipelined(runner: Runner, sql: str, chunk: list[Sequence[Any]]) -> int:
    return sum(runner.run_pipeline(sql, chunk[at : at + PIPELINE_MAX]) for at in range(0, len(chunk), PIPELINE_MAX))


def _chunks(rows: Iterable[Sequence[Any]], size: int) -> Iterator[list[Sequence[Any]]]:
    """Give the rows in chunks of `size`; the rest in powers of two, so that few different texts are planned."""
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, size)):
        while len(chunk) < size and chunk:
            part = 1 << (len(chunk).bit_length() - 1)
            yield chunk[:part]
            chunk = chunk[part:]
        if chunk:
            yield chunk


def _flattened(chunk: list[Sequence[Any]], width: int) -> list[Any] | None:
    """Give all values in one list, None if a column's values are of several types."""
    for row in chunk:
        if len(row) != width:
            raise ProgrammingError(f"a row has {len(row)} values, the statement {width} parameters", sqlstate="42P02")
    for column in zip(*chunk):
        if len(set(map(type, column)) - {type(None)}) > 1:
            return None
    return [value for row in chunk for value in row]

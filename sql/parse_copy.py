"""COPY t [(columns)] FROM STDIN: the one form that a node runs itself.  Its rows come with it, as Arrow; files are the client's to read."""

import msgspec

from dsdb.sql.errors import FeatureNotSupportedError
from dsdb.sql.parse_words import TableName, Words

_ELSEWHERE = "dsdb sql, dsdb import and export, and cursor.copy read and write files at the client's side, and send rows."


class CopyStatement(msgspec.Struct, frozen=True, kw_only=True):
    """COPY t FROM STDIN.  columns: those named, in the order in which they come; () for all."""

    table: TableName
    columns: tuple[str, ...] = ()


def parse_copy(words: Words) -> CopyStatement:
    """Read a COPY.  Raises SqlSyntaxError, FeatureNotSupportedError (files, TO, formats: `dsdb.driver.copying` knows these)."""
    if words.peek() == "(":
        raise FeatureNotSupportedError("a node does not run COPY (query) TO …", hint=_ELSEWHERE)
    table = words.name()
    columns = []
    if words.take("("):
        columns.append(words.word())
        while words.take(","):
            columns.append(words.word())
        words.expect(")")
    if words.take("TO"):
        raise FeatureNotSupportedError("a node does not run COPY … TO …", hint=_ELSEWHERE)
    words.expect("FROM")
    if not words.take("STDIN"):
        raise FeatureNotSupportedError("a node opens no files for COPY", hint=_ELSEWHERE)
    words.take("WITH")
    if words.take("(", "FORMAT") and (words.word() != "arrow" or not words.take(")")):
        raise FeatureNotSupportedError("a node takes COPY … FROM STDIN as Arrow only", hint=_ELSEWHERE)
    words.end()
    return CopyStatement(table=table, columns=tuple(columns))

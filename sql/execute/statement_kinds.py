"""What kind of statement a parsed one is, where that decides before it is planned: whether it writes, whether it changes the catalogue."""

from sqlglot import exp

from dsdb.sql.errors import ReadOnlyTransactionError
from dsdb.sql.parse import CreateDatabaseStatement, DropDatabaseStatement, ParsedStatement, SplitAtStatement, TruncateStatement
from dsdb.sql.parse_cluster import AlterNodeStatement, CancelJobStatement, ScatterStatement, SetClusterStatement
from dsdb.sql.parse_copy import CopyStatement
from dsdb.sql.parse_ranges import ConfigureStatement

_OWN_CHANGES: dict[type, str] = {
    TruncateStatement: "TRUNCATE TABLE",
    CreateDatabaseStatement: "CREATE DATABASE",
    DropDatabaseStatement: "DROP DATABASE",
    SplitAtStatement: "ALTER TABLE … SPLIT AT",
    AlterNodeStatement: "ALTER NODE",
    ScatterStatement: "ALTER … SCATTER",
    CancelJobStatement: "CANCEL JOB",
    SetClusterStatement: "SET CLUSTER SETTING",
}
_SETTING_CALLS = frozenset({"nextval", "setval"})


def catalog_change(statement: ParsedStatement) -> str | None:
    """Give what a statement that changes the catalogue, or the cut into ranges, is called; None for any other."""
    tree = statement.tree
    if isinstance(tree, exp.Create | exp.Drop):
        return f"{tree.key.upper()} {str(tree.args.get('kind') or '').upper()}".strip()
    if isinstance(tree, exp.Alter):
        return "ALTER TABLE"
    if isinstance(tree, ConfigureStatement):
        return f"ALTER {'TABLE …' if tree.table else 'CLUSTER'} CONFIGURE {tree.subject.value}"
    return _OWN_CHANGES.get(type(tree))


def must_be_alone(change: str) -> bool:
    """Say whether a change cannot be part of a transaction, as in PostgreSQL; and the cut into ranges is no part of the catalogue."""
    ends = (" DATABASE", "SPLIT AT", "CONFIGURE RANGES", "CONFIGURE PLACEMENT", " NODE", " JOB", " SCATTER", " CLUSTER SETTING")
    return change.endswith(ends)


def runs_in_block(statement: ParsedStatement) -> bool:
    """Say whether a statement outside a transaction runs as the only one of a block.

    CREATE TABLE … AS makes a table and writes its rows; COPY writes for so long that no change of other tables must disturb it.
    """
    tree = statement.tree
    return isinstance(tree, CopyStatement) or (isinstance(tree, exp.Create) and isinstance(tree.expression, exp.Query))


def lock_words(node: exp.Expr) -> str | None:
    """Say how a query locks its rows, as FOR UPDATE and its like; None if it does not."""
    locks = node.args.get("locks")
    return words_of(locks[0]) if locks else None


def words_of(lock: exp.Expr) -> str:
    """Give the words of a locking clause."""
    if lock.args.get("update"):
        return "FOR NO KEY UPDATE" if lock.args.get("key") else "FOR UPDATE"
    return "FOR KEY SHARE" if lock.args.get("key") else "FOR SHARE"


def check_reads_only(statement: ParsedStatement) -> None:
    """Refuse a statement that changes something.  Raises ReadOnlyTransactionError."""
    tree = statement.tree
    name = catalog_change(statement)
    if name is None and isinstance(tree, exp.Insert | exp.Update | exp.Delete):
        name = tree.key.upper()
    if name is None and isinstance(tree, CopyStatement):
        name = "COPY FROM"
    if name is None and isinstance(tree, exp.Query):
        words = lock_words(tree)
        name = None if words is None else f"SELECT {words}"
    if name is None and isinstance(tree, exp.Expr):
        calls = [call.name for call in tree.find_all(exp.Anonymous) if call.name in _SETTING_CALLS]
        name = f"{calls[0]}()" if calls else None
    if name is not None:
        raise ReadOnlyTransactionError(f"cannot execute {name} in a read-only transaction")

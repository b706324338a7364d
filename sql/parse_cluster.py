"""Statements about the cluster itself: states of nodes, scattering ranges, settings of the cluster.

ALTER NODE 3 SET STATE draining | decommissioning | active
ALTER TABLE t SCATTER                ALTER RANGE 17 SCATTER
SET CLUSTER SETTING name = value     RESET CLUSTER SETTING name
SHOW CLUSTER SETTING name            SHOW [ALL] CLUSTER SETTINGS       SHOW JOBS
CANCEL JOB 17
"""

import msgspec
from sqlglot.tokenizer_core import Token, TokenType

from dsdb.sql.parse_words import TableName, Words

NODE_STATES = ("active", "decommissioning", "draining")
"""What may be wanted of a node."""


class AlterNodeStatement(msgspec.Struct, frozen=True, kw_only=True):
    """ALTER NODE n SET STATE state."""

    node_id: int
    state: str


class ScatterStatement(msgspec.Struct, frozen=True, kw_only=True):
    """ALTER TABLE t SCATTER, or of one range."""

    table: TableName | None = None
    range_id: int | None = None


class SetClusterStatement(msgspec.Struct, frozen=True, kw_only=True):
    """SET CLUSTER SETTING name = value; value None: RESET."""

    name: str
    value: str | None


class ShowClusterStatement(msgspec.Struct, frozen=True, kw_only=True):
    """SHOW CLUSTER SETTING name; name None: all."""

    name: str | None = None


class CancelJobStatement(msgspec.Struct, frozen=True, kw_only=True):
    """CANCEL JOB n."""

    job_id: int


ClusterStatement = CancelJobStatement | AlterNodeStatement | ScatterStatement | SetClusterStatement | ShowClusterStatement


def parse_cluster(words: Words, verb: str) -> ClusterStatement | None:
    """Read one of these statements; None if it is none of them.  Raises SqlSyntaxError."""
    if verb == "ALTER":
        if words.take("NODE"):
            return _alter_node(words)
        if words.take("RANGE"):
            scatter = ScatterStatement(range_id=words.integer())
            words.expect("SCATTER")
            words.end()
            return scatter
        if len(words.tokens) > 3 and words.tokens[-1].text.upper() == "SCATTER" and words.take("TABLE"):
            scatter = ScatterStatement(table=words.name())
            words.expect("SCATTER")
            words.end()
            return scatter
    elif verb == "CANCEL":
        words.expect("JOB")
        cancel = CancelJobStatement(job_id=words.integer())
        words.end()
        return cancel
    elif verb in ("SET", "RESET") and words.take("CLUSTER", "SETTING"):
        return _set(words, verb)
    elif verb == "SHOW":
        if words.take("ALL", "CLUSTER", "SETTINGS") or words.take("CLUSTER", "SETTINGS"):
            words.end()
            return ShowClusterStatement()
        if words.take("CLUSTER", "SETTING"):
            show = ShowClusterStatement(name=words.word())
            words.end()
            return show
    return None


def _alter_node(words: Words) -> AlterNodeStatement:
    node_id = words.integer()
    words.expect("SET", "STATE")
    words.take("=") or words.take("TO")
    if words.peek().lower() not in NODE_STATES:
        raise words.error()
    state = words.peek().lower()
    words.index += 1
    words.end()
    return AlterNodeStatement(node_id=node_id, state=state)


def _set(words: Words, verb: str) -> SetClusterStatement:
    name = words.word()
    if verb == "RESET":
        words.end()
        return SetClusterStatement(name=name, value=None)
    if not (words.take("=") or words.take("TO")):
        raise words.error()
    rest: list[Token] = words.tokens[words.index :]
    if not rest:
        raise words.error()
    if len(rest) == 1 and rest[0].text.upper() == "DEFAULT" and rest[0].token_type is not TokenType.STRING:
        return SetClusterStatement(name=name, value=None)
    return SetClusterStatement(name=name, value="".join(token.text for token in rest))

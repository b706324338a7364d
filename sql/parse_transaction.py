"""The statements that begin, end and mark transactions, and AS OF SYSTEM TIME.

    BEGIN, START TRANSACTION [modes]      COMMIT, END      ROLLBACK, ABORT      SAVEPOINT n, ROLLBACK TO n, RELEASE n
    SET TRANSACTION modes                 SET SESSION CHARACTERISTICS AS TRANSACTION modes
    SELECT … FROM t AS OF SYSTEM TIME '-10s'

Every isolation level is read and none is kept, as all transactions are serializable; so is DEFERRABLE, as reads never wait for it.
"""

import enum

import msgspec
from sqlglot.tokenizer_core import Token, TokenType

from dsdb.sql.errors import FeatureNotSupportedError, SqlSyntaxError
from dsdb.sql.parse_words import Words, syntax_error

TRANSACTION_VERBS = frozenset({"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "SAVEPOINT", "RELEASE"})


class Verb(enum.Enum):
    """What a transaction statement does."""

    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    ROLLBACK_TO = "rollback to"
    RELEASE = "release"
    SET_TRANSACTION = "set transaction"
    SET_CHARACTERISTICS = "set session characteristics"


class TransactionStatement(msgspec.Struct, frozen=True, kw_only=True):
    """A statement about the session's transaction.

    tag: its command tag; name: of the savepoint; read_only: READ ONLY, READ WRITE or (None) not said; as_of: of AS OF SYSTEM TIME.
    """

    verb: Verb
    tag: str
    name: str = ""
    read_only: bool | None = None
    as_of: str | None = None


def parse_transaction(words: Words, verb: str) -> TransactionStatement:
    """Read a statement that begins with one of TRANSACTION_VERBS.  Raises SqlSyntaxError, FeatureNotSupportedError."""
    match verb:
        case "BEGIN" | "START":
            if verb == "START":
                words.expect("TRANSACTION")
            else:
                _skip_noise(words)
            return _with_modes(words, Verb.BEGIN, "BEGIN" if verb == "BEGIN" else "START TRANSACTION")
        case "SAVEPOINT":
            return _named(words, Verb.SAVEPOINT, "SAVEPOINT")
        case "RELEASE":
            words.take("SAVEPOINT")
            return _named(words, Verb.RELEASE, "RELEASE")
    if words.take("PREPARED"):
        raise FeatureNotSupportedError(f"{verb} PREPARED is not supported")
    _skip_noise(words)
    if verb == "ROLLBACK" and words.take("TO"):
        words.take("SAVEPOINT")
        return _named(words, Verb.ROLLBACK_TO, "ROLLBACK")
    if words.take("AND", "CHAIN"):
        raise FeatureNotSupportedError(f"{verb} AND CHAIN is not supported", hint="Send BEGIN after it.")
    words.take("AND", "NO", "CHAIN")
    words.end()
    is_commit = verb in ("COMMIT", "END")
    return TransactionStatement(verb=Verb.COMMIT if is_commit else Verb.ROLLBACK, tag="COMMIT" if is_commit else "ROLLBACK")


def parse_set_transaction(words: Words) -> TransactionStatement | None:
    """Read SET TRANSACTION or SET SESSION CHARACTERISTICS behind their SET; None if it is another SET."""
    if words.take("TRANSACTION"):
        if words.take("SNAPSHOT"):
            raise FeatureNotSupportedError("SET TRANSACTION SNAPSHOT is not supported")
        verb = Verb.SET_TRANSACTION
    elif words.take("SESSION", "CHARACTERISTICS"):
        words.expect("AS", "TRANSACTION")
        verb = Verb.SET_CHARACTERISTICS
    else:
        return None
    if not words.peek():
        raise words.error()
    statement = _with_modes(words, verb, "SET")
    if verb is Verb.SET_CHARACTERISTICS and statement.as_of is not None:
        raise FeatureNotSupportedError("AS OF SYSTEM TIME is of one transaction", hint="Give it to BEGIN.")
    return statement


def _skip_noise(words: Words) -> None:
    if not words.take("TRANSACTION"):
        words.take("WORK")


def _named(words: Words, verb: Verb, tag: str) -> TransactionStatement:
    name = words.word()
    words.end()
    return TransactionStatement(verb=verb, tag=tag, name=name)


_LEVELS = (("SERIALIZABLE",), ("REPEATABLE", "READ"), ("READ", "COMMITTED"), ("READ", "UNCOMMITTED"))


def _with_modes(words: Words, verb: Verb, tag: str) -> TransactionStatement:
    read_only: bool | None = None
    as_of: str | None = None
    while words.peek():
        if words.take("ISOLATION", "LEVEL"):
            if not any(words.take(*level) for level in _LEVELS):
                raise words.error()
        elif words.take("READ", "ONLY"):
            read_only = True
        elif words.take("READ", "WRITE"):
            read_only = False
        elif words.take("AS", "OF", "SYSTEM", "TIME"):
            as_of, words.index = _as_of(words.tokens, words.index)
        elif not (words.take("NOT", "DEFERRABLE") or words.take("DEFERRABLE")):
            raise words.error()
        if words.take(",") and not words.peek():
            raise words.error()
    if as_of is not None and read_only is False:
        raise SqlSyntaxError("a transaction AS OF SYSTEM TIME is READ ONLY")
    return TransactionStatement(verb=verb, tag=tag, read_only=read_only, as_of=as_of)


_TAKES = "AS OF SYSTEM TIME takes a literal, '-10s', '2026-01-31 12:00:00' or a number; or follower_read_timestamp()."
_AS_OF = ("AS", "OF", "SYSTEM", "TIME")
_READING_VERBS = frozenset({"SELECT", "WITH", "VALUES", "TABLE", "("})


def take_as_of(tokens: list[Token], verb: str) -> tuple[list[Token], str | None]:
    """Take AS OF SYSTEM TIME out of a statement; give what is left, and its text.  It is one for all tables, wherever it stands.

    Raises SqlSyntaxError, FeatureNotSupportedError (in a statement that writes).
    """
    found: str | None = None
    index = 0
    while index < len(tokens):
        # The second word is the rarest.
        if tokens[index].text.upper() != "SYSTEM" or tuple(token.text.upper() for token in tokens[index - 2 : index + 2]) != _AS_OF:
            index += 1
            continue
        if verb not in _READING_VERBS:
            raise FeatureNotSupportedError("AS OF SYSTEM TIME is only supported in queries", position=tokens[index - 2].start + 1)
        text, end = _as_of(tokens, index + 2)
        if found not in (None, text):
            raise FeatureNotSupportedError(
                "AS OF SYSTEM TIME must be the same for all tables of a statement", position=tokens[index - 2].start + 1
            )
        found = text
        tokens = tokens[: index - 2] + tokens[end:]
        index -= 2
    return tokens, found


def _as_of(tokens: list[Token], index: int) -> tuple[str, int]:
    """Read the time of AS OF SYSTEM TIME; give it and the place behind it."""
    rest = tokens[index : index + 3]
    if rest and rest[0].token_type in (TokenType.STRING, TokenType.NUMBER):
        return rest[0].text, index + 1
    if [token.text.upper() for token in rest] == ["FOLLOWER_READ_TIMESTAMP", "(", ")"]:
        return "follower_read_timestamp()", index + 3
    if not rest:
        raise SqlSyntaxError("syntax error at end of input", position=tokens[-1].end + 2)
    raise syntax_error(rest[0], detail=_TAKES)

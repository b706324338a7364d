"""Text to statements: Postgres's dialect through sqlglot, behind limits, plus the statements that only dsdb has.

    text ─▶ limits ─▶ tokens ─▶ limits ─▶ own statements (SHOW, TRUNCATE, EXPLAIN, SPLIT AT, …)
                                       └▶ sqlglot's parser ─▶ folded names, numbered parameters

Two rewrites of the token list keep the tree plain.  Function calls lose sqlglot's knowledge of other databases' functions: each call
is an `exp.Anonymous` with the name as written, in lower case (special syntax aside: CAST, EXTRACT, POSITION, SUBSTRING, TRIM, OVERLAY,
CURRENT_DATE and its like).  And `?` becomes `$1`, `$2`, … in the order of the text.

Invariants:
- Names are in lower case unless they were quoted.
- Every parameter is `exp.Parameter(this=Literal)`, numbered from 1.
- Identifiers and calls carry their token's place in `meta["start"]`, 0-based; `position_of` gives it from 1.

Not here: whether a clause is supported (the binders refuse what they do not know).
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, TokenError
from sqlglot.tokenizer_core import Token, TokenType

from dsdb.sql.errors import FeatureNotSupportedError, ProgramLimitError, SqlError, SqlSyntaxError
from dsdb.sql.parse_cluster import ClusterStatement, parse_cluster
from dsdb.sql.parse_copy import CopyStatement, parse_copy
from dsdb.sql.parse_limits import check_parsed_text, check_text, check_tokens
from dsdb.sql.parse_ranges import ConfigureStatement, configures_ranges, parse_configure
from dsdb.sql.parse_transaction import TRANSACTION_VERBS, TransactionStatement, parse_set_transaction, parse_transaction, take_as_of
from dsdb.sql.parse_values import read_values
from dsdb.sql.parse_words import CALL_MARK, DESCENDING_MARK, TableName, Words, syntax_error
from dsdb.storage.datum import Datum


class ShowStatement(msgspec.Struct, frozen=True, kw_only=True):
    """SHOW.

    subject: "tables", "columns", "create table", "databases", "ranges", "nodes", "schemas", "consistency", "structure", or a setting's name
    ("all" too); range_id: of the one range whose consistency is asked for.
    """

    subject: str
    table: TableName | None = None
    range_id: int | None = None


class TruncateStatement(msgspec.Struct, frozen=True, kw_only=True):
    """TRUNCATE [TABLE] t [, …] [RESTART IDENTITY | CONTINUE IDENTITY]."""

    tables: tuple[TableName, ...]
    restart_identity: bool = False


class CreateDatabaseStatement(msgspec.Struct, frozen=True, kw_only=True):
    """CREATE DATABASE [IF NOT EXISTS] name."""

    name: str
    if_not_exists: bool = False


class DropDatabaseStatement(msgspec.Struct, frozen=True, kw_only=True):
    """DROP DATABASE [IF EXISTS] name."""

    name: str
    if_exists: bool = False


class SplitAtStatement(msgspec.Struct, frozen=True, kw_only=True):
    """ALTER TABLE t SPLIT AT VALUES (…), (…).  rows: unbound expressions, a prefix of the primary key each."""

    table: TableName
    rows: tuple[tuple[exp.Expr, ...], ...]


class SetStatement(msgspec.Struct, frozen=True, kw_only=True):
    """SET name = value, or RESET name.  value: the words or the literal's text; None means the default."""

    name: str
    value: str | None


class ExplainStatement(msgspec.Struct, frozen=True, kw_only=True):
    """EXPLAIN [ANALYZE] [(FORMAT JSON)] statement."""

    statement: "ParsedStatement"
    analyze: bool = False
    is_json: bool = False


OwnStatement: TypeAlias = (
    ShowStatement
    | TruncateStatement
    | CreateDatabaseStatement
    | DropDatabaseStatement
    | SplitAtStatement
    | ConfigureStatement
    | SetStatement
    | ClusterStatement
    | CopyStatement
    | TransactionStatement
    | ExplainStatement
)


class ParsedStatement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement.

    text: its part of the text that was sent; parameters: the highest parameter number in it; rows: of a bulk INSERT whose rows the
    tree lacks (the tree has one row, a NULL, in their place), where an int, Decimal or bool is a constant of that kind, None is NULL
    and a str is a quoted literal of type unknown; as_of: the text of its AS OF SYSTEM TIME, which the tree lacks.
    """

    text: str
    tree: exp.Expr | OwnStatement
    parameters: int = 0
    rows: list[tuple[Datum, ...]] | None = None
    as_of: str | None = None


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DIALECT = Dialect.get_or_raise("postgres")
_PARSER = _DIALECT.parser_class
_SPECIAL_SYNTAX = _words(
    "CAST EXTRACT POSITION SUBSTRING TRIM OVERLAY FILTER OVER WITHIN VALUES IN EXISTS ANY ALL SOME UNNEST ARRAY ROW IF NOT AND OR AS ON "
    "CASE LIKE USING CHAR VARCHAR CHARACTER NCHAR BPCHAR DECIMAL NUMERIC FLOAT BIT DATE TIME TIMESTAMP TIMESTAMPTZ INTERVAL KEY CHECK "
    "UNIQUE REFERENCES DEFAULT PARTITION"
)
_KNOWN_CALLS = (frozenset(_PARSER.FUNCTIONS) | frozenset(_PARSER.FUNCTION_PARSERS)) - _SPECIAL_SYNTAX
_PARSED_VERBS = _words("SELECT WITH VALUES INSERT UPDATE DELETE CREATE DROP ALTER TABLE (")
_REFUSED_VERBS = _words(
    "GRANT REVOKE VACUUM ANALYZE LISTEN NOTIFY UNLISTEN LOCK CLUSTER REINDEX COMMENT PREPARE EXECUTE DEALLOCATE DECLARE FETCH MOVE "
    "CLOSE CHECKPOINT DISCARD CALL DO MERGE IMPORT SECURITY REFRESH REASSIGN LOAD USE PRAGMA ATTACH DETACH"
)


def position_of(node: exp.Expr | None) -> int | None:
    """Give the 1-based character position of a node's first positioned token, or None."""
    if node is None:
        return None
    starts = [int(child.meta["start"]) for child in node.walk() if child._meta and "start" in child.meta]
    return min(starts) + 1 if starts else None


def parse_statements(sql: str) -> list[ParsedStatement]:
    """Read a text of statements separated by semicolons; empty ones are left out.

    Raises: SqlSyntaxError, ProgramLimitError, StatementTooComplexError, FeatureNotSupportedError (statements that Postgres has).
    """
    check_text(sql)
    if len(sql) > _BULK_CHARS_MIN:
        bulk = read_values(sql)
        if bulk is not None:
            statements = _parse_general(f"{bulk.prefix}(NULL){bulk.suffix}", shift_after=len(bulk.prefix), shift=len(sql))
            text = sql if len(statements) == 1 else statements[0].text
            return [msgspec.structs.replace(statements[0], rows=bulk.rows, text=text), *statements[1:]]
    return _parse_general(sql)


_BULK_CHARS_MIN = 1_000
"""Below this the general parser is as quick."""


def parse_expression(sql: str) -> exp.Expr:
    """Read one scalar expression, as stored for a DEFAULT or a CHECK.

    Raises: SqlSyntaxError, ProgramLimitError, StatementTooComplexError.
    """
    statement = parse_statements(f"SELECT {sql}")[0]
    assert isinstance(statement.tree, exp.Select), f"not an expression: {sql}"
    expression: exp.Expr = statement.tree.expressions[0]
    return expression.pop()


def _parse_general(sql: str, *, shift_after: int | None = None, shift: int = 0) -> list[ParsedStatement]:
    check_parsed_text(sql)
    tokens = _tokenize(sql)
    check_tokens(tokens)
    statements = []
    try:
        for group in _split(tokens):
            statements.append(_parse_tokens(group, sql))
    except SqlError as error:
        # A position behind the rows that were cut out counts from the end of the whole text.
        if shift_after is not None and error.position is not None and error.position > shift_after:
            error.position += shift - len(sql)
        raise
    return statements


def _tokenize(sql: str) -> list[Token]:
    """Cut a text into tokens.

    The tokenizer takes all that follows SHOW, EXPLAIN and a few others as one string: that part is read again, as a text of its own.
    """
    tokens: list[Token] = []
    offset = 0
    for _ in range(_COMMANDS_MAX):
        part = _tokenize_part(sql, offset)
        swallowed = _swallowed_index(part)
        if swallowed is None:
            return tokens + part
        tokens += part[:swallowed]
        offset = part[swallowed - 1].end + 1
    raise ProgramLimitError(f"more than {_COMMANDS_MAX} commands in one text", hint="send them one by one")


_COMMANDS_MAX = 20


def _swallowed_index(tokens: list[Token]) -> int | None:
    for index in range(1, len(tokens)):
        starts = index == 1 or tokens[index - 2].token_type in (TokenType.SEMICOLON, TokenType.BEGIN)
        if starts and tokens[index - 1].token_type in _SWALLOWING and tokens[index].token_type is TokenType.STRING:
            return index
    return None


_SWALLOWING = frozenset({TokenType.COMMAND, TokenType.EXECUTE, TokenType.FETCH, TokenType.SHOW, TokenType.RENAME})


_DOLLARS_SIDE_BY_SIDE = re.compile(r"\$\d[^\s$]*\$")
"""`$1,$2` without a blank: the tokenizer would take `$1,$` for the opening of a dollar-quoted string."""
_QUOTED_OR_NUMBERED = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\$(?:[^\W\d]\w*)?\$.*?\$(?:[^\W\d]\w*)?\$|\$(?=\d)""", re.DOTALL
)


def _masked(match: re.Match[str]) -> str:
    """Write the dollar of a numbered parameter as the tokenizer's other sign of a parameter; quoted text and comments stay."""
    return "@" if match[0] == "$" else match[0]


def _tokenize_part(sql: str, offset: int) -> list[Token]:
    try:
        text = sql[offset:] if offset else sql
        has_dollars = _DOLLARS_SIDE_BY_SIDE.search(text) is not None
        tokens = list(_DIALECT.tokenize(_QUOTED_OR_NUMBERED.sub(_masked, text) if has_dollars else text))
        if not offset and not has_dollars:
            return tokens
        return [
            Token(
                token.token_type,
                "$" if has_dollars and token.text == "@" and text[token.start] == "$" else token.text,
                token.line,
                token.col,
                token.start + offset,
                token.end + offset,
            )
            for token in tokens
        ]
    except TokenError as error:
        for quote, what in (("'", "string"), ('"', "identifier"), ("$$", "string")):
            if sql.count(quote) % 2:
                raise SqlSyntaxError(f"unterminated quoted {what}", position=sql.rfind(quote) + 1) from error
        raise SqlSyntaxError("the text cannot be read: an unterminated string, name or comment") from error


def _split(tokens: Sequence[Token]) -> Iterable[list[Token]]:
    group: list[Token] = []
    for token in tokens:
        if token.token_type is TokenType.SEMICOLON:
            if group:
                yield group
            group = []
        else:
            group.append(token)
    if group:
        yield group


def _parse_tokens(tokens: list[Token], sql: str) -> ParsedStatement:
    text = sql[tokens[0].start : tokens[-1].end + 1]
    verb = tokens[0].text.upper()
    own = _parse_own(tokens, sql, verb)
    if isinstance(own, ExplainStatement):
        return ParsedStatement(text=text, tree=own, parameters=own.statement.parameters, as_of=own.statement.as_of)
    if own is not None:
        return ParsedStatement(text=text, tree=own)
    if verb in _REFUSED_VERBS:
        raise FeatureNotSupportedError(f"{verb} is not supported", position=tokens[0].start + 1)
    if verb not in _PARSED_VERBS:
        raise syntax_error(tokens[0])
    tokens, as_of = take_as_of(tokens, verb)
    if verb == "CREATE":
        tokens = _with_marked_key_order(tokens)
    tokens, parameters = _number_parameters(_without_source_parentheses(tokens) if verb == "INSERT" else tokens)
    tree = _parse_tree(_mark_calls(tokens), sql)
    if isinstance(tree, exp.Command):
        words = " ".join(token.text for token in tokens[:3])
        raise FeatureNotSupportedError(f'this form of "{words} …" is not supported', position=tokens[0].start + 1)
    _fold(tree)
    return ParsedStatement(text=text, tree=tree, parameters=parameters, as_of=as_of)


def _with_marked_key_order(tokens: list[Token]) -> list[Token]:
    """Mark the columns that PRIMARY KEY (…) has in descending order, which the grammar does not know, and take ASC and DESC out."""
    kept: list[Token] = []
    is_key = False
    for index, token in enumerate(tokens):
        if token.token_type is TokenType.L_PAREN:
            is_key = " ".join(before.text.upper() for before in tokens[max(index - 2, 0) : index]).endswith("PRIMARY KEY")
        elif token.token_type is TokenType.R_PAREN:
            is_key = False
        follows_name = is_key and kept[-1].token_type is not TokenType.L_PAREN and kept[-1].token_type is not TokenType.COMMA
        if follows_name and token.token_type is TokenType.DESC:
            name = kept[-1]
            kept[-1] = Token(name.token_type, DESCENDING_MARK + name.text, name.line, name.col, name.start, name.end)
        elif not follows_name or token.token_type is not TokenType.ASC:
            kept.append(token)
    return kept


def _without_source_parentheses(tokens: list[Token]) -> list[Token]:
    """Take the parentheses off `INSERT INTO t (VALUES …)`, which the parser would read as a list of columns."""
    for index, token in enumerate(tokens[: _INSERT_HEAD_TOKENS_MAX - 1]):
        if token.token_type is TokenType.L_PAREN:
            if tokens[index + 1].token_type is not TokenType.VALUES:
                return tokens
            depth = 0
            for end in range(index, len(tokens)):
                depth += {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(tokens[end].token_type, 0)
                if not depth:
                    return [*tokens[:index], *tokens[index + 1 : end], *tokens[end + 1 :]]
            return tokens
    return tokens


_INSERT_HEAD_TOKENS_MAX = 10
"""Within so many tokens the first parenthesis of an INSERT stands."""


def _parse_tree(tokens: list[Token], sql: str) -> exp.Expr:
    try:
        trees = _PARSER(dialect=_DIALECT).parse(tokens, sql)
    except ParseError as error:
        place = error.errors[0] if error.errors else {}
        for token in tokens:
            if token.line == place.get("line") and token.col == place.get("col"):
                raise syntax_error(token, detail=_detail(place.get("description"))) from error
        raise SqlSyntaxError("syntax error", detail=str(place.get("description") or error)) from error
    except TokenError as error:
        raise SqlSyntaxError(f"syntax error: {error}") from error
    if len(trees) != 1 or trees[0] is None:
        raise syntax_error(tokens[0])
    tree: exp.Expr = trees[0]
    return tree


def _detail(description: object) -> str | None:
    text = str(description or "").rstrip(".")
    marks = ("<Token", CALL_MARK, DESCENDING_MARK)
    return text if text and not any(mark in text for mark in marks) else None


def _number_parameters(tokens: list[Token]) -> tuple[list[Token], int]:
    """Turn `?` into `$n`, and give the highest number."""
    highest = 0
    marks = [token for token in tokens if token.token_type is TokenType.PLACEHOLDER]
    numbered: list[Token] = []
    for index, token in enumerate(tokens):
        kind = token.token_type
        if kind is TokenType.PLACEHOLDER:
            highest += 1
            numbered.append(Token(TokenType.PARAMETER, "$", token.line, token.col, token.start, token.end))
            numbered.append(Token(TokenType.NUMBER, str(highest), token.line, token.col, token.start, token.end))
            continue
        if kind is TokenType.PARAMETER:
            following = tokens[index + 1] if index + 1 < len(tokens) else token
            if token.text != "$" or following.token_type is not TokenType.NUMBER or not following.text.isdigit():
                raise syntax_error(token)
            if marks:
                raise SqlSyntaxError("parameters are written either ? or $1, not both in one statement", position=token.start + 1)
            if not 1 <= int(following.text) <= _PARAMETERS_MAX:
                raise SqlSyntaxError(f"there is no parameter ${following.text}", position=token.start + 1)
            highest = max(highest, int(following.text))
        numbered.append(token)
    return numbered, highest


_PARAMETERS_MAX = 65_535


def _mark_calls(tokens: list[Token]) -> list[Token]:
    marked = list(tokens)
    for index in range(len(marked) - 1):
        token = marked[index]
        if marked[index + 1].token_type is TokenType.L_PAREN and token.token_type not in (TokenType.STRING, TokenType.IDENTIFIER):
            name = token.text.upper()
            if name in _KNOWN_CALLS:
                marked[index] = Token(TokenType.VAR, CALL_MARK + token.text.lower(), token.line, token.col, token.start, token.end)
    return marked


def _fold(tree: exp.Expr) -> None:
    """Give names their final spelling, in place."""
    for node in tree.walk():
        if isinstance(node, exp.Identifier):
            if not node.args.get("quoted"):
                node.set("this", node.this.removeprefix(CALL_MARK).lower())
        elif isinstance(node, exp.Anonymous) and isinstance(node.this, str):
            node.set("this", node.this.removeprefix(CALL_MARK).lower())


def _parse_own(tokens: list[Token], sql: str, verb: str) -> OwnStatement | None:
    words = Words(tokens)
    if verb in TRANSACTION_VERBS:
        return parse_transaction(words, verb)
    if verb in ("ALTER", "SET", "RESET", "SHOW", "CANCEL") and (steering := parse_cluster(words, verb)) is not None:
        return steering
    if verb == "SHOW":
        return _parse_show(words)
    if verb == "COPY":
        return parse_copy(words)
    if verb == "TRUNCATE":
        return _parse_truncate(words)
    if verb in ("EXPLAIN", "DESCRIBE"):
        return _parse_explain(words, sql)
    if verb in ("SET", "RESET"):
        return _parse_set(words, verb)
    if verb in ("CREATE", "DROP") and len(tokens) > 1 and tokens[1].text.upper() == "DATABASE":
        return _parse_database(words, verb)
    if verb == "ALTER" and configures_ranges(words):
        return parse_configure(words)
    if verb == "ALTER" and any(token.text.upper() == "SPLIT" for token in tokens[2:9]):
        return _parse_split(words, sql)
    return None


def _parse_show(words: Words) -> ShowStatement:
    subject = words.word()
    table = None
    range_id = None
    if subject == "create":
        words.expect("TABLE")
        subject, table = "create table", words.name()
    elif subject in ("columns", "ranges"):
        if words.take("FROM"):
            words.take("TABLE")
            table = words.name()
        elif subject == "columns":
            raise words.error()
    elif subject == "consistency":
        if words.take("FROM", "RANGE"):
            range_id = words.integer()
        elif words.take("FROM", "STRUCTURE"):
            subject = "structure"
        elif words.take("FROM", "TABLE"):
            table = words.name()
    elif subject == "transaction":
        words.take("ISOLATION", "LEVEL")
        subject = "transaction_isolation"
    elif subject == "time":
        words.expect("ZONE")
        subject = "timezone"
    words.end()
    return ShowStatement(subject=subject, table=table, range_id=range_id)


def _parse_truncate(words: Words) -> TruncateStatement:
    words.take("TABLE")
    words.take("ONLY")
    tables = [words.name()]
    while words.take(","):
        tables.append(words.name())
    restart = words.take("RESTART", "IDENTITY")
    if not restart:
        words.take("CONTINUE", "IDENTITY")
    if words.take("CASCADE"):
        raise FeatureNotSupportedError("TRUNCATE … CASCADE is not supported")
    words.take("RESTRICT")
    words.end()
    return TruncateStatement(tables=tuple(tables), restart_identity=restart)


def _parse_explain(words: Words, sql: str) -> ExplainStatement:
    analyze = is_json = False
    if words.take("("):
        while not words.take(")"):
            if words.take("ANALYZE") or words.take("ANALYSE"):
                analyze = not (words.take("FALSE") or words.take("OFF"))
                words.take("TRUE")
            elif words.take("FORMAT", "JSON"):
                is_json = True
            elif not (words.take("FORMAT", "TEXT") or words.take("COSTS", "OFF") or words.take(",")):
                raise FeatureNotSupportedError(f"the EXPLAIN option {words.peek()} is not supported")
    elif words.take("ANALYZE") or words.take("ANALYSE"):
        analyze = True
    rest = words.tokens[words.index :]
    if not rest:
        raise words.error()
    return ExplainStatement(statement=_parse_tokens(rest, sql), analyze=analyze, is_json=is_json)


def _parse_set(words: Words, verb: str) -> SetStatement | TransactionStatement:
    if words.take("LOCAL"):
        raise FeatureNotSupportedError("SET LOCAL is not supported", hint="SET changes the setting for the session")
    if verb == "SET" and (set_transaction := parse_set_transaction(words)) is not None:
        return set_transaction
    words.take("SESSION")
    if words.take("TIME", "ZONE"):
        name = "timezone"
    else:
        name = ".".join(words.name())
        if verb == "SET" and not (words.take("=") or words.take("TO")):
            raise words.error()
    if verb == "RESET":
        words.end()
        return SetStatement(name=name, value=None)
    rest = words.tokens[words.index :]
    if not rest:
        raise words.error()
    if len(rest) == 1 and rest[0].text.upper() == "DEFAULT" and rest[0].token_type is not TokenType.STRING:
        return SetStatement(name=name, value=None)
    return SetStatement(name=name, value="".join(f"{token.text}" if token.text != "," else ", " for token in rest))


def _parse_database(words: Words, verb: str) -> CreateDatabaseStatement | DropDatabaseStatement:
    words.expect("DATABASE")
    if verb == "CREATE":
        if_not_exists = words.take("IF", "NOT", "EXISTS")
        create = CreateDatabaseStatement(name=words.word(), if_not_exists=if_not_exists)
        words.end()
        return create
    if_exists = words.take("IF", "EXISTS")
    drop = DropDatabaseStatement(name=words.word(), if_exists=if_exists)
    words.take("RESTRICT")
    if words.peek() in ("CASCADE", "WITH", "("):
        raise FeatureNotSupportedError(f"DROP DATABASE … {words.peek()} is not supported", hint="drop its tables first")
    words.end()
    return drop


def _parse_split(words: Words, sql: str) -> SplitAtStatement:
    words.expect("TABLE")
    table = words.name()
    words.expect("SPLIT")
    words.expect("AT")
    rest = words.tokens[words.index :]
    if words.peek() != "VALUES":
        raise words.error()
    tree = _parse_tree(_mark_calls(rest), sql)
    _fold(tree)
    if not isinstance(tree, exp.Values):
        raise SqlSyntaxError("SPLIT AT takes VALUES (…), (…)", position=rest[0].start + 1)
    rows = tuple(tuple(row.expressions) if isinstance(row, exp.Tuple) else (row.unnest(),) for row in tree.expressions)
    return SplitAtStatement(table=table, rows=rows)

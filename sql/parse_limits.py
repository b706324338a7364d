"""What a statement's text may weigh, checked on tokens before any recursive code sees them.

The parser, the binder and the engine recurse with the depth of an expression, and all of them end the process or the query badly
on hostile input (ten thousand nested sub-queries overflow the C stack of the parser and of the engine).  So the depth is bounded
here, where it costs one pass over the tokens.

Invariants:
- A token list that passes gives a tree no deeper than about PATH_WEIGHT_MAX nodes, AND/OR chains aside, which the binder balances.

Not here: limits on rows and bytes of results, which execution has.
"""

import re
from collections.abc import Sequence

from sqlglot.tokenizer_core import Token, TokenType

from dsdb.sql.errors import NumericOutOfRangeError, ProgramLimitError, StatementTooComplexError

TEXT_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of one text, including a bulk INSERT that the VALUES reader takes."""
PARSED_CHARS_MAX = 512 * 1024
"""Characters that go through the general parser: its tokenizer holds the event loop for up to 1 µs a character, and with 2 million
of them a node on a busy machine lost its leases."""
TOKENS_MAX = 50_000
"""Of one text: the parser and the binder hold the event loop for some 20 µs a token."""
NESTING_MAX = 100
"""Open parentheses, brackets and CASEs at any point."""
CHAIN_MAX = 200
"""Binary or prefix operators in one expression, AND and OR aside, summed over the parentheses around it."""
CONNECTOR_MAX = 2_000
"""ANDs and ORs in one pair of parentheses."""
SET_OPERATION_MAX = 100
"""UNIONs, INTERSECTs and EXCEPTs in one query."""

NUMBER_CHARS_MAX = 1_000
"""Characters of a number; NUMERIC holds no more digits, and reading millions of them takes minutes."""
EXPONENT_MAX = 1_000
"""Of a number, either way, for the same reason."""

_EXPONENT = re.compile(r"[eE]([+-]?\d+)$")
_OPENERS = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.CASE, TokenType.L_BRACE})
_CLOSERS = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.END, TokenType.R_BRACE})
_CONNECTORS = frozenset({TokenType.AND, TokenType.OR})
_SET_OPERATIONS = frozenset({TokenType.UNION, TokenType.INTERSECT, TokenType.EXCEPT})
_CLAUSES = frozenset(
    {
        TokenType.COMMA,
        TokenType.SELECT,
        TokenType.FROM,
        TokenType.WHERE,
        TokenType.GROUP_BY,
        TokenType.HAVING,
        TokenType.ORDER_BY,
        TokenType.LIMIT,
        TokenType.OFFSET,
        TokenType.WHEN,
        TokenType.THEN,
        TokenType.ELSE,
        TokenType.AND,
        TokenType.OR,
    }
)
_OPERATORS = frozenset(
    {
        TokenType.PLUS,
        TokenType.DASH,
        TokenType.STAR,
        TokenType.SLASH,
        TokenType.MOD,
        TokenType.CARET,
        TokenType.DPIPE,
        TokenType.NOT,
        TokenType.TILDE,
        TokenType.DCOLON,
        TokenType.DOT,
        TokenType.EQ,
        TokenType.NEQ,
        TokenType.LT,
        TokenType.LTE,
        TokenType.GT,
        TokenType.GTE,
        TokenType.AMP,
        TokenType.PIPE,
        TokenType.HASH,
        TokenType.IS,
        TokenType.LIKE,
        TokenType.ILIKE,
        TokenType.ARROW,
        TokenType.DARROW,
        TokenType.COLLATE,
        TokenType.AT_GT,
        TokenType.PARAMETER,
        TokenType.ISNULL,
        TokenType.NOTNULL,
        TokenType.IN,
        TokenType.BETWEEN,
        TokenType.RLIKE,
        TokenType.IRLIKE,
        TokenType.LT_AT,
    }
)


def check_text(sql: str) -> None:
    """Refuse a text that is too long to be read at all, or that holds a NUL.

    Raises: ProgramLimitError.
    """
    if len(sql) > TEXT_BYTES_MAX or (len(sql) * 4 > TEXT_BYTES_MAX and len(sql.encode("utf-8", "surrogatepass")) > TEXT_BYTES_MAX):
        raise ProgramLimitError(f"statement text is longer than {TEXT_BYTES_MAX} bytes", hint="send the rows in several statements")


def check_parsed_text(sql: str) -> None:
    """Refuse a text that is too long for the general parser.

    Raises: ProgramLimitError.
    """
    if len(sql) > PARSED_CHARS_MAX:
        raise ProgramLimitError(
            f"statement text of {len(sql)} characters is longer than {PARSED_CHARS_MAX}",
            hint="only INSERT … VALUES with plain literals may be longer; pass large values as parameters",
        )


def check_tokens(tokens: Sequence[Token]) -> None:
    """Refuse token lists that would give a tree too deep to walk.

    Raises: ProgramLimitError, NumericOutOfRangeError, StatementTooComplexError (with the position of the token that is too much).
    """
    # One frame per open parenthesis: operators so far in the current item, connectors and set operations so far in the frame.
    frames: list[list[int]] = [[0, 0, 0]]
    path_weight = 0
    for token in tokens:
        kind = token.token_type
        frame = frames[-1]
        if kind in _OPENERS:
            frames.append([0, 0, 0])
            if len(frames) > NESTING_MAX:
                raise _too_complex(f"nested deeper than {NESTING_MAX} levels", token)
        elif kind in _CLOSERS:
            if len(frames) > 1:
                path_weight -= frames.pop()[0]
        elif kind is TokenType.SEMICOLON:
            frames, path_weight = [[0, 0, 0]], 0
        elif kind in _OPERATORS:
            frame[0] += 1
            path_weight += 1
            if path_weight > CHAIN_MAX:
                raise _too_complex(f"an expression of more than {CHAIN_MAX} operators", token)
        elif kind in _CLAUSES:
            path_weight -= frame[0]
            frame[0] = 0
            if kind in _CONNECTORS:
                frame[1] += 1
                if frame[1] > CONNECTOR_MAX:
                    raise _too_complex(f"more than {CONNECTOR_MAX} conditions joined by AND and OR", token)
        elif kind is TokenType.NUMBER:
            _check_number(token)
        elif kind in _SET_OPERATIONS:
            frame[2] += 1
            if frame[2] > SET_OPERATION_MAX:
                raise _too_complex(f"more than {SET_OPERATION_MAX} set operations", token)
    # Last, as the other reasons say more.
    if len(tokens) > TOKENS_MAX:
        raise ProgramLimitError(f"statement has {len(tokens)} tokens, more than {TOKENS_MAX}", hint="send it in several statements")


def _check_number(token: Token) -> None:
    text = token.text
    if len(text) <= NUMBER_CHARS_MAX:
        exponent = _EXPONENT.search(text)
        if exponent is None or abs(int(exponent[1])) <= EXPONENT_MAX:
            return
    raise NumericOutOfRangeError("value overflows numeric format", position=token.start + 1)


def _too_complex(what: str, token: Token) -> StatementTooComplexError:
    return StatementTooComplexError(f"statement is too complex: {what}", position=token.start + 1)

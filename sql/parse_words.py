"""A cursor over the tokens of the statements that are read word by word, and what is said of a token that may not stand where it does."""

from typing import TypeAlias

from sqlglot.tokenizer_core import Token, TokenType

from dsdb.sql.errors import SqlSyntaxError

TableName: TypeAlias = tuple[str, ...]
"""The parts of a dotted name, folded: (table,), (schema, table) or (database, schema, table)."""

CALL_MARK = "call$"
"""Prefixed to names before a parenthesis so that the parser does not know them; it is gone from the tree."""
DESCENDING_MARK = "desc$"
"""Prefixed to a column of PRIMARY KEY (…) that is in descending order."""


def syntax_error(token: Token, detail: str | None = None) -> SqlSyntaxError:
    """Say at which token a text stops being SQL."""
    text = token.text.removeprefix(CALL_MARK)
    return SqlSyntaxError(f'syntax error at or near "{text}"', detail=detail, position=token.start + 1)


class Words:
    """A cursor over the tokens of one of our own statements."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.index = 1

    def peek(self) -> str:
        """Give the next word in upper case, empty at the end."""
        return self.tokens[self.index].text.upper() if self.index < len(self.tokens) else ""

    def take(self, *words: str) -> bool:
        """Step over these words if they come next."""
        following = [token.text.upper() for token in self.tokens[self.index : self.index + len(words)]]
        if following != list(words):
            return False
        self.index += len(words)
        return True

    def expect(self, *words: str) -> None:
        """Step over these words.  Raises SqlSyntaxError if others come."""
        if not self.take(*words):
            raise self.error()

    def error(self) -> SqlSyntaxError:
        """Say that the next token may not stand here."""
        if self.index < len(self.tokens):
            return syntax_error(self.tokens[self.index])
        return SqlSyntaxError("syntax error at end of input", position=self.tokens[-1].end + 2)

    def end(self) -> None:
        """Raise SqlSyntaxError if there is more."""
        if self.index < len(self.tokens):
            raise self.error()

    def word(self) -> str:
        """Take one name, folded."""
        if self.index >= len(self.tokens) or not self.peek()[:1].replace("_", "a").isalpha():
            raise self.error()
        token = self.tokens[self.index]
        if token.token_type in (TokenType.STRING, TokenType.NUMBER):
            raise self.error()
        self.index += 1
        return token.text if token.token_type is TokenType.IDENTIFIER else token.text.lower()

    def integer(self) -> int:
        """Take one number without sign or fraction."""
        if not self.peek().isdecimal():
            raise self.error()
        self.index += 1
        return int(self.tokens[self.index - 1].text)

    def name(self) -> TableName:
        """Take a dotted name."""
        parts = [self.word()]
        while self.take("."):
            parts.append(self.word())
        if len(parts) > 3:
            raise self.error()
        return tuple(parts)

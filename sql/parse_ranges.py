"""ALTER TABLE … CONFIGURE RANGES (…) and ALTER CLUSTER CONFIGURE RANGES (…), read word by word.

    ALTER TABLE t CONFIGURE RANGES (max_bytes = '16 MiB', load_requests = 500, load_bytes = DEFAULT)
                                                └ a number, or text with a unit                 └ as the cluster has it
"""

import itertools
import re

import msgspec
from sqlglot.tokenizer_core import TokenType

from dsdb.sql.errors import SqlSyntaxError
from dsdb.sql.parse_words import TableName, Words

_BYTES = re.compile(r"\s*(\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kb": 1000, "kib": 1 << 10, "mb": 1000**2, "mib": 1 << 20, "gb": 1000**3, "gib": 1 << 30}


class ConfigureRangesStatement(msgspec.Struct, frozen=True, kw_only=True):
    """ALTER TABLE t CONFIGURE RANGES (…); without a table: ALTER CLUSTER.  settings: name and value each, None: DEFAULT."""

    table: TableName | None
    settings: tuple[tuple[str, int | None], ...]


def configures_ranges(words: Words) -> bool:
    """Say whether an ALTER is one of these."""
    following = [token.text.upper() for token in words.tokens[1:9]]
    return ("CONFIGURE", "RANGES") in itertools.pairwise(following)


def parse_configure_ranges(words: Words) -> ConfigureRangesStatement:
    """Read all behind ALTER.  Raises SqlSyntaxError."""
    table = None
    if not words.take("CLUSTER"):
        words.expect("TABLE")
        table = words.name()
    words.expect("CONFIGURE", "RANGES")
    words.expect("(")
    settings: list[tuple[str, int | None]] = []
    while True:
        name = words.word()
        if name in [known for known, _ in settings]:
            raise SqlSyntaxError(f"{name} is set twice")
        words.expect("=")
        settings.append((name, None if words.take("DEFAULT") else _value(words, name)))
        if not words.take(","):
            break
    words.expect(")")
    words.end()
    return ConfigureRangesStatement(table=table, settings=tuple(settings))


def _value(words: Words, name: str) -> int:
    if words.index >= len(words.tokens):
        raise words.error()
    token = words.tokens[words.index]
    found = _BYTES.fullmatch(token.text)
    if token.token_type not in (TokenType.NUMBER, TokenType.STRING) or found is None or found[2].lower() not in _UNITS:
        raise SqlSyntaxError(f"{name} takes a whole number, a text like '64 MiB', or DEFAULT", position=token.start + 1)
    words.index += 1
    return int(found[1]) * _UNITS[found[2].lower()]

"""ALTER TABLE … CONFIGURE RANGES | PLACEMENT (…), and ALTER CLUSTER … for all tables that say nothing themselves, read word by word.

ALTER TABLE t CONFIGURE RANGES (max_bytes = '16 MiB', load_requests = 500, load_bytes = DEFAULT)
                                            └ a number, or text with a unit                 └ as the cluster has it
ALTER TABLE t CONFIGURE PLACEMENT (replicas = 5, constraints = 'region=eu,-machine=m3', lease_preference = 'zone=a')
ALTER TABLE t CONFIGURE PLACEMENT DEFAULT
"""

import difflib
import itertools
import re
from enum import Enum

import msgspec
from sqlglot.tokenizer_core import TokenType

from dsdb.sql.constraints import Constraints, read_constraints
from dsdb.sql.errors import InvalidParameterError, SqlSyntaxError
from dsdb.sql.parse_words import TableName, Words

_BYTES = re.compile(r"\s*(\d+)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kb": 1000, "kib": 1 << 10, "mb": 1000**2, "mib": 1 << 20, "gb": 1000**3, "gib": 1 << 30}

LEAST = {"max_bytes": 64 << 10, "load_requests": 10, "load_bytes": 64 << 10}
"""Name → the lowest value that it takes, beside 0 for never: below these, ranges would cost more than what they hold."""
MOST = 1 << 40
REPLICAS_MOST = 9
"""Nine survive the loss of four nodes; each more is another message for each write."""


class Subject(Enum):
    """What is configured."""

    RANGES = "RANGES"
    PLACEMENT = "PLACEMENT"


NAMES = {Subject.RANGES: tuple(LEAST), Subject.PLACEMENT: ("replicas", "constraints", "lease_preference")}
_KEEPERS = {Subject.RANGES: "ranges have", Subject.PLACEMENT: "a placement has"}


class ConfigureStatement(msgspec.Struct, frozen=True, kw_only=True):
    """ALTER TABLE t CONFIGURE …; without a table: ALTER CLUSTER.  settings: name and value each, None: DEFAULT."""

    table: TableName | None
    subject: Subject
    settings: tuple[tuple[str, int | Constraints | None], ...]


def configures_ranges(words: Words) -> bool:
    """Say whether an ALTER is one of these."""
    following = [token.text.upper() for token in words.tokens[1:9]]
    return any(("CONFIGURE", subject.value) in itertools.pairwise(following) for subject in Subject)


def parse_configure(words: Words) -> ConfigureStatement:
    """Read all behind ALTER.  Raises SqlSyntaxError, InvalidParameterError."""
    table = None
    if not words.take("CLUSTER"):
        words.expect("TABLE")
        table = words.name()
    words.expect("CONFIGURE")
    subject = Subject.RANGES if words.take("RANGES") else Subject.PLACEMENT
    if subject is Subject.PLACEMENT:
        words.expect("PLACEMENT")
    settings = _reset(subject) if words.take("DEFAULT") else _settings(words, subject)
    words.end()
    return ConfigureStatement(table=table, subject=subject, settings=settings)


def _reset(subject: Subject) -> tuple[tuple[str, None], ...]:
    return tuple((name, None) for name in NAMES[subject])


def _settings(words: Words, subject: Subject) -> tuple[tuple[str, int | Constraints | None], ...]:
    settings: dict[str, int | Constraints | None] = {}
    words.expect("(")
    while True:
        name = words.word()
        if name in settings:
            raise SqlSyntaxError(f"{name} is set twice")
        words.expect("=")
        _check_name(subject, name)
        settings[name] = None if words.take("DEFAULT") else _value(words, name)
        if not words.take(","):
            break
    words.expect(")")
    return tuple(settings.items())


def _check_name(subject: Subject, name: str) -> None:
    if name not in NAMES[subject]:
        close = difflib.get_close_matches(name, NAMES[subject], 1)
        hint = f'Did you mean "{close[0]}"?' if close else f"There are {', '.join(NAMES[subject])}."
        raise InvalidParameterError(f'{_KEEPERS[subject]} no setting "{name}"', hint=hint)


def _value(words: Words, name: str) -> int | Constraints:
    if words.index >= len(words.tokens):
        raise words.error()
    token = words.tokens[words.index]
    words.index += 1
    is_text = token.token_type is TokenType.STRING
    if name in ("constraints", "lease_preference"):
        if not is_text:
            raise SqlSyntaxError(f"{name} takes a text like 'region=eu,-machine=m3', or DEFAULT", position=token.start + 1)
        return read_constraints(name, token.text)
    found = _BYTES.fullmatch(token.text) if is_text or token.token_type is TokenType.NUMBER else None
    if name == "replicas":
        if found is None or found[2]:
            raise SqlSyntaxError("replicas takes a whole number, or DEFAULT", position=token.start + 1)
        return _checked_replicas(int(found[1]))
    if found is None or found[2].lower() not in _UNITS:
        raise SqlSyntaxError(f"{name} takes a whole number, a text like '64 MiB', or DEFAULT", position=token.start + 1)
    value = int(found[1]) * _UNITS[found[2].lower()]
    if value and not LEAST[name] <= value <= MOST:
        raise InvalidParameterError(f"{name} must be 0, for never, or from {LEAST[name]} to {MOST}, not {value}")
    return value


def _checked_replicas(count: int) -> int:
    if count % 2 and count <= REPLICAS_MOST:
        return count
    allowed = ", ".join(map(str, range(1, REPLICAS_MOST - 1, 2)))
    hint = "" if count % 2 or not count else f"{count} replicas survive the loss of no more nodes than {count - 1} do."
    raise InvalidParameterError(f"replicas must be {allowed} or {REPLICAS_MOST}, not {count}", hint=hint or None)

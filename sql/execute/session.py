"""A session's state as far as statements see it: its database, its user, its settings and what its sequences gave last.

Invariants:
- Only the statements of the session change it, one at a time.
"""

from dsdb.sql.errors import InvalidParameterError, UndefinedObjectError
from dsdb.sql.schema import DEFAULT_DATABASE

STATEMENT_TIMEOUT_MAX_MS = 2**31 - 1

_DEFAULTS = {
    "application_name": "",
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "default_transaction_isolation": "serializable",
    "extra_float_digits": "1",
    "intervalstyle": "postgres",
    "search_path": "public",
    "server_encoding": "UTF8",
    "server_version": "15.0",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "timezone": "UTC",
    "transaction_isolation": "serializable",
}
_FREE = frozenset({"application_name", "statement_timeout"})
"""Settings that take any (well-formed) value; the others take only what they already mean."""

_SAME = {
    "client_encoding": frozenset({"utf8", "utf-8", "unicode"}),
    "datestyle": frozenset({"iso", "iso, mdy"}),
    "timezone": frozenset({"utc", "gmt", "etc/utc", "0"}),
    "standard_conforming_strings": frozenset({"on", "true", "1"}),
}
"""Other spellings of a fixed setting's only value."""

_UNITS_MS = {"": 1, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000}


class SessionState:
    """What a session's statements share.

    database: name of the current database; user: for messages and `current_user`; settings: by lower-case name, as text;
    sequence_values: by sequence id, what nextval gave last here; last_sequence: id of the sequence used last, or None;
    has_committed: whether the statement that runs has committed something, so that cancelling it does not undo it all (set by the
    statement, reset by who runs it; what sequences give and setval sets does not count, as it never comes back).
    """

    def __init__(self, *, database: str = DEFAULT_DATABASE, user: str = "root") -> None:
        self.database = database
        self.user = user
        self.settings = dict(_DEFAULTS)
        self.sequence_values: dict[int, int] = {}
        self.last_sequence: int | None = None
        self.has_committed = False

    def note_commit(self) -> None:
        """Note that the statement that runs has committed something."""
        self.has_committed = True

    @property
    def statement_timeout_ms(self) -> int:
        """Give the time a statement may take, 0 for no limit; the session's owner enforces it."""
        return int(self.settings["statement_timeout"])

    def setting(self, name: str) -> str:
        """Give a setting as SHOW prints it.  Raises UndefinedObjectError."""
        key = name.lower()
        if key not in self.settings:
            raise _unknown(name)
        return self.settings[key]

    def change_setting(self, name: str, value: str | None) -> None:
        """Set a setting, or reset it (None).  Raises UndefinedObjectError, InvalidParameterError."""
        key = name.lower()
        if key not in _DEFAULTS:
            raise _unknown(name)
        if value is None:
            self.settings[key] = _DEFAULTS[key]
        elif key == "statement_timeout":
            self.settings[key] = str(_milliseconds(value))
        elif key in _FREE:
            self.settings[key] = value
        elif value.lower() != _DEFAULTS[key].lower() and value.lower() not in _SAME.get(key, ()):
            raise InvalidParameterError(
                f'invalid value for parameter "{key}": "{value}"', hint=f'The only value of "{key}" is "{_DEFAULTS[key]}".'
            )


def _unknown(name: str) -> UndefinedObjectError:
    return UndefinedObjectError(f'unrecognized configuration parameter "{name}"')


def _milliseconds(text: str) -> int:
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz ").strip()
    unit = text.strip()[len(digits) :].strip()
    if not digits.isascii() or not digits.isdigit() or unit not in _UNITS_MS:
        raise InvalidParameterError(
            f'invalid value for parameter "statement_timeout": "{text}"', hint="Give milliseconds, or a number with ms, s, min or h."
        )
    milliseconds = int(digits) * _UNITS_MS[unit]
    if milliseconds > STATEMENT_TIMEOUT_MAX_MS:
        raise InvalidParameterError(
            f'{milliseconds} ms is outside the valid range for parameter "statement_timeout" (0 .. {STATEMENT_TIMEOUT_MAX_MS} ms)'
        )
    return milliseconds

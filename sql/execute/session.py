"""A session's state as far as statements see it: its database, user, settings, open transaction, and what its sequences gave last.

Invariants:
- Only the statements of the session change it, one at a time.
"""

from collections.abc import Mapping

from dsdb.sql.errors import InvalidParameterError, UndefinedObjectError
from dsdb.sql.execute.inputs import NO_INPUTS, StatementInputs
from dsdb.sql.execute.open_transaction import OpenTransaction
from dsdb.sql.ports import Transaction
from dsdb.sql.schema import DEFAULT_DATABASE
from dsdb.sql.transaction_status import TransactionStatus
from dsdb.storage.timestamp import Timestamp

TIMEOUT_MAX_MS = 2**31 - 1

DEFAULT_SETTINGS = {
    "application_name": "",
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "off",
    "extra_float_digits": "1",
    "idle_in_transaction_session_timeout": "0",
    "intervalstyle": "postgres",
    "lock_timeout": "0",
    "search_path": "public",
    "server_encoding": "UTF8",
    "server_version": "15.0",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "timezone": "UTC",
    "transaction_isolation": "serializable",
    "transaction_read_only": "off",
}
SETTING_DESCRIPTIONS = {
    "application_name": "Free text: what the client calls itself.",
    "client_encoding": "Encoding of text between client and node.",
    "datestyle": "How dates are written and read.",
    "default_transaction_isolation": "Isolation of new transactions: each level is taken, all are serializable.",
    "default_transaction_read_only": "Whether new transactions are READ ONLY.",
    "extra_float_digits": "Floats are written with as many digits as reading them back needs.",
    "idle_in_transaction_session_timeout": "Milliseconds that an open transaction may wait for its next statement; 0: for ever.",
    "intervalstyle": "How intervals are written.",
    "lock_timeout": "Milliseconds that a statement may wait for a row's lock; 0: as long as the node allows.",
    "search_path": "Schemas in which names without one are looked for.",
    "server_encoding": "Encoding of stored text.",
    "server_version": "The version of PostgreSQL whose dialect this is.",
    "standard_conforming_strings": "A backslash in '…' is a backslash.",
    "statement_timeout": "Milliseconds that a statement may take; 0: no limit.",
    "timezone": "Time zone of TIMESTAMPTZ as text.",
    "transaction_isolation": "Isolation of the open transaction.",
    "transaction_read_only": "Whether the open transaction is READ ONLY.",
}
"""Of each setting."""

_TIMEOUTS = frozenset({"idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout"})
_FREE = frozenset({"application_name"})
"""Settings that take any value; the others, but for timeouts and booleans, take only what they already mean."""

_BOOLEANS = {**dict.fromkeys(("on", "true", "t", "yes", "y", "1"), "on"), **dict.fromkeys(("off", "false", "f", "no", "n", "0"), "off")}
_LEVELS = frozenset({"serializable", "repeatable read", "read committed", "read uncommitted"})
"""All run as serializable."""

_SAME = {
    "default_transaction_isolation": _LEVELS,
    "transaction_isolation": _LEVELS,
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
    transaction: the open one, or None; read_only: whether a new transaction is READ ONLY by itself;
    statement_txn: of the statement that runs outside one, for those who look on; inputs: what comes with the statement that runs;
    has_committed: whether the statement that runs has committed something, so that cancelling it does not undo it all (set by the
    statement, reset by who runs it; what sequences give and setval sets does not count, as it never comes back).
    """

    def __init__(self, *, database: str = DEFAULT_DATABASE, user: str = "root") -> None:
        self.database = database
        self.user = user
        self.settings: Mapping[str, str] = dict(DEFAULT_SETTINGS)
        """Replaced as a whole by each change, so that a transaction keeps the ones before it for free."""
        self.transaction: OpenTransaction | None = None
        self.statement_txn: Transaction | None = None
        self.inputs: StatementInputs = NO_INPUTS
        self.read_only = False
        self.sequence_values: dict[int, int] = {}
        self.last_sequence: int | None = None
        self.has_committed = False
        self.kept_age: Timestamp | None = None
        """When a transaction began that has met others (40001): the next one is most probably the same again, and keeps its age."""

    def note_commit(self) -> None:
        """Note that the statement that runs has committed something."""
        self.has_committed = True

    def fail_transaction(self) -> None:
        """Note that a statement has failed: an open transaction has, too."""
        if self.transaction is not None:
            self.transaction.fail()

    @property
    def status(self) -> TransactionStatus:
        """Say how the session stands to transactions."""
        return TransactionStatus.NONE if self.transaction is None else self.transaction.status

    @property
    def statement_timeout_ms(self) -> int:
        """Give the time a statement may take, 0 for no limit; the session's owner enforces it."""
        return int(self.settings["statement_timeout"])

    @property
    def lock_timeout_ms(self) -> int:
        """Give the time a statement may wait for a lock, 0 for no limit."""
        return int(self.settings["lock_timeout"])

    @property
    def idle_in_transaction_timeout_ms(self) -> int:
        """Give the time a transaction may wait for its next statement, 0 for no limit; the session's owner enforces it."""
        return int(self.settings["idle_in_transaction_session_timeout"])

    def setting(self, name: str) -> str:
        """Give a setting as SHOW prints it.  Raises UndefinedObjectError."""
        key = name.lower()
        if key not in self.settings:
            raise _unknown(name)
        if key == "transaction_read_only" and (self.transaction.read_only if self.transaction is not None else self.read_only):
            return "on"
        return self.settings[key]

    def shown_settings(self) -> list[tuple[str, str]]:
        """Give all settings as SHOW ALL prints them."""
        return [(name, self.setting(name)) for name in sorted(self.settings)]

    def change_setting(self, name: str, value: str | None) -> None:
        """Set a setting, or reset it (None).  Raises UndefinedObjectError, InvalidParameterError."""
        key = name.lower()
        if key not in DEFAULT_SETTINGS:
            raise _unknown(name)
        self.restore_settings({**self.settings, key: DEFAULT_SETTINGS[key] if value is None else _checked(key, value, self.settings[key])})

    def restore_settings(self, settings: Mapping[str, str]) -> None:
        """Make all settings what they were."""
        self.settings = settings
        self.read_only = settings["default_transaction_read_only"] == "on"


def _checked(key: str, value: str, current: str) -> str:
    """Give the value as it is kept.  Raises InvalidParameterError."""
    if key in _TIMEOUTS:
        return str(_milliseconds(key, value))
    if key in _FREE:
        return value
    lowered = value.lower()
    if key == "default_transaction_read_only":
        if lowered not in _BOOLEANS:
            raise InvalidParameterError(f'parameter "{key}" requires a Boolean value')
        return _BOOLEANS[lowered]
    if lowered != DEFAULT_SETTINGS[key].lower() and lowered not in _SAME.get(key, ()):
        raise InvalidParameterError(
            f'invalid value for parameter "{key}": "{value}"', hint=f'The only value of "{key}" is "{DEFAULT_SETTINGS[key]}".'
        )
    return current


def _unknown(name: str) -> UndefinedObjectError:
    return UndefinedObjectError(f'unrecognized configuration parameter "{name}"')


def _milliseconds(name: str, text: str) -> int:
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyz ").strip()
    unit = text.strip()[len(digits) :].strip()
    if not digits.isascii() or not digits.isdigit() or unit not in _UNITS_MS:
        raise InvalidParameterError(
            f'invalid value for parameter "{name}": "{text}"', hint="Give milliseconds, or a number with ms, s, min or h."
        )
    milliseconds = int(digits) * _UNITS_MS[unit]
    if milliseconds > TIMEOUT_MAX_MS:
        raise InvalidParameterError(f'{milliseconds} ms is outside the valid range for parameter "{name}" (0 .. {TIMEOUT_MAX_MS} ms)')
    return milliseconds

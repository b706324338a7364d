"""AS OF SYSTEM TIME: which timestamp its text means.

    '-10s', '-1 hour'              an interval before now
    '2026-01-31 12:00:00+00'       a moment; without a zone it is UTC
    453012345678901248             a timestamp of the oracle, as a number

Only issued timestamps are read at, so that no later commit can fall below one: the future is refused.  The catalogue is always the
present one: what a table was called, and which columns it had, is not looked up in the past.
"""

import re

from dsdb.sql.errors import InvalidParameterError, SqlError
from dsdb.sql.execute.services import Services
from dsdb.sql.text import parse_text
from dsdb.sql.types import INTERVAL, TIMESTAMPTZ
from dsdb.storage.timestamp import COUNTER_BITS, MIN_TIMESTAMP, Timestamp

_NUMBER = re.compile(r"\s*(\d+)(\.\d*)?\s*")
_MICROSECONDS_A_DAY = 86_400_000_000
_DAYS_A_MONTH = 30


async def past_timestamp(text: str, services: Services) -> Timestamp:
    """Give the timestamp that a text means.  Raises InvalidParameterError, and what the oracle raises."""
    now = await services.begin().read_timestamp()
    ts = _meant(text, now)
    if ts > now:
        raise InvalidParameterError(f"cannot read AS OF SYSTEM TIME '{text}': it is in the future")
    if ts <= MIN_TIMESTAMP:
        raise InvalidParameterError(f"cannot read AS OF SYSTEM TIME '{text}': it is before all time")
    return Timestamp(ts)


def _meant(text: str, now: Timestamp) -> int:
    number = _NUMBER.fullmatch(text)
    if number is not None:
        return int(number[1])
    try:
        if text.lstrip().startswith(("-", "+")):
            interval = parse_text(text, INTERVAL)
            assert isinstance(interval, tuple), interval
            months, days, microseconds = interval
            return now + _in_timestamps((months * _DAYS_A_MONTH + days) * _MICROSECONDS_A_DAY + microseconds)
        moment = parse_text(text, TIMESTAMPTZ)
        assert isinstance(moment, int), moment
        return _in_timestamps(moment)
    except SqlError as error:
        raise InvalidParameterError(
            f"AS OF SYSTEM TIME '{text}' is not a time", hint="Write '-10s', '2026-01-31 12:00:00', or a timestamp as a number."
        ) from error


def _in_timestamps(microseconds: int) -> int:
    return (microseconds << COUNTER_BITS) // 1000

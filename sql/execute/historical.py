"""AS OF SYSTEM TIME: which timestamp its text means.

    '-10s', '-1 hour'              an interval before now
    '2026-01-31 12:00:00+00'       a moment; without a zone it is UTC
    453012345678901248             a timestamp of the oracle, as a number
    follower_read_timestamp()      some seconds ago: replicas everywhere should be able to answer, whoever leads their ranges

Only issued timestamps are read at, so that no later commit can fall below one: the future is refused.  The catalogue is always the
present one: what a table was called, and which columns it had, is not looked up in the past.

Where the text does not count from now, and means what this node knows to lie in the past, the oracle is not asked: it may be out of reach.
"""

import re

from dsdb.sql.errors import InvalidParameterError, SqlError
from dsdb.sql.execute.services import Services
from dsdb.sql.text import parse_text
from dsdb.sql.types import INTERVAL, TIMESTAMPTZ
from dsdb.storage.timestamp import COUNTER_BITS, MIN_TIMESTAMP, Timestamp

FOLLOWER_READ = "follower_read_timestamp()"
FOLLOWER_READ_AGO = "-5s"
"""Its meaning where nothing is known: some more than until timestamps are closed everywhere."""
_NUMBER = re.compile(r"\s*(\d+)(\.\d*)?\s*")
_MICROSECONDS_A_DAY = 86_400_000_000
_DAYS_A_MONTH = 30


async def past_timestamp(text: str, services: Services) -> Timestamp:
    """Give the timestamp that a text means.  Raises InvalidParameterError, and what the oracle raises."""
    if text.strip().lower() == FOLLOWER_READ:
        known = services.resolved()
        if known > MIN_TIMESTAMP:
            return known
        text = FOLLOWER_READ_AGO
    if not text.lstrip().startswith(("-", "+")):
        ts = _meant(text, MIN_TIMESTAMP)
        if MIN_TIMESTAMP < ts <= services.issued():
            return Timestamp(ts)
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

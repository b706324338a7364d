"""ALTER TABLE … CONFIGURE RANGES, ALTER CLUSTER CONFIGURE RANGES: when ranges are split by size and by load."""

import difflib

from dsdb.sql.errors import InvalidParameterError
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.result import Result
from dsdb.sql.execute.services import Execution, find_table
from dsdb.sql.parse_ranges import ConfigureRangesStatement

LEAST = {"max_bytes": 64 << 10, "load_requests": 10, "load_bytes": 64 << 10}
"""Name → the lowest value that it takes, beside 0 for never: below these, ranges would cost more than what they hold."""
MOST = 1 << 40


class ConfigureRangesPlan:
    """Sets some of when the ranges of a table, or of the cluster, are split."""

    is_writing = False
    is_reading = False

    def __init__(self, statement: ConfigureRangesStatement, binder: StatementBinder) -> None:
        self._tag = "ALTER CLUSTER" if statement.table is None else "ALTER TABLE"
        self._ids = (0, 0)
        if statement.table is not None:
            table = find_table(statement.table, binder.catalog, binder.session)
            self._ids = table.database_id, table.table_id
        for name, value in statement.settings:
            _check(name, value)
        self._changes = dict(statement.settings)

    async def run(self, execution: Execution) -> Result:
        """Write what is set.  Raises PortError."""
        await execution.services.cluster.configure_ranges(*self._ids, self._changes)
        return Result(self._tag, row_count=None)


def _check(name: str, value: int | None) -> None:
    if name not in LEAST:
        close = difflib.get_close_matches(name, LEAST, 1)
        hint = f'Did you mean "{close[0]}"?' if close else f"There are {', '.join(LEAST)}."
        raise InvalidParameterError(f'ranges have no setting "{name}"', hint=hint)
    if value and not LEAST[name] <= value <= MOST:
        raise InvalidParameterError(f"{name} must be 0, for never, or from {LEAST[name]} to {MOST}, not {value}")

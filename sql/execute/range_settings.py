"""ALTER TABLE … CONFIGURE RANGES | PLACEMENT, ALTER CLUSTER CONFIGURE …: when ranges are split, and where their replicas are to be."""

from dsdb.sql.errors import InvalidParameterError
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.result import Notice, Result
from dsdb.sql.execute.services import Execution, find_table
from dsdb.sql.parse_ranges import ConfigureStatement
from dsdb.sql.ports_steering import RefusedError


class ConfigurePlan:
    """Sets some of what holds for the ranges of a table, or of the cluster."""

    is_writing = False
    is_reading = False

    def __init__(self, statement: ConfigureStatement, binder: StatementBinder) -> None:
        self._tag = "ALTER CLUSTER" if statement.table is None else "ALTER TABLE"
        self._ids = (0, 0)
        if statement.table is not None:
            table = find_table(statement.table, binder.catalog, binder.session)
            self._ids = table.database_id, table.table_id
        self._changes = dict(statement.settings)

    async def run(self, execution: Execution) -> Result:
        """Write what is set, and tell what of it cannot come true now.  Raises PortError."""
        try:
            doubts = await execution.services.cluster.configure_ranges(*self._ids, self._changes)
        except RefusedError as error:
            raise InvalidParameterError(str(error)) from error
        return Result(self._tag, row_count=None, notices=tuple(Notice(doubt, "01000", "WARNING") for doubt in doubts))

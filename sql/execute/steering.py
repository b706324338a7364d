"""The plans of statements that steer the cluster."""

from collections.abc import Awaitable
from typing import TypeVar

from dsdb.sql.cluster_settings import cluster_setting
from dsdb.sql.errors import InvalidParameterError
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.result import Result, ResultColumn
from dsdb.sql.execute.services import Execution, find_table
from dsdb.sql.execute.steering_rows import cluster_setting_rows
from dsdb.sql.parse_cluster import (
    AlterNodeStatement,
    CancelJobStatement,
    ClusterStatement,
    ScatterStatement,
    SetClusterStatement,
    ShowClusterStatement,
)
from dsdb.sql.ports_steering import RefusedError
from dsdb.sql.rows import rows_of
from dsdb.sql.types import BIGINT, TEXT

T = TypeVar("T")

_SETTING_COLUMNS = tuple(ResultColumn(name, TEXT) for name in ("name", "value", "default_value", "description"))


class SteeringPlan:
    """Any of them: it touches no row, and no transaction."""

    is_writing = False
    is_reading = False

    def __init__(self, statement: ClusterStatement, binder: StatementBinder) -> None:
        self._statement = statement
        self._span = None
        if isinstance(statement, ScatterStatement) and statement.table is not None:
            self._span = rows_of(find_table(statement.table, binder.catalog, binder.session)).span

    async def run(self, execution: Execution) -> Result:
        """Do it, or begin to."""
        steering = execution.services.steering
        match self._statement:
            case AlterNodeStatement(node_id=node_id, state=state):
                await _granted(steering.set_node_state(node_id, state))
                return Result("ALTER NODE", row_count=None)
            case CancelJobStatement(job_id=job_id):
                await _granted(steering.cancel_job(job_id))
                return Result("CANCEL JOB", row_count=None)
            case ScatterStatement(range_id=range_id):
                done = await _granted(steering.scatter(self._span, range_id))
                columns = (ResultColumn("moves_begun", BIGINT), ResultColumn("ranges_left", BIGINT))
                return Result("SCATTER", columns=columns, rows=[(done.begun, done.left)], row_count=1)
            case SetClusterStatement(name=name, value=text):
                setting = cluster_setting(name)
                await _granted(steering.change_setting(setting.name, None if text is None else setting.read(text)))
                return Result("SET CLUSTER SETTING" if text is not None else "RESET CLUSTER SETTING", row_count=None)
            case ShowClusterStatement(name=None):
                rows = await cluster_setting_rows(execution)
                return Result("SHOW", columns=_SETTING_COLUMNS, rows=rows, row_count=len(rows))
            case ShowClusterStatement(name=name):
                setting = cluster_setting(str(name))
                value = (await steering.settings()).get(setting.name, setting.default)
                return Result("SHOW", columns=(ResultColumn(setting.name, TEXT),), rows=[(setting.spelled(value),)], row_count=1)


async def _granted(asked: Awaitable[T]) -> T:
    try:
        return await asked
    except RefusedError as error:
        raise InvalidParameterError(str(error)) from error

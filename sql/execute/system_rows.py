"""The rows of the virtual tables: what the cluster and the session say, in the columns that `system_tables` gives them.

Invariants:
- Nothing here needs the oracle or a lease of the catalogue, which only spells keys: a name in it may be an old one.
- What could not be had is missing, and a notice says so.
"""

from collections.abc import Awaitable, Callable, Sequence

from dsdb.sql.constraints import spelled
from dsdb.sql.execute.key_text import TableNames, bound_text
from dsdb.sql.execute.result import Notice
from dsdb.sql.execute.services import Execution
from dsdb.sql.execute.session import DEFAULT_SETTINGS, SETTING_DESCRIPTIONS
from dsdb.sql.execute.steering_rows import cluster_setting_rows, job_rows, store_rows
from dsdb.sql.ports import PortError
from dsdb.sql.rows import Row
from dsdb.storage.keys import EVERYTHING, Span
from dsdb.storage.timestamp import to_milliseconds


async def system_rows(execution: Execution, name: str) -> Sequence[Row]:
    """Give all rows of a virtual table.  Raises PortError."""
    return await _TABLES[name](execution)


async def node_rows(execution: Execution) -> list[Row]:
    """Describe the nodes, as SHOW NODES does."""
    nodes = await execution.services.cluster.nodes()
    return [(node.node_id, node.address, node.is_live, node.ranges, node.leases, node.locality, node.state) for node in nodes]


def replicas_text(replicas: Sequence[int]) -> str:
    """Spell a list of nodes as Postgres spells an array."""
    return "{" + ",".join(map(str, replicas)) + "}"


async def _ranges(execution: Execution) -> list[Row]:
    catalog = execution.catalog
    names = TableNames(catalog)
    return [
        (
            info.range_id,
            *names.only_one(Span(info.start_key, info.end_key)),
            bound_text(info.start_key, catalog),
            bound_text(info.end_key, catalog),
            info.leaseholder,
            replicas_text(info.replicas),
            replicas_text(info.quarantined),
            info.size_bytes,
            None if info.requests_per_s is None else round(info.requests_per_s, 1),
            info.blocks,
        )
        for info in await execution.services.cluster.ranges(EVERYTHING)
    ]


async def _range_settings(execution: Execution) -> list[Row]:
    catalog = execution.catalog
    names = {
        table.table_id: (database.name, table.name) for database in catalog.databases() for table in catalog.tables(database.database_id)
    }
    return [
        (
            *names.get(info.table_id, (None, None)),
            info.max_bytes,
            info.load_requests,
            info.load_bytes,
            info.replicas,
            spelled(info.constraints),
            spelled(info.lease_preference),
        )
        for info in await execution.services.cluster.range_settings()
        # What is read of the catalogue may be a little older.
        if info.table_id == 0 or info.table_id in names
    ]


async def _settings(execution: Execution) -> list[Row]:
    own: list[Row] = [
        (name, value, SETTING_DESCRIPTIONS.get(name), "session", DEFAULT_SETTINGS[name])
        for name, value in execution.session.shown_settings()
    ]
    try:
        shared = await cluster_setting_rows(execution)
    except PortError as error:
        execution.notices.append(Notice(f"the settings of the cluster are missing: {error}", "01000", "WARNING"))
        return own
    return own + [(name, value, description, "cluster", default) for name, value, default, description in shared]


async def _leases(execution: Execution) -> list[Row]:
    catalog = execution.catalog
    names = TableNames(catalog)
    return [
        (
            info.range_id,
            *names.only_one(Span(info.start_key, info.end_key)),
            info.leaseholder,
            bound_text(info.start_key, catalog),
            bound_text(info.end_key, catalog),
            None if info.requests_per_s is None else round(info.requests_per_s, 1),
        )
        for info in await execution.services.cluster.ranges(EVERYTHING)
        if info.leaseholder is not None
    ]


async def _transactions(execution: Execution) -> list[Row]:
    found, missing = await execution.services.cluster.transactions()
    execution.notices += [Notice(sentence, "01000", "WARNING") for sentence in missing]
    return [
        (
            info.node_id,
            info.session_id,
            None if info.attempt is None else info.attempt.hex(),
            info.started_us,
            info.state,
            info.statement,
            None if info.read_timestamp is None else to_milliseconds(info.read_timestamp) * 1000,
            info.writes,
            info.bytes,
        )
        for info in found
    ]


async def _events(execution: Execution) -> list[Row]:
    events = await execution.services.cluster.events()
    return [(event.event_id, event.at_us, event.kind, event.range_id, event.what, event.is_done) for event in events]


async def _locks(execution: Execution) -> list[Row]:
    found, missing = await execution.services.cluster.locks()
    execution.notices += [Notice(sentence, "01000", "WARNING") for sentence in missing]
    names = TableNames(execution.catalog)
    return [(info.range_id, *names.of_row(info.key), info.holder.hex(), info.holder_node, info.since_us, info.waiters) for info in found]


_TABLES: dict[str, Callable[[Execution], Awaitable[Sequence[Row]]]] = {
    "events": _events,
    "jobs": job_rows,
    "leases": _leases,
    "locks": _locks,
    "nodes": node_rows,
    "range_settings": _range_settings,
    "ranges": _ranges,
    "settings": _settings,
    "stores": store_rows,
    "transactions": _transactions,
}

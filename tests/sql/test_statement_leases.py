"""An idle node's catalogue may be an old one: statements never rely on it once its lease has run out."""

import trio

from dsdb.sql.catalog_lease import CatalogLeases
from dsdb.sql.execute.session import SessionState
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from tests.sql.conformance import LocalDatabase


def test_a_node_whose_lease_has_run_out_finds_a_table_made_meanwhile() -> None:
    async def scenario() -> None:
        idle = LocalDatabase()
        session = SessionState()
        await idle.found()
        await idle.run(session, "SELECT 1")
        assert idle.catalogs.acquire_nowait() is not None
        other = CatalogLeases(
            node_id=2, transactions=idle.store.begin, fresh_timestamp=idle.store.fresh_timestamp, notify=_tell_nobody, duration_ms=1000
        )
        maker = LocalDatabase()
        maker.store, maker.catalogs = idle.store, other
        maker.services.begin, maker.services.catalogs = idle.store.begin, other
        idle.store.clock = Timestamp(idle.store.clock + from_milliseconds(7_200_000))
        await maker.run(session, "CREATE TABLE made (id INT PRIMARY KEY)")
        ((_, shown),) = await idle.run(session, "SHOW TABLES")
        assert [row[-1] for row in shown] == ["made"]
        idle.store.clock = Timestamp(idle.store.clock + from_milliseconds(7_200_000))
        await maker.run(session, "CREATE TABLE made_later (id INT PRIMARY KEY)")
        await idle.run(session, "INSERT INTO made_later VALUES (1)")
        idle.close()
        maker.close()

    trio.run(scenario)


async def _tell_nobody(version: int) -> None:
    return

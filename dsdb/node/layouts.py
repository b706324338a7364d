"""What folding needs to know of rows: the layouts of an index, by the catalogue of this node.

Invariants:
- A layout id of a table names the same columns for ever, so a catalogue that is not the newest is as good; what it does not know is
  asked of the newest one, seldom.
"""

import logging
from collections.abc import Mapping

from dsdb.env import Clock
from dsdb.sql.catalog import Catalog
from dsdb.sql.catalog_lease import CatalogLeases
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.sql.rows import row_layout
from dsdb.storage.rowcodec import RowLayout

log = logging.getLogger("dsdb.node")

RENEW_PAUSE_S = 30.0
"""Between two questions for the newest catalogue: rows of a dropped table stay unknown until they are gone."""


class CatalogLayouts:
    """Implements `LayoutSource` of `dsdb.store.folding`."""

    def __init__(self, leases: CatalogLeases, clock: Clock) -> None:
        self._leases = leases
        self._clock = clock
        self._renewed_at = -RENEW_PAUSE_S

    async def layouts_of(self, database_id: int, table_id: int, index_id: int) -> Mapping[int, RowLayout]:
        """Give the layouts of an index's rows by their ids; none if it is not known."""
        found = _find(self._leases.newest, database_id, table_id, index_id)
        now = self._clock.now()
        if not found and now - self._renewed_at >= RENEW_PAUSE_S:
            self._renewed_at = now
            try:
                await self._leases.renew()
            except (SqlError, PortError) as error:
                log.info("folding does without the newest catalogue: %s", error)
            found = _find(self._leases.newest, database_id, table_id, index_id)
        return found


def _find(catalog: Catalog | None, database_id: int, table_id: int, index_id: int) -> Mapping[int, RowLayout]:
    table = None if catalog is None else catalog.table_by_id(table_id)
    if table is None or table.database_id != database_id or table.primary.index_id != index_id:
        return {}
    layout = row_layout(table)
    return {layout.layout_id: layout}

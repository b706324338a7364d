"""What is set for the ranges of tables, and of the cluster: when they are split, and where their replicas are to be.

    product ◂ cluster (CLUSTER_TABLE) ◂ table          each leaves open what the one before it says

Invariants:
- A range that holds one table's rows obeys that table; one that tables share is split by the lowest limit of any that is set, or shared.
- What is not set anywhere is the product's default: a cluster that was never told anything needs no settings.

Not here: who obeys where replicas are to be (`dsdb.coordinator.placement`); here only when to split.
"""

from collections.abc import Mapping

import msgspec

from dsdb.sql.constraints import Constraints
from dsdb.storage.keys import Span, table_prefix

CLUSTER_TABLE = 0
"""In the place of a table's id: the cluster's defaults.  Real ids begin at 1."""
MAX_BYTES = 64 << 20
LOAD_REQUESTS = 1000
"""Requests a second: a fifth of what a node on one processor serves."""
LOAD_BYTES = 16 << 20
MAX_BYTES_LEAST = 64 << 10
"""A range costs some 30 KiB of memory and a share of a message now and then: less than this is not worth one."""
LOAD_REQUESTS_LEAST, LOAD_BYTES_LEAST = 10, 64 << 10
"""Below these, ranges would be split that are all but idle."""


class RangeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """When a range is split: above so many logical bytes, or while so much is asked of it; 0: never for that reason."""

    max_bytes: int = MAX_BYTES
    load_requests: int = LOAD_REQUESTS
    """Requests a second."""
    load_bytes: int = LOAD_BYTES
    """Bytes read and written a second."""


class StoredSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is set for a table, or for the cluster; None: nothing."""

    database_id: int = 0
    max_bytes: int | None = None
    load_requests: int | None = None
    load_bytes: int | None = None
    replicas: int | None = None
    constraints: Constraints | None = None
    lease_preference: Constraints | None = None

    @property
    def says_when_to_split(self) -> bool:
        """Say whether something is set about splits."""
        return any(value is not None for value in (self.max_bytes, self.load_requests, self.load_bytes))

    @property
    def says_where_to_be(self) -> bool:
        """Say whether something is set about replicas and leases."""
        return any(value is not None for value in (self.replicas, self.constraints, self.lease_preference))

    def over(self, settings: RangeSettings) -> RangeSettings:
        """Give settings with what is set here in their place."""
        return RangeSettings(
            max_bytes=settings.max_bytes if self.max_bytes is None else self.max_bytes,
            load_requests=settings.load_requests if self.load_requests is None else self.load_requests,
            load_bytes=settings.load_bytes if self.load_bytes is None else self.load_bytes,
        )


def table_span(database_id: int, table_id: int) -> Span:
    """Give all keys of a table; both bounds read as prefixes of tables."""
    return Span(table_prefix(database_id, table_id), table_prefix(database_id, table_id + 1))


class SettingsBook:
    """All that is set, as a store looks at it."""

    def __init__(self, stored: Mapping[int, StoredSettings]) -> None:
        self.default = stored.get(CLUSTER_TABLE, StoredSettings()).over(RangeSettings())
        self._tables = sorted(
            (table_span(said.database_id, table_id), said.over(self.default))
            for table_id, said in stored.items()
            if table_id != CLUSTER_TABLE and said.says_when_to_split
        )

    def of(self, span: Span) -> RangeSettings:
        """Give what holds for a range."""
        found = self.default
        for table, settings in self._tables:
            if table.covers(span):
                return settings
            if table.overlaps(span):
                found = _lowest(found, settings)
        return found


def _lowest(one: RangeSettings, other: RangeSettings) -> RangeSettings:
    return RangeSettings(
        max_bytes=_lower(one.max_bytes, other.max_bytes),
        load_requests=_lower(one.load_requests, other.load_requests),
        load_bytes=_lower(one.load_bytes, other.load_bytes),
    )


def _lower(one: int, other: int) -> int:
    """Give the lower limit; 0 is none."""
    return min(one, other) if one and other else one or other

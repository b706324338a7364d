"""When ranges are split: the cluster's defaults, and what tables say of their own.

    product ◂ cluster (CLUSTER_TABLE) ◂ table          each leaves open what the one before it says

Invariants:
- A range that holds one table's rows obeys that table; one that tables share is split by the lowest limit of any that is set, or shared.
- What is not set anywhere is the product's default: a cluster that was never told anything needs no settings.
"""

from collections.abc import Mapping

import msgspec

from dsdb.storage.keys import Span, prefix_span, table_prefix

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

    def over(self, settings: RangeSettings) -> RangeSettings:
        """Give settings with what is set here in their place."""
        return RangeSettings(
            max_bytes=settings.max_bytes if self.max_bytes is None else self.max_bytes,
            load_requests=settings.load_requests if self.load_requests is None else self.load_requests,
            load_bytes=settings.load_bytes if self.load_bytes is None else self.load_bytes,
        )


class SettingsBook:
    """All that is set, as a store looks at it."""

    def __init__(self, stored: Mapping[int, StoredSettings]) -> None:
        self.default = stored.get(CLUSTER_TABLE, StoredSettings()).over(RangeSettings())
        self._tables = sorted(
            (prefix_span(table_prefix(said.database_id, table_id)), said.over(self.default))
            for table_id, said in stored.items()
            if table_id != CLUSTER_TABLE
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

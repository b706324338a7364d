"""The workloads that clients run in turns."""

from typing import Literal, TypeAlias

import msgspec

from bench.rows import BULK_ROWS

Argument: TypeAlias = Literal["drawn", "counted", "rows"]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What clients do.

    operation, argument, step: of `bench.clients.SliceOrder`; rows: of the table that is read; unit: what is counted; units: of them a
    statement; clients_max: more make no sense.
    """

    name: str
    operation: str
    argument: Argument
    rows: int = 0
    step: int = 1
    unit: str = "statements"
    units: int = 1
    clients_max: int = 64


def workloads(*, kv_rows: int, wide_rows: int) -> dict[str, Workload]:
    """Give all, by name, in the order in which they run."""
    bulk = Workload(name="bulk", operation="insert_bulk", argument="counted", step=BULK_ROWS, unit="rows", units=BULK_ROWS, clients_max=16)
    arrow = Workload(
        name="fetch-arrow", operation="fetch_arrow", argument="rows", rows=wide_rows, unit="rows", units=wide_rows, clients_max=1
    )
    found = (
        Workload(name="read", operation="read", argument="drawn", rows=kv_rows),
        Workload(name="insert", operation="insert", argument="counted"),
        bulk,
        arrow,
        msgspec.structs.replace(arrow, name="fetch-pandas", operation="fetch_pandas"),
    )
    return {workload.name: workload for workload in found}

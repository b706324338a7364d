"""The workloads that clients run in turns."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from bench import bank
from bench.rows import BULK_ROWS

Argument: TypeAlias = Literal["drawn", "counted", "rows"]
TRANSFERS = "transfers"
"""The unit of workloads whose operations may be aborted and tried again."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What clients do.

    operation, argument, step: of `bench.clients.SliceOrder`; rows: of the table that is read; unit: what is counted; units: of them a
    statement; clients_usual: their numbers if nobody says another; clients_max: more make no sense.
    """

    name: str
    operation: str
    argument: Argument
    rows: int = 0
    step: int = 1
    unit: str = "statements"
    units: int = 1
    clients_usual: tuple[int, ...] = (1, 16, 64)
    clients_max: int = 64

    def client_counts(self, wanted: Sequence[int]) -> list[int]:
        """Give the numbers of clients to run with, of those that are wanted; wanting none leaves it to the workload."""
        return sorted({min(count, self.clients_max) for count in wanted or self.clients_usual})


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
        *(
            Workload(name=name, operation="transfer", argument="rows", rows=accounts, unit=TRANSFERS, clients_usual=(16,))
            for name, accounts in bank.ACCOUNTS.items()
        ),
    )
    return {workload.name: workload for workload in found}

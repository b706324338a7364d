"""Nodes for which a few rows are many: blocks of eight rows, cuts of a few, leaves that wait for each other's keys always.

with small_sizes(): dsdb.connect()                       an embedded node
python -m tests.differential.small_sizes start …         `dsdb start`, as the launcher of a `ProcessCluster`
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from unittest import mock

from dsdb.flow import fragment, scanning
from dsdb.node import parts
from dsdb.sql.execute import waiting
from dsdb.storage.columnar import chunk
from dsdb.store.config import StoreConfig

BLOCK_ROWS = 8

_FOLDS_SOON = partial(
    StoreConfig,
    fold_look_s=0.05,
    fold_quiet_s=0.1,
    fold_rest_s=0.2,
    fold_busy_writes=16,
    fold_range_bytes_min=1,
    fold_versions_min=1,
    fold_rest_versions=1,
    fold_batch_versions=64,
    fold_block_rows=BLOCK_ROWS,
    fold_share=1.0,
)


@contextlib.contextmanager
def small_sizes() -> Iterator[None]:
    """Let nodes of this process that are started within have small sizes; those of queries hold for all until it is left."""
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (parts, "StoreConfig", _FOLDS_SOON),
            (fragment, "FIRST_QUERY_ROWS", 3),
            (fragment, "QUERY_ROWS", 12),
            (scanning, "BATCH_ROWS", 5),
            (scanning, "ALONE_ROWS", 3),
            (chunk, "DICTIONARY_SHARE", 1),
            (waiting, "WAITING_ROWS_MIN", 1),
            (waiting, "NARROWED_SHARE", 1.0),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def main() -> None:
    from dsdb.cli.main import main as run

    with small_sizes():
        run(prog_name="dsdb")


if __name__ == "__main__":
    main()

"""Connections of the real driver for sqllogictest scripts, each script over an embedded node of its own.

    python slt.py --factory tests.differential.slt_factory:connect FILE_OR_DIR...

The runner gives each script a process of its own, so that the node in memory, which lives until its last connection closes, is a
script's alone: `fresh` opens it, and keeps it open between the script's connections.
"""

from __future__ import annotations

import dsdb
from dsdb.driver.connection import Connection

ENGINE = "dsdb"

_kept: Connection | None = None


def fresh(path: str) -> None:
    """Begin a script with an empty database."""
    global _kept
    if _kept is not None:
        _kept.close()
    _kept = dsdb.connect(autocommit=True)


def connect() -> Connection:
    """Connect to the script's database."""
    if _kept is None:
        fresh("")
    return dsdb.connect(autocommit=True)

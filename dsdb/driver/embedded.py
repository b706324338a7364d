"""The node of this process, for connections to a directory or to memory.

The node's code is imported only here, and only when it is asked for: a client of a cluster never loads it.
"""

import importlib
from typing import TYPE_CHECKING

from dsdb.driver.errors import OperationalError

if TYPE_CHECKING:
    from dsdb.driver.connection import EmbeddedNode


def open_node(directory: str | None) -> "tuple[EmbeddedNode, tuple[str, int]]":
    """Open the node of a directory (None: one in memory), or take a share in it; give it and its address.  Raises OperationalError."""
    embedded = importlib.import_module("dsdb.node.embedded")
    start_error: type[Exception] = importlib.import_module("dsdb.node.config").StartError
    try:
        node: EmbeddedNode = embedded.open_embedded(directory)
    except start_error as error:
        raise OperationalError(f"the embedded node did not start: {error}", sqlstate="08001") from error
    host, port = node.address
    return node, (host, port)

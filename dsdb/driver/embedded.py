"""The node of this process, for connections to a directory or to memory.

The node's code is imported only here, and only when it is asked for: a client of a cluster never loads it.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsdb.driver.connection import EmbeddedNode


def open_node(directory: str | None) -> "tuple[EmbeddedNode, tuple[str, int]]":
    """Open the node of a directory (None: one in memory), or take a share in it; give it and its address."""
    node: EmbeddedNode = importlib.import_module("dsdb.node.embedded").open_embedded(directory)
    host, port = node.address
    return node, (host, port)

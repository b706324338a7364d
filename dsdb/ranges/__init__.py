"""Finding the range that holds a key, and getting an answer from its leaseholder.

`cache` remembers descriptors, `router` asks and asks again; `methods` names the calls between nodes.
"""

from dsdb.ranges.cache import CachedRange, RangeCache
from dsdb.ranges.methods import KV_CALL
from dsdb.ranges.router import Copies, LocalStore, Router

__all__ = ["KV_CALL", "CachedRange", "Copies", "LocalStore", "RangeCache", "Router"]

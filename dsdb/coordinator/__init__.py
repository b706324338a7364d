"""The coordinator: decides, at the leaseholder of the system range, which replicas and leases should be elsewhere.

`plan` is the decision, a pure function; `coordinator` carries it out; `meta` keeps the addressing index behind the ranges' own descriptors.
"""

from dsdb.coordinator.coordinator import Coordinator
from dsdb.coordinator.meta import MetaWriter
from dsdb.coordinator.plan import AddReplicas, Move, RangeView, StoreView, TransferLease, plan

__all__ = ["AddReplicas", "Coordinator", "MetaWriter", "Move", "RangeView", "StoreView", "TransferLease", "plan"]

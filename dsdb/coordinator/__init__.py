"""The coordinator: decides, at the leaseholder of the system range, which replicas and leases should be elsewhere.

`plan` is the decision, a pure function of a `view`; `coordinator` fills the view and has moves carried out; `meta` keeps the addressing
index behind the ranges' own descriptors.
"""

from dsdb.coordinator.coordinator import Coordinator
from dsdb.coordinator.meta import MetaWriter

__all__ = ["Coordinator", "MetaWriter"]

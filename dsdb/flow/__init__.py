"""Stages across nodes: `gather` cuts a leaf stage up by the nodes that serve its ranges, `fragment` runs a piece of it on one; `leaders`
finds out who leads very many ranges."""

from dsdb.flow.fragment import FRAGMENT, FragmentRequest, FragmentRunner
from dsdb.flow.gather import Gatherer
from dsdb.flow.leaders import LEADERS, Leaders
from dsdb.flow.scanning import ScanSource

__all__ = ["FRAGMENT", "LEADERS", "FragmentRequest", "FragmentRunner", "Gatherer", "Leaders", "ScanSource"]

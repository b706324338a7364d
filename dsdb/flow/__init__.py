"""Stages across nodes: `gather` cuts a leaf stage up by the nodes that serve its ranges, `fragment` runs a piece of it on one."""

from dsdb.flow.fragment import FRAGMENT, FragmentRequest, FragmentRunner, ScanSource
from dsdb.flow.gather import Gatherer

__all__ = ["FRAGMENT", "FragmentRequest", "FragmentRunner", "Gatherer", "ScanSource"]

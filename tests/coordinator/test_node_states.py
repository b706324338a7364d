"""Which wishes about nodes are refused, and with which sentence."""

import pytest

from dsdb.coordinator.status import refusal_of
from dsdb.coordinator.view import NodeState
from dsdb.kv.ids import NodeId
from tests.coordinator.clusters import parse

FIVE = ["store 1", "store 2", "store 3", "store 4", "store 5", "range 2 on 1* 2 3", "range 3 on 1* 2 4", "range 4 on 3* 4 5"]


def refused(lines: list[str], node_id: int, state: NodeState) -> str | None:
    view, _ = parse(lines)
    return refusal_of(view, NodeId(node_id), state)


def test_a_node_that_is_not_there_is_told_with_those_that_are() -> None:
    assert refused([*FIVE, "store 10"], 7, NodeState.DRAINING) == "there is no node 7: the nodes are 1, 2, 3, 4, 5, 10"


@pytest.mark.parametrize("standing", ["draining", "decommissioning", "dead", "suspect"])
def test_draining_is_refused_while_a_range_would_have_nobody_to_lead_it(standing: str) -> None:
    """It moves no replicas, so it would never end."""
    lines = [f"{line} {standing}" if line in ("store 1", "store 2") else line for line in FIVE]
    said = refused(lines, 3, NodeState.DRAINING)
    assert said is not None
    assert said.startswith("node 3 cannot be drained: range 2 has its other replicas on nodes that take no leases now (1, 2): recommission")
    assert refused(lines, 5, NodeState.DRAINING) is None


def test_decommissioning_what_has_just_been_decommissioned_is_no_mistake() -> None:
    lines = [*FIVE, "store 6 decommissioned"]
    assert refused(lines, 6, NodeState.DECOMMISSIONING) is None
    assert refused(lines, 6, NodeState.DRAINING) == "node 6 is decommissioned already: recommission it first"


def test_a_range_of_one_replica_is_no_reason_to_wait_for_ever() -> None:
    assert refused(["store 1", "store 2", "range 2 on 1*"], 1, NodeState.DRAINING) == (
        "node 1 cannot be drained: range 2 has no other replica; decommission it instead"
    )
    assert refused(["store 1", "store 2", "range 2 on 1*"], 2, NodeState.DRAINING) is None

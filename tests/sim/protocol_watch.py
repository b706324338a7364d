"""What must hold at every moment of a run of the protocol simulator, looked at where it could be broken; and what is rare besides.

Invariants that are watched:
- The oracle's timestamps only grow, whoever issues them: all nodes are in one process, so the order of the calls is that of real time.
- When a lease begins, no other replica of its range may serve.
- A change of replicas has fewer voters at no moment than before and after it.
- No Raft core finds that a peer or its disk has broken its word.
"""

from collections import Counter
from typing import Any

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor, ReplicaKind
from dsdb.oracle import Issuer
from dsdb.store import snapshot
from dsdb.store.intents import RECORD_LATCHES
from dsdb.store.latches import Latches
from dsdb.store.loop import RaftLoop
from dsdb.store.membership import MembershipChanges
from dsdb.store.repairing import Repairing
from dsdb.store.replica import Replica
from dsdb.store.store import Store
from tests.checkers.history import Violation
from tests.sim.protocol_node import Host
from tests.sim.rare_events import RARE as RARE_ANYWHERE
from tests.sim.rare_events import Hooks

RARE = (
    # What is evaluated in one generation of a range is applied in it: a split waits (rule 24).
    *(name for name in RARE_ANYWHERE if name != "rare: applied in a later generation"),
    "rare: lease began",
    "rare: oracle's holder moved",
    "rare: oracle's mark raised",
    "rare: gateway stopped in a commit",
    "rare: gateway cut off in a commit",
    "rare: crash with writes not synced",
    "rare: Raft snapshot installed",
    "rare: split waited for what is evaluated",
    "rare: waited for a split",
    "network: late request",
    "network: came after its connection broke",
    "network: lost with its connection",
)
"""What a search is expected to have seen."""
RARE_ELASTIC = (
    "rare: replica added",
    "rare: replica removed",
    "rare: joint configuration",
    "rare: leader was removed",
    "rare: Raft snapshot of several parts installed",
    "rare: Raft snapshot part sent again",
    "rare: answer to a part of a Raft snapshot lost",
    *(f"rare: chunk of a Raft snapshot {kind}" for kind in ("broken off", "lost", "doubled", "damaged")),
    "rare: sender of a Raft snapshot died",
    "rare: receiver of a Raft snapshot died",
    "rare: installation of a Raft snapshot repeated",
    "rare: value went bad at rest",
    "rare: value was changed at rest",
    "rare: value changed at rest was found",
    "rare: replica quarantined",
    "rare: replica made anew",
)
"""What a search on four hosts is."""


def voting(desc: RangeDescriptor) -> list[ReplicaDescriptor]:
    """Give the voters that a range has, or will have when a joint configuration is left."""
    return [member for member in desc.replicas if member.kind in (ReplicaKind.VOTER, ReplicaKind.VOTER_INCOMING)]


class Watch:
    """The looks of one run."""

    def __init__(self, hooks: Hooks, hosts: list[Host], events: Counter[str]) -> None:
        self._hosts = hosts
        self._events = events
        self._issued = 0
        """The highest timestamp that was issued."""
        self._issuer: object = None
        self._voters_least: dict[int, int] = {}
        """Of the replicas by `id`, which decides no order, that lead a change: how many voters their range may have meanwhile."""
        hooks.wrap(Issuer, "issue_nowait", self._issue)
        hooks.wrap(Replica, "start_lease", self._start_lease)
        hooks.wrap(Store, "_halt", self._halt)
        hooks.wrap(Issuer, "_raise_mark", self._raise_mark)
        hooks.wrap(Latches, "acquire", self._acquire)
        hooks.wrap(RaftLoop, "_apply_config", self._apply_config)
        hooks.wrap(MembershipChanges, "_carry_out", self._carry_out)
        hooks.wrap(Repairing, "quarantine", self._quarantine)
        hooks.wrap(snapshot, "put_staged", self._put_staged)

    def _issue(self, original: Any) -> Any:
        def wrapped(issuer: Any, count: int = 1) -> Any:
            first = original(issuer, count)
            if first is not None:
                if first <= self._issued:
                    raise Violation(f"timestamp {first} was issued after {self._issued}")
                self._issued = first + count - 1
                if issuer is not self._issuer:
                    self._events["rare: oracle's holder moved"] += self._issuer is not None
                    self._issuer = issuer
            return first

        return wrapped

    def _start_lease(self, original: Any) -> Any:
        def wrapped(replica: Any, term: int) -> Any:
            self._events["rare: lease began"] += 1
            range_id = replica.range_id
            for host in self._hosts:
                node = host.node
                if node is None or node.store._context is replica.context:
                    continue
                if node.store.holds_lease(range_id):
                    raise Violation(f"the lease of range {range_id} begins, and node {host.node_id} has it still")
            return original(replica, term)

        return wrapped

    def _halt(self, original: Any) -> Any:
        def wrapped(store: Any, replica: Any, error: AssertionError) -> None:
            raise Violation(f"range {replica.range_id} at store {store.identity.store_id}: {error}") from error

        return wrapped

    def _raise_mark(self, original: Any) -> Any:
        async def wrapped(issuer: Any) -> None:
            before = issuer._limit
            await original(issuer)
            self._events["rare: oracle's mark raised"] += issuer._limit > before

        return wrapped

    def _apply_config(self, original: Any) -> Any:
        def wrapped(loop: Any, replica: Any, entry: Any) -> None:
            before = replica.descriptor
            original(loop, replica, entry)
            after, events = replica.descriptor, self._events
            if len(voting(after)) < self._voters_least.get(id(replica), 0):
                raise Violation(f"range {replica.range_id} has fewer voters than before and after a change: {after}")
            events["rare: replica added"] += replica.is_leader and len(after.replicas) > len(before.replicas)
            events["rare: replica removed"] += replica.is_leader and len(after.replicas) < len(before.replicas)
            events["rare: joint configuration"] += replica.is_leader and replica.raft.membership.is_joint
            events["rare: leader was removed"] += replica.is_leader and after.replica(replica.replica_id) is None

        return wrapped

    def _carry_out(self, original: Any) -> Any:
        async def wrapped(changes: Any, replica: Any, request: Any, waiter: Any) -> None:
            before = len(voting(replica.descriptor))
            self._voters_least[id(replica)] = min(before, before + len(request.add) - len(request.remove))
            try:
                await original(changes, replica, request, waiter)
            finally:
                del self._voters_least[id(replica)]

        return wrapped

    def _quarantine(self, original: Any) -> Any:
        def wrapped(repairing: Any, replica: Any, reason: str) -> None:
            self._events["rare: replica quarantined"] += replica.damage is None
            original(repairing, replica, reason)

        return wrapped

    def _put_staged(self, original: Any) -> Any:
        def wrapped(engine: Any, batch: Any, keys: Any, range_id: Any, number: int) -> None:
            # At a start the copy begins anew.
            self._events["rare: installation of a Raft snapshot repeated"] += number == 0 and self._is_starting(engine)
            original(engine, batch, keys, range_id, number)

        return wrapped

    def _is_starting(self, engine: Any) -> bool:
        return any(host.engine is engine and host.node is None for host in self._hosts)

    def _acquire(self, original: Any) -> Any:
        def wrapped(latches: Any, keys: Any, write_spans: Any = (), read_spans: Any = ()) -> Any:
            latch = original(latches, keys, write_spans, read_spans)
            if latch.waits_for:
                if RECORD_LATCHES in write_spans:
                    self._events["rare: split waited for what is evaluated"] += 1
                elif any(RECORD_LATCHES in other.write_spans for other in latches._all.values()):
                    self._events["rare: waited for a split"] += 1
            return latch

        return wrapped

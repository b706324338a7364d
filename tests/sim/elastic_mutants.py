"""Planted faults in Raft snapshots, membership and repair, that the protocol simulator must find on four hosts: `make mutants`.

Not here, as the storms of `protocol_members` do not show them within seconds: outcomes or intents that a split forgets, learners that are
counted, a joint configuration with one majority.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from dsdb.kv.requests import ChangeReplicasRequest
from dsdb.raft.leading import Leading
from dsdb.store import chunks, consistency, snapshot, store
from dsdb.store.checksum import Judgement
from dsdb.store.loop import RaftLoop
from dsdb.store.membership import MembershipChanges
from dsdb.store.repairing import Repairing
from dsdb.store.replica import Replica
from dsdb.store.snapshot import put_end
from dsdb.store.state import ReplicaKeys, read_installing
from tests.sim.node_mutants import _snapshots_without
from tests.sim.protocol_members import DEPARTURE
from tests.sim.protocol_mutants import Mutant

# ---- Raft snapshots ----


def snapshots_lack_outcomes(patch: pytest.MonkeyPatch) -> None:
    """A new replica does not know which attempts have committed (rule 25)."""
    _snapshots_without(patch, chunks.OUTCOMES)


def snapshots_are_not_summed(patch: pytest.MonkeyPatch) -> None:
    """Chunks and parts of a Raft snapshot are taken as they come."""

    class Nothing:
        def update(self, _: object) -> None:
            pass

        def copy(self) -> "Nothing":
            return self

        def digest(self) -> bytes:
            return b""

    for module in (chunks, snapshot):
        patch.setattr(module, "new_whole", Nothing)
    patch.setattr(chunks, "zlib", SimpleNamespace(crc32=lambda body: 0))


def snapshots_leave_what_was_there(patch: pytest.MonkeyPatch) -> None:
    """What a replica had, and the Raft snapshot has not, stays."""
    patch.setattr(snapshot, "clear_keys", lambda batch, span: None)


def installations_are_not_repeated(patch: pytest.MonkeyPatch) -> None:
    """A Raft snapshot is not put in place as one: a crash in the middle leaves a part of it."""

    def forget(engine: Any, range_ids: Any) -> None:
        for range_id in range_ids:
            if read_installing(engine, ReplicaKeys(range_id)) is not None:
                batch = engine.new_batch()
                put_end(batch, ReplicaKeys(range_id), range_id)
                engine.write(batch)

    patch.setattr(store, "finish_installations", forget)


# ---- Membership ----


def removed_leaders_go_at_once(patch: pytest.MonkeyPatch) -> None:
    """A leader that is removed does not wait until the others know it."""
    _removed_go_at_once(patch, lambda replica: replica.is_leader)


def removed_followers_go_at_once(patch: pytest.MonkeyPatch) -> None:
    """A follower that is removed goes as soon as anybody says so; those who do not know may need its vote."""
    patch.setattr(Replica, "is_doomed", property(lambda self: bool(self.told_removed)))
    _removed_go_at_once(patch, lambda replica: not replica.is_leader)


def _removed_go_at_once(patch: pytest.MonkeyPatch, whom: Callable[[Any], bool]) -> None:
    apply_config = RaftLoop._apply_config

    def gone(self: RaftLoop, replica: Any, entry: Any) -> None:
        apply_config(self, replica, entry)
        if whom(replica) and not replica.is_destroyed and replica.descriptor.replica(replica.replica_id) is None:
            self._after_write.append(self._events.on_removed(replica, self._batch))

    patch.setattr(RaftLoop, "_apply_config", gone)


def joint_changes_are_not_left(patch: pytest.MonkeyPatch) -> None:
    """A range stays in a joint configuration for ever."""
    patch.setattr(Leading, "_leave_joint_when_due", lambda self: None)


def replacements_come_last(patch: pytest.MonkeyPatch) -> None:
    """The old replica is removed before the new one is in."""
    change = MembershipChanges._change

    async def removed_first(self: MembershipChanges, replica: Any, request: ChangeReplicasRequest) -> Any:
        if request.add and request.remove:
            await self._settle(replica, [], list(request.remove))
            request = msgspec.structs.replace(request, remove=())
        return await change(self, replica, request)

    patch.setattr(MembershipChanges, "_change", removed_first)


# ---- Damage ----


def damage_is_only_told(patch: pytest.MonkeyPatch) -> None:
    """Who finds that a replica is damaged says so, and leaves it in service."""
    patch.setattr(Repairing, "quarantine", lambda self, replica, reason: None)


def the_minority_is_right(patch: pytest.MonkeyPatch) -> None:
    """Of replicas that differ the majority is taken out of service."""
    judge = consistency.judge

    def inverted(voters: int, digests: Any) -> Judgement:
        judged = judge(voters, digests)
        others = tuple(sorted(set(digests) - set(judged.wrong)))
        return Judgement(others, is_undecided=False) if judged.wrong else judged

    patch.setattr(consistency, "judge", inverted)


def checks_leave_out_values(patch: pytest.MonkeyPatch) -> None:
    """Replicas are compared by their keys only."""
    add = consistency.RangeSum._add
    patch.setattr(consistency.RangeSum, "_add", lambda self, what, keys, values: add(self, what, keys, [b""] * len(values)))


def damaged_replicas_are_not_replaced(patch: pytest.MonkeyPatch) -> None:
    """A leaseholder that hears of damage does nothing."""
    patch.setattr(Repairing, "_hear_damaged", lambda self, sender, notice: None)


SNAPSHOTS = ("snapshots", "members")
MEMBERS = ("members", "transfer")
MUTANTS = (
    Mutant(snapshots_lack_outcomes, SNAPSHOTS, seconds=40.0),
    Mutant(snapshots_are_not_summed, SNAPSHOTS, seconds=40.0),
    Mutant(installations_are_not_repeated, SNAPSHOTS, seconds=40.0),
    Mutant(snapshots_leave_what_was_there, SNAPSHOTS, seconds=40.0),
    Mutant(removed_leaders_go_at_once, MEMBERS, seconds=40.0),
    Mutant(removed_followers_go_at_once, (DEPARTURE,), seconds=40.0),
    Mutant(joint_changes_are_not_left, MEMBERS, seconds=40.0),
    Mutant(replacements_come_last, MEMBERS, seconds=40.0),
    Mutant(damage_is_only_told, ("damage",), seconds=40.0),
    Mutant(the_minority_is_right, ("damage",), seconds=40.0),
    Mutant(checks_leave_out_values, ("damage",), seconds=40.0),
    Mutant(damaged_replicas_are_not_replaced, ("damage",), seconds=40.0),
)

"""Splits: one applied command cuts a range in two on every replica.

    leaseholder: latch the whole range ─▶ SplitCommand ─▶ every replica: left shrinks, right begins ─▶ right campaigns here at once

The right side starts as a group of its own: same stores, same replica ids, an empty log at the initial place, the floor, threshold,
closed timestamp and outcomes of the left side, and the intents and txn records of its keys.  Its first leader takes a fresh low water,
which covers every read that the left side served, and all that it said of attempts without a record.

Invariants:
- No read or write of the range, and nothing about a txn record, is evaluated between the evaluation of the split and its application.
- A right side is made only where its replica was not removed already; else its keys are cleared.
- No block has keys of both sides: the one that had is cut in the batch of the split, in some 30 ms of the loop's time at most.
- Nobody splits the system range, or at a key that is not inside, or inside a row: its versions would lie in another range than it.
"""

import msgspec

from dsdb.kv.errors import InvalidRequest, KvError
from dsdb.kv.ids import SYSTEM_RANGE, RangeId
from dsdb.kv.requests import Reply, SplitRequest
from dsdb.raft.messages import HardState, Vote
from dsdb.storage.columnar import measure
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.keys import Span
from dsdb.storage.mvcc import stored_within
from dsdb.storage.timestamp import MIN_TIMESTAMP
from dsdb.store.command import SplitCommand
from dsdb.store.context import StoreContext
from dsdb.store.intents import RECORD_LATCHES
from dsdb.store.open_intents import OpenIntents
from dsdb.store.provisional import put_all
from dsdb.store.range_stats import count_bytes
from dsdb.store.records import put_record
from dsdb.store.replica import Replica
from dsdb.store.serving import COUNT_S, Serving
from dsdb.store.state import (
    INITIAL_INDEX,
    INITIAL_TERM,
    Applied,
    ReplicaKeys,
    ReplicatedState,
    put_new_replica,
    put_outcome,
    read_tombstone,
)
from dsdb.store.state_machine import clear_keys

EARLY_RANGES_MAX = 256
EARLY_VOTES_MAX = 4
"""Votes kept for a range that is not here yet, for so many ranges: a follower applies a split a moment after the leader campaigns."""


class Splitting:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica], serving: Serving) -> None:
        self._context = context
        self._replicas = replicas
        self._serving = serving
        self._early_votes: dict[RangeId, list[Vote]] = {}

    async def serve(self, replica: Replica, request: SplitRequest) -> Reply:
        """Split a range at a key."""
        replica.require_lease()
        if replica.low_term != replica.lease_term:
            await replica.wait_low_water()
        self._check(replica, request)
        counted = await self._count_left(replica, request.key)
        latch = replica.latches.acquire((), (replica.descriptor.span, RECORD_LATCHES))
        await replica.wait_latch(latch)
        is_proposed = False
        try:
            replica.require_lease()
            self._check(replica, request)
            waiter = replica.propose(self._command(replica, request, counted), latch)
            is_proposed = True
            latch.evaluated_ts = MIN_TIMESTAMP
        finally:
            if not is_proposed:
                replica.latches.release(latch)
        return await waiter.wait()

    def _check(self, replica: Replica, request: SplitRequest) -> None:
        descriptor = replica.descriptor
        if replica.range_id == SYSTEM_RANGE:
            raise KvError(InvalidRequest("the system range is never split"))
        replica.require_keys(request.key, request.key)
        if request.key == descriptor.start_key:
            raise KvError(InvalidRequest(f"range {replica.range_id} starts at the key of the split"))
        engine = self._context.engine
        if (row := stored_within(engine, request.key) or measure.stored_within(Blocks(engine, BlockCache()), request.key)) is not None:
            raise KvError(InvalidRequest(f"range {replica.range_id} cannot be split inside the row {row.hex()}"))
        block = replica.machine.provisional.at(request.key)
        if block is not None and block.first_key < request.key:
            raise KvError(InvalidRequest(f"range {replica.range_id} cannot be split inside a block that an ingest has laid"))
        if request.right_range_id in self._replicas:
            raise KvError(InvalidRequest(f"range {request.right_range_id} is there already"))
        if replica.is_changing or replica.raft.membership.is_joint:
            raise KvError(InvalidRequest(f"the replicas of range {replica.range_id} are being changed"))

    async def _count_left(self, replica: Replica, key: bytes) -> float:
        """Give the part of the range's bytes that lies left of a key; a half if it takes too long to count."""
        clock = self._context.clock
        until = clock.now() + COUNT_S
        size_bytes = replica.machine.applied.size_bytes
        left = Span(replica.descriptor.start_key, key)
        counted = await count_bytes(self._context.engine, left, is_over=lambda: clock.now() > until)
        laid = sum([block.size_bytes for block in replica.machine.provisional.overlapping(left)])
        return 0.5 if counted is None or not size_bytes else min((counted + laid) / size_bytes, 1.0)

    @staticmethod
    def _command(replica: Replica, request: SplitRequest, left_part: float) -> SplitCommand:
        descriptor = replica.descriptor
        size_bytes = replica.machine.applied.size_bytes
        left_size_bytes = int(size_bytes * left_part)
        generation = descriptor.generation + 1
        left = msgspec.structs.replace(descriptor, end_key=request.key, generation=generation)
        right = msgspec.structs.replace(descriptor, range_id=request.right_range_id, start_key=request.key, generation=generation)
        return SplitCommand(
            generation=descriptor.generation,
            lease_term=replica.lease_term,
            left=left,
            right=right,
            left_size_bytes=left_size_bytes,
            closed=replica.promised,
            right_size_bytes=size_bytes - left_size_bytes,
        )

    def put_right(self, replica: Replica, batch: WriteBatch, command: SplitCommand) -> tuple[ReplicatedState, OpenIntents] | None:
        """Put the right side into the batch of the split, and give it; None if this store must not have it."""
        right = command.right
        machine = replica.machine
        records = machine.hand_over_records(batch, right.start_key)
        intents = machine.hand_over_intents(right.start_key)
        blocks = machine.provisional.hand_over(batch, right.start_key)
        if right.range_id in self._replicas or read_tombstone(self._context.engine, right.range_id) > replica.replica_id:
            if right.range_id not in self._replicas:
                clear_keys(batch, right.span)
            return None
        state = machine.right_state(command)
        hard_state = HardState(term=INITIAL_TERM, commit=INITIAL_INDEX)
        # Not what the left side learnt beside the log: that may be of after the split, when the right side's leaseholder was another.
        applied = Applied(INITIAL_INDEX, INITIAL_TERM, machine.split_off_bytes, machine.applied.closed, intents.count)
        put_new_replica(batch, state, applied, hard_state=hard_state)
        keys = ReplicaKeys(right.range_id)
        for attempt, outcome in machine.outcomes.items():
            put_outcome(batch, keys, attempt, outcome)
        for attempt, record in records.items():
            put_record(batch, keys.records, attempt, record)
        put_all(batch, keys.provisional, blocks)
        return state, intents

    # ---- Votes that are early ----

    def keep_vote(self, range_id: RangeId, vote: Vote) -> None:
        """Keep a vote for a range that a split may be about to make here."""
        if range_id not in self._early_votes and len(self._early_votes) >= EARLY_RANGES_MAX:
            del self._early_votes[next(iter(self._early_votes))]
        votes = self._early_votes.setdefault(range_id, [])
        votes.append(vote)
        del votes[:-EARLY_VOTES_MAX]

    def take_votes(self, range_id: RangeId) -> list[Vote]:
        """Give the votes that came early."""
        return self._early_votes.pop(range_id, [])

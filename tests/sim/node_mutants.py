"""Planted faults that the simulation of whole nodes must find: `make mutants`.

Each is what one rule of docs/transactions.md, or of leases, is there for; a simulation that does not find it is blind to that rule.
Faults and clients are chosen for each, so that it is found soon.

Not here, as the simulation of Raft groups finds them by its invariants, and whole nodes show them too seldom: votes against promises of
support, and promises forgotten at a start.  Nor what has another rule behind it: without the tombstone of a removed record a late copy
may make the record anew, and recovery then aborts it with nothing to resolve; an intent below a newer version comes after every read
that the cache and the low water know of; a follower that takes a range for resolved above an intent meets the intent when it reads.
A late copy of an earlier flush that takes the place of a later one, and one that comes after an intent of nothing was resolved, are too
rare here: `tests/store/test_flushes.py` has them.  An oracle that starts at its clock is found by the protocol simulator, which looks at
every timestamp (`protocol_mutants`).
"""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from dsdb.kv.errors import Gone
from dsdb.kv.intents import QueryIntentsReply, QueryIntentsRequest, StageRequest
from dsdb.kv.requests import BumpReply
from dsdb.node import parts
from dsdb.oracle import OracleClient
from dsdb.raft.node import RaftNode
from dsdb.raft.ready import Role
from dsdb.sql.catalog_draft import CatalogDraft
from dsdb.sql.errors import SqlError
from dsdb.storage import mvcc, visible
from dsdb.storage.columnar import overlay
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Family
from dsdb.storage.errors import StorageError
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from dsdb.store import chunks, evaluate, intents, snapshot, state_machine
from dsdb.store.closing import Closing
from dsdb.store.config import StoreConfig
from dsdb.store.keeper import Keeper
from dsdb.store.latches import Latches
from dsdb.store.loop import RaftLoop
from dsdb.store.replica import Replica
from dsdb.store.state_machine import StateMachine
from dsdb.store.timestamp_cache import TimestampCache
from dsdb.store.verdicts import Verdicts
from dsdb.txn import KvTransaction, finish, flushed_commit, parallel_commit
from dsdb.txn.finish import Finisher
from dsdb.txn.flushed_commit import FlushedCommit
from dsdb.txn.flushing import Flushed
from dsdb.txn.parallel_commit import ParallelCommit
from dsdb.txn.resolve_spans import resolve_spans
from dsdb.txn.settle import Settlement
from tests.checkers.history import Violation
from tests.sim.node_sim import simulate

SEED_S = 40.0
"""Time of the processor after which a seed is given up."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class NoOutcomes(dict[Any, Any]):
    """Outcomes of attempts that nobody finds again."""

    def get(self, key: object, default: object = None) -> Any:
        return default


def oracle_serves_late_joiners(patch: pytest.MonkeyPatch) -> None:
    """A request is served by a round that was sent before it was made."""
    fresh = OracleClient.fresh
    spare: dict[int, list[Timestamp]] = {}

    async def late(self: OracleClient, **options: Any) -> Timestamp:
        kept = spare.setdefault(id(self), [])
        if kept:
            taken = kept.pop()
            await trio.lowlevel.checkpoint()
            return taken
        kept.append(await fresh(self, **options))
        return await fresh(self, **options)

    patch.setattr(OracleClient, "fresh", late)


def leases_start_without_low_water(patch: pytest.MonkeyPatch) -> None:
    """A new leaseholder takes writes below the reads that the old one served."""
    patch.setattr(TimestampCache, "raise_low", lambda self, ts: None)


def outcomes_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A commit that is sent again is applied again."""
    patch.setattr(evaluate, "recorded_outcome", lambda replica, request: None)
    patch.setattr(state_machine, "read_outcomes", lambda engine, keys: NoOutcomes())


def leases_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    """A replica serves until it hears of another leader."""
    patch.setattr(RaftNode, "_has_active_quorum", lambda self: True)
    patch.setattr(Replica, "holds_lease", lambda self, now: self.raft.role is Role.LEADER and self.raft.term == self.lease_term)


def reads_leave_no_trace(patch: pytest.MonkeyPatch) -> None:
    """Writes go below reads that were served."""
    patch.setattr(TimestampCache, "note_key", lambda self, key, ts, attempt: None)


def syncs_do_nothing(patch: pytest.MonkeyPatch) -> None:
    """What is acknowledged is not on any disk."""
    patch.setattr(MemoryEngine, "sync", lambda self: None)


# ---- Leases and the oracle ----


def oracle_starts_at_its_clock(patch: pytest.MonkeyPatch) -> None:
    """A new oracle goes by its wall clock, and not from the mark that the old one left (rule 1)."""
    patch.setattr(parts._SystemRange, "oracle_mark", lambda self: MIN_TIMESTAMP)


# ---- Reads and one range ----


def scans_leave_no_trace(patch: pytest.MonkeyPatch) -> None:
    """Rows are inserted below scans that were served (rule 3)."""
    patch.setattr(TimestampCache, "note_span", lambda self, span, ts, attempt: None)


def reads_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A read passes by a write that is evaluated and not applied (rule 4)."""
    patch.setattr(Latches, "blocking_key", lambda self, key, ts: None)
    patch.setattr(Latches, "blocking_span", lambda self, span, ts: None)


def reads_pass_by_intents(patch: pytest.MonkeyPatch) -> None:
    """Nobody asks what becomes of an intent that a read meets (rule 4)."""
    for module in (mvcc, visible, overlay):
        patch.setattr(module, "is_in_the_way", lambda intent, ts, passable: False)


def pushed_intents_are_passable_for_ever(patch: pytest.MonkeyPatch) -> None:
    """An attempt that was pushed above one read is passed by for all (rule 16)."""
    let_pass = Replica.let_pass
    patch.setattr(Replica, "let_pass", lambda self, attempt, ts: let_pass(self, attempt, MAX_TIMESTAMP))


def refreshes_ignore_intents(patch: pytest.MonkeyPatch) -> None:
    """A refresh looks at versions only (rule 7)."""
    changes = mvcc.changes

    def blind(reader: Any, span: Any, low: Any, high: Any, **options: Any) -> Any:
        try:
            yield from changes(reader, span, low, high, **options)
        except mvcc.IntentsFoundError:
            return

    patch.setattr(mvcc, "changes", blind)


def floor_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    """A late copy of a commit whose outcome is forgotten is applied (rule 11)."""
    forgets_soon(patch)

    def recorded(replica: Replica, request: Any) -> None:
        return None

    record_outcome = StateMachine._apply_commit

    def apply(self: StateMachine, batch: Any, term: int, command: Any, done: int) -> Any:
        state = self.state
        if command.attempt in self.outcomes:
            return record_outcome(self, batch, term, command, done)
        result = record_outcome(self, batch, term, replace(command, floor=MIN_TIMESTAMP), done)
        if isinstance(result[0], Gone):
            self.state = replace(state, floor=MIN_TIMESTAMP)
            try:
                return record_outcome(self, batch, term, replace(command, floor=MIN_TIMESTAMP), done)
            finally:
                self.state = state
        return result

    patch.setattr(evaluate, "recorded_outcome", recorded)
    patch.setattr(StateMachine, "_apply_commit", apply)


def forgets_soon(patch: pytest.MonkeyPatch) -> None:
    """Outcomes are forgotten soon: no fault, but what one of them needs to show."""
    patch.setattr(parts, "StoreConfig", partial(StoreConfig, outcome_keep_ms=200, outcome_floor_step_ms=50))


# ---- Commits over many ranges ----


def nothing_is_refreshed_before_staging(patch: pytest.MonkeyPatch) -> None:
    """What was read is not carried up to the commit timestamp (rule 12)."""

    async def nothing(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(parallel_commit, "refresh", nothing)


def commits_with_an_intent_above(patch: pytest.MonkeyPatch) -> None:
    """The gateway counts intents that lie above the commit timestamp (rule 14)."""
    prewrite = ParallelCommit._prewrite

    async def uncounted(self: ParallelCommit, *args: Any) -> BumpReply:
        await prewrite(self, *args)
        return BumpReply(MIN_TIMESTAMP)

    patch.setattr(ParallelCommit, "_prewrite", uncounted)


def low_water_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A record is made though its tombstone may have been lost with the lease (rule 15)."""

    def begin(self: Verdicts, low: Timestamp) -> None:
        self._pushes.clear()
        self._tombstones.clear()

    patch.setattr(Verdicts, "begin", begin)


def stage_asks_c_against_the_low_water(patch: pytest.MonkeyPatch) -> None:
    """Staging looks at its timestamp and not at the first one (rule 15)."""
    stage = intents.stage

    def younger(replica: Replica, request: StageRequest) -> Any:
        return stage(replica, replace(request, meta=replace(request.meta, first_ts=request.ts)))

    patch.setattr(intents, "stage", younger)


def pushes_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """An attempt is staged at or below a read that has passed by its intent (rules 15 and 16)."""
    patch.setattr(Verdicts, "push", lambda self, attempt, first_ts, ts: None)


def tombstones_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """An attempt is staged that a writer has aborted (rules 15 and 16)."""
    patch.setattr(Verdicts, "bury", lambda self, attempt, first_ts, outcome: self.tell(attempt))


def staging_is_aborted_without_recovery(patch: pytest.MonkeyPatch) -> None:
    """Who meets an intent aborts its transaction, though it may be committed (rule 16)."""

    async def nothing_found(*_: Any) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    patch.setattr(Settlement, "_query", nothing_found)


def abort_does_not_ask_the_record(patch: pytest.MonkeyPatch) -> None:
    """A gateway gives up by itself, though somebody may have found its commit complete (rule 17)."""
    abort = ParallelCommit._abort

    async def without(self: ParallelCommit, why: Any, known: Any = None) -> Any:
        self._has_staged = False
        return await abort(self, why, known)

    patch.setattr(ParallelCommit, "_abort", without)


# ---- Recovery and clean-up ----


def recovery_does_not_prevent(patch: pytest.MonkeyPatch) -> None:
    """A promised write that recovery did not find can still be laid (rule 19)."""

    def query(replica: Replica, request: QueryIntentsRequest) -> QueryIntentsReply:
        replica.require_writable()
        replica.require_keys(min(request.keys), max(request.keys))
        found = [mvcc.get_intent(replica.context.engine, key) for key in request.keys]
        return QueryIntentsReply(all(one is not None and one.attempt_id == request.attempt and one.ts <= request.ts for one in found))

    patch.setattr(intents, "query", query)


def recovery_skips_a_key(patch: pytest.MonkeyPatch) -> None:
    """Recovery looks for all promised writes but one (rule 19)."""
    look_for = Settlement._query

    async def some(self: Settlement, sender: Any, meta: Any, keys: tuple[bytes, ...], ts: Timestamp) -> bool:
        return await look_for(self, sender, meta, tuple(sorted(keys))[:-1], ts)

    patch.setattr(Settlement, "_query", some)


def intents_are_resolved_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """Recovery misses intents that have become versions already (rule 20)."""
    settle = Finisher.settle_intents

    async def too_soon(self: Finisher, job: Any) -> bool:
        if job.commit_ts is not None and not job.is_recorded:
            await finish.resolve(parallel_commit.Sender(self._router, self._oracle), job.meta.attempt, job.keys, job.commit_ts)
        return await settle(self, job)

    patch.setattr(Finisher, "settle_intents", too_soon)


def late_intents_become_versions(patch: pytest.MonkeyPatch) -> None:
    """An intent above the commit timestamp becomes a version, too, where it lies (rule 21)."""
    resolve = mvcc.resolve_intent

    def all_of_them(reader: Any, batch: Any, key: bytes, attempt_id: bytes, commit_ts: Timestamp | None) -> Any:
        intent = resolve(reader, batch, key, attempt_id, commit_ts)
        if intent is not None and commit_ts is not None and intent.ts > commit_ts:
            mvcc.put(batch, key, intent.ts, intent.value)
        return intent

    patch.setattr(mvcc, "resolve_intent", all_of_them)


def tables_are_emptied_without_a_fence(patch: pytest.MonkeyPatch) -> None:
    """Who drops or truncates a table does not wait for those who still write to it by the version before."""
    patch.setattr(CatalogDraft, "emptied", property(lambda self: []))


def splits_lose_records(patch: pytest.MonkeyPatch) -> None:
    """The right side of a split does not know of the records that are its own (rule 25)."""
    hand_over = StateMachine.hand_over_records

    def lost(self: StateMachine, batch: Any, start: bytes) -> dict[Any, Any]:
        hand_over(self, batch, start)
        return {}

    patch.setattr(StateMachine, "hand_over_records", lost)


def closed_timestamps_do_not_bump(patch: pytest.MonkeyPatch) -> None:
    """A leaseholder promises not to write at or below a timestamp, and does (rule 23)."""

    def forget(self: Replica) -> None:
        self.promised = max(self.promised, self.context.closing)

    patch.setattr(Replica, "promise", forget)


def promises_are_of_what_is_applied(patch: pytest.MonkeyPatch) -> None:
    """A promise names the applied index, as if no write were on its way through the log (rule 23)."""
    promise = Closing._promise

    def too_early(self: Closing, now: float) -> None:
        logs = [replica.raft.log for replica in self._replicas.values()]
        lasts = [log.last_index for log in logs]
        for log in logs:
            log.last_index = log.applied
        promise(self, now)
        for log, last in zip(logs, lasts):
            log.last_index = last

    patch.setattr(Closing, "_promise", too_early)


# ---- Large transactions and savepoints ----


def flushes_at_once(patch: pytest.MonkeyPatch) -> None:
    """Every write is flushed: no fault, but what those of this section need to show."""
    patch.setattr(KvTransaction, "is_full", property(lambda txn: len(txn._buffer) > 0))


def flushes_are_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    """The record is committed before every intent is acknowledged (rule 27)."""
    flushes_at_once(patch)
    lay = Flushed._lay

    async def later(self: Flushed, *args: Any) -> None:
        self._finisher.start(lambda: lay(self, *args))
        await trio.lowlevel.checkpoint()

    patch.setattr(Flushed, "_lay", later)


def flushed_intents_above_are_counted(patch: pytest.MonkeyPatch) -> None:
    """The record is committed below some of the intents (rule 27)."""
    flushes_at_once(patch)

    async def where_it_read(self: FlushedCommit) -> Timestamp:
        return self._plan.read_ts or await self._flushed.sender().fresh()

    patch.setattr(FlushedCommit, "_next_c", where_it_read)


def nothing_is_refreshed_before_a_pending_record_commits(patch: pytest.MonkeyPatch) -> None:
    """What was read is not carried up to the commit timestamp (rule 27)."""
    flushes_at_once(patch)

    async def nothing(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(flushed_commit, "refresh", nothing)


def pending_records_forget_pushes(patch: pytest.MonkeyPatch) -> None:
    """A PENDING record is committed at or below a read that has passed by its intents (rule 28)."""
    flushes_at_once(patch)
    patch.setattr(Verdicts, "push", lambda self, attempt, first_ts, ts: None)


def pending_records_commit_below_the_low_water(patch: pytest.MonkeyPatch) -> None:
    """A PENDING record does not ask which pushes were lost with the lease (rule 28)."""
    flushes_at_once(patch)
    begin = Verdicts.begin

    def without(self: Verdicts, low: Timestamp) -> None:
        begin(self, low)
        self.push_low = MIN_TIMESTAMP

    patch.setattr(Verdicts, "begin", without)


def spans_are_resolved_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """Intents become versions before the record says COMMITTED, which it may never say (rules 20 and 27)."""
    flushes_at_once(patch)
    commit = FlushedCommit._commit_record

    async def too_soon(self: FlushedCommit, ts: Timestamp) -> Any:
        flushed = self._flushed
        await resolve_spans(flushed._router, flushed._oracle, flushed.meta.attempt, flushed.spans, ts)
        return await commit(self, ts)

    patch.setattr(FlushedCommit, "_commit_record", too_soon)


def flushed_writes_are_not_rolled_back(patch: pytest.MonkeyPatch) -> None:
    """What was flushed behind a savepoint stays (rule 29)."""
    flushes_at_once(patch)

    async def nothing(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Flushed, "roll_back", nothing)


def the_way_back_is_not_kept(patch: pytest.MonkeyPatch) -> None:
    """An intent forgets the write of the same transaction that it replaces (rule 29)."""
    flushes_at_once(patch)
    patch.setattr(intents, "kept_writes", lambda intent, marks: ())


# ---- Replicas that move ----


def removed_replicas_are_not_told(patch: pytest.MonkeyPatch) -> None:
    """Nobody tells a replica that it was removed: it stays on its disk."""
    patch.setattr(RaftLoop, "_tell_removed", lambda self, replica, before: None)
    patch.setattr(Keeper, "inquire", lambda self, descriptor: None)


def _snapshots_without(patch: pytest.MonkeyPatch, left_out: str) -> None:
    put = snapshot.put_chunk

    def some(batch: Any, keys: Any, chunk: bytes) -> None:
        if chunks.open_chunk(chunk)[0] != left_out:
            put(batch, keys, chunk)

    patch.setattr(snapshot, "put_chunk", some)


def snapshots_lack_records(patch: pytest.MonkeyPatch) -> None:
    """A new replica knows of no transaction's record."""
    _snapshots_without(patch, chunks.RECORDS)


def snapshots_lack_versions(patch: pytest.MonkeyPatch) -> None:
    """A new replica has the log, and not what was before it."""
    _snapshots_without(patch, Family.DELTA.value)


@dataclass(frozen=True)
class Mutant:
    plant: Callable[[pytest.MonkeyPatch], None]
    faults: tuple[str, ...]
    clients: tuple[str, ...] = ("count", "append")
    seeds: int = 200
    """Within so many it must be found."""
    seconds: float = 8.0
    closed_lag_s: float | None = None


LISTS = ("append", "lists")
MANY = ("append", "lists", "transfers")
PAST = ("insert", "count", "transfers", "past")
MUTANTS = (
    Mutant(oracle_serves_late_joiners, ("transfer",), ("insert", "count", "append")),
    Mutant(leases_start_without_low_water, ("storm", "delays"), ("pairs", "append", "count", "lists")),
    Mutant(outcomes_are_ignored, ("resets",)),
    Mutant(leases_are_not_checked, ("partition",)),
    Mutant(reads_leave_no_trace, ("transfer",)),
    Mutant(syncs_do_nothing, ("quorum",), ("insert", "count")),
    Mutant(scans_leave_no_trace, ("storm", "delays"), ("pairs", "rows")),
    Mutant(reads_do_not_wait, ("slow disk",)),
    Mutant(reads_pass_by_intents, ("delays",), ("transfers", "lists")),
    Mutant(pushed_intents_are_passable_for_ever, ("delays",), MANY),
    Mutant(refreshes_ignore_intents, ("delays",), ("append", "lists", "pairs")),
    Mutant(floor_is_not_checked, ("resets",)),
    Mutant(nothing_is_refreshed_before_staging, ("delays",), LISTS),
    Mutant(commits_with_an_intent_above, ("delays",), LISTS),
    Mutant(low_water_is_forgotten, ("storm",), MANY),
    Mutant(stage_asks_c_against_the_low_water, ("storm",), MANY),
    Mutant(pushes_are_forgotten, ("delays",), MANY),
    Mutant(tombstones_are_forgotten, ("delays",), MANY),
    Mutant(staging_is_aborted_without_recovery, ("delays", "gateway"), LISTS),
    Mutant(abort_does_not_ask_the_record, ("quorum", "link", "power"), LISTS, seconds=15.0),
    Mutant(recovery_does_not_prevent, ("delays",), LISTS),
    Mutant(recovery_skips_a_key, ("gateway", "delays"), LISTS),
    Mutant(intents_are_resolved_before_the_record, ("gateway", "delays", "resets"), LISTS),
    Mutant(late_intents_become_versions, ("resets",), LISTS),
    Mutant(flushes_are_not_waited_for, ("delays",), LISTS),
    Mutant(flushed_intents_above_are_counted, ("delays",), LISTS),
    Mutant(nothing_is_refreshed_before_a_pending_record_commits, ("delays",), LISTS),
    Mutant(pending_records_forget_pushes, ("delays",), MANY),
    Mutant(pending_records_commit_below_the_low_water, ("storm", "delays"), MANY),
    Mutant(spans_are_resolved_before_the_record, ("delays",), LISTS),
    Mutant(flushed_writes_are_not_rolled_back, ("delays",), ("lists",)),
    Mutant(the_way_back_is_not_kept, ("delays",), ("lists", "transfers")),
    Mutant(tables_are_emptied_without_a_fence, ("transfer",), ("ddl",)),
    Mutant(splits_lose_records, ("splits",), ("pairs", "rows")),
    Mutant(closed_timestamps_do_not_bump, ("delays",), PAST, closed_lag_s=0.02),
    Mutant(promises_are_of_what_is_applied, ("slow disk",), PAST, closed_lag_s=0.02),
    Mutant(removed_replicas_are_not_told, ("members",), ("insert", "count")),
    Mutant(snapshots_lack_versions, ("members", "transfer"), ("insert", "count")),
    Mutant(snapshots_lack_records, ("members", "storm", "delays"), MANY),
)


def find(mutant: Mutant, limit_s: float = math.inf) -> tuple[int, BaseException] | None:
    """Give the seed that finds a planted fault within so many seconds of CPU, and what it found."""
    end = time.process_time() + limit_s
    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch)
        for seed in range(1, mutant.seeds + 1):
            if time.process_time() > end:
                return None
            try:
                with _bounded(SEED_S):
                    simulate(seed, mutant.seconds, mutant.faults, clients=mutant.clients, closed_lag_s=mutant.closed_lag_s)
            except (Violation, SqlError, StorageError) as error:
                return seed, error
            except _TooLong:
                continue
    return None


class _TooLong(BaseException):
    """A broken cluster may turn in circles."""


@contextlib.contextmanager
def _bounded(limit_s: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        yield
    except trio.TrioInternalError as error:
        raise _TooLong from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.plant.__name__)
def test_planted_fault_is_found(mutant: Mutant) -> None:
    assert find(mutant) is not None, f"not found within {mutant.seeds} seeds"

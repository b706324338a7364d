"""What happens seldom in a run, counted around the functions where it happens; and what a simulation needs to be one.

    simulate ─▶ Hooks.install ─▶ nodes run with their own functions, each in a wrapper that looks at what goes in and out ─▶ undo

Invariants:
- A wrapper changes nothing that a node sees; but for the query engine, whose work is done in the loop, as threads know no simulated time.
- A fault that a test has planted is wrapped like what it stands for.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from dsdb.kv.errors import Conflict, KvError
from dsdb.kv.intents import RecordReply, TxnStatus
from dsdb.kv.requests import BumpReply
from dsdb.node import parts
from dsdb.sql.execute.engine import QueryEngine
from dsdb.storage import mvcc
from dsdb.store import evaluate, intents, key_sample, load
from dsdb.store.clearing import Clearing
from dsdb.store.command import EndTxnCommand
from dsdb.store.folding import Folding
from dsdb.store.intents import Awaited
from dsdb.store.load import LoadWatch
from dsdb.store.range_settings import CLUSTER_TABLE, StoredSettings
from dsdb.store.replica import Replica
from dsdb.store.state_machine import StateMachine
from dsdb.txn import KvTransaction, parallel_commit
from dsdb.txn.flushed_commit import FlushedCommit
from dsdb.txn.flushing import Flushed
from dsdb.txn.parallel_commit import ParallelCommit

RARE = (
    "txn: parallel_commits",
    "txn: two_round_commits",
    "txn: became_many",
    "txn: bumps",
    "txn: pushes",
    "txn: recovered_commits",
    "txn: recoveries_committed",
    "txn: recoveries_aborted",
    "txn: unknown_outcomes",
    "txn: stale_records",
    "rare: intents met by a read",
    "rare: intents met by a write",
    "rare: stage refused by a tombstone",
    "rare: stage GONE",
    "rare: stage bumped by a push",
    "rare: staged again higher",
    "rare: abort GONE",
    "rare: push found no record, under the low water",
    "rare: push left a tombstone",
    "rare: push remembered for a reader",
    "rare: refresh refused",
    "rare: answered by the recorded outcome",
    "rare: lease moved during a commit",
    "rare: split during a commit",
    "rare: applied in a later generation",
    "rare: intent of a late copy dropped",
    "rare: gateway died in a commit",
    "rare: late copy",
    "txn: flushes",
    "txn: flushed_commits",
    "txn: flushes_rolled_back",
    "txn: abandoned",
    "rare: PENDING record pushed by a reader",
    "rare: PENDING record waited for",
    "rare: PENDING record aborted by a push",
    "rare: PENDING record bumped at its commit",
    "rare: own intent replaced",
    "rare: late copy of an earlier flush",
    "rare: intent of nothing resolved",
    "store: follower reads",
    "rare: key of a split by size",
    "rare: key of a split by load",
)
"""What a search is expected to have seen, so that it says when it has not."""


SOON_BYTES, SOON_REQUESTS = 6_000, 10
SOON = {"LOAD_SUSTAINED_S": 1.0, "REST_S": 2.0, "VAIN_REST_S": 3.0, "ROWS_LEAST": 2}
"""In the place of what `load` has, where ranges are to be split soon."""


FOLDING = {
    "folds": True,
    "fold_look_s": 0.2,
    "fold_quiet_s": 0.3,
    "fold_rest_s": 1.0,
    "fold_busy_writes": 32,
    "fold_range_bytes_min": 1,
    "fold_versions_min": 3,
    "fold_rest_versions": 1,
    "fold_batch_versions": 5,
    "fold_block_rows": 6,
    "fold_share": 1.0,
}


class Hooks:
    """The wrappers of one run."""

    def __init__(self, events: Counter[str]) -> None:
        self._events = events
        self._undo: list[tuple[Any, str, Any]] = []
        self.on_commit: Callable[[Any], None] = lambda commit: None
        """Called when the first requests of a commit over several ranges are about to leave."""
        self._moves: list[Replica] = []
        """Ranges whose lease has moved, one after another."""
        self._splits = 0

    def wrap(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Put a wrapper in the place of a function, until `undo`."""
        original = vars(owner)[name]
        self._undo.append((owner, name, original))
        setattr(owner, name, make(original))

    def undo(self) -> None:
        """Take all wrappers away."""
        while self._undo:
            owner, name, original = self._undo.pop()
            setattr(owner, name, original)

    def install(
        self, staged_keys: int | None, closed_lag_s: float, flush_keys: int | None = None, *, splits_soon: bool = False, folds: bool = False
    ) -> None:
        """Wrap everything; staged_keys, flush_keys: how many keys a record may promise, and a buffer hold, if not as many as usual.

        closed_lag_s: after which time all stores close a timestamp; splits_soon: whether little load, and size, splits a range.
        folds: whether few rows are folded, and soon.
        """
        self.wrap(QueryEngine, "_on_thread", lambda _: _in_the_loop)
        if staged_keys is not None:
            self.wrap(parallel_commit, "STAGED_KEYS_MAX", lambda _: staged_keys)
        if flush_keys is not None:
            self.wrap(KvTransaction, "is_full", lambda _: property(lambda txn: len(txn._buffer) >= flush_keys))
        interval_s = min(0.15, closed_lag_s * 3)
        limits: dict[str, Any] = {"closed_lag_s": closed_lag_s, "closed_interval_s": interval_s, **(FOLDING if folds else {"folds": False})}
        self.wrap(parts, "StoreConfig", lambda original: partial(original, **limits))
        self._wrap_folding()
        self._wrap_splits(splits_soon)
        self._wrap_records()
        self._wrap_evaluation()
        self._wrap_flushes()
        self._wrap_commits()

    def _count(self, name: str, is_so: bool = True) -> None:
        if is_so:
            self._events[f"rare: {name}"] += 1

    def _wrap_folding(self) -> None:
        def write(original: Any) -> Any:
            async def wrapped(folding: Any, *args: Any) -> bool:
                is_written = await original(folding, *args)
                self._count("batch of folding written" if is_written else "batch of folding dropped")
                return bool(is_written)

            return wrapped

        self.wrap(Folding, "_write", write)

    def _wrap_splits(self, splits_soon: bool) -> None:
        def key_for(original: Any) -> Any:
            async def wrapped(loads: Any, wish: Any) -> Any:
                key = await original(loads, wish)
                self._count(f"key of a split by {wish.kind.value}", key is not None)
                return key

            return wrapped

        self.wrap(LoadWatch, "key_for", key_for)
        if splits_soon:
            soon = StoredSettings(max_bytes=SOON_BYTES, load_requests=SOON_REQUESTS)
            self.wrap(load, "SettingsBook", lambda original: lambda stored: original({CLUSTER_TABLE: soon, **stored}))
            for name, value in SOON.items():
                self.wrap(load, name, lambda _, value=value: value)
            self.wrap(key_sample, "SAMPLES_LEAST", lambda _: 8)

    def _wrap_records(self) -> None:
        def stage(original: Any) -> Any:
            def wrapped(replica: Any, request: Any) -> Any:
                record = replica.machine.records.get(request.meta.attempt)
                reply = original(replica, request)
                is_pending = record is not None and record.status is TxnStatus.PENDING
                if isinstance(reply, BumpReply):
                    self._count("PENDING record bumped at its commit" if is_pending else "stage bumped by a push")
                elif isinstance(reply, RecordReply):
                    self._count("stage refused by a tombstone", record is None and reply.status is TxnStatus.ABORTED)
                    self._count("stage GONE", reply.status is TxnStatus.GONE)
                else:
                    self._count("staged again higher", record is not None and not is_pending)
                return reply

            return wrapped

        def push(original: Any) -> Any:
            def wrapped(replica: Any, request: Any, patience: Any) -> Any:
                verdicts, attempt = replica.verdicts, request.meta.attempt
                had_record, had_tombstone = attempt in replica.machine.records, verdicts.outcome(attempt) is not None
                reply = original(replica, request, patience)
                if not had_record and not had_tombstone and not isinstance(reply, Awaited):
                    self._count("push remembered for a reader", reply.status is TxnStatus.PUSHED)
                    self._count("push left a tombstone", verdicts.outcome(attempt) is not None)
                    self._count("push found no record, under the low water", request.meta.first_ts <= verdicts.low)
                return reply

            return wrapped

        def end(original: Any) -> Any:
            def wrapped(replica: Any, request: Any, resolved: Any) -> Any:
                reply = original(replica, request, resolved)
                self._count("abort GONE", isinstance(reply, RecordReply) and reply.status is TxnStatus.GONE and request.commit_ts is None)
                return reply

            return wrapped

        self.wrap(intents, "stage", stage)
        self.wrap(intents, "push", push)
        self.wrap(intents, "end", end)

    def _wrap_evaluation(self) -> None:
        def refresh(original: Any) -> Any:
            def wrapped(*args: Any, **options: Any) -> Any:
                try:
                    return original(*args, **options)
                except KvError as error:
                    self._count("refresh refused", isinstance(error.detail, Conflict))
                    raise

            return wrapped

        def recorded_outcome(original: Any) -> Any:
            def wrapped(replica: Any, request: Any) -> Any:
                reply = original(replica, request)
                self._count("answered by the recorded outcome", reply is not None)
                return reply

            return wrapped

        def clear(original: Any) -> Any:
            async def wrapped(clearing: Any, replica: Any, met: Any, *args: Any) -> Any:
                self._count("intents met by a write" if met.is_write else "intents met by a read")
                return await original(clearing, replica, met, *args)

            return wrapped

        self.wrap(evaluate, "_refresh", refresh)
        self.wrap(evaluate, "recorded_outcome", recorded_outcome)
        self.wrap(Clearing, "clear", clear)

    def _wrap_flushes(self) -> None:
        def push_pending(original: Any) -> Any:
            def wrapped(*args: Any) -> Any:
                reply = original(*args)
                self._count("PENDING record pushed by a reader", isinstance(reply, RecordReply) and reply.status is TxnStatus.PUSHED)
                self._count("PENDING record waited for", isinstance(reply, Awaited))
                self._count("PENDING record aborted by a push", isinstance(reply, EndTxnCommand))
                return reply

            return wrapped

        def prewrite(original: Any) -> Any:
            def wrapped(replica: Any, meta: Any, ts: Any, writes: Any) -> Any:
                stood = [mvcc.get_intent(replica.context.engine, key) for key in writes.keys] if writes.sequence else []
                reply = original(replica, meta, ts, writes)
                for intent in stood:
                    if intent is not None and intent.attempt_id == meta.attempt:
                        self._count("own intent replaced", intent.sequence < writes.sequence)
                        self._count("late copy of an earlier flush", intent.sequence > writes.sequence)
                return reply

            return wrapped

        def resolve_intent(original: Any) -> Any:
            def wrapped(reader: Any, batch: Any, key: Any, attempt: Any, commit_ts: Any) -> Any:
                intent = original(reader, batch, key, attempt, commit_ts)
                self._count("intent of nothing resolved", intent is not None and intent.is_nothing and commit_ts is not None)
                return intent

            return wrapped

        def acted(original: Any) -> Any:
            async def wrapped(acting: Any, *args: Any) -> Any:
                self.on_commit(acting)
                return await original(acting, *args)

            return wrapped

        self.wrap(intents, "_push_pending", push_pending)
        self.wrap(intents, "prewrite", prewrite)
        self.wrap(mvcc, "resolve_intent", resolve_intent)
        self.wrap(Flushed, "_lay", acted)
        self.wrap(FlushedCommit, "_commit_record", acted)

    def _wrap_commits(self) -> None:
        def apply_intents(original: Any) -> Any:
            def wrapped(machine: Any, batch: Any, command: Any) -> Any:
                generation = getattr(command, "generation", None)
                self._count("applied in a later generation", generation not in (None, machine.descriptor.generation))
                return original(machine, batch, command)

            return wrapped

        def apply_split(original: Any) -> Any:
            def wrapped(machine: Any, *args: Any) -> Any:
                self._splits += 1
                return original(machine, *args)

            return wrapped

        def start_lease(original: Any) -> Any:
            def wrapped(replica: Any, term: Any) -> Any:
                self._moves.append(replica)
                return original(replica, term)

            return wrapped

        def run(original: Any) -> Any:
            async def wrapped(commit: Any) -> Any:
                moves, splits = len(self._moves), self._splits
                try:
                    return await original(commit)
                finally:
                    spans = [replica.descriptor.span for replica in self._moves[moves:]]
                    self._count("lease moved during a commit", any(span.contains(key) for span in spans for key in commit._keys))
                    self._count("split during a commit", self._splits > splits)

            return wrapped

        def tried(original: Any) -> Any:
            async def wrapped(commit: Any, ts: Any) -> Any:
                self.on_commit(commit)
                return await original(commit, ts)

            return wrapped

        def resolve_intents(original: Any) -> Any:
            def wrapped(machine: Any, batch: Any, attempt: Any, keys: Any, commit_ts: Any) -> Any:
                size = original(machine, batch, attempt, keys, commit_ts)
                self._count("intent of a late copy dropped", commit_ts is not None and size < 0)
                return size

            return wrapped

        self.wrap(StateMachine, "_apply_intents", apply_intents)
        self.wrap(StateMachine, "_apply_split", apply_split)
        self.wrap(StateMachine, "_resolve", resolve_intents)
        self.wrap(Replica, "start_lease", start_lease)
        self.wrap(ParallelCommit, "run", run)
        self.wrap(ParallelCommit, "_try_parallel", tried)
        self.wrap(ParallelCommit, "_try_two_rounds", tried)


async def _in_the_loop(engine: Any, connection: Any, work: Callable[[], Any]) -> Any:
    await trio.lowlevel.checkpoint()
    return work()

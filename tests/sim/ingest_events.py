"""What happens to block intents in a run of the protocol simulator, counted where it happens; and what became of each transaction.

Invariants:
- As of all wrappers: nothing that a node sees is changed (`rare_events`).
- The first replica that applies an outcome says what it is; another outcome of the same attempt is a violation.
"""

from collections import Counter
from typing import Any

from dsdb.kv.errors import KvError
from dsdb.kv.intents import LayBlockReply, TxnStatus
from dsdb.storage.columnar.parting import Parting
from dsdb.store import block_intents, intents, snapshot
from dsdb.store.clearing import Clearing
from dsdb.store.command import EndTxnCommand, LayBlockCommand
from dsdb.store.folding import Folding
from dsdb.store.provisional import ProvisionalBlocks
from dsdb.store.serving import Serving
from dsdb.store.split import Splitting
from dsdb.store.state_machine import StateMachine
from dsdb.txn.block_layer import BlockLayer
from tests.checkers.history import Violation
from tests.sim.rare_events import Hooks

RARE_INGESTS = (
    "txn: blocks",
    "txn: unpackings",
    "rare: block intent not laid, as there was something",
    "rare: block intent laid above what was read",
    "rare: block intent asked for twice",
    "rare: block intent laid after its transaction was aborted",
    "rare: block intent met by a reader",
    "rare: block intent met by a writer",
    "rare: block intent met by a split",
    "rare: block intent met by a fold",
    "rare: block intent handed over by a split",
    "rare: block intent aborted",
    "rare: block intent committed",
    "rare: block intent resolved twice",
    "rare: block intent settled as it was old",
    "rare: block intent laid where a replica had something",
    "rare: block of a fold parted by a block intent",
    "rare: block of a fold parted again in one batch",
    "rare: rows cut at a range's end",
    "rare: range split under rows that were being laid",
    "rare: ingest aborted by a push",
    "rare: ingest bumped at its commit",
    "rare: ingest with rows in blocks and one by one",
    "rare: ingest in blocks of several ranges",
    "rare: gateway died while it laid blocks",
    "ingests: done",
    "ingests: KeyExistsError",
    "ingests: GivenUp",
    "ingests: TransactionRetryError",
    "ingests: nobody knows",
)
"""What a search with ingests is expected to have seen."""
RARE_INGESTS_ELASTIC = ("rare: block intent came with a Raft snapshot",)
"""And what one on four hosts is."""


class IngestEvents:
    """The wrappers of one run."""

    def __init__(self, hooks: Hooks, events: Counter[str]) -> None:
        self._hooks = hooks
        self._events = events
        self.committed: dict[bytes, int] = {}
        """Attempts, and where they were committed."""
        self._laid: set[bytes] = set()
        """Attempts that have laid blocks."""
        self._ended: set[tuple[bytes, bytes]] = set()
        """Attempts and first keys of block intents that were resolved somewhere."""
        self._aborted: set[bytes] = set()
        hooks.wrap(StateMachine, "_put_record", self._put_record)
        hooks.wrap(StateMachine, "_record", self._record)
        hooks.wrap(StateMachine, "_resolve", self._resolve)
        hooks.wrap(ProvisionalBlocks, "end", self._end)
        hooks.wrap(ProvisionalBlocks, "hand_over", self._hand_over)
        hooks.wrap(block_intents, "lay", self._lay)
        hooks.wrap(Clearing, "clear", self._clear)
        hooks.wrap(Splitting, "_check", self._check_split)
        hooks.wrap(Folding, "_write", self._write_folded)
        hooks.wrap(Parting, "part", self._part)
        hooks.wrap(Parting, "make_room", self._make_room)
        hooks.wrap(intents, "_push_pending", self._push_pending)
        hooks.wrap(intents, "stage", self._stage)
        hooks.wrap(Serving, "_settle_oldest_blocks", self._settle_oldest)
        hooks.wrap(snapshot, "put_chunk", self._put_chunk)
        hooks.wrap(BlockLayer, "_lay", self._lay_rows)
        hooks.wrap(BlockLayer, "_send", self._send)

    def _count(self, name: str, is_so: bool = True) -> None:
        if is_so:
            self._events[f"rare: {name}"] += 1

    # ---- What became of transactions ----

    def _note_committed(self, attempt: bytes, ts: int) -> None:
        known = self.committed.setdefault(attempt, ts)
        if known != ts:
            raise Violation(f"an attempt is committed at {known}, and at {ts}")

    def _put_record(self, original: Any) -> Any:
        def wrapped(machine: Any, batch: Any, attempt: Any, record: Any) -> Any:
            if record.status is TxnStatus.COMMITTED:
                self._note_committed(attempt, record.ts)
            return original(machine, batch, attempt, record)

        return wrapped

    def _record(self, original: Any) -> Any:
        def wrapped(machine: Any, batch: Any, attempt: Any, outcome: Any) -> None:
            if outcome.ts is not None:
                self._note_committed(attempt, outcome.ts)
            original(machine, batch, attempt, outcome)

        return wrapped

    # ---- Laying ----

    def _lay(self, original: Any) -> Any:
        def wrapped(replica: Any, request: Any) -> Any:
            decided = original(replica, request)
            if isinstance(decided, LayBlockCommand):
                self._laid.add(request.meta.attempt)
                self._count("block intent laid above what was read", decided.ts > request.ts)
                self._count("block intent laid after its transaction was aborted", request.meta.attempt in self._aborted)
            else:
                assert isinstance(decided, LayBlockReply)
                self._count("block intent not laid, as there was something" if decided.ts is None else "block intent asked for twice")
            return decided

        return wrapped

    def _lay_rows(self, original: Any) -> Any:
        async def wrapped(layer: Any, place: Any, keys: Any, columns: Any) -> Any:
            cuts = self._events["block sent"]
            missed = await original(layer, place, keys, columns)
            self._count("rows cut at a range's end", self._events["block sent"] > cuts + 1)
            return missed

        return wrapped

    def _send(self, original: Any) -> Any:
        async def wrapped(layer: Any, place: Any, *args: Any) -> Any:
            self._hooks.on_commit(place.flushed)
            self._events["block sent"] += 1
            try:
                return await original(layer, place, *args)
            except KvError as error:
                self._count("range split under rows that were being laid", type(error.detail).__name__ == "RangeKeyMismatch")
                raise

        return wrapped

    # ---- Meeting ----

    def _clear(self, original: Any) -> Any:
        async def wrapped(clearing: Any, replica: Any, met: Any, *args: Any) -> Any:
            named = replica.machine.provisional.named
            if any(named(key, intent.attempt_id) is not None for key, intent in met.intents):
                self._count("block intent met by a writer" if met.is_write else "block intent met by a reader")
            return await original(clearing, replica, met, *args)

        return wrapped

    def _check_split(self, original: Any) -> Any:
        def wrapped(splitting: Any, replica: Any, request: Any) -> None:
            block = replica.machine.provisional.at(request.key)
            self._count("block intent met by a split", block is not None and block.first_key < request.key)
            original(splitting, replica, request)

        return wrapped

    def _write_folded(self, original: Any) -> Any:
        async def wrapped(folding: Any, replica: Any, *args: Any) -> bool:
            is_written = bool(await original(folding, replica, *args))
            self._count("block intent met by a fold", is_written and bool(replica.machine.provisional))
            return is_written

        return wrapped

    def _part(self, original: Any) -> Any:
        def wrapped(parting: Any, *args: Any) -> bool:
            is_again = bool(parting._pieces)
            is_cut = bool(original(parting, *args))
            self._count("block of a fold parted by a block intent", is_cut)
            self._count("block of a fold parted again in one batch", is_cut and is_again)
            return is_cut

        return wrapped

    def _make_room(self, original: Any) -> Any:
        def wrapped(*args: Any) -> bool:
            had_some = bool(original(*args))
            self._count("block intent laid where a replica had something", had_some)
            return had_some

        return wrapped

    def _put_chunk(self, original: Any) -> Any:
        def wrapped(batch: Any, keys: Any, chunk: bytes) -> None:
            self._count("block intent came with a Raft snapshot", b"provisional" in chunk)
            original(batch, keys, chunk)

        return wrapped

    def _hand_over(self, original: Any) -> Any:
        def wrapped(blocks: Any, *args: Any) -> Any:
            moved = original(blocks, *args)
            self._count("block intent handed over by a split", bool(moved))
            return moved

        return wrapped

    # ---- The end ----

    def _push_pending(self, original: Any) -> Any:
        def wrapped(replica: Any, request: Any, *args: Any) -> Any:
            reply = original(replica, request, *args)
            self._count("ingest aborted by a push", isinstance(reply, EndTxnCommand) and request.meta.attempt in self._laid)
            return reply

        return wrapped

    def _stage(self, original: Any) -> Any:
        def wrapped(replica: Any, request: Any) -> Any:
            reply = original(replica, request)
            self._count("ingest bumped at its commit", type(reply).__name__ == "BumpReply" and request.meta.attempt in self._laid)
            return reply

        return wrapped

    def _resolve(self, original: Any) -> Any:
        def wrapped(machine: Any, batch: Any, attempt: Any, keys: Any, commit_ts: Any) -> Any:
            for key in keys:
                is_there = machine.provisional.named(key, attempt) is not None
                self._count("block intent resolved twice", not is_there and (attempt, key) in self._ended)
            return original(machine, batch, attempt, keys, commit_ts)

        return wrapped

    def _end(self, original: Any) -> Any:
        def wrapped(blocks: Any, batch: Any, first_key: Any, attempt: Any, commit_ts: Any) -> Any:
            block, count = blocks.named(first_key, attempt), blocks.committed
            size = original(blocks, batch, first_key, attempt, commit_ts)
            if block is not None:
                self._ended.add((attempt, first_key))
                self._count("block intent committed", blocks.committed > count)
                self._count("block intent aborted", commit_ts is None)
                self._count("block intent of a late copy dropped", commit_ts is not None and blocks.committed == count)
                if commit_ts is None:
                    self._aborted.add(attempt)
            return size

        return wrapped

    def _settle_oldest(self, original: Any) -> Any:
        async def wrapped(*args: Any) -> int:
            settled = int(await original(*args))
            self._count("block intent settled as it was old", settled > 0)
            return settled

        return wrapped

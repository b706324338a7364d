"""Planted faults in block intents (rule 33), and around them, that the protocol simulator must find: `make mutants`.

Not here, as `tests/storage/test_columnar_parting.py` finds it, and seeds do not within minutes: that what one batch has parted is parted
once more as the engine shows it.  Nor that nobody settles block intents that nobody meets, which few seeds leave:
`tests/store/test_block_intents.py` does.
"""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from dsdb.kv.errors import KvError
from dsdb.kv.intents import PrewriteReply, ResolveReply
from dsdb.storage.columnar.parting import Parting
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import point_span, prefix_end
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP
from dsdb.storage.versions import SUFFIXES_END
from dsdb.store import block_intents, chunks, intents, provisional, split
from dsdb.store.provisional import ProvisionalBlocks
from dsdb.store.snapshot import SnapshotReceiver
from dsdb.store.split import Splitting
from dsdb.store.state import META
from dsdb.store.timestamp_cache import TimestampCache
from dsdb.txn.block_layer import BlockLayer
from dsdb.txn.flushed_commit import FlushedCommit
from dsdb.txn.flushing import Flushed
from tests.sim.node_mutants import _snapshots_without
from tests.sim.protocol_mutants import Mutant

# ---- Who meets them ----


def reads_of_keys_pass_by_block_intents(patch: pytest.MonkeyPatch) -> None:
    """A read of keys does not meet them."""
    patch.setattr(ProvisionalBlocks, "pass_at", lambda self, *args: None)


def scans_pass_by_block_intents(patch: pytest.MonkeyPatch) -> None:
    """A scan does not meet them."""
    patch.setattr(ProvisionalBlocks, "pass_in", lambda self, *args: None)


def refreshes_pass_by_block_intents(patch: pytest.MonkeyPatch) -> None:
    """A refresh does not meet them, while scans do."""

    def scan(self: ProvisionalBlocks, span: Any, ts: Any, attempt: Any, passable: Any) -> None:
        provisional._pass(self.foreign_in(span, attempt), ts, passable)

    patch.setattr(ProvisionalBlocks, "pass_in", scan)
    patch.setattr(ProvisionalBlocks, "refresh_in", lambda self, *args: None)


def writers_pass_by_block_intents(patch: pytest.MonkeyPatch) -> None:
    """A write of many ranges, or one that is flushed, does not meet them."""
    foreign_at = ProvisionalBlocks.foreign_at

    def met(self: ProvisionalBlocks, keys: Any, attempt: Any) -> Any:
        return [] if sys._getframe(1).f_code.co_name == "prewrite" else foreign_at(self, keys, attempt)

    patch.setattr(ProvisionalBlocks, "foreign_at", met)


def commits_in_one_range_pass_by_block_intents(patch: pytest.MonkeyPatch) -> None:
    """Nor does a commit in one range."""
    foreign_at = ProvisionalBlocks.foreign_at

    def met(self: ProvisionalBlocks, keys: Any, attempt: Any) -> Any:
        return [] if sys._getframe(1).f_code.co_name in ("_bound", "look_up") else foreign_at(self, keys, attempt)

    patch.setattr(ProvisionalBlocks, "foreign_at", met)


def followers_read_past_block_intents(patch: pytest.MonkeyPatch) -> None:
    """What is resolved goes beyond those that stand (rule 23)."""
    patch.setattr(ProvisionalBlocks, "oldest_ts", lambda self: MAX_TIMESTAMP)


# ---- Laying ----


def blocks_are_laid_over_rows(patch: pytest.MonkeyPatch) -> None:
    """Rows and intents of the span do not keep a block from being laid."""
    patch.setattr(block_intents, "_is_void", lambda replica, span, last_key: not replica.machine.provisional.overlapping(span))


def blocks_are_laid_over_blocks(patch: pytest.MonkeyPatch) -> None:
    """Nor does what is folded already."""

    def is_void(replica: Any, span: Any, last_key: bytes) -> bool:
        has_rows = replica.context.engine.first(Family.DELTA, span.start, last_key + SUFFIXES_END) is not None
        return not has_rows and not replica.machine.provisional.overlapping(span)

    patch.setattr(block_intents, "_is_void", is_void)


def blocks_are_laid_below_reads(patch: pytest.MonkeyPatch) -> None:
    """A block intent is laid where the ingest reads, whoever has read there since."""
    patch.setattr(TimestampCache, "bound_of_span", lambda self, span, ts, attempt: MIN_TIMESTAMP)


def blocks_are_laid_under_a_latch_of_one_key(patch: pytest.MonkeyPatch) -> None:
    """What is evaluated in the span, and not applied yet, is not waited for."""
    patch.setattr(block_intents, "span_of", lambda request: point_span(request.first_key))


def records_do_not_name_blocks(patch: pytest.MonkeyPatch) -> None:
    """Who cleans up does not hear of the spans of blocks."""

    async def name(self: Flushed, span: Any) -> None:
        self.check_alive()
        self._keeper.keep_record(self.meta.attempt, self.meta.anchor)
        await self._begin()

    patch.setattr(Flushed, "name", name)


def blocks_without_an_answer_count_as_laid(patch: pytest.MonkeyPatch) -> None:
    """An ingest goes on if it is not known whether a block was laid."""
    send = BlockLayer._send

    async def sent(self: BlockLayer, *args: Any) -> bool:
        try:
            return await send(self, *args)
        except KvError as error:
            if type(error.detail).__name__ in ("Unavailable", "AmbiguousResult"):
                return True
            raise

    patch.setattr(BlockLayer, "_send", sent)


def a_key_may_come_twice(patch: pytest.MonkeyPatch) -> None:
    """Rows that a transaction lays one by one are not looked for in its own blocks."""
    patch.setattr(intents, "rows_of_own", lambda replica, attempt, keys: frozenset())


# ---- The end ----


def blocks_are_resolved_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """An ingest is resolved, then its record is asked to say that it is committed (rule 20)."""
    commit_record = FlushedCommit._commit_record

    async def committed(self: FlushedCommit, ts: Any) -> Any:
        await self._flushed.finish(ts)
        return await commit_record(self, ts)

    patch.setattr(FlushedCommit, "_commit_record", committed)


def aborted_blocks_become_visible(patch: pytest.MonkeyPatch) -> None:
    """An aborted block intent becomes a block."""
    end = ProvisionalBlocks.end

    def ended(self: ProvisionalBlocks, batch: Any, first_key: bytes, attempt: Any, commit_ts: Any) -> int:
        block = self.named(first_key, attempt)
        return end(self, batch, first_key, attempt, commit_ts or (block and block.ts))

    patch.setattr(ProvisionalBlocks, "end", ended)


def chunks_of_aborted_blocks_stay(patch: pytest.MonkeyPatch) -> None:
    """The chunks of an aborted block intent stay for ever."""
    patch.setattr(provisional, "remove_chunks", lambda batch, entry: None)


def folded_blocks_go_around_new_ones(patch: pytest.MonkeyPatch) -> None:
    """Where a replica has folded rows of both sides into one block, it stays whole when a block intent becomes a block."""
    patch.setattr(Parting, "part", lambda self, blocks, batch, bound: False)


def what_a_replica_has_left_stays_under_blocks(patch: pytest.MonkeyPatch) -> None:
    """A replica does not look for what only the leaseholder has collected already."""
    patch.setattr(Parting, "make_room", lambda self, blocks, batch, first_key, last_key: False)


def unpacked_rows_are_lost(patch: pytest.MonkeyPatch) -> None:
    """Unpacking lays no intents."""
    patch.setattr(block_intents, "unpack", lambda replica, block, keys, values: PrewriteReply(block.ts))


def unpacked_blocks_stay(patch: pytest.MonkeyPatch) -> None:
    """A block intent that is unpacked is there still."""
    patch.setattr(block_intents, "drop", lambda replica, block: ResolveReply())


# ---- Splits, Raft snapshots ----


def splits_forget_block_intents(patch: pytest.MonkeyPatch) -> None:
    """The right side of a split does not get its block intents."""
    patch.setattr(split, "put_all", lambda batch, prefix, blocks: None)


def splits_part_block_intents(patch: pytest.MonkeyPatch) -> None:
    """A range is split within one."""
    check = Splitting._check

    def unchecked(self: Splitting, replica: Any, request: Any) -> None:
        try:
            check(self, replica, request)
        except KvError as error:
            if "a block" not in str(error):
                raise

    patch.setattr(Splitting, "_check", unchecked)


def snapshots_lack_block_intents(patch: pytest.MonkeyPatch) -> None:
    """A new replica does not know of them."""
    _snapshots_without(patch, chunks.PROVISIONAL)


def snapshots_lack_their_chunks(patch: pytest.MonkeyPatch) -> None:
    """A new replica knows of them, and has not what is in them."""
    patch.setattr(chunks, "ProvisionalBlocks", lambda prefix, snapshot: SimpleNamespace(overlapping=lambda span: []))


def snapshots_leave_block_intents(patch: pytest.MonkeyPatch) -> None:
    """A Raft snapshot leaves those that stood in the replica that it replaces."""
    switch = SnapshotReceiver.switch

    def switched(self: SnapshotReceiver, replica: Any, batch: Any, ready: Any) -> Any:
        prefix = replica.keys.provisional
        stood = [pair for pairs in self._context.engine.scan(META, prefix, prefix_end(prefix)) for pair in zip(*pairs)]
        following = switch(self, replica, batch, ready)
        for key, value in stood:
            batch.put(META, key, value)
        return following

    patch.setattr(SnapshotReceiver, "switch", switched)


def _mutant(plant: Any, *faults: str, seconds: float = 60.0) -> Mutant:
    return Mutant(plant, faults, ("registers",), seconds=seconds, ingests=True)


MUTANTS = (
    _mutant(reads_of_keys_pass_by_block_intents, "crash"),
    _mutant(scans_pass_by_block_intents, "crash"),
    _mutant(refreshes_pass_by_block_intents, "crash"),
    _mutant(writers_pass_by_block_intents, "delays"),
    _mutant(commits_in_one_range_pass_by_block_intents, "delays"),
    _mutant(followers_read_past_block_intents, "delays"),
    _mutant(blocks_are_laid_over_rows, "crash"),
    _mutant(blocks_are_laid_over_blocks, "crash"),
    _mutant(blocks_are_laid_below_reads, "delays"),
    _mutant(blocks_are_laid_under_a_latch_of_one_key, "delays", "slow disk"),
    _mutant(records_do_not_name_blocks, "crash"),
    _mutant(blocks_without_an_answer_count_as_laid, "crash", "partition", "loss"),
    _mutant(a_key_may_come_twice, "crash"),
    _mutant(blocks_are_resolved_before_the_record, "gateway", "late"),
    _mutant(aborted_blocks_become_visible, "gateway", "crash"),
    _mutant(chunks_of_aborted_blocks_stay, "crash"),
    _mutant(folded_blocks_go_around_new_ones, "crash", "transfer"),
    _mutant(what_a_replica_has_left_stays_under_blocks, "crash", seconds=120.0),
    _mutant(unpacked_rows_are_lost, "crash"),
    _mutant(unpacked_blocks_stay, "crash"),
    _mutant(splits_forget_block_intents, "splits", "gateway"),
    _mutant(splits_part_block_intents, "delays", "gateway"),
    _mutant(snapshots_lack_block_intents, "snapshots", "members", seconds=40.0),
    _mutant(snapshots_lack_their_chunks, "snapshots", "members", seconds=40.0),
    _mutant(snapshots_leave_block_intents, "partition", "ghost", seconds=20.0),
)

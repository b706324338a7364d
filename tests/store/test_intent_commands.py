"""What the commands of commits over many ranges do to a replica's state, whatever order they come in."""

import pytest
from test_state_machine import ONE, TERM, TWO, Bench

from dsdb.kv.errors import RangeKeyMismatch, Unavailable
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import PrewriteReply, RecordReply, RemoveRecordsReply, ResolveItem, ResolveReply, TxnMeta, TxnStatus
from dsdb.storage import mvcc
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.store.command import (
    ClearSpanCommand,
    Command,
    EndTxnCommand,
    PrewriteCommand,
    RemoveRecordsCommand,
    ResolveCommand,
    StageCommand,
)
from dsdb.store.verdicts import Verdicts

K, L = b"k", b"l"
STAGING, COMMITTED, ABORTED = TxnStatus.STAGING, TxnStatus.COMMITTED, TxnStatus.ABORTED


def meta(attempt: AttemptId = ONE, anchor: bytes = K) -> TxnMeta:
    return TxnMeta(attempt, anchor, Timestamp(50))


def prewrite(ts: int, *keys: bytes, attempt: AttemptId = ONE, term: int = TERM, generation: int = 1) -> PrewriteCommand:
    return PrewriteCommand(generation, term, meta(attempt), Timestamp(ts), keys, (b"v",) * len(keys))


def stage(ts: int, *, is_final: bool = False, anchor: bytes = K, generation: int = 1, keys: tuple[bytes, ...] = (K, L)) -> StageCommand:
    return StageCommand(generation, TERM, meta(anchor=anchor), Timestamp(ts), keys, is_final)


def end(commit_ts: int | None, *resolve: bytes, expected: int | None = None) -> EndTxnCommand:
    at = None if commit_ts is None else Timestamp(commit_ts)
    return EndTxnCommand(1, TERM, meta(), at, None if expected is None else Timestamp(expected), resolve)


def resolve(commit_ts: int | None, *keys: bytes) -> ResolveCommand:
    return ResolveCommand(1, TERM, (ResolveItem(ONE, keys, None if commit_ts is None else Timestamp(commit_ts)),))


def reply(status: TxnStatus, ts: int | None = None, keys: tuple[bytes, ...] = ()) -> RecordReply:
    return RecordReply(status, None if ts is None else Timestamp(ts), keys)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_record_only_goes_forward(restarts: bool) -> None:
    bench = Bench()

    def apply(command: Command) -> object:
        result = bench.apply(command)
        if restarts:
            bench.reload()
        return result

    assert apply(end(60)) == reply(TxnStatus.GONE)
    assert apply(stage(60)) == reply(STAGING, 60)
    assert apply(stage(55)) == reply(STAGING, 60)
    assert apply(stage(70)) == reply(STAGING, 70)
    assert apply(end(None, expected=60)) == reply(STAGING, 70, (K, L))
    assert apply(RemoveRecordsCommand(TERM, (ONE, TWO))) == RemoveRecordsReply()
    assert bench.machine.records[ONE].ts == 70
    assert apply(end(70, expected=70)) == reply(COMMITTED, 70)
    assert apply(end(None)) == reply(COMMITTED, 70)
    assert apply(stage(80)) == reply(COMMITTED, 70)
    assert apply(RemoveRecordsCommand(TERM, (ONE, TWO))) == RemoveRecordsReply()
    assert bench.machine.records == {}


def test_a_final_stage_commits_at_once_and_keeps_what_was_promised() -> None:
    bench = Bench()
    assert bench.apply(stage(60)) == reply(STAGING, 60)
    assert bench.apply(stage(60, is_final=True, keys=())) == reply(COMMITTED, 60)
    assert bench.machine.records[ONE].keys == (K, L)


def test_an_end_resolves_only_what_ends_as_asked() -> None:
    bench = Bench()
    assert bench.apply(prewrite(60, K, L)) == PrewriteReply(Timestamp(60))
    size = bench.machine.applied.size_bytes
    bench.apply(stage(60))
    bench.apply(end(60, K, L, expected=55))
    assert mvcc.get_intent(bench.engine, K) is not None
    bench.apply(end(60, K, expected=60))
    assert [bench.value(K), mvcc.get_intent(bench.engine, K)] == [b"v", None]
    assert bench.machine.applied.size_bytes == size
    assert bench.apply(resolve(55, L)) == ResolveReply()
    assert mvcc.get_intent(bench.engine, L) is None
    assert bench.value(L) is None
    assert bench.machine.applied.size_bytes < size


def test_commands_of_another_term_or_range_do_nothing() -> None:
    bench = Bench()
    assert isinstance(bench.apply(prewrite(60, K, term=TERM - 1)), Unavailable)
    assert isinstance(bench.apply(prewrite(60, b"0", generation=0)), RangeKeyMismatch)
    assert isinstance(bench.apply(stage(60, anchor=b"zz", generation=0)), RangeKeyMismatch)
    assert isinstance(bench.apply(ResolveCommand(0, TERM, (ResolveItem(ONE, (b"0",), None),))), RangeKeyMismatch)
    assert bench.machine.records == {}
    assert bench.machine.applied.size_bytes == 0


def test_what_an_old_leaseholder_asks_of_intents_and_records_does_nothing_and_says_so() -> None:
    """B6: of two leaseholders the old one's resolve does nothing and looks as if it had; the record goes, and the write with it."""
    bench = Bench()
    bench.apply(prewrite(60, K, L))
    bench.apply(stage(60))
    for command in (
        ResolveCommand(1, TERM - 1, (ResolveItem(ONE, (K, L), Timestamp(60)),)),
        EndTxnCommand(1, TERM - 1, meta(), Timestamp(60), Timestamp(60), (K,)),
        RemoveRecordsCommand(TERM - 1, (ONE,)),
    ):
        assert isinstance(bench.apply(command), Unavailable)
        assert mvcc.get_intent(bench.engine, K) is not None
        assert bench.machine.records[ONE].status is STAGING


def test_what_reads_the_engine_waits_for_what_the_batch_holds() -> None:
    bench = Bench()
    batch = bench.engine.new_batch()
    bench.machine.begin_batch()
    assert not bench.machine.needs_written_state(resolve(60, K))
    bench.machine.apply(batch, 11, TERM, prewrite(60, K))
    assert bench.machine.needs_written_state(resolve(60, K))
    assert bench.machine.needs_written_state(end(60, K))
    assert not bench.machine.needs_written_state(resolve(60, L))
    assert not bench.machine.needs_written_state(prewrite(60, K))
    bench.engine.write(batch)
    bench.machine.begin_batch()
    assert not bench.machine.needs_written_state(resolve(60, K))
    bench.machine.apply(bench.engine.new_batch(), 12, TERM, ClearSpanCommand(1, TERM, Span(b"a", b"z")))
    assert bench.machine.needs_written_state(resolve(60, K))


def test_verdicts_grow_and_are_forgotten_under_the_low_water() -> None:
    verdicts = Verdicts(verdicts_max=4)
    attempts = [AttemptId(b"%016d" % number) for number in range(6)]
    verdicts.push(ONE, Timestamp(5), Timestamp(20))
    verdicts.push(ONE, Timestamp(5), Timestamp(10))
    assert verdicts.pushed(ONE) == 20
    heard: list[str] = []
    verdicts.listen(attempts[0], lambda: heard.append("buried"))
    for number, attempt in enumerate(attempts):
        verdicts.bury(attempt, Timestamp(100 + number), reply(COMMITTED, 200))
        verdicts.bury(attempt, Timestamp(100 + number), reply(ABORTED))
        assert verdicts.outcome(attempt) == reply(COMMITTED, 200)
    assert heard == ["buried"]
    assert verdicts.listening == 0
    forgotten = [attempt for attempt in attempts if verdicts.outcome(attempt) is None]
    assert forgotten == attempts[: len(forgotten)]
    assert 0 < len(forgotten) < 6
    assert verdicts.low == 100 + len(forgotten) - 1
    verdicts.begin(Timestamp(1))
    assert verdicts.low == 100 + len(forgotten) - 1
    verdicts.begin(Timestamp(300))
    assert [verdicts.low, verdicts.pushed(ONE), verdicts.outcome(attempts[5])] == [300, 0, None]

"""Pushes of one attempt that come together at a store cost one at a time."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from dsdb.kv.errors import KvError, Unavailable
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import Pusher, TxnMeta, TxnStatus
from dsdb.storage.timestamp import Timestamp
from dsdb.store.merged_pushes import MergedPushes
from dsdb.store.settling import Settled

META = TxnMeta(AttemptId(b"a" * 16), b"\x10a", Timestamp(50))
YOUNGER, OLDER = Pusher(Timestamp(60), wounds=True), Pusher(Timestamp(40), wounds=True)
PUSHED, COMMITTED = Settled(TxnStatus.PUSHED), Settled(TxnStatus.COMMITTED, Timestamp(70))


class Anchor:
    """Answers pushes after a second."""

    def __init__(self, answer: Callable[[], Settled]) -> None:
        self.intents = self
        self.asked: list[tuple[int, bool]] = []
        self._answer = answer

    async def settle(self, meta: TxnMeta, ts: Timestamp, *, abort: bool, pusher: Pusher) -> Settled:
        self.asked.append((ts, abort))
        await trio.sleep(1)
        return self._answer()


def pushed(anchor: Anchor, *pushes: tuple[int, bool, Pusher]) -> tuple[list[Settled | str], float]:
    """Give the answers to pushes that come one after another at one time, and how long they took."""
    found: dict[int, Settled | str] = {}

    async def main() -> float:
        merged = MergedPushes(anchor)  # type: ignore[arg-type]  # of the context it needs the port alone

        async def push(number: int, ts: int, abort: bool, pusher: Pusher) -> None:
            try:
                found[number] = await merged.settle(META, Timestamp(ts), abort=abort, pusher=pusher)
            except KvError as error:
                found[number] = repr(error.detail)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number, one in enumerate(pushes):
                nursery.start_soon(push, number, *one)
                await trio.testing.wait_all_tasks_blocked()
        return trio.current_time() - began

    took = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return [found[number] for number in range(len(pushes))], took


def test_an_outcome_is_everybodys() -> None:
    anchor = Anchor(lambda: COMMITTED)
    answers, took = pushed(anchor, *[(ts, False, YOUNGER) for ts in (90, 80, 100, 95)])
    assert answers == [COMMITTED] * 4
    assert (took, anchor.asked) == (1, [(90, False)])


def test_a_push_counts_up_to_its_timestamp() -> None:
    anchor = Anchor(lambda: PUSHED)
    answers, took = pushed(anchor, *[(ts, False, YOUNGER) for ts in (90, 80, 100, 95)])
    assert answers == [PUSHED] * 4
    assert (took, sorted(anchor.asked)) == (2, [(90, False), (100, False)])


def test_who_need_not_wait_does_not() -> None:
    anchor = Anchor(lambda: Settled(TxnStatus.PENDING))
    _, took = pushed(anchor, (90, True, YOUNGER), (90, True, OLDER), (90, False, YOUNGER), (90, True, YOUNGER))
    assert (took, anchor.asked) == (1, [(90, True), (90, True), (90, False)])


def test_an_error_is_everybodys_too() -> None:
    def fail() -> Settled:
        raise KvError(Unavailable("no anchor"))

    answers, took = pushed(Anchor(fail), (90, True, YOUNGER), (91, True, YOUNGER))
    assert answers == [repr(Unavailable("no anchor"))] * 2
    assert took == 1


@pytest.mark.parametrize("others", [1, 3])
def test_who_is_cancelled_while_asking_leaves_the_others_to_ask(others: int) -> None:
    anchor = Anchor(lambda: COMMITTED)
    found: list[Settled] = []

    async def main() -> None:
        merged = MergedPushes(anchor)  # type: ignore[arg-type]  # as above

        async def push() -> None:
            found.append(await merged.settle(META, Timestamp(90), abort=True, pusher=YOUNGER))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.5):
                async with trio.open_nursery() as first:
                    first.start_soon(push)
                    await trio.testing.wait_all_tasks_blocked()
                    for _ in range(others):
                        nursery.start_soon(push)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert found == [COMMITTED] * others
    assert len(anchor.asked) == 2

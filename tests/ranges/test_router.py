"""What the router makes of answers to a commit of which an earlier copy may have been applied, or still be on its way."""

import pytest
import trio
import trio.testing

from dsdb.env import TcpNetwork
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import AmbiguousResult, Conflict, KeyExists, KvError, KvErrorDetail, NotLeaseholder, RangeKeyMismatch, Unavailable
from dsdb.kv.ids import SYSTEM_RANGE, AttemptId, NodeId, RangeId, StoreId
from dsdb.kv.requests import CommitReply, CommitRequest, ReadRequest, Reply, Request, Write
from dsdb.raft.messages import ReplicaId
from dsdb.ranges import Router
from dsdb.rpc import Peers
from dsdb.storage.keys import KEY_MAX, SYSTEM_END
from dsdb.storage.timestamp import Timestamp

RANGE = RangeId(2)
KEY = b"\x10k"
COMMIT = CommitRequest(RANGE, AttemptId(b"a" * 16), Timestamp(5), None, (Write(KEY, b"v", True),))
HERE = ReplicaDescriptor(ReplicaId(1), NodeId(1), StoreId(1))
LOST = AmbiguousResult("the leaseholder was lost")


class MockedTime:
    """The Clock port over trio's clock."""

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return 0


class ScriptedStore:
    """Gives its answers in turn, the last one for ever."""

    def __init__(self, *answers: Reply | KvErrorDetail) -> None:
        self._answers = list(answers)
        self.asked = 0

    def try_serve(self, request: Request) -> Reply | None:
        return None

    async def serve(self, request: Request) -> Reply:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, KvErrorDetail):
            raise KvError(answer)
        return answer


def router_to(store: ScriptedStore) -> Router:
    clock = MockedTime()
    router = Router(node_id=HERE.node_id, local=store, peers=Peers(TcpNetwork(), clock, address_of=lambda _: None), clock=clock)
    router.cache.update(RangeDescriptor(SYSTEM_RANGE, b"", SYSTEM_END, 1, (HERE,), ReplicaId(2)), StoreId(1))
    router.cache.update(RangeDescriptor(RANGE, SYSTEM_END, KEY_MAX, 1, (HERE,), ReplicaId(2)), StoreId(1))
    return router


async def send(store: ScriptedStore, request: Request = COMMIT) -> Reply:
    return await router_to(store).send(KEY, lambda _: request)


def answer_to(*answers: Reply | KvErrorDetail, request: Request = COMMIT) -> Reply | KvErrorDetail:
    """Give what the router says, and check that it says so in time."""

    async def main() -> Reply | KvErrorDetail:
        with trio.fail_after(10.5):
            try:
                return await send(ScriptedStore(*answers), request)
            except KvError as error:
                return error.detail

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_same_attempt_is_sent_again_until_it_is_known() -> None:
    assert answer_to(LOST, Unavailable("wait"), CommitReply(Timestamp(9))) == CommitReply(Timestamp(9))


@pytest.mark.parametrize(
    "later", [KeyExists(KEY), Unavailable("no quorum"), NotLeaseholder(RANGE, None, None)], ids=lambda detail: type(detail).__name__
)
def test_what_a_later_copy_met_does_not_decide(later: KvErrorDetail) -> None:
    assert isinstance(answer_to(LOST, later), AmbiguousResult)


def test_a_conflict_is_final_for_all_copies() -> None:
    assert answer_to(LOST, Conflict(KEY, Timestamp(7))) == Conflict(KEY, Timestamp(7))


def test_the_answer_to_the_only_copy_stands() -> None:
    assert answer_to(KeyExists(KEY)) == KeyExists(KEY)
    assert isinstance(answer_to(Unavailable("no quorum")), Unavailable)


def test_a_read_is_never_ambiguous() -> None:
    read = ReadRequest(RANGE, (KEY,), Timestamp(5), None)
    assert isinstance(answer_to(Unavailable("no quorum"), request=read), Unavailable)


def test_what_was_built_for_a_range_that_lost_the_key_to_a_split_goes_back_at_once() -> None:
    left = RangeDescriptor(RANGE, SYSTEM_END, b"\x10a", 2, (HERE,), ReplicaId(2))
    right = RangeDescriptor(RangeId(3), b"\x10a", KEY_MAX, 2, (HERE,), ReplicaId(2))
    store = ScriptedStore(NotLeaseholder(RANGE, None, left))

    async def main() -> None:
        router = router_to(store)

        def built_before(_: RangeDescriptor) -> Request:
            router.cache.update(right, StoreId(1))  # another request hears of the split meanwhile
            return COMMIT

        with pytest.raises(KvError) as caught:
            await router.send(KEY, built_before)
        assert caught.value.detail == RangeKeyMismatch((right,))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert store.asked == 1


class StuckStore(ScriptedStore):
    """Answers nothing."""

    async def serve(self, request: Request) -> Reply:
        await trio.sleep_forever()
        raise AssertionError


@pytest.mark.parametrize(
    ("request_", "expected"), [(COMMIT, AmbiguousResult), (ReadRequest(RANGE, (KEY,), Timestamp(5)), Unavailable)], ids=["commit", "read"]
)
def test_a_store_that_does_not_answer_is_waited_for_until_the_deadline(request_: Request, expected: type[KvErrorDetail]) -> None:
    async def main() -> None:
        with trio.fail_after(10.5), pytest.raises(KvError) as caught:
            await send(StuckStore(), request_)
        assert isinstance(caught.value.detail, expected)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

"""The disk thread: results, errors, order, and cancellation that waits."""

import threading
import time

import pytest
import trio

from dsdb.env import DiskThread
from dsdb.env.disk import PROMPT_CALLS_MIN, PROMPT_S


@pytest.fixture
def disk():
    thread = DiskThread("test-disk")
    yield thread
    thread.close()


def test_gives_results_and_errors(disk: DiskThread) -> None:
    async def main() -> None:
        for number in range(100):
            assert await disk.run(lambda number=number: number) == number
        with pytest.raises(ZeroDivisionError):
            await disk.run(lambda: 1 // 0)
        assert await disk.run(lambda: 7) == 7

    trio.run(main)


def test_calls_of_several_tasks_run_in_their_order(disk: DiskThread) -> None:
    seen: list[int] = []
    answers: list[int] = []

    async def ask(number: int) -> None:
        answers.append(await disk.run(lambda: seen.append(number) or number))

    async def main() -> None:
        for start in range(0, 100, 5):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 5):
                    nursery.start_soon(ask, number)
                    await trio.lowlevel.checkpoint()

    trio.run(main)
    assert seen == list(range(100))
    assert sorted(answers) == seen


@pytest.mark.parametrize("beside_another", [False, True])
def test_cancelling_waits_for_the_call(disk: DiskThread, beside_another: bool) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> str:
        begun.set()
        may_end.wait(10)
        ended.set()
        return "done"

    results: list[str] = []

    async def first() -> None:
        results.append(await disk.run(lambda: "first"))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            if beside_another:
                nursery.start_soon(first)
                await trio.lowlevel.checkpoint()

            async def cancelled() -> None:
                with trio.CancelScope() as scope:
                    scopes.append(scope)
                    results.append(await disk.run(call))
                    assert ended.is_set()
                    await trio.lowlevel.checkpoint()
                assert scope.cancelled_caught

            scopes: list[trio.CancelScope] = []
            nursery.start_soon(cancelled)
            await trio.to_thread.run_sync(begun.wait, 10)
            scopes[0].cancel()
            await trio.lowlevel.checkpoint()
            assert "done" not in results
            may_end.set()
        # The next call gets its own answer.
        assert await disk.run(lambda: "next") == "next"

    trio.run(main)
    assert "done" in results


def test_used_by_one_loop_after_another(disk: DiskThread) -> None:
    async def main() -> int:
        return await disk.run(lambda: 3)

    assert trio.run(main) == 3
    assert trio.run(main) == 3


def test_prompt_calls_run_in_the_loop_until_one_is_slow(disk: DiskThread) -> None:
    async def main() -> None:
        here = threading.get_ident()
        ran_in: list[int] = []

        def call() -> None:
            ran_in.append(threading.get_ident())

        assert not disk.run_promptly(call), "nothing is known of the disk yet"
        for _ in range(PROMPT_CALLS_MIN):
            await disk.run(call)
        assert here not in ran_in
        assert disk.run_promptly(call)
        assert ran_in[-1] == here

        assert disk.run_promptly(lambda: time.sleep(2 * PROMPT_S))
        assert not disk.run_promptly(call), "the last one was slow"

        for _ in range(PROMPT_CALLS_MIN):
            await disk.run(call)
        with pytest.raises(ZeroDivisionError):
            disk.run_promptly(lambda: 1 // 0)

    trio.run(main)


def test_a_prompt_call_does_not_overtake_one_in_the_thread(disk: DiskThread) -> None:
    async def main() -> None:
        for _ in range(PROMPT_CALLS_MIN):
            await disk.run(lambda: None)
        go_on = threading.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.run, go_on.wait)
            await trio.testing.wait_all_tasks_blocked()
            assert not disk.run_promptly(lambda: None)
            go_on.set()

    trio.run(main)

"""Imports as jobs: told of while they run and after they ended, cancelled from anywhere, and not believed once their node is silent."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from dsdb.env import Address
from dsdb.jobs import imports
from dsdb.jobs.imports import BEAT_S, KEPT_MAX, SILENT_S, Imports
from dsdb.kv.ids import NodeId
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.ports_steering import ImportEnd, RefusedError
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.timestamp import from_milliseconds


def with_imports(body: Callable[[Imports, Imports, trio.Nursery], Awaitable[None]]) -> Callable[[], None]:
    """Run with the imports of two nodes of one cluster; nobody says how they are by itself."""

    async def main() -> None:
        node = Node(NodeConfig(store=None, listen=Address("127.0.0.1", 0)), engine=MemoryEngine())
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            assert node.parts is not None
            one, two = (Imports(node_id=NodeId(number), transactions=node.parts.transactions, clock=node._clock) for number in (1, 2))
            await body(one, two, nursery)
            nursery.cancel_scope.cancel()

    return lambda: trio.run(main)


async def states(of: Imports) -> list[tuple[Any, ...]]:
    return [(job.node_id, job.state, job.done, job.why) for job in await of.jobs()]


async def _told(one: Imports, two: Imports, _: trio.Nursery) -> None:
    job = one.begin("COPY into t")
    job.note(10)
    assert await states(two) == []
    await one.say_now()
    assert await states(two) == [(1, "running", 10, None)]
    job.note(5)
    await job.settle()
    assert await states(two) == [(1, "committing", 15, None)]
    job.end(ImportEnd.SUCCEEDED)
    job.end(ImportEnd.FAILED, "too late")
    await one.say_now()
    (found,) = await two.jobs()
    assert (found.state, found.done, found.why) == ("succeeded", 15, None)
    assert found.ended_us is not None
    with pytest.raises(RefusedError, match="is succeeded: only one that is running"):
        await two.cancel(found.job_id or 0)


test_an_import_is_told_of_until_after_its_end = with_imports(_told)


async def _short(one: Imports, two: Imports, _: trio.Nursery) -> None:
    job = one.begin("COPY into t")
    await job.settle()
    job.end(ImportEnd.SUCCEEDED)
    await one.say_now()
    assert await states(two) == []


test_an_import_shorter_than_a_beat_writes_nothing = with_imports(_short)


async def _cancelled(one: Imports, two: Imports, nursery: trio.Nursery) -> None:
    with pytest.raises(RefusedError, match="there is no import with the job id 7"):
        await two.cancel(7)
    job, other = one.begin("COPY into t"), one.begin("COPY into u")
    await one.say_now()
    await two.cancel(job.job_id)
    await nursery.start(one.run)
    with trio.fail_after(2 * BEAT_S + 10), job.scope:
        await trio.sleep_forever()
    assert not other.scope.cancel_called
    job.end(ImportEnd.CANCELLED, "CANCEL JOB")
    await one.say_now()
    assert (1, "cancelled", 0, "CANCEL JOB") in await states(two)


test_an_import_is_cancelled_from_another_node = with_imports(_cancelled)


async def _not_cancelled(one: Imports, two: Imports, _: trio.Nursery) -> None:
    # Nobody may be told that a commit was cancelled which may have taken effect.
    job = one.begin("COPY into t")
    await one.say_now()
    await two.cancel(job.job_id)
    await job.settle()
    assert not job.scope.cancel_called


test_what_commits_is_not_cancelled_any_more = with_imports(_not_cancelled)


async def _forgotten(one: Imports, two: Imports, _: trio.Nursery) -> None:
    jobs = [one.begin(f"COPY into t{number}") for number in range(KEPT_MAX + 3)]
    await one.say_now()
    for job in jobs:
        job.end(ImportEnd.SUCCEEDED)
    last = two.begin("COPY into the last")
    await two.say_now()
    found = await one.jobs()
    assert [job.job_id for job in found] == sorted([job.job_id for job in jobs[3:]] + [last.job_id])[-len(found) :]
    assert KEPT_MAX <= len(found) <= KEPT_MAX + 1


test_old_imports_are_forgotten = with_imports(_forgotten)


@pytest.mark.parametrize(
    ("state", "told", "why"),
    [("running", "failed", "nothing of it stays"), ("committing", "unknown", "all of its rows are there, or none")],
)
def test_an_import_of_a_silent_node_has_ended(state: str, told: str, why: str) -> None:
    beat = from_milliseconds(1_000_000)
    row = imports.ImportRow(3, "COPY into t", state, 10, 1, 0, beat, "")
    late = from_milliseconds(1_000_000 + int(SILENT_S * 1000))
    assert imports._info(1, row, late).state == state
    found = imports._info(1, row, from_milliseconds(1_000_001 + int(SILENT_S * 1000)))
    assert found.state == told
    assert why in (found.why or "")
    ended = imports.ImportRow(3, "COPY into t", "succeeded", 10, 1, 5, beat, "")
    assert imports._info(1, ended, from_milliseconds(10_000_000)).state == "succeeded"

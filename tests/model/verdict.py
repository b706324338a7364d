"""Judge a history.

order   the committed transactions, with the reads that they made, fit no serial order that respects real time
lost    what a client was told is committed is not there, whole, at one timestamp
zombie  what a client was told is aborted is there, or something is that its client did not ask for
twice   one client transaction is applied more than once (its restarts included), or a key in two versions
past    a read of the past (at the leaseholder, or on a follower at or below the closed timestamp) was not final
own     a transaction did not read its own write
stuck   an intent or a record cannot be cleaned up, or something waits for ever
"""

import itertools
from collections import defaultdict
from typing import Any, NamedTuple

from tests.model.anyone import NEVER
from tests.model.gateway import Client
from tests.model.state import AttemptId
from tests.model.world import World

Applied = dict[AttemptId, dict[str, tuple[int, Any]]]
"""attempt → key → (timestamp, value) of its versions."""


class Committed(NamedTuple):
    """A transaction that took effect."""

    ts: int
    invoked: int
    returned: int
    reads: list[tuple[str, Any]]
    writes: dict[str, Any]


def verdict(world: World, clients: list[Client]) -> str | None:
    """Give the kind of violation, or None."""
    if world.problem:
        return world.problem
    applied: Applied = defaultdict(dict)
    if any(rg.intents or rg.records or rg.log for rg in world.ranges):
        return "stuck"
    final: dict[str, list[tuple[int, Any]]] = {k: [] for k in world.keys}
    for k, ts, value, attempt in sorted(world.applied, key=lambda version: version[1]):
        if k in applied[attempt]:
            return "twice"
        applied[attempt][k] = (ts, value)
        final[k].append((ts, value))
    if any(world.at[k].visible(k, NEVER) != (versions[-1][1] if versions else None) for k, versions in final.items()):
        return "lost"
    committed = []
    for client in clients:
        found = effect(client, applied)
        if isinstance(found, str):
            return found
        if found is not None:
            committed.append(found)
    if not past_is_final(world, final):
        return "past"
    return None if serializable(committed) else "order"


def effect(client: Client, applied: Applied) -> Committed | str | None:
    """Give what a client's transaction did, None for nothing, or what is wrong with it."""
    done = [attempt for attempt in client.attempts if attempt.id in applied]
    if len(done) > 1:
        return "twice"
    if done:
        attempt = done[0]
        if client.told == "aborted" or (client.told == "committed" and client.attempt is not attempt):
            return "zombie"
        stamps = {ts for ts, _ in applied[attempt.id].values()}
        if {k: value for k, (_, value) in applied[attempt.id].items()} != attempt.writes or len(stamps) != 1:
            return "lost"
        if attempt.misread:
            return "own"
        if client.told == "committed" and attempt.commit_ts not in stamps:
            return "lost"
        ts = stamps.pop()
    elif client.told == "committed":
        attempt = client.attempt
        if attempt.writes:
            return "lost"
        ts = attempt.commit_ts if attempt.commit_ts is not None else 0
    else:
        return None
    return Committed(ts, client.invoked, client.returned if client.returned is not None else NEVER, attempt.reads, attempt.writes)


def past_is_final(world: World, final: dict[str, list[tuple[int, Any]]]) -> bool:
    """Say whether every read of the past would read the same at the end."""
    for k, ts, value in world.past:
        found = None
        for version in final[k]:
            if version[0] <= ts:
                found = version
        if (found[1] if found else None) != value:
            return False
    return True


def serializable(committed: list[Committed]) -> bool:
    """Say whether some serial order respects real time and gives these reads.  That of the commit timestamps is tried first."""
    first = sorted(committed, key=lambda txn: txn.ts)
    return any(respects_real_time(order) and replays(order) for order in itertools.chain((first,), itertools.permutations(committed)))


def respects_real_time(order: tuple[Committed, ...] | list[Committed]) -> bool:
    latest = -1
    for txn in order:
        if txn.returned < latest:
            return False
        latest = max(latest, txn.invoked)
    return True


def replays(order: tuple[Committed, ...] | list[Committed]) -> bool:
    state: dict[str, Any] = {}
    for txn in order:
        for k, value in txn.reads:
            if state.get(k) != value:
                return False
        state.update(txn.writes)
    return True

"""A smaller model: transactions that lay each intent when they write, on one range and without faults.

It asks the first question of all: do oracle timestamps, a timestamp cache and the refresh give strict serializability at all?  A history
is right if some order of the committed transactions respects real time and replays to the same reads.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

DENSE_STEP, STEP = 1, 100
"""Between two timestamps; dense ones leave no room between them."""

NEWEST = 10**9

WITHOUT: dict[tuple[str, ...], bool] = {
    (): True,
    ("oracle_read",): False,
    ("oracle_bump", "dense"): False,
    ("refresh",): False,
    ("refresh_intents",): False,
    ("refresh_cache",): False,
    ("push",): False,
}
"""Rules taken away (`dense` is no rule) → whether every history is still right."""


class Abort(Exception):
    """The transaction gives up."""


class OneRange:
    """One range, and the oracle."""

    def __init__(self, keys: str, off: frozenset[str]) -> None:
        self.off, self.now = off, 0
        self.versions: dict[str, list[tuple[int, Any]]] = {k: [(0, None)] for k in keys}
        self.intents: dict[str, tuple[Txn, int, Any]] = {}
        self.cache = dict.fromkeys(keys, 0)

    def issue(self) -> int:
        self.now += 1
        return self.now * (DENSE_STEP if "dense" in self.off else STEP)


class Txn:
    """One transaction, and its run as steps."""

    def __init__(self, store: OneRange, number: int, ops: list[tuple[str, str]]) -> None:
        self.store, self.id, self.ops = store, number, ops
        self.is_point_read = False
        self.state = "pending"
        self.reads: list[tuple[str, Any]] = []
        self.writes: dict[str, Any] = {}
        self.spans: dict[str, None] = {}
        self.pushed_to = self.bump = self.read_ts = self.commit_ts = 0
        self.invoked = self.returned = 0

    def look(self, key: str, ts: int) -> tuple[int, Any]:
        """Give the newest committed version at or below ts, pushing pending transactions out of the way."""
        best = max((version for version in self.store.versions[key] if version[0] <= ts), key=lambda version: version[0])
        intent = self.store.intents.get(key)
        if intent and intent[0] is not self:
            other, at, value = intent
            if other.state == "committed":
                if best[0] < other.commit_ts <= ts:
                    best = (other.commit_ts, value)
            elif other.state == "pending" and at <= ts and "push" not in self.store.off:
                other.pushed_to = max(other.pushed_to, ts)
        return best

    def run(self) -> Iterator[str]:
        store = self.store
        if self.is_point_read and "oracle_read" in store.off:
            yield "begin"
            self.read_newest(self.ops[0][1])
            return
        self.read_ts = store.issue()
        yield "begin"
        for op, key in self.ops:
            if op == "w":
                self.write(key)
            elif key in self.writes:
                continue
            else:
                store.cache[key] = max(store.cache[key], self.read_ts)
                self.reads.append((key, self.look(key, self.read_ts)[1]))
                self.spans[key] = None
            yield "statement"
        yield from self.commit()

    def read_newest(self, key: str) -> None:
        """Read whatever is there, without the oracle: the key's own node knows only timestamps that touched it."""
        intent = self.store.intents.get(key)
        if intent and intent[0].state == "pending":
            raise Abort
        ts, value = self.look(key, NEWEST)
        self.store.cache[key] = max(self.store.cache[key], ts)
        self.reads.append((key, value))
        self.state, self.commit_ts = "committed", ts

    def write(self, key: str) -> None:
        store = self.store
        intent = store.intents.get(key)
        if intent and intent[0] is not self:
            other = intent[0]
            if other.state == "pending":
                raise Abort
            if other.state == "committed":
                store.versions[key].append((other.commit_ts, intent[2]))
            del store.intents[key]
        newest, cached = max(version[0] for version in store.versions[key]), store.cache[key]
        at = max(self.read_ts, cached + 1 if cached >= self.read_ts else 0, newest + 1 if newest >= self.read_ts else 0)
        if cached == self.read_ts and newest < self.read_ts:
            at = self.read_ts  # the entry that its own read made does not bump it
        self.bump = max(self.bump, at)
        self.writes[key] = (self.id, key)
        store.intents[key] = (self, at, self.writes[key])

    def commit(self) -> Iterator[str]:
        off = self.store.off
        while True:
            need = max(self.bump, self.pushed_to + 1 if self.pushed_to else 0, self.read_ts)
            ts = self.read_ts
            if self.writes and need > self.read_ts:
                ts = need if "oracle_bump" in off else self.store.issue()
            yield "timestamp"
            if ts > self.read_ts and "refresh" not in off:
                for key in self.spans:
                    self.refresh(key, ts)
                    yield "refresh"
            if self.pushed_to < ts or "push" in off:
                self.state, self.commit_ts = "committed", ts
                return

    def refresh(self, key: str, ts: int) -> None:
        store = self.store
        if any(self.read_ts < version[0] <= ts for version in store.versions[key]):
            raise Abort
        intent = store.intents.get(key)
        if intent and intent[0] is not self:
            other = intent[0]
            if other.state == "committed" and self.read_ts < other.commit_ts <= ts:
                raise Abort
            if other.state == "pending" and "refresh_intents" not in store.off:
                raise Abort
        if "refresh_cache" not in store.off:
            store.cache[key] = max(store.cache[key], ts)

    def resolve(self) -> Iterator[str]:
        store = self.store
        for key in list(self.writes):
            yield "resolve"
            intent = store.intents.get(key)
            if intent and intent[0] is self:
                if self.state == "committed":
                    store.versions[key].append((self.commit_ts, intent[2]))
                del store.intents[key]


def history(seed: int, off: frozenset[str]) -> list[Txn]:
    """Run one history; gives the transactions that committed."""
    rng = random.Random(seed)
    keys = "ab" if rng.random() < 0.6 else "abc"
    store = OneRange(keys, off)
    txns = []
    for number in range(rng.randint(3, 4)):
        txn = Txn(store, number, [(rng.choice("rw"), rng.choice(keys)) for _ in range(rng.randint(1, 3))])
        if rng.random() < 0.35:
            txn.ops, txn.is_point_read = [("r", rng.choice(keys))], True
        txns.append(txn)
    live = {txn: txn.run() for txn in txns}
    background: list[Iterator[str]] = []
    clock, lazy = 0, rng.random()
    while live or background:
        clock += 1
        if live and (not background or rng.random() < 0.5 + 0.5 * lazy):
            txn = rng.choice(list(live))
            txn.invoked = txn.invoked or clock
            try:
                if next(live[txn], None) is not None:
                    continue
            except Abort:
                txn.state = "aborted"
            txn.returned = clock
            del live[txn]
            background.append(txn.resolve())
        else:
            work = rng.choice(background)
            if next(work, None) is None:
                background.remove(work)
    return [txn for txn in txns if txn.state == "committed"]


def is_right(committed: list[Txn]) -> bool:
    """Say whether the history is strictly serializable."""
    return any(respects_real_time(order) and replays(order) for order in itertools.permutations(committed))


def respects_real_time(order: Sequence[Txn]) -> bool:
    return all(order[j].returned >= order[i].invoked for i in range(len(order)) for j in range(i + 1, len(order)))


def replays(order: Sequence[Txn]) -> bool:
    state: dict[str, Any] = defaultdict(lambda: None)
    for txn in order:
        if any(state[key] != value for key, value in txn.reads):
            return False
        state.update(txn.writes)
    return True


def violations(off: frozenset[str], histories: int, stop: int = 0) -> tuple[int, int | None]:
    """Give how many histories are wrong, and the first seed of one; `stop`: no more than so many are looked for."""
    bad, first = 0, None
    for seed in range(histories):
        if not is_right(history(seed, off)):
            bad, first = bad + 1, seed if first is None else first
            if bad == stop:
                break
    return bad, first


def show(histories: int) -> bool:
    """Print how many histories are wrong with all rules and without each; gives whether they are as expected."""
    expected = True
    for off, right in WITHOUT.items():
        bad, first = violations(frozenset(off), histories)
        expected = expected and (bad == 0) == right
        print(f"{'+'.join(off) or 'all':24s} violations {bad:5d} / {histories:7d}  first seed {first}", flush=True)
    return expected

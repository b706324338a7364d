"""What anyone does who meets an intent, and the cleaning up behind dead gateways.

Work is written as generators: they yield one request (range, handler, arguments), "oracle" for a timestamp, a list of generators to run
side by side, or None to let others go on.  They are resumed with the reply, or with TIMEOUT, after which the request may still arrive.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from tests.model.leaseholder import Ignored, Range
from tests.model.state import MISMATCH, TIMEOUT, AttemptId, Intent, Record
from tests.model.world import World

NEVER = 1 << 60

Steps = Generator[Any, Any, Any]
"""A gateway's work; its return value is what matters."""

SWEEP_ROUNDS = 8


class Attempt:
    """One execution of a client transaction; a restart is a new attempt with a new id."""

    __slots__ = (
        *("anchor", "client", "commit_ts", "first_ts", "id", "ignored", "laid", "may_be_staged", "misread", "read_ts", "reads", "seq"),
        *("spans", "statements", "was_one", "writes"),
    )

    def __init__(self, attempt: AttemptId, client: Any) -> None:
        self.id, self.client = attempt, client
        self.read_ts = self.first_ts = 0
        self.reads: list[tuple[str, Any]] = []
        """(key, value) as read from ranges, for the verdict."""
        self.spans: dict[str, bool] = {}
        """key → whether it existed: what a refresh must cover."""
        self.writes: dict[str, Any] = {}
        """What it writes, as of now."""
        self.statements: list[tuple[int, str, Any]] = []
        """(sequence, key, value) of every write that is not rolled back."""
        self.seq = 0
        """The last write's sequence."""
        self.laid: dict[str, tuple[int, int]] = {}
        """key → (sequence, timestamp) of the last intent that was flushed; timestamp 0: not acknowledged."""
        self.misread = False
        """A read did not give its own flushed write."""
        self.anchor: str | None = None
        """The key that the record lives beside."""
        self.ignored: Ignored = {}
        self.commit_ts: int | None = None
        self.may_be_staged = False
        """A staging was acknowledged, or was sent and not answered."""
        self.was_one = False
        """A one-range commit was sent."""

    def write(self, key: str, value: Any) -> None:
        """Buffer a write."""
        self.seq += 1
        self.statements.append((self.seq, key, value if value is None else (*value, self.seq)))
        self.writes[key] = self.statements[-1][2]

    def rollback(self, savepoint: int) -> None:
        """Forget the writes after a savepoint."""
        self.statements = [statement for statement in self.statements if statement[0] <= savepoint]
        self.writes = {key: value for _, key, value in self.statements}

    def sequences(self) -> dict[str, int]:
        """Give which write stands at each key."""
        return {key: seq for seq, key, _ in self.statements}

    def touched(self) -> list[str]:
        """Give all keys with intents, or to be written."""
        return list(dict.fromkeys((*self.laid, *self.writes)))


class Anyone:
    """Whoever meets an intent."""

    def __init__(self, world: World) -> None:
        self.world, self.off = world, world.off

    def ask(self, key: str, handler: Any, *args: Any) -> Steps:
        """Send to the range of a key, and send again after a timeout; the same request may then arrive twice."""
        tries = 0
        while tries < self.world.tries:
            reply = yield self.world.at[key], handler, args
            if reply is not TIMEOUT and reply != MISMATCH:
                return reply
            # A mismatch is no failure: the range was split, and the next try goes to the right side.
            tries += reply is TIMEOUT
        return TIMEOUT

    def call(self, rg: Range, handler: Any, *args: Any) -> Steps:
        """Send to one range, for several keys, and again after a timeout; gives MISMATCH if they are not all there any more."""
        for _ in range(self.world.tries):
            reply = yield rg, handler, args
            if reply is not TIMEOUT:
                return reply
        return TIMEOUT

    # ---- Meeting an intent ----

    def settle(self, intent: Intent, ts: int, abort: bool) -> Steps:
        """Push the intent's transaction.  Gives (status, commit timestamp) with status committed, aborted, pushed or timeout."""
        reply = yield from self.ask(intent.anchor, Range.push, intent.attempt, intent.anchor, intent.first_ts, ts, abort)
        if reply[0] == "staging":
            reply = yield from self.recover(intent.attempt, intent.first_ts, intent.anchor, reply)
        return reply if reply is not TIMEOUT else (TIMEOUT,)

    def recover(self, attempt: AttemptId, first_ts: int, anchor: str, reply: Any) -> Steps:
        """Find out whether a STAGING transaction is committed, and make the record say so."""
        while reply is not TIMEOUT and reply[0] == "staging":
            _, ts, keys = reply
            found = yield [self.ask(k, Range.query, attempt, k, ts) for k in keys]
            if TIMEOUT in found:
                return TIMEOUT
            ok = all(answer[0] == "found" for answer in found)
            self.world.seen["recovery commits" if ok else "recovery aborts"] += 1
            commit_ts = ts
            if ok and "recover_staged_ts" in self.off:
                commit_ts = yield "oracle"
            status = "COMMITTED" if ok else "ABORTED"
            reply = yield from self.ask(anchor, Range.end, attempt, anchor, first_ts, status, commit_ts, ts)
            if reply is not TIMEOUT and reply[0] == "gone":
                # Removed: whatever it was, its intents are resolved; nothing may be concluded but "look again".
                return ("aborted",)
        return reply

    def clear(self, attempt: Attempt, found: tuple, ts: int, abort: bool) -> Steps:
        """Get a foreign intent out of the way of an attempt at ts; the caller tries again."""
        _, key, intent, _ = found
        reply = yield from self.settle(intent, ts, abort)
        if reply[0] == "committed" and reply[1] > ts and not abort and self.world.chance(0.5):
            attempt.ignored[intent.attempt] = max(ts, attempt.ignored.get(intent.attempt, 0))
        elif reply[0] in ("committed", "aborted"):
            commit_ts = reply[1] if reply[0] == "committed" else None
            yield from self.ask(key, Range.resolve, intent.attempt, key, commit_ts)
        elif reply[0] == "pushed":
            attempt.ignored[intent.attempt] = max(ts, attempt.ignored.get(intent.attempt, 0))

    # ---- Cleaning up behind the dead ----

    def janitor(self, rounds: int) -> Steps:
        """Finish the records of dead gateways: anyone's background work.  It may take a live one for dead."""
        world = self.world
        for _ in range(rounds):
            yield None
            todo = list(self.records().items())
            if not todo:
                continue
            x, record = world.rng.choice(todo)
            first_ts = world.attempts[x].first_ts
            if record.status == "PENDING":
                # Its gateway gave no sign of life for long.
                reply = yield from self.ask(record.anchor, Range.push, x, record.anchor, first_ts, NEVER, True)
            else:
                found = (record.status.lower(), record.ts, record.keys)
                reply = yield from self.recover(x, first_ts, record.anchor, found)
            if reply is TIMEOUT or x not in self.records():
                continue
            if "pending_keys" not in self.off:
                # While it was pushed its gateway may have committed it, and said with which keys.
                record = self.records()[x]
            ts = reply[1] if reply[0] == "committed" else None
            done = yield [self.ask(k, Range.resolve, x, k, ts) for k in record.keys]
            if TIMEOUT not in done:
                yield from self.ask(record.anchor, Range.remove, x, record.anchor)

    def records(self) -> dict[AttemptId, Record]:
        """Give all records, where they are served."""
        at = self.world.at
        return {x: record for rg in self.world.ranges for x, record in rg.records.items() if at[record.anchor] is rg}

    def sweep(self) -> Steps:
        """Clean up at the end: whatever is left must be resolvable by the ordinary means."""
        world = self.world
        for _ in range(SWEEP_ROUNDS):
            left = [(k, intent) for rg in world.ranges for k, intent in rg.intents.items()]
            for k, intent in left:
                yield from self.clear(Attempt(("sweep", 0), None), ("intent", k, intent, None), NEVER, True)
            yield from self.janitor(SWEEP_ROUNDS)

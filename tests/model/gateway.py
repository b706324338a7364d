"""What a gateway does for one client transaction, and what anyone does who meets an intent.  To be read beside `dsdb/txn/transaction.py`.

Gateways are generators: they yield one request (range, handler, arguments), "oracle" for a timestamp, a list of generators to run side
by side, or None to let others go on.  They are resumed with the reply, or with TIMEOUT, after which the request may still arrive.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from tests.model.leaseholder import Ignored, Range
from tests.model.state import TIMEOUT, AttemptId, Intent
from tests.model.workload import Program
from tests.model.world import World

NEVER = 1 << 60

Steps = Generator[Any, Any, Any]
"""A gateway's work; its return value is what matters."""

READ_TRIES_MAX = 12
REFRESH_TRIES_MAX = 6
PREWRITE_TRIES_MAX = 6
COMMIT_ONE_TRIES_MAX = 8
COMMIT_MANY_ROUNDS_MAX = 4
SWEEP_ROUNDS = 8


class Attempt:
    """One execution of a client transaction; a restart is a new attempt with a new id."""

    __slots__ = ("anchor", "client", "commit_ts", "first_ts", "id", "ignored", "may_be_staged", "read_ts", "reads", "spans", "writes")

    def __init__(self, attempt: AttemptId, client: Any) -> None:
        self.id, self.client = attempt, client
        self.read_ts = self.first_ts = 0
        self.reads: list[tuple[str, Any]] = []
        """(key, value) as read from ranges, for the verdict."""
        self.spans: dict[str, bool] = {}
        """key → whether it existed: what a refresh must cover."""
        self.writes: dict[str, Any] = {}
        """The gateway's buffer."""
        self.anchor: str | None = None
        """The key that the record lives beside."""
        self.ignored: Ignored = {}
        self.commit_ts: int | None = None
        self.may_be_staged = False
        """A staging was acknowledged, or was sent and not answered."""


class Client:
    """One client transaction: its program, and what its client was told."""

    def __init__(self, number: int, program: Program) -> None:
        self.id, self.program = number, program
        self.invoked = self.returned = None
        self.told = "unknown"
        self.attempt: Attempt | None = None
        self.attempts: list[Attempt] = []
        self.crash_at = NEVER
        self.slow = False
        """Its gateway is slow: all others go on meanwhile."""
        self.steps = 0


class Gateway:
    """The gateways of a history, and whoever meets an intent."""

    def __init__(self, world: World) -> None:
        self.world, self.off = world, world.off

    def call(self, rg: Range, handler: Any, *args: Any) -> Steps:
        """Send, and send again after a timeout; the same request may then arrive twice."""
        for _ in range(self.world.tries):
            reply = yield rg, handler, args
            if reply is not TIMEOUT:
                return reply
        return TIMEOUT

    # ---- Meeting an intent ----

    def settle(self, intent: Intent, ts: int, abort: bool) -> Steps:
        """Push the intent's transaction.  Gives (status, commit timestamp) with status committed, aborted, pushed or timeout."""
        anchor = self.world.at[intent.anchor]
        reply = yield from self.call(anchor, Range.push, intent.attempt, intent.first_ts, ts, abort)
        if reply[0] == "staging":
            reply = yield from self.recover(intent.attempt, intent.first_ts, anchor, reply)
        return reply if reply is not TIMEOUT else (TIMEOUT,)

    def recover(self, attempt: AttemptId, first_ts: int, anchor: Range, reply: Any) -> Steps:
        """Find out whether a STAGING transaction is committed, and make the record say so."""
        while reply is not TIMEOUT and reply[0] == "staging":
            _, ts, keys = reply
            found = yield [self.call(self.world.at[k], Range.query, attempt, k, ts) for k in keys]
            if TIMEOUT in found:
                return TIMEOUT
            ok = all(answer[0] == "found" for answer in found)
            self.world.seen["recovery commits" if ok else "recovery aborts"] += 1
            commit_ts = ts
            if ok and "recover_staged_ts" in self.off:
                commit_ts = yield "oracle"
            reply = yield from self.call(anchor, Range.end, attempt, first_ts, "COMMITTED" if ok else "ABORTED", commit_ts, ts)
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
            yield from self.call(self.world.at[key], Range.resolve, intent.attempt, key, commit_ts)
        elif reply[0] == "pushed":
            attempt.ignored[intent.attempt] = max(ts, attempt.ignored.get(intent.attempt, 0))

    # ---- Statements ----

    def read(self, attempt: Attempt, rg: Range, keys: list[str], lock: bool) -> Steps:
        """Read keys of one range at read_ts.  Gives values, or None: give up."""
        waits = 0
        for _ in range(READ_TRIES_MAX):
            holder = attempt.id if lock else None
            reply = yield from self.call(rg, Range.read, attempt.id, attempt.ignored, keys, attempt.read_ts, holder)
            if reply is TIMEOUT:
                return None
            if reply[0] == "ok":
                return reply[1]
            if reply[0] == "intent":
                yield from self.clear(attempt, reply, attempt.read_ts, False)
                if "read_after_push" in self.off and len(keys) == 1:
                    rg.note(keys[0], attempt.read_ts, attempt.id)
                    return {reply[1]: reply[3]}
            elif reply[0] == "locked":
                waits += 1
                if waits > 2:  # wounded, or its holder is taken for dead: losing a lock must be harmless
                    yield from self.call(rg, Range.steal, reply[1], reply[2])
            elif reply[0] == "newer":
                ts = yield "oracle"
                if "read_advance_refresh" not in self.off:
                    ok = yield from self.refresh(attempt, ts, None)
                    if not ok:
                        return None
                attempt.read_ts = ts
        return None

    def refresh(self, attempt: Attempt, ts: int, skip: Range | None) -> Steps:
        """Refresh all spans over (read_ts, ts], except those of the range `skip`.  Gives whether nothing had changed."""
        for rg in self.world.ranges:
            if rg is skip or not any(k in rg.versions for k in attempt.spans):
                continue
            for _ in range(REFRESH_TRIES_MAX):
                reply = yield from self.call(rg, Range.refresh, attempt.id, attempt.ignored, attempt.spans, attempt.read_ts, ts)
                if reply is TIMEOUT or reply[0] == "conflict":
                    return False
                if reply[0] == "ok":
                    break
                self.world.seen["refresh met an intent"] += 1
                yield from self.clear(attempt, reply, ts, False)
            else:
                return False
        return True

    def execute(self, attempt: Attempt, program: Program) -> Steps:
        """Run the statements.  Gives False: restart or abort."""
        for op, keys in program:
            if op in "wd":
                attempt.writes[keys[0]] = None if op == "d" else (attempt.id, keys[0])
                continue
            for rg in self.world.ranges:
                mine = [k for k in keys if k in rg.versions and k not in attempt.writes]
                if not mine:
                    continue
                values = yield from self.read(attempt, rg, mine, op == "u")
                if values is None:
                    return False
                for k in mine:
                    attempt.reads.append((k, values[k]))
                    attempt.spans[k] = attempt.spans.get(k, False) or values[k] is not None or op != "s"
            if op == "u":
                attempt.writes[keys[0]] = (attempt.id, keys[0])
        return True

    # ---- One-range commit ----

    def commit_one(self, attempt: Attempt, rg: Range) -> Steps:
        """Commit with all writes in one range.  Gives committed, refused or unknown."""
        ts = attempt.read_ts
        if self.world.chance(0.15):
            ts = yield "oracle"
        attempt.first_ts = ts
        local = {k: existed for k, existed in attempt.spans.items() if k in rg.versions}
        all_local = len(local) == len(attempt.spans)
        for _ in range(COMMIT_ONE_TRIES_MAX):
            if ts > attempt.read_ts and not all_local:
                ok = yield from self.refresh(attempt, ts, rg)
                if not ok:
                    return (yield from self.give_up_one(attempt, rg))
            args = (attempt.id, attempt.first_ts, attempt.ignored, attempt.writes, local, attempt.read_ts, ts, all_local)
            reply = yield from self.call(rg, Range.commit_one, *args)
            if reply is TIMEOUT:
                break
            if reply[0] == "gone":
                return "unknown"
            if reply[0] == "committed":
                attempt.commit_ts = reply[1]
                self.world.seen["one-range commit"] += 1
                return "committed"
            if reply[0] in ("conflict", "refused"):
                return "refused"  # final: what refused it (a newer version) is still there for any late copy
            if reply[0] == "intent":
                if self.world.chance(0.1):
                    break
                if reply[3]:
                    ts = reply[3]  # met while refreshing up to the leaseholder's own timestamp: go on with that one
                yield from self.clear(attempt, reply, ts, not reply[3])
            elif "bump_oracle" in self.off:
                ts = reply[1] + 1
            else:
                ts = yield "oracle"
        return (yield from self.give_up_one(attempt, rg))

    def give_up_one(self, attempt: Attempt, rg: Range) -> Steps:
        """Record that the attempt will not commit, or find out that it has."""
        if "one_give_up_recorded" in self.off:
            return "refused"
        reply = yield from self.call(rg, Range.refuse_one, attempt.id, attempt.first_ts)
        if reply is TIMEOUT or reply[0] == "gone":
            return "unknown"
        if reply[0] == "committed":
            attempt.commit_ts = reply[1]
        return reply[0]

    # ---- Many-range commit ----

    def prewrite(self, attempt: Attempt, key: str, ts: int) -> Steps:
        """Lay one intent.  Gives ("ok", its timestamp), ("fail",) or TIMEOUT."""
        for _ in range(PREWRITE_TRIES_MAX):
            args = (attempt.id, key, attempt.writes[key], ts, attempt.anchor, attempt.first_ts)
            reply = yield from self.call(self.world.at[key], Range.prewrite, *args)
            if reply is TIMEOUT or reply[0] == "ok":
                return reply
            if self.world.chance(0.1):
                return ("fail",)
            if self.world.chance(0.7):
                yield from self.clear(attempt, reply, ts, True)
            else:
                yield None
        return ("fail",)

    def stage(self, attempt: Attempt, ts: int) -> Steps:
        """Stage the record at ts."""
        for _ in range(self.world.tries):
            args = (attempt.id, ts, attempt.first_ts, tuple(attempt.writes))
            reply = yield self.world.at[attempt.anchor], Range.stage, args
            if reply is TIMEOUT or reply[0] == "staged":
                attempt.may_be_staged = True
            if reply is not TIMEOUT:
                break
        return reply

    def commit_many(self, attempt: Attempt) -> Steps:
        """Commit in parallel: record and intents go out together.  Gives committed, refused or unknown."""
        ts = attempt.read_ts
        if self.world.chance(0.15):
            ts = yield "oracle"
        attempt.first_ts = ts
        attempt.anchor = next(iter(attempt.writes))
        missing = list(attempt.writes)
        for _ in range(COMMIT_MANY_ROUNDS_MAX):
            late_refresh = None
            if ts > attempt.read_ts:
                if "refresh_before_staging" in self.off:
                    late_refresh = self.refresh(attempt, ts, None)
                elif not (yield from self.refresh(attempt, ts, None)):
                    break
            if ts > attempt.first_ts:
                self.world.seen["staged again"] += 1
            result = yield from self.stage_and_prewrite(attempt, ts, missing, late_refresh)
            if result[0] == "committed":
                attempt.commit_ts = result[1]
                return "committed"
            if result[0] == "failed":
                break
            missing = []
            if "bump_oracle" in self.off:
                ts = result[1] + 1
            else:
                ts = yield "oracle"
        return (yield from self.abort_many(attempt))

    def stage_and_prewrite(self, attempt: Attempt, ts: int, missing: list[str], late_refresh: Steps | None) -> Steps:
        """Do one round of a parallel commit.  Gives ("committed", at), ("failed",) or ("bump", what to stage above)."""
        jobs = [self.stage(attempt, ts)] + [self.prewrite(attempt, k, ts) for k in missing]
        if late_refresh:
            jobs.append(late_refresh)
        results = yield jobs
        if late_refresh and not results.pop():
            return ("failed",)
        staged, written = results[0], results[1:]
        if staged is not TIMEOUT and staged[0] == "committed":
            return staged  # recovered by someone who met an intent
        if staged is TIMEOUT or staged[0] in ("aborted", "gone"):
            return ("failed",)
        bound = staged[1] if staged[0] == "bump" else 0
        for reply in written:
            if reply is TIMEOUT or reply[0] != "ok":
                return ("failed",)
            if reply[1] > ts:
                bound = max(bound, reply[1])
        if not bound or ("stage_at_or_below" in self.off and staged[0] == "staged"):
            self.world.seen["parallel commit"] += 1
            return "committed", ts  # implicitly: the client may be told now
        return "bump", bound

    def abort_many(self, attempt: Attempt) -> Steps:
        """Abort through the record, which may say that it is committed."""
        if "abort_asks_record" in self.off:
            return "refused"
        reply = yield from self.call(self.world.at[attempt.anchor], Range.end, attempt.id, attempt.first_ts, "ABORTED", 0, None)
        if reply is TIMEOUT or (reply[0] == "gone" and attempt.may_be_staged and "gone_unknown" not in self.off):
            return "unknown"
        if reply[0] == "committed":
            attempt.commit_ts = reply[1]
            return "committed"
        return "refused"

    def finish_many(self, attempt: Attempt, outcome: str) -> Steps:
        """After the client has its answer: say it in the record, resolve, remove."""
        off, anchor = self.off, self.world.at[attempt.anchor]
        committed = outcome == "committed"
        say_committed = (attempt.id, attempt.first_ts, "COMMITTED", attempt.commit_ts, attempt.commit_ts)
        if committed and "resolve_after_record" not in off:
            reply = yield from self.call(anchor, Range.end, *say_committed)
            if reply is TIMEOUT:
                return
        ts = attempt.commit_ts if committed else None
        jobs = [self.call(self.world.at[k], Range.resolve, attempt.id, k, ts) for k in attempt.writes]
        if "remove_after_resolve" in off:
            yield [*jobs, self.call(anchor, Range.remove, attempt.id)]
            return
        done = yield jobs
        if TIMEOUT not in done:
            if committed and "resolve_after_record" in off:
                yield from self.call(anchor, Range.end, *say_committed)
            yield from self.call(anchor, Range.remove, attempt.id)

    # ---- A client's transaction ----

    def run(self, client: Client) -> Steps:
        """Run a client's transaction, and once more if it must be restarted."""
        world = self.world
        client.invoked = world.clock
        for number in range(2):
            attempt = Attempt((client.id, number), client.id)
            client.attempts.append(attempt)
            world.attempts[attempt.id] = attempt
            outcome = yield from self.attempt(client, attempt)
            if outcome != "restart":
                break
            world.seen["restart"] += 1
        client.told = {"committed": "committed", "refused": "aborted", "restart": "aborted", "unknown": "unknown"}[outcome]
        client.attempt = attempt
        if outcome != "unknown":
            client.returned = world.clock

    def attempt(self, client: Client, attempt: Attempt) -> Steps:
        """Run it once.  Gives committed, refused, unknown or restart."""
        world = self.world
        op, keys = client.program[0]
        if "read_timestamp" in self.off and len(client.program) == 1 and op == "r":
            return (yield from self.read_latest(attempt, keys[0]))
        attempt.read_ts = yield "oracle"
        ok = yield from self.execute(attempt, client.program)
        if not ok:
            outcome = "restart"
        elif not attempt.writes:
            attempt.commit_ts = attempt.read_ts
            return "committed"
        else:
            homes = {id(world.at[k]) for k in attempt.writes}
            if len(homes) == 1 and world.chance(0.85):
                outcome = yield from self.commit_one(attempt, world.at[next(iter(attempt.writes))])
            else:
                outcome = yield from self.commit_many(attempt)
                world.start(self.finish_many(attempt, outcome) if outcome != "unknown" else nothing(), client)
        if any(op == "u" for op, _ in client.program):
            world.start(self.unlock_all(attempt), client)
        if outcome == "refused" and world.chance(0.5):
            return "restart"
        return outcome

    def read_latest(self, attempt: Attempt, key: str) -> Steps:
        """Read a key at no timestamp (read_timestamp off)."""
        for _ in range(6):
            reply = yield from self.call(self.world.at[key], Range.read_latest, attempt.id, key)
            if reply is TIMEOUT:
                return "refused"
            if reply[0] == "ok":
                attempt.reads = list(reply[1].items())
                return "committed"
            yield from self.clear(attempt, reply, NEVER, False)
        return "refused"

    def unlock_all(self, attempt: Attempt) -> Steps:
        for rg in self.world.ranges:
            yield rg, Range.unlock, (attempt.id,)

    # ---- Cleaning up behind the dead ----

    def janitor(self, rounds: int) -> Steps:
        """Finish the records of dead gateways: anyone's background work.  It may take a live one for dead."""
        world = self.world
        for _ in range(rounds):
            yield None
            todo = [(rg, x) for rg in world.ranges for x in rg.records]
            if not todo:
                continue
            rg, x = world.rng.choice(todo)
            record = rg.records[x]
            reply = yield from self.recover(x, world.attempts[x].first_ts, rg, (record.status.lower(), record.ts, record.keys))
            if reply is TIMEOUT or x not in rg.records:
                continue
            ts = reply[1] if reply[0] == "committed" else None
            done = yield [self.call(world.at[k], Range.resolve, x, k, ts) for k in record.keys]
            if TIMEOUT not in done:
                yield from self.call(rg, Range.remove, x)

    def sweep(self) -> Steps:
        """Clean up at the end: whatever is left must be resolvable by the ordinary means."""
        world = self.world
        for _ in range(SWEEP_ROUNDS):
            left = [(k, intent) for rg in world.ranges for k, intent in rg.intents.items()]
            for k, intent in left:
                yield from self.clear(Attempt(("sweep", 0), None), ("intent", k, intent, None), NEVER, True)
            yield from self.janitor(SWEEP_ROUNDS)


def nothing() -> Iterator[None]:
    """Do nothing, as a task."""
    return
    yield

"""What a gateway does for one client transaction: statements, commit, a restart if need be."""

from __future__ import annotations

from collections.abc import Iterator

from tests.model.anyone import NEVER, Attempt, Steps
from tests.model.flushing import Flushing
from tests.model.leaseholder import Range
from tests.model.state import MISMATCH, TIMEOUT
from tests.model.workload import Program

READ_TRIES_MAX = 12


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


class Gateway(Flushing):
    """The gateways of a history."""

    # ---- Statements ----

    def read(self, attempt: Attempt, keys: list[str], lock: bool) -> Steps:
        """Read keys of one range at read_ts.  Gives values, or None: give up; {} if the keys are in several ranges now."""
        waits = 0
        for _ in range(READ_TRIES_MAX):
            rg = self.world.at[keys[0]]
            holder = attempt.id if lock else None
            own = attempt.sequences() if attempt.laid else None
            reply = yield from self.call(rg, Range.read, attempt.id, attempt.ignored, keys, attempt.read_ts, holder, own)
            if reply is TIMEOUT:
                return None
            if reply == MISMATCH:
                return {}
            if reply[0] == "below":
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
                    yield rg, Range.steal, (reply[1], reply[2])
            elif reply[0] == "newer":
                ts = yield "oracle"
                if "read_advance_refresh" not in self.off:
                    ok = yield from self.refresh(attempt, ts)
                    if not ok:
                        return None
                attempt.read_ts = ts
        return None

    def execute(self, attempt: Attempt, program: Program) -> Steps:
        """Run the statements.  Gives False: restart or abort."""
        savepoint = 0
        for op, keys in program:
            match op:
                case "w" | "d":
                    attempt.write(keys[0], None if op == "d" else (attempt.id, keys[0]))
                case "f":
                    if not (yield from self.flush(attempt, attempt.read_ts)):
                        return False
                case "p":
                    savepoint = attempt.seq
                case "b":
                    attempt.rollback(savepoint)
                case _:
                    if not (yield from self.query(attempt, op, keys)):
                        return False
                    if op == "u":
                        attempt.write(keys[0], (attempt.id, keys[0]))
        return True

    def query(self, attempt: Attempt, op: str, keys: str) -> Steps:
        """Run a statement that reads.  Gives False: restart or abort."""
        # What was flushed is not in the buffer any more, and read from its intents.
        stands = attempt.sequences()
        todo = [k for k in keys if k not in attempt.writes or attempt.laid.get(k, (0, 0))[0] == stands[k]]
        while todo:
            values = yield from self.read(attempt, self.together(todo), op == "u")
            if values is None:
                return False
            for k, value in values.items():
                if k in attempt.writes:
                    attempt.misread = attempt.misread or value != attempt.writes[k]
                    continue
                attempt.reads.append((k, value))
                attempt.spans[k] = attempt.spans.get(k, False) or value is not None or op != "s"
            todo = [k for k in todo if k not in values]
        return True

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
        if attempt.laid and not (ok and attempt.writes):
            outcome = "committed" if ok else "restart"
            attempt.commit_ts = attempt.read_ts
            yield from self.abort_many(attempt)
            world.start(self.finish_many(attempt, "refused"), client)
        elif not ok:
            outcome = "restart"
        elif not attempt.writes:
            attempt.commit_ts = attempt.read_ts
            return "committed"
        else:
            outcome = "moved"
            if attempt.laid:
                outcome = yield from self.commit_flushed(attempt)
                world.start(self.finish_many(attempt, outcome) if outcome != "unknown" else nothing(), client)
            elif self.is_one(attempt) and world.chance(0.85):
                outcome = yield from self.commit_one(attempt)
            if outcome == "moved":
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
            reply = yield from self.ask(key, Range.read_latest, attempt.id, key)
            if reply is TIMEOUT:
                return "refused"
            if reply[0] == "ok":
                attempt.reads = list(reply[1].items())
                return "committed"
            yield from self.clear(attempt, reply, NEVER, False)
        return "refused"

    def unlock_all(self, attempt: Attempt) -> Steps:
        for rg in list(self.world.ranges):
            yield rg, Range.unlock, (attempt.id,)


def nothing() -> Iterator[None]:
    """Do nothing, as a task."""
    return
    yield

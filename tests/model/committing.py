"""How a gateway commits: in one range, or in many.  To be read beside `dsdb/txn/transaction.py`."""

from typing import Any

from tests.model.anyone import Anyone, Attempt, Steps
from tests.model.leaseholder import Range
from tests.model.state import MISMATCH, TIMEOUT

REFRESH_TRIES_MAX = 6
PREWRITE_TRIES_MAX = 6
COMMIT_ONE_TRIES_MAX = 8
COMMIT_MANY_ROUNDS_MAX = 4


class Committing(Anyone):
    """Refresh and commit."""

    def together(self, keys: list[str]) -> list[str]:
        """Give those keys that are in the range of the first one."""
        at = self.world.at
        return [k for k in keys if at[k] is at[keys[0]]]

    def is_one(self, attempt: Attempt) -> bool:
        """Say whether all writes are in one range."""
        writes = list(attempt.writes)
        return self.together(writes) == writes

    def refresh(self, attempt: Attempt, ts: int, skip: tuple[str, ...] = ()) -> Steps:
        """Refresh all spans over (read_ts, ts], except `skip`.  Gives whether nothing had changed."""
        todo = [k for k in attempt.spans if k not in skip]
        for _ in range(REFRESH_TRIES_MAX):
            while todo:
                mine = {k: attempt.spans[k] for k in self.together(todo)}
                rg = self.world.at[todo[0]]
                reply = yield from self.call(rg, Range.refresh, attempt.id, attempt.ignored, mine, attempt.read_ts, ts)
                if reply is TIMEOUT or reply[0] in ("conflict", "below"):
                    return False
                if reply[0] == "ok":
                    todo = [k for k in todo if k not in mine]
                    continue
                if reply != MISMATCH:
                    self.world.seen["refresh met an intent"] += 1
                    yield from self.clear(attempt, reply, ts, False)
                break
            else:
                return True
        return False

    def choose_first_ts(self, ts: int) -> int:
        """Give first_ts: any timestamp issued before will do, also one from before the transaction."""
        return ts if self.world.chance(0.7) else ts - self.world.rng.randint(0, 4)

    # ---- One-range commit ----

    def commit_one(self, attempt: Attempt) -> Steps:
        """Commit with all writes in one range.  Gives committed, refused, unknown, or moved: they are not in one range any more."""
        ts = attempt.read_ts
        if self.world.chance(0.15):
            ts = yield "oracle"
        attempt.first_ts, attempt.was_one = self.choose_first_ts(ts), True
        for _ in range(COMMIT_ONE_TRIES_MAX):
            if not self.is_one(attempt):
                self.world.seen["split during a one-range commit"] += 1
                return "moved"
            rg = self.world.at[next(iter(attempt.writes))]
            # Done again before each send: a split since the last one moves reads out of this range.
            local = {k: existed for k, existed in attempt.spans.items() if self.world.at[k] is rg}
            all_local = len(local) == len(attempt.spans)
            if ts > attempt.read_ts and not all_local and not (yield from self.refresh(attempt, ts, tuple(local))):
                break
            args = (attempt.id, attempt.first_ts, attempt.ignored, attempt.writes, local, attempt.read_ts, ts, all_local)
            reply = yield from self.call(rg, Range.commit_one, *args)
            if reply is TIMEOUT:
                if self.is_one(attempt):
                    break
                self.world.seen["split after an unanswered one-range commit"] += 1
                continue
            if reply == MISMATCH:
                continue
            if reply[0] == "gone":
                return "unknown"
            if reply[0] == "committed":
                attempt.commit_ts = reply[1]
                self.world.seen["one-range commit"] += 1
                return "committed"
            if reply[0] in ("conflict", "below", "refused"):
                return "refused"  # final: what refused it (a newer version, the threshold) is still there for any late copy
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
        return (yield from self.give_up_one(attempt))

    def give_up_one(self, attempt: Attempt) -> Steps:
        """Record that the attempt will not commit, or find out that it has."""
        if "one_give_up_recorded" in self.off:
            return "refused"
        key = next(iter(attempt.writes))
        reply = yield from self.ask(key, Range.refuse_one, attempt.id, attempt.first_ts)
        if reply is TIMEOUT or reply[0] == "gone":
            return "unknown"
        if reply[0] == "committed":
            attempt.commit_ts = reply[1]
        return reply[0]

    # ---- Many-range commit ----

    def prewrite(self, attempt: Attempt, key: str, ts: int, value: Any, seq: int = 0) -> Steps:
        """Lay one intent.  Gives ("ok", its timestamp), ("fail",) or TIMEOUT."""
        for _ in range(PREWRITE_TRIES_MAX):
            reply = yield from self.ask(key, Range.prewrite, attempt.id, key, value, ts, attempt.anchor, attempt.first_ts, seq)
            if reply is TIMEOUT or reply[0] == "ok":
                return reply
            if self.world.chance(0.1):
                return ("fail",)
            if self.world.chance(0.7):
                yield from self.clear(attempt, reply, ts, True)
            else:
                yield None
        return ("fail",)

    def stage(self, attempt: Attempt, ts: int, handler: Any = Range.stage) -> Steps:
        """Stage the record at ts, or (Range.commit_flushed) make it COMMITTED."""
        args = (attempt.id, ts, attempt.first_ts, tuple(attempt.touched()), attempt.anchor, attempt.was_one)
        tries = 0
        while tries < self.world.tries:
            reply = yield self.world.at[attempt.anchor], handler, args
            if reply is TIMEOUT or reply[0] == "staged":
                attempt.may_be_staged = True
            if reply is not TIMEOUT and reply != MISMATCH:
                return reply
            tries += reply is TIMEOUT
        return TIMEOUT

    def commit_many(self, attempt: Attempt) -> Steps:
        """Commit in parallel: record and intents go out together.  Gives committed, refused or unknown."""
        ts = attempt.read_ts
        if self.world.chance(0.15):
            ts = yield "oracle"
        if not attempt.was_one:
            attempt.first_ts = self.choose_first_ts(ts)
        attempt.anchor = next(iter(attempt.writes))
        missing = list(attempt.writes)
        for _ in range(COMMIT_MANY_ROUNDS_MAX):
            late_refresh = None
            if ts > attempt.read_ts:
                if "refresh_before_staging" in self.off:
                    late_refresh = self.refresh(attempt, ts)
                elif not (yield from self.refresh(attempt, ts)):
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
        jobs = [self.stage(attempt, ts)] + [self.prewrite(attempt, k, ts, attempt.writes[k]) for k in missing]
        if late_refresh:
            jobs.append(late_refresh)
        results = yield jobs
        if late_refresh and not results.pop():
            return ("failed",)
        staged, written = results[0], results[1:]
        if staged is not TIMEOUT and staged[0] == "committed":
            return staged  # recovered by someone who met an intent
        if staged is TIMEOUT or staged[0] in ("aborted", "gone", "refused"):
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
        anchor = attempt.anchor
        reply = yield from self.ask(anchor, Range.end, attempt.id, anchor, attempt.first_ts, "ABORTED", 0, None, attempt.was_one)
        may_be_committed = attempt.may_be_staged or attempt.was_one
        if reply is TIMEOUT or (reply[0] == "gone" and may_be_committed and "gone_unknown" not in self.off):
            return "unknown"
        if reply[0] == "committed":
            attempt.commit_ts = reply[1]
            return "committed"
        return "refused"

    def finish_many(self, attempt: Attempt, outcome: str) -> Steps:
        """After the client has its answer: say it in the record, resolve, remove."""
        off, anchor = self.off, attempt.anchor
        committed = outcome == "committed"
        say_committed = (attempt.id, anchor, attempt.first_ts, "COMMITTED", attempt.commit_ts, attempt.commit_ts)
        if committed and "resolve_after_record" not in off:
            reply = yield from self.ask(anchor, Range.end, *say_committed)
            if reply is TIMEOUT:
                return
        ts = attempt.commit_ts if committed else None
        jobs = [self.ask(k, Range.resolve, attempt.id, k, ts) for k in attempt.touched()]
        if "remove_after_resolve" in off:
            yield [*jobs, self.ask(anchor, Range.remove, attempt.id, anchor)]
            return
        done = yield jobs
        if TIMEOUT not in done:
            if committed and "resolve_after_record" in off:
                yield from self.ask(anchor, Range.end, *say_committed)
            yield from self.ask(anchor, Range.remove, attempt.id, anchor)

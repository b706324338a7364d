"""Transactions whose buffer became too large: their writes are flushed as intents before the commit, and may be rolled back still.

    write, write ──flush──▶ intents, maybe a PENDING record ── write, rollback to a savepoint ──flush──▶ intents ──▶ record COMMITTED at c

The commit is in two rounds: when every intent is acknowledged at or below c, and every refresh at c has succeeded, the record becomes
COMMITTED.  There is no STAGING, for the keys are too many to be listed in it: what the record names are spans to resolve.
"""

from typing import Any

from tests.model.anyone import Attempt, Steps
from tests.model.committing import COMMIT_MANY_ROUNDS_MAX, Committing
from tests.model.leaseholder import Range
from tests.model.state import NOTHING, TIMEOUT


class Flushing(Committing):
    """Flush, and commit what was flushed."""

    def missing(self, attempt: Attempt) -> dict[str, tuple[Any, int]]:
        """Give key → (value, sequence) of the intents that are still to be laid."""
        stands, missing = attempt.sequences(), {}
        for k, value in attempt.writes.items():
            seq, at = attempt.laid.get(k, (0, 0))
            if stands[k] > seq or (stands[k] == seq and not at):
                missing[k] = (value, stands[k])
        if "savepoint_undo" in self.off:
            return missing
        for k, (seq, at) in attempt.laid.items():
            if stands.get(k, 0) < seq or (not at and k not in missing):
                # Rolled back after it was flushed.  The sequence is a new one, so that no late copy comes after it.
                attempt.seq += 1
                missing[k] = (attempt.writes.get(k, NOTHING), attempt.seq)
                if k in attempt.writes:
                    attempt.statements.append((attempt.seq, k, attempt.writes[k]))
        return missing

    def flush(self, attempt: Attempt, ts: int) -> Steps:
        """Lay what is missing.  Gives whether all of it is there."""
        missing, is_first = self.missing(attempt), False
        if missing and attempt.anchor is None:
            # It may be younger than where the intents are laid: only the record depends on it.
            attempt.first_ts = (yield "oracle") if self.world.chance(0.5) else self.choose_first_ts(ts)
            attempt.anchor = next(iter(missing))
            is_first = True
        self.world.seen["flush"] += bool(missing)
        for k, (_, seq) in missing.items():
            attempt.laid[k] = (seq, 0)
        jobs = [self.lay(attempt, k, ts, value, seq) for k, (value, seq) in missing.items()]
        if is_first and self.world.flush_way == "pending":
            jobs.append(self.ask(attempt.anchor, Range.begin, attempt.id, attempt.first_ts, attempt.anchor))
        replies = yield jobs
        if len(replies) > len(missing):
            begun = replies.pop()
            if begun is TIMEOUT or begun[0] != "pending":
                return False
        for (k, (_, seq)), reply in zip(missing.items(), replies):
            if reply is TIMEOUT or reply[0] != "ok":
                return False
            attempt.laid[k] = (seq, reply[1] if len(reply) > 1 else ts)
        return True

    def lay(self, attempt: Attempt, key: str, ts: int, value: Any, seq: int) -> Steps:
        """Lay one intent, of a value or of nothing."""
        if value == NOTHING and "savepoint_nothing" in self.off:
            return self.ask(key, Range.resolve, attempt.id, key, None)
        return self.prewrite(attempt, key, ts, value, seq)

    def commit_flushed(self, attempt: Attempt) -> Steps:
        """Commit in two rounds.  Gives committed, refused or unknown."""
        ts = attempt.read_ts
        for _ in range(COMMIT_MANY_ROUNDS_MAX):
            if "flush_two_rounds" in self.off:
                _, reply = yield [self.flush(attempt, ts), self.stage(attempt, ts, Range.commit_flushed)]
                if reply is not TIMEOUT and reply[0] == "committed":
                    attempt.commit_ts = reply[1]
                    return "committed"
                break
            if not (yield from self.flush(attempt, ts)):
                break
            bound = max(at for _, at in attempt.laid.values())
            if bound > ts and "flush_at_or_below" not in self.off:
                ts = yield "oracle"
            if ts > attempt.read_ts and "flush_refresh" not in self.off and not (yield from self.refresh(attempt, ts)):
                break
            if "flush_first_ts" in self.off:
                attempt.first_ts = max(ts, attempt.first_ts)
            reply = yield from self.stage(attempt, ts, Range.commit_flushed)
            if reply is TIMEOUT:
                attempt.may_be_staged = True
                break
            if reply[0] == "committed":
                attempt.commit_ts = reply[1]
                self.world.seen["flushed commit"] += 1
                return "committed"
            if reply[0] != "bump":
                break
            ts = yield "oracle"
        return (yield from self.abort_many(attempt))

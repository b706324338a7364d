"""Transaction records at the range of their anchor, as its leaseholder serves them: stage, push, end, remove.

The record of a many-range commit lives beside the first key that the transaction writes.  Requests about it are latched under the
attempt's id.

    no record ──stage──▶ STAGING ──end──▶ COMMITTED | ABORTED ──remove──▶ no record, a tombstone with the outcome
        ├──begin──▶ PENDING ──commit_flushed, push to abort──▶ ┘
        ├──commit_flushed─────────────────────────────────────▶ ┘
        └──push to abort, or the gateway's own abort──▶ a tombstone

PENDING is the record of a transaction that flushed writes before its commit: it needs none, but with one it survives a lease move.
"""

from tests.model.state import MISMATCH, WAIT, AttemptId, Command, RangeState, Record


class Records(RangeState):
    """The requests about records."""

    def before_lease(self, first_ts: int) -> bool:
        """Say whether the attempt may have had a record or a tombstone here that is gone."""
        return first_ts <= self.record_low and "stage_low_water" not in self.off

    def moved(self, anchor: str) -> bool:
        """Say whether a split took the anchor away."""
        return anchor not in self.versions and "split_record_home" not in self.off

    def begin(self, attempt: AttemptId, first_ts: int, anchor: str) -> object:
        """Make a PENDING record, for a transaction that flushes writes."""
        if self.moved(anchor):
            return MISMATCH
        if self.latched((attempt,)):
            return WAIT
        record = self.records.get(attempt)
        if record is not None:
            return record.status.lower(), record.ts
        if attempt in self.tombs and "pending_tombstone" not in self.off:
            return self.tombs[attempt]
        if self.before_lease(first_ts):
            return ("gone",)
        return Command((attempt,), self.apply_stage, attempt, 0, (), anchor, "PENDING", home=(anchor,))

    def commit_flushed(self, attempt: AttemptId, ts: int, first_ts: int, keys: tuple[str, ...], anchor: str, was_one: bool) -> object:
        """Commit at ts, after every write and refresh was acknowledged.  keys: all that have intents."""
        return self.stage(attempt, ts, first_ts, keys, anchor, was_one, "COMMITTED")

    def stage(
        self, attempt: AttemptId, ts: int, first_ts: int, keys: tuple[str, ...], anchor: str, was_one: bool, status: str = "STAGING"
    ) -> object:
        """Promise writes of these keys at or below ts.  was_one: a one-range commit of the attempt was sent before."""
        if self.moved(anchor):
            return MISMATCH
        if self.latched((attempt,)):
            return WAIT
        record = self.records.get(attempt)
        if record is None:
            if attempt in self.outcomes and "split_stage_outcome" not in self.off:
                return self.outcomes[attempt]
            if was_one and first_ts <= self.floor and "split_stage_floor" not in self.off:
                return ("gone",)
            if attempt in self.tombs:
                return self.tombs[attempt]
            if self.before_lease(ts if "stage_first_ts" in self.off else first_ts):
                return ("gone",)
            pushed = self.pushes.get(attempt, 0)
            if pushed >= ts:
                return "bump", pushed
        elif record.status == "PENDING":
            pushed = max(self.pushes.get(attempt, 0), self.push_low if "pending_low_water" not in self.off else 0)
            if pushed >= ts:
                return "bump", pushed
        elif record.status == "STAGING":
            if record.ts >= ts:
                return "staged", record.ts
        else:
            return record.status.lower(), record.ts
        return Command((attempt,), self.apply_stage, attempt, ts, keys, anchor, status, home=(anchor,))

    def apply_stage(self, attempt: AttemptId, ts: int, keys: tuple[str, ...], anchor: str, status: str) -> tuple:
        self.records[attempt] = Record(status, ts, keys, anchor)
        return {"STAGING": "staged"}.get(status, status.lower()), ts

    def push(self, attempt: AttemptId, anchor: str, first_ts: int, ts: int, abort: bool) -> object:
        """Ask about an intent's transaction: a reader at ts, or (abort) a writer or someone who took its gateway for dead."""
        if self.moved(anchor):
            return MISMATCH
        if self.latched((attempt,)):
            return WAIT
        record = self.records.get(attempt)
        if record is None:
            return self.push_unrecorded(attempt, first_ts, ts, abort)
        if record.status == "PENDING":
            if abort:
                return Command((attempt,), self.apply_end, attempt, "ABORTED", 0, home=(anchor,))
            return self.remember_push(attempt, ts)
        if record.status != "STAGING":
            return record.status.lower(), record.ts
        if not abort and record.ts > ts:
            return ("pushed",)  # it can only be staged higher from here
        if "recover_staging" in self.off:
            return self.end(attempt, anchor, first_ts, "ABORTED", record.ts, None)
        return "staging", record.ts, record.keys

    def push_unrecorded(self, attempt: AttemptId, first_ts: int, ts: int, abort: bool) -> tuple:
        if attempt in self.tombs:
            return self.tombs[attempt]
        if self.before_lease(first_ts) and "push_before_lease" not in self.off:
            # If it committed, this intent is a late copy; if not, it never will.  But no tombstone: that would be an outcome.
            return ("aborted",)
        if abort:
            if "stage_tombstone" not in self.off:
                self.tombs[attempt] = ("aborted",)
            return ("aborted",)
        return self.remember_push(attempt, ts)

    def remember_push(self, attempt: AttemptId, ts: int) -> tuple:
        if "stage_push" not in self.off:
            self.pushes[attempt] = max(ts, self.pushes.get(attempt, 0))
        return ("pushed",)

    def end(
        self, attempt: AttemptId, anchor: str, first_ts: int, status: str, ts: int, expected: int | None, was_one: bool = False
    ) -> object:
        """Finish a record.  expected: the staged timestamp that recovery examined, None from the attempt's own gateway."""
        if self.moved(anchor):
            return MISMATCH
        if self.latched((attempt,)):
            return WAIT
        record = self.records.get(attempt)
        if record is None:
            if attempt in self.outcomes and "split_end_outcome" not in self.off:
                return self.outcomes[attempt]
            if was_one and first_ts <= self.floor and "split_end_floor" not in self.off:
                return ("gone",)
            if attempt in self.tombs:
                return self.tombs[attempt]
            if expected is not None or self.before_lease(first_ts):
                return ("gone",)
            if "stage_tombstone" not in self.off:
                self.tombs[attempt] = ("aborted",)
            return ("aborted",)
        if record.status not in ("STAGING", "PENDING"):
            return record.status.lower(), record.ts
        if expected is not None and record.ts != expected and "recover_same" not in self.off:
            return "staging", record.ts, record.keys
        return Command((attempt,), self.apply_end, attempt, status, ts, home=(anchor,))

    def apply_end(self, attempt: AttemptId, status: str, ts: int) -> tuple:
        if attempt not in self.records:
            return ("gone",)  # split_latch and split_fits_at_apply off: it went to the right side
        self.records[attempt] = self.records[attempt]._replace(status=status, ts=ts)
        return status.lower(), ts

    def remove(self, attempt: AttemptId, anchor: str) -> object:
        """Take a finished record away, after all its intents are resolved."""
        if self.moved(anchor):
            return MISMATCH
        if self.latched((attempt,)):
            return WAIT
        if attempt not in self.records or self.records[attempt].status in ("STAGING", "PENDING"):
            return ("ok",)
        return Command((attempt,), self.apply_remove, attempt, home=(anchor,))

    def apply_remove(self, attempt: AttemptId) -> tuple:
        record = self.records.pop(attempt, None)
        if record and "remove_tombstone" not in self.off:
            self.tombs[attempt] = (record.status.lower(), record.ts) if "remove_tombstone_outcome" not in self.off else ("aborted",)
        return ("ok",)

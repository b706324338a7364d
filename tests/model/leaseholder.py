"""A range at its leaseholder: what each request checks, and what each Raft command does.  To be read beside `dsdb/store/evaluate.py`.

A handler runs under the latches of its keys.  It returns a reply, WAIT (a latch is held: deliver again later), or a Command; the
Command's keys stay latched until it is applied, and its reply is what `apply` returns.

    commit_one, refuse_one                     one-range commit: one command, decided by the first outcome in the log
    prewrite, query, resolve                   intents of a many-range commit
    read, refresh                              and the timestamp cache
    stage, push, end, remove                   its record: `tests/model/records.py`
    split                                      `tests/model/split.py`
"""

from typing import Any

from tests.model.split import Splitting
from tests.model.state import MISMATCH, NOTHING, WAIT, AttemptId, Command, Intent

Ignored = dict[AttemptId, int]
"""attempt → its intents may be ignored below this timestamp, as it was pushed or aborted."""


class Range(Splitting):
    """A range at its leaseholder."""

    # ---- Reads ----

    def read(
        self, attempt: AttemptId, ignored: Ignored, keys: list[str], ts: int, lock: AttemptId | None, own: dict[str, int] | None = None
    ) -> object:
        """Give values at ts, or the first foreign intent that may matter.

        lock: the attempt that wants an unreplicated lock; own: key → which of its own writes stands there.
        """
        if self.lacks(keys):
            return MISMATCH
        if ts < self.threshold and "gc_reads" not in self.off:
            return ("below",)
        side = self.old if self.old and self.world.chance(0.5) else self
        if self.latched(keys):
            return WAIT
        for k in keys:
            intent = side.intents.get(k)
            if intent and intent.attempt != attempt and intent.ts <= ts and ignored.get(intent.attempt, -1) < ts:
                return "intent", k, intent, side.visible(k, ts)
        if lock is not None:
            k = keys[0]
            holder = self.locks.get(k)
            if holder is not None and holder != lock:
                return "locked", k, holder
            self.locks[k] = lock
            if self.versions[k] and self.versions[k][-1][0] > ts:
                return "newer", self.versions[k][-1][0]
        values = {k: self.intents[k].value if self.is_own(attempt, k, own) else side.visible(k, ts) for k in keys}
        if side is self and "read_cache" not in self.off:
            for k in keys:
                if values[k] is not None or len(keys) == 1 or "read_cache_absent" not in self.off:
                    if "read_cache_under_latch" in self.off and self.world.chance(0.5):
                        self.world.later(self.note, k, ts, attempt)
                    else:
                        self.note(k, ts, attempt)
        return "ok", values

    def is_own(self, attempt: AttemptId, key: str, own: dict[str, int] | None) -> bool:
        """Say whether a read must give the transaction's own flushed value."""
        intent = self.intents.get(key)
        if not own or not intent or intent.attempt != attempt or intent.value == NOTHING or "flush_read_own" in self.off:
            return False
        return intent.seq == own.get(key) or "savepoint_read" in self.off

    def read_latest(self, attempt: AttemptId, key: str) -> object:
        """Give whatever is there, at no timestamp (read_timestamp off)."""
        if self.lacks((key,)):
            return MISMATCH
        if self.latched((key,)):
            return WAIT
        if key in self.intents:
            return "intent", key, self.intents[key], None
        newest = self.versions[key][-1] if self.versions[key] else None
        if newest:
            self.note(key, newest[0], None)
        return "ok", {key: newest[1] if newest else None}

    def unlock(self, attempt: AttemptId) -> tuple:
        """Release an attempt's locks."""
        for k in [k for k, holder in self.locks.items() if holder == attempt]:
            del self.locks[k]
        return ("ok",)

    def steal(self, key: str, holder: AttemptId) -> tuple:
        """Take a lock away from its holder, who is not told."""
        if self.locks.get(key) == holder:
            del self.locks[key]
        return ("ok",)

    def conflict(self, attempt: AttemptId, ignored: Ignored, spans: dict[str, bool], low: int, high: int) -> tuple | None:
        """Refresh spans over (low, high]: None if clean, else ("conflict",) or ("intent", …).  Clean spans are recorded."""
        off = self.off
        if "refresh" in off:
            return None
        if low < self.threshold and spans and "gc_refresh" not in off:
            return ("below",)
        for k, existed in spans.items():
            if k not in self.versions or (not existed and "refresh_absent" in off):
                continue
            intent = self.intents.get(k)
            if intent and intent.attempt == attempt and "refresh_under_own" in off:
                continue
            for version in self.versions[k]:
                if low < version[0] <= high:
                    return ("conflict",)
            if not intent or intent.attempt == attempt or intent.ts > high or ignored.get(intent.attempt, -1) >= high:
                continue
            if "refresh_intents" not in off and (intent.ts > low or "refresh_intents_below" not in off):
                return "intent", k, intent, high
        if "refresh_cache" not in off:
            for k, existed in spans.items():
                if k in self.versions and (existed or "refresh_absent" not in off):
                    self.note(k, high, attempt)
        return None

    def refresh(self, attempt: AttemptId, ignored: Ignored, spans: dict[str, bool], low: int, high: int) -> object:
        """Look whether what was read at low reads the same at high."""
        if self.lacks(spans) and "split_spans_checked" not in self.off:
            return MISMATCH
        if self.latched(spans):
            return WAIT
        return self.conflict(attempt, ignored, spans, low, high) or ("ok",)

    def collect(self, threshold: int) -> object:
        """Collect the versions that no read at or above a threshold sees."""
        return Command((), self.apply_collect, threshold)

    def apply_collect(self, threshold: int) -> tuple:
        self.threshold = max(self.threshold, threshold)
        for versions in self.versions.values():
            old = [version for version in versions if version[0] <= self.threshold]
            if old and (len(old) > 1 or old[-1][1] is None):
                # A deletion goes too, when nothing is left below it.
                kept = old[-1:] if old[-1][1] is not None else []
                versions[:] = kept + versions[len(old) :]
                self.world.seen["collected"] += 1
        return ("ok",)

    # ---- One-range commit ----

    def forget(self, floor: int) -> None:
        """Forget outcomes (a replicated command; here applied at once)."""
        self.floor = max(self.floor, floor)
        for attempt in [attempt for attempt in self.outcomes if self.world.attempts[attempt].first_ts <= self.floor]:
            del self.outcomes[attempt]

    def forgotten(self, first_ts: int) -> bool:
        """Say whether an outcome of this attempt would be forgotten."""
        return first_ts <= self.floor and "one_floor" not in self.off

    def commit_one(
        self,
        attempt: AttemptId,
        first_ts: int,
        ignored: Ignored,
        writes: dict[str, Any],
        spans: dict[str, bool],
        read_ts: int,
        ts: int,
        all_local: bool,
    ) -> object:
        """Check and commit in one command.  ts: the proposed commit timestamp; spans: the reads in this range."""
        if self.lacks(writes) or (self.lacks(spans) and "split_spans_checked" not in self.off):
            return MISMATCH
        if self.latched([*writes, *spans]):
            return WAIT
        if attempt in self.outcomes and "one_applied_once" not in self.off:
            return self.outcomes[attempt]
        if self.forgotten(first_ts):
            return ("gone",)
        if "one_intents" not in self.off:
            for k in writes:
                intent = self.intents.get(k)
                if intent:
                    return "intent", k, intent, None
        bound = max(self.bump(k, ts, attempt) for k in writes)
        if bound:
            if not all_local and "one_bump_local" not in self.off:
                return "bump", bound
            # The latches are held while the oracle answers.
            ts = bound + 1 if "bump_oracle" in self.off else self.world.issue()
            if max(self.bump(k, ts, attempt) for k in writes):
                return "bump", ts
        if ts > read_ts:
            found = self.conflict(attempt, ignored, spans, read_ts, ts)
            if found:
                return found
        return Command(writes, self.apply_one, attempt, first_ts, writes, ts)

    def apply_one(self, attempt: AttemptId, first_ts: int, writes: dict[str, Any], ts: int) -> tuple:
        if attempt in self.outcomes and "one_decided_at_apply" not in self.off:
            return self.outcomes[attempt]  # a refusal was in the log before it
        if self.forgotten(first_ts):
            return ("gone",)
        for k, value in writes.items():
            self.put(k, ts, value, attempt)
        self.outcomes[attempt] = ("committed", ts)
        return "committed", ts

    def refuse_one(self, attempt: AttemptId, first_ts: int) -> object:
        """Record that the attempt will not commit, if it has not."""
        # Not latched, as the first outcome in the log decides.  Nor need the writes be here still: where they are not, no copy can commit.
        return Command((), self.apply_refuse, attempt, first_ts)

    def apply_refuse(self, attempt: AttemptId, first_ts: int) -> tuple:
        if attempt not in self.outcomes and self.forgotten(first_ts):
            return ("gone",)
        if attempt not in self.outcomes:
            self.outcomes[attempt] = ("refused",)
        return self.outcomes[attempt]

    # ---- Many-range commit: intents ----

    def prewrite(self, attempt: AttemptId, key: str, value: Any, ts: int, anchor: str, first_ts: int, seq: int = 0) -> object:
        """Lay an intent, at ts or above."""
        if self.lacks((key,)):
            return MISMATCH
        if self.latched((key,)):
            return WAIT
        intent = self.intents.get(key)
        if intent and intent.attempt != attempt:
            return "intent", key, intent, None
        if intent and (intent.seq == seq or (intent.seq > seq and "flush_sequence" not in self.off)):
            return "ok", intent.ts
        bound = self.bump(key, ts, attempt)
        return Command((key,), self.apply_prewrite, key, Intent(attempt, bound + 1 if bound else ts, value, anchor, first_ts, seq))

    def apply_prewrite(self, key: str, intent: Intent) -> tuple:
        self.intents[key] = intent
        return "ok", intent.ts

    def query(self, attempt: AttemptId, key: str, ts: int) -> object:
        """Say for recovery whether the promised write is there; if not, it never will be at or below ts."""
        if self.lacks((key,)):
            return MISMATCH
        if self.latched((key,)):
            return WAIT
        intent = self.intents.get(key)
        if intent and intent.attempt == attempt and intent.ts <= ts:
            return ("found",)
        if "recover_prevent" not in self.off:
            self.note(key, ts, attempt if "recover_prevent_equal" in self.off else None)
        return ("prevented",)

    def resolve(self, attempt: AttemptId, key: str, ts: int | None) -> object:
        """Make an intent a version.  ts: the commit timestamp, or None if aborted."""
        if self.lacks((key,)):
            return MISMATCH
        if self.latched((key,)):
            return WAIT
        intent = self.intents.get(key)
        if not intent or intent.attempt != attempt:
            return ("ok",)
        if intent.value == NOTHING and ts is not None and "savepoint_resolve_notes" not in self.off:
            # No version stays that would bump a late copy of what was rolled back.
            self.note(key, ts, None)
        return Command((key,), self.apply_resolve, attempt, key, ts)

    def apply_resolve(self, attempt: AttemptId, key: str, ts: int | None) -> tuple:
        intent = self.intents.get(key)
        if intent and intent.attempt == attempt:
            del self.intents[key]
            # An intent above the commit timestamp was not promised: it is a late copy of a prewrite that is resolved already.
            if ts is not None and intent.value != NOTHING and (intent.ts <= ts or "resolve_at_or_below" in self.off):
                self.put(key, ts, intent.value, attempt)
        return ("ok",)

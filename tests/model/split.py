"""A split: one applied command cuts a range in two.  To be read beside `dsdb/store/split.py`.

    left, a b c ──split at b──▶ all waits ──applied──▶ left, a
                                             └───────▶ right, b c: everything replicated about its keys, outcomes and floor

What is volatile is not in the log.  The right side may begin in one of three ways (`World.split_way`):

    fresh     with nothing, and a low water issued after it began, wherever its leaseholder is: like any other lease
    command   with nothing, and a low water that the left leaseholder took under the latches and put into the command
    copied    with the left leaseholder's timestamp cache, pushes and tombstones, if its own first leaseholder is on the same node

Invariants:
- Between evaluation and application nothing else of the range is evaluated, so the right side may begin elsewhere before the left
  leaseholder has applied the split.
"""

from tests.model.records import Records
from tests.model.state import MISMATCH, WAIT, Command, RangeState, Volatile


class Splitting(Records):
    """The request that splits a range."""

    def split(self, key: str) -> object:
        """Cut the range: key and what follows go to a new one."""
        if key not in self.versions or key == self.keys[0]:
            return MISMATCH
        if self.log and ("split_latch" not in self.off or any(command.is_split for command in self.log)):
            return WAIT
        low = self.world.issue() if self.world.split_way == "command" else 0
        command = Command((), self.apply_split, key, low, self.closing)
        command.is_split = True
        return command

    def apply_split(self, key: str, low: int, closed: int) -> tuple:
        """Apply the split on the left leaseholder; the right side may have begun already."""
        if self.world.at[key] is self:
            self.begin_right(key, low, closed)
        gone = [k for k in self.keys if k >= key]
        self.keys = "".join(k for k in self.keys if k < key)
        for k in gone:
            del self.versions[k]
            self.intents.pop(k, None)
            self.cache.pop(k, None)
            self.locks.pop(k, None)
        self.records = {attempt: record for attempt, record in self.records.items() if record.anchor < key}
        return ("ok",)

    def begin_right(self, key: str, low: int, closed: int) -> None:
        """Let the right side begin.  low, closed: what came with the split."""
        world, off = self.world, self.off
        right = type(self)(world, "".join(k for k in self.keys if k >= key))
        for k in right.keys:
            right.versions[k] = list(self.versions[k])
            if k in self.intents:
                right.intents[k] = self.intents[k]
        right.records = {attempt: record for attempt, record in self.records.items() if record.anchor >= key}
        if "split_outcomes" not in off:
            right.outcomes = dict(self.outcomes)
        if "split_floor" not in off:
            right.floor = self.floor
        if "gc_split" not in off:
            right.threshold = self.threshold
        if "split_closed" not in off:
            right.closed = max(self.closed, closed)
        if world.split_way == "copied":
            right.inherited = self.volatile()
        elif world.split_way == "command":
            right.inherited = Volatile({}, low, low, low, {}, {})
        self.begin_lease(right)
        world.add_right(self, right)

    def begin_lease(self, right: RangeState) -> None:
        """Begin the right side's first lease."""
        world, off = self.world, self.off
        if right.inherited is not None:
            right.inherited.give(right)
        elif "split_low_water" in off:
            right.reset(0)
        elif "split_low_water_fresh" in off:
            right.reset(max(self.lease_ts, world.issued - world.rng.randint(1, 4)))
        else:
            right.reset(world.issue())
        right.lease_ts = right.low

    def volatile(self) -> Volatile:
        """Give what a right side on the same node takes over."""
        off = self.off
        cache = dict(self.cache) if "split_copy_cache" not in off else {}
        low = self.low if "split_copy_cache" not in off else 0
        if "split_copy_tombstones" in off:
            return Volatile(cache, low, 0, 0, {}, {})
        return Volatile(cache, low, self.record_low, self.push_low, dict(self.pushes), dict(self.tombs))

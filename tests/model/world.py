"""The world of one history: a bag of events drawn at random, the network with its faults, the oracle, and the moves of leases.

Everything that can interleave in the real system is one event in the bag: request delivered, reply delivered, command applied, gateway
resumed.  Gateways are generators; `Task` is one of them with who waits for it.

    gateway (generator) ──request──▶ Range handler ──Command──▶ Range.log ──apply──▶ replicated state ──reply──▶ gateway

Not here: what ranges do (`tests/model/leaseholder.py`) and gateways (`tests/model/gateway.py`); Raft itself: a lease move keeps a prefix
of the log.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any

from tests.model.leaseholder import Range
from tests.model.state import MISMATCH, TIMEOUT, WAIT, Command, Stale

STEPS_MAX = 40_000
"""More events than this: something waits for ever."""

RESUME, DELIVER, ORACLE, APPLY, CALL = range(5)
"""Kinds of events: (RESUME, task, value), (DELIVER, task, range, handler, arguments), (ORACLE, task), (APPLY, range) and (CALL, function,
arguments)."""


class Task:
    """A generator that runs, its client (None: not a client's work), and the task that waits for its result."""

    __slots__ = ("client", "gen", "missing", "parent", "results", "slot")

    def __init__(self, gen: Generator, client: Any, parent: Task | None = None, slot: int = 0) -> None:
        self.gen, self.client, self.parent, self.slot = gen, client, parent, slot
        self.results: list[Any] = []
        self.missing = 0


class World:
    """One history's events, ranges and oracle, and its mix of faults."""

    def __init__(self, seed: int, off: frozenset[str], trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.rnd = self.rng.random
        self.off = off
        self.trace = trace
        self.events: list[tuple] = []
        self.late: list[tuple] = []
        self.clock = 0
        self.draw_profile()
        pick = self.rng.choice
        # Oracle: next timestamp, replicated mark; a deposed holder's next and mark (oracle_fence off).
        self.next, self.mark, self.mark_step = 10, 12, pick((2, 8))
        self.old_oracle: list[int] | None = None
        self.prefetched: list[int] = []
        self.issued = 10
        n = pick((2, 3, 3, 4))
        keys = "abcd"[:n]
        cuts = pick((0, 0, 1)) if self.p_split else pick((1, 2)) if n > 2 else 1
        at = sorted(self.rng.sample(range(1, n), cuts))
        self.keys = keys
        self.ranges = [Range(self, keys[i:j]) for i, j in zip([0, *at], [*at, n])]
        self.at = {k: r for r in self.ranges for k in r.keys}
        self.applied: list[tuple] = []
        """(key, ts, value, attempt) of every version that was written."""
        self.past: list[tuple] = []
        """(key, ts, value) of reads of the past."""
        self.attempts: dict[Any, Any] = {}
        self.problem: str | None = None
        self.seen: Counter[str] = Counter()
        """What happened at all."""

    def draw_profile(self) -> None:
        """Draw one profile of faults, so that every mix of faults and quiet occurs."""
        pick = self.rng.choice
        # Storm: all faults at once, impatient gateways, busy janitors.  Drill: slow gateways, whose records are recovered and removed
        # behind their back while leases move.
        storm = self.chance(0.15)
        self.p_fault = 0.3 if storm else pick((0, 0, 0.04, 0.15))
        self.p_lease = 0.04 if storm else pick((0, 0, 0.01, 0.04))
        self.tries = 1 if storm else pick((2, 4))
        self.drill = storm and self.chance(0.5)
        self.janitors = 3 if self.drill else 1
        self.p_janitor = 0.9 if storm else 0.4
        self.p_slow = 0.8 if self.drill else 0.3 if storm else pick((0, 0, 0.2))
        self.p_oracle = pick((0, 0.02))
        self.p_crash = pick((0, 0, 0.25))
        self.p_closed = pick((0, 0, 0.03))
        self.p_past = pick((0, 0.03))
        self.p_split = pick((0, 0, 0.01, 0.03))
        self.split_way = pick(("fresh", "command", "copied"))
        self.p_full = pick((0, 0, 0.02))
        self.p_gc = pick((0, 0, 0.02))
        self.p_flush = pick((0, 0, 0.3, 0.6))
        self.flush_way = pick(("none", "pending"))
        # Rift: one range at first, cut while its commits are under way and lost messages are tried again.
        if self.chance(0.12):
            self.p_split, self.p_fault, self.tries, self.p_closed = 0.05, 0.3, pick((2, 4)), pick((0, 0.1))
            self.p_lease, self.p_slow = pick((0, 0, 0.02)), 0.6
        # How long applied commands and background work lag.
        self.p_lazy = pick((0.1, 0.6))
        self.p_shared = pick((0, 0.5)) if "oracle_unique" in self.off else 0

    def quiet(self) -> None:
        """End all faults."""
        self.tries = 4
        self.p_fault = self.p_lease = self.p_oracle = self.p_closed = self.p_past = self.p_split = self.p_gc = self.p_full = 0

    def chance(self, p: float) -> bool:
        return self.rnd() < p

    def later(self, function: Callable, *args: Any) -> None:
        self.events.append((CALL, function, args))

    # ---- Oracle ----

    def issue(self) -> int:
        """Issue a timestamp."""
        if self.old_oracle and self.chance(0.5):
            if self.old_oracle[0] < self.old_oracle[1]:
                self.old_oracle[0] += 1
                return self.old_oracle[0]
            self.old_oracle = None
        if self.next + 1 >= self.mark:
            self.mark += self.mark_step  # one Raft command; the old holder's is fenced by its term
        self.next += 1
        if self.next > self.issued:
            self.issued = self.next
        return self.next

    def ask(self) -> int:
        """Give what one gateway's request to the oracle gives."""
        if "oracle_fresh" in self.off:
            if not self.prefetched or self.chance(0.3):
                self.prefetched = [self.issue() for _ in range(3)]
            return self.prefetched.pop(0)
        return self.issue()

    def move_oracle(self) -> None:
        """Move the oracle's lease."""
        self.seen["oracle moved"] += 1
        if "oracle_fence" in self.off:
            self.old_oracle = [self.next, self.mark - 1]
        if "oracle_mark" in self.off:
            self.next = max(10, self.mark - 2 * self.mark_step)  # a mark that lagged behind what was handed out
        else:
            self.next = self.mark
        self.mark = max(self.mark, self.next) + self.mark_step
        self.issued = max(self.issued, self.next)

    # ---- Leases ----

    def move_lease(self, rg: Range) -> None:
        """Move the lease of a range: a prefix of its log survives, the rest is lost, volatile state is lost."""
        off = self.off
        self.seen["lease moved"] += 1
        if "lease_fence" in off and self.chance(0.7):
            rg.old = Stale(rg)
        keep = self.rng.randint(0, len(rg.log))
        if rg.log and self.has_right_begun(rg):
            keep = max(keep, 1)  # applied elsewhere, so it is committed
        log, rg.log = rg.log, []
        for i, command in enumerate(log):
            if command.task:
                self.events.append((RESUME, command.task, TIMEOUT))
            if i < keep:
                if "lease_applied" in off:
                    self.later(self.apply, command)
                else:
                    self.apply(command)
        if rg.inherited and "split_first_lease" in off and self.chance(0.5):
            rg.inherited.give(rg)
            return
        if "lease_low_water" in off:
            low = 0
        elif "lease_low_water_fresh" in off:
            low = max(rg.lease_ts, self.issued - self.rng.randint(1, 4))
        else:
            low = self.issue()
        rg.lease_ts = low
        rg.reset(low)

    @staticmethod
    def apply(command: Command) -> tuple:
        """Apply a command to its range; gives its reply."""
        rg = command.apply.__self__  # type: ignore[attr-defined]
        if rg.lacks(command.home) and "split_fits_at_apply" not in rg.off:
            return MISMATCH
        result = command.apply(*command.args)
        if command.closed > rg.closed:
            rg.closed = command.closed
        return result

    # ---- Splits, closed timestamps, collections ----

    def split_somewhere(self) -> None:
        """Ask a range to split."""
        rg = self.rng.choice(self.ranges)
        if len(rg.keys) > 1:
            self.ask_range(rg, Range.split, self.rng.choice(rg.keys[1:]))

    def close_somewhere(self) -> None:
        """Close a timestamp, and maybe raise the floor of outcomes."""
        rg = self.rng.choice(self.ranges)
        rg.closing = max(rg.closing, self.issued - int(self.rnd() * 6))
        if "closed_issued" in self.off:
            rg.closing = self.issued + 3
        if not rg.log:
            rg.closed = rg.closing  # an empty command
        rg.told = (rg.closing, rg.log[-1] if rg.log else None)
        if "closed_lease" in self.off and rg.lease_ts:
            rg.told = (self.issued, None)  # a deposed leaseholder's, whose successor knows nothing of it
        if self.rnd() < 0.3:
            rg.forget(self.issued - int(self.rnd() * 10))

    def collect_somewhere(self) -> None:
        """Ask a range to collect old versions."""
        rg = self.rng.choice(self.ranges)
        self.ask_range(rg, Range.collect, self.issued - self.rng.randint(0, 8))

    def ask_range(self, rg: Range, handler: Callable, argument: Any) -> None:
        """Send a request that nobody waits for, unless such a one is still under way: they must not fill the bag."""
        if not any(event[0] == DELIVER and event[3] is handler for event in self.events):
            self.events.append((DELIVER, None, rg, handler, (argument,)))

    def has_right_begun(self, rg: Range) -> bool:
        """Say whether the next command of a range is a split that another node has applied."""
        return rg.log[0].is_split and self.at[rg.log[0].args[0]] is not rg

    def add_right(self, left: Range, right: Range) -> None:
        """Let requests find the right side of a split."""
        self.seen["split"] += 1
        self.ranges.insert(self.ranges.index(left) + 1, right)
        self.at.update(dict.fromkeys(right.keys, right))

    # ---- Reads of the past ----

    def read_past(self) -> None:
        """Read on a follower at or below the closed timestamp, or at the leaseholder at any timestamp already issued."""
        rg = self.rng.choice(self.ranges)
        k = self.rng.choice(rg.keys)
        intent = rg.intents.get(k)
        if self.chance(0.6):
            ts = self.closed_at_follower(rg)
            is_open = intent and intent.ts <= ts and "resolved_intents" not in self.off  # resolved = min(closed, oldest intent − 1)
            if not ts or self.is_collected(rg, ts) or is_open:
                return
        else:
            ts = self.issued - self.rng.randint(0, 3)
            if ts <= 10 or self.is_collected(rg, ts) or rg.latched((k,)) or (intent and intent.ts <= ts):
                return
            if "read_cache" not in self.off:
                rg.note(k, ts, None)
        self.past.append((k, ts, rg.visible(k, ts)))

    def closed_at_follower(self, rg: Range) -> int:
        """Give what is closed for a follower that has applied what the leaseholder has."""
        ts, behind = rg.told
        counts = "closed_index" in self.off or not any(command is behind for command in rg.log)
        return max(rg.closed, ts) if counts else rg.closed

    @staticmethod
    def is_collected(rg: Range, ts: int) -> bool:
        return ts < rg.threshold and "gc_reads" not in rg.off

    # ---- The scheduler ----

    def start(self, gen: Generator, client: Any = None, parent: Task | None = None, slot: int = 0) -> None:
        """Run a generator."""
        self.events.append((RESUME, Task(gen, client, parent, slot), None))

    def send(self, task: Task, request: tuple) -> None:
        """Send one request with the faults that the profile draws."""
        rg, handler, args = request
        events = self.events
        if self.rnd() >= self.p_fault:
            events.append((DELIVER, task, rg, handler, args))
            return
        kind = self.rnd()
        if kind < 0.25:  # request lost
            events.append((RESUME, task, TIMEOUT))
        elif kind < 0.5:  # reply lost
            events.append((DELIVER, None, rg, handler, args))
            events.append((RESUME, task, TIMEOUT))
        elif kind < 0.75:  # slow: the sender gives up first
            self.late.append((DELIVER, None, rg, handler, args))
            events.append((RESUME, task, TIMEOUT))
        else:  # delivered twice
            events.append((DELIVER, task, rg, handler, args))
            self.late.append((DELIVER, None, rg, handler, args))

    def resume(self, task: Task, value: Any) -> None:
        """Resume a generator with what it waited for, and do what it yields next."""
        client = task.client
        if client is not None:
            client.steps += 1
            if client.steps >= client.crash_at:
                return
        try:
            request = task.gen.send(value)
        except StopIteration as stop:
            parent = task.parent
            if parent is not None:
                parent.results[task.slot] = stop.value
                parent.missing -= 1
                if not parent.missing:
                    self.events.append((RESUME, parent, parent.results))
            return
        if request is None or request == []:
            self.events.append((RESUME, task, request))
        elif type(request) is list:  # run generators side by side, resume with all their results
            task.results, task.missing = [None] * len(request), len(request)
            for i, gen in enumerate(request):
                self.start(gen, client, task, i)
        elif request == "oracle":
            self.events.append((ORACLE, task))
        else:
            self.send(task, request)

    def run(self) -> None:
        """Draw events until none is left."""
        events, rnd = self.events, self.rnd
        self.moves = (
            (self.p_lease, lambda: self.move_lease(self.rng.choice(self.ranges))),
            (self.p_oracle, self.move_oracle),
            (self.p_closed, self.close_somewhere),
            (self.p_split, self.split_somewhere),
            (self.p_gc, self.collect_somewhere),
            (self.p_full, lambda: self.rng.choice(self.ranges).forget_half()),
            (self.p_past, self.read_past),
        )
        moves = sum(p for p, _ in self.moves)
        while True:
            self.clock += 1
            if self.clock > STEPS_MAX:
                self.problem = "stuck"
                return
            if not events:
                if not self.late:
                    return
                events.append(self.late.pop())
                continue
            x = rnd()
            if x < moves:
                self.move(x)
            if self.late and rnd() < 0.02:
                i = int(rnd() * len(self.late))
                events.append(self.late[i])
                self.late[i] = self.late[-1]
                self.late.pop()
            i = int(rnd() * len(events))
            event = events[i]
            if event[0] == APPLY:
                if rnd() < self.p_lazy:
                    continue
            elif event[0] == RESUME and event[1].client is not None and event[1].client.slow and rnd() < 0.92:
                continue
            events[i] = events[-1]
            events.pop()
            self.step(event)

    def move(self, x: float) -> None:
        """Do one of the things that happen by themselves."""
        for p, happen in self.moves:
            if x < p:
                happen()
                return
            x -= p

    def step(self, event: tuple) -> None:
        """Let one event happen."""
        match event[0]:
            case 0:  # RESUME
                self.resume(event[1], event[2])
            case 1:  # DELIVER
                self.deliver(event)
            case 2:  # ORACLE
                self.answer_oracle(event[1])
            case 3:  # APPLY
                self.apply_next(event)
            case _:
                event[1](*event[2])

    def apply_next(self, event: tuple) -> None:
        """Apply a range's next command at its leaseholder."""
        rg = event[1]
        if not rg.log:
            return
        command = rg.log[0]
        if command.is_split and self.split_way == "fresh" and not self.has_right_begun(rg) and self.chance(0.3):
            # Other nodes applied it first, and one of them leads the right side.
            rg.begin_right(*command.args)
            self.events.append(event)
            return
        del rg.log[0]
        result = self.apply(command)
        if command.task is not None:
            self.events.append((RESUME, command.task, result))

    def deliver(self, event: tuple) -> None:
        """Hand a request to its range."""
        _, task, rg, handler, args = event
        result = handler(rg, *args)
        if result is WAIT:
            self.events.append(event)
            return
        if self.trace:
            shown = f"propose {result.apply.__name__}{result.args}" if type(result) is Command else result
            print(f"{self.clock:5d} {rg.keys} {handler.__name__}{args} -> {shown}")
        if type(result) is Command:
            result.task, result.closed = task, rg.closing
            rg.log.append(result)
            self.events.append((APPLY, rg))
        elif task is not None:
            self.events.append((RESUME, task, result))

    def answer_oracle(self, task: Task) -> None:
        """Answer one request to the oracle; with oracle_unique off others of the same batch get the same timestamp."""
        ts = self.ask()
        self.events.append((RESUME, task, ts))
        if self.p_shared and self.chance(self.p_shared):
            for i, other in enumerate(self.events):
                if other[0] == ORACLE:
                    self.events[i] = (RESUME, other[1], ts)

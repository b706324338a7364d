"""Do all transactions end?  A model of who waits for whom: unreplicated locks, intents, wounds, recovery.

Clients run one transaction after another, for ever, on few keys.  In each round every client takes one step, in an order drawn anew: the
scheduler is fair.  A transaction that is older than AGE_ROUNDS_MAX is starved, or in a deadlock.  What transactions *read* is of interest
only for whether they must restart; correctness is the business of the large model.

    step of a transaction:   lock a key and read it │ flush a write as an intent │ think │ stage, and lay an intent │ resolve

Who meets a foreign lock or intent waits, wounds (takes the lock away, or aborts the other), or recovers a STAGING one.  The order of
transactions by their first timestamp (`rank`) decides.

Not here: deadlines.  A statement that waits too long ends with an error in the real system; these rules are there so that it need not.
"""

import random
from collections import Counter
from collections.abc import Iterator

ROUNDS = 700
AGE_ROUNDS_MAX = 300
"""Far more than any transaction needs with all rules."""
SILENCE_ROUNDS_MAX = 12
"""After so many rounds without a step a gateway is taken for dead."""

RULES: dict[str, str] = {
    "wound": "an older transaction that holds something takes what it waits for from a younger one",
    "wound_rank_kept": "a restarted transaction keeps its rank",
    "wound_intents_count": "intents count as held, like locks",
    "wound_silent": "what a dead gateway holds is taken by anyone",
    "wound_recover_younger": "a STAGING transaction is recovered by older ones only, as long as its gateway lives: others wait",
    "wound_writes_wait": "a write waits for the lock of an older transaction, though it needs none itself",
    "wound_queue_by_rank": "a free lock goes to the oldest of those that wait",
    "wound_holders_only": "who holds nothing waits, and wounds nobody",
}
"""Rules of their own: they decide whether transactions end, never whether they are right."""


KINDS = (
    ("lock",),
    ("lock", "lock", "blind"),
    ("lock", "blind", "blind", "blind"),
    ("blind",),
    ("lock", "flush"),
    ("lock", "blind", "flush"),
)
"""What the clients of a history do with a key: lock it, write it blindly, flush a write."""


class Attempt:
    """One run of a transaction."""

    def __init__(self, rank: int, steps: list[tuple[str, str]]) -> None:
        self.rank = rank
        self.steps = steps
        """(lock | flush | blind, key), (think, "")."""
        self.at = 0
        self.status = "PENDING"
        self.read: dict[str, int] = {}
        """key → the version that it read there."""
        self.keys = sorted({k for op, k in steps if op != "think"})
        self.waited = False
        self.stepped_at = 0


class Locks:
    """Keys with their versions, locks and intents, on ranges whose leases move; and the clients."""

    def __init__(self, seed: int, off: frozenset[str]) -> None:
        self.rng = random.Random(seed)
        self.off = off
        self.keys = "abc"[: self.rng.choice((2, 2, 3))]
        self.versions = dict.fromkeys(self.keys, 0)
        self.locks: dict[str, Attempt] = {}
        self.intents: dict[str, Attempt] = {}
        self.asking: dict[str, list[Attempt]] = {k: [] for k in self.keys}
        self.clock = self.ranks = 0
        self.p_lease = self.rng.choice((0, 0, 0.05))
        self.p_crash = self.rng.choice((0, 0, 0.002))
        self.kinds = self.rng.choice(KINDS)
        self.thinks = self.rng.choice(((0, 0, 1, 3), (0, 0, 0, 10)))
        self.seen: Counter[str] = Counter()

    # ---- Who is in the way ----

    def holds(self, attempt: Attempt) -> bool:
        """Say whether somebody might wait for it."""
        if "wound_intents_count" not in self.off and attempt in self.intents.values():
            return True
        return attempt in self.locks.values()

    def is_silent(self, other: Attempt) -> bool:
        return self.clock - other.stepped_at > SILENCE_ROUNDS_MAX and "wound_silent" not in self.off

    def may_wound(self, attempt: Attempt, other: Attempt) -> bool:
        if self.is_silent(other):
            return True
        if "wound" in self.off or attempt.rank > other.rank:
            return False
        return self.holds(attempt) or "wound_holders_only" in self.off

    def pass_lock(self, attempt: Attempt, key: str) -> bool:
        """Get a foreign lock out of the way.  Gives whether it is."""
        other = self.locks.get(key)
        if other is None or other is attempt:
            return True
        if other.status in ("ABORTED", "DONE") or self.may_wound(attempt, other):
            self.seen["wounded a lock"] += 1
            del self.locks[key]
            return True
        return False

    def pass_intent(self, attempt: Attempt, key: str) -> bool:
        """Get a foreign intent out of the way.  Gives whether it is."""
        other = self.intents.get(key)
        if other is None or other is attempt:
            return True
        if other.status == "PENDING" and self.may_wound(attempt, other):
            self.seen["aborted"] += 1
            other.status = "ABORTED"
        if other.status == "STAGING" and (self.may_wound(attempt, other) or "wound_recover_younger" in self.off):
            self.seen["recovered"] += 1
            self.finish(other, "COMMITTED" if all(self.intents.get(k) is other for k in other.keys) else "ABORTED")
        if other.status in ("PENDING", "STAGING"):
            return False
        self.resolve(other, key)
        return True

    def finish(self, attempt: Attempt, status: str) -> None:
        attempt.status = status

    def resolve(self, attempt: Attempt, key: str) -> None:
        if self.intents.get(key) is attempt:
            del self.intents[key]
            if attempt.status in ("COMMITTED", "DONE"):
                self.versions[key] += 1

    # ---- A transaction ----

    def step(self, attempt: Attempt) -> str:
        """Let a transaction do what it can do next.  Gives going, waiting, restart or done."""
        attempt.stepped_at = self.clock
        if attempt.status == "ABORTED":
            return "restart"
        if attempt.status == "COMMITTED":
            for k in attempt.keys:
                self.resolve(attempt, k)
            return "done"
        if attempt.status == "STAGING":
            return self.lay(attempt)
        if attempt.at == len(attempt.steps):
            if any(self.versions[k] != version for k, version in attempt.read.items()):
                self.seen["refresh failed"] += 1
                return "restart"
            attempt.status = "STAGING"
            return self.lay(attempt)
        op, key = attempt.steps[attempt.at]
        if op == "lock" and not self.lock(attempt, key):
            return "waiting"
        if op == "flush" and not self.put(attempt, key):
            return "waiting"
        if op == "lock":
            # Granted at a fresh timestamp, so what was read before must still hold.
            if any(self.versions[k] != version for k, version in attempt.read.items()):
                return "restart"
            attempt.read[key] = self.versions[key]
        attempt.at += 1
        return "going"

    def lock(self, attempt: Attempt, key: str) -> bool:
        asking = self.asking[key]
        if attempt not in asking:
            asking.append(attempt)
        if not self.pass_lock(attempt, key):
            return False
        if self.locks.get(key) is not attempt:
            waiting = [other for other in asking if other.status == "PENDING" and not self.is_silent(other)]
            first = min(waiting, key=lambda other: other.rank) if "wound_queue_by_rank" not in self.off else waiting[-1]
            if first is not attempt:
                return False
            self.locks[key] = attempt
        if not self.pass_intent(attempt, key):
            return False
        asking.remove(attempt)
        return True

    def put(self, attempt: Attempt, key: str) -> bool:
        """Lay an intent."""
        if "wound_writes_wait" not in self.off and not self.pass_lock(attempt, key):
            return False
        if not self.pass_intent(attempt, key):
            return False
        self.intents[key] = attempt
        return True

    def lay(self, attempt: Attempt) -> str:
        """Lay one of the intents of a parallel commit: they are on their way together, so any may be next."""
        missing = [k for k in attempt.keys if self.intents.get(k) is not attempt]
        self.rng.shuffle(missing)
        for k in missing:
            if self.put(attempt, k):
                break
        else:
            if missing:
                return "waiting"
        if len(missing) <= 1:
            self.finish(attempt, "COMMITTED")
        return "going"

    def end(self, attempt: Attempt) -> None:
        """Unlock, and take back intents."""
        attempt.status = "DONE" if attempt.status == "COMMITTED" else "ABORTED"
        for k in self.keys:
            self.resolve(attempt, k)
            if self.locks.get(k) is attempt:
                del self.locks[k]
            if attempt in self.asking[k]:
                self.asking[k].remove(attempt)

    # ---- A client ----

    def program(self) -> list[tuple[str, str]]:
        kind = self.rng.choice(self.kinds)
        steps = []
        for k in self.rng.sample(self.keys, self.rng.randint(1, len(self.keys))):
            steps.append((kind if kind != "flush" or not steps else "lock", k))
            steps += [("think", "")] * self.rng.choice(self.thinks)
        return steps

    def client(self) -> Iterator[int]:
        """Run one transaction after another, one step at a time; gives the age of the present one in rounds."""
        while True:
            begun, self.ranks = self.clock, self.ranks + 1
            rank, steps = self.ranks, self.program()
            outcome = "restart"
            while outcome == "restart":
                attempt = Attempt(rank, steps)
                outcome = "going"
                while outcome in ("going", "waiting"):
                    yield self.clock - begun
                    if self.rng.random() < self.p_crash:
                        self.seen["crash"] += 1
                        outcome = "crash"
                        break
                    outcome = self.step(attempt)
                if outcome != "crash":
                    self.end(attempt)
                    self.seen["ended" if outcome == "done" else outcome] += 1
                if "wound_rank_kept" in self.off:
                    self.ranks += 1
                    rank = self.ranks

    def run(self) -> int | None:
        """Run all rounds.  Gives the age of a transaction that does not end, or None."""
        clients = [self.client() for _ in range(self.rng.choice((3, 4, 5)))]
        for _ in range(ROUNDS):
            self.clock += 1
            self.rng.shuffle(clients)
            for client in clients:
                age = next(client)
                if age > AGE_ROUNDS_MAX:
                    return age
                self.seen["oldest"] = max(self.seen["oldest"], age)
            if self.rng.random() < self.p_lease:
                # The locks of a range are lost.
                self.seen["lease moved"] += 1
                self.locks.pop(self.rng.choice(self.keys), None)
        return None


def starved(off: frozenset[str], seeds: range, stop: int = 0) -> tuple[int, int | None, Counter[str]]:
    """Give in how many histories a transaction does not end, the first seed of one, and what happened; `stop`: so many are enough."""
    bad, first, seen = 0, None, Counter[str]()
    for seed in seeds:
        locks = Locks(seed, off)
        age = locks.run()
        oldest = max(seen["oldest"], locks.seen["oldest"])
        seen += locks.seen
        seen["oldest"] = oldest
        if age is not None:
            bad, first = bad + 1, seed if first is None else first
            if bad == stop:
                break
    return bad, first, seen


def show(histories: int) -> bool:
    """Print in how many histories a transaction does not end, with all rules and without each; gives whether they all end with all."""
    for rule in ("", *RULES):
        bad, first, seen = starved(frozenset({rule} - {""}), range(histories))
        happened = ", ".join(f"{what} {n}" for what, n in sorted(seen.items()))
        print(f"{rule or 'all':24s} starved {bad:5d} / {histories:6d}  first seed {first!s:>5s}  {happened}", flush=True)
    return starved(frozenset(), range(histories))[0] == 0

"""Histories too rare for chance, written out.

Each is a function of the rules taken away that gives what went wrong, as in `verdict`, or None.
"""

from collections.abc import Callable, Iterable

from tests.model.gateway import Gateway
from tests.model.leaseholder import Range
from tests.model.state import MISMATCH, NOTHING, WAIT, Command
from tests.model.world import World

T, U, W = ("T", 0), ("U", 0), ("W", 0)
"""Attempts."""


class Stage:
    """Some ranges, and requests that are delivered and applied one after another."""

    def __init__(self, off: Iterable[str], *ranges: str, split_way: str = "fresh") -> None:
        self.world = World(0, frozenset(off))
        self.world.split_way = split_way
        self.world.next, self.world.mark = 20, 100
        self.world.ranges = [Range(self.world, keys) for keys in ranges]
        self.world.at = {k: rg for rg in self.world.ranges for k in rg.keys}
        self.world.attempts = {}

    def do(self, key: str, handler: Callable, *args: object) -> tuple:
        """Deliver one request to the range of a key, and apply its command at once."""
        rg = self.world.at[key]
        reply = handler(rg, *args)
        if type(reply) is not Command:
            assert type(reply) is tuple, reply
            return reply
        rg.log.append(reply)
        result = self.world.apply(reply)
        rg.log.remove(reply)
        return result

    def versions(self, key: str) -> list[tuple]:
        return self.world.at[key].versions[key]


def behind_its_back(off: Iterable[str], lease_moves: bool, late_copy: bool) -> str | None:
    """T writes a (its anchor) and b at 11.  All is applied, but T's gateway hears nothing; others finish the job.  Then it gives up."""
    stage = Stage(off, "a", "b")
    do = stage.do
    do("a", Range.stage, T, 11, 11, ("a", "b"), "a", False)
    do("a", Range.prewrite, T, "a", "va", 11, "a", 11)
    do("b", Range.prewrite, T, "b", "vb", 11, "a", 11)
    # A reader recovers T, resolves its intents and removes its record.
    assert do("a", Range.push, T, "a", 11, 15, False)[0] == "staging"
    assert do("a", Range.query, T, "a", 11) == do("b", Range.query, T, "b", 11) == ("found",)
    assert do("a", Range.end, T, "a", 11, "COMMITTED", 11, 11) == ("committed", 11)
    do("a", Range.resolve, T, "a", 11)
    do("b", Range.resolve, T, "b", 11)
    do("a", Range.remove, T, "a")
    if lease_moves:
        stage.world.move_lease(stage.world.at["a"])
    if late_copy:
        # A copy of the second prewrite arrives only now; a writer meets its intent and takes T for dead.
        assert do("b", Range.prewrite, T, "b", "vb", 11, "a", 11)[1] > 11
        reply = do("a", Range.push, T, "a", 11, 30, True)
        do("b", Range.resolve, T, "b", reply[1] if reply[0] == "committed" else None)
    reply = do("a", Range.end, T, "a", 11, "ABORTED", 0, None)
    assert stage.versions("b") == [(11, "vb", T)]
    assert not stage.world.at["b"].intents
    told_aborted = reply[0] == "aborted" or (reply[0] == "gone" and "gone_unknown" in off)
    return "zombie" if told_aborted else None


def told_behind_its_back(off: Iterable[str]) -> str | None:
    """A gateway hears what became of its record: without and with a lease move, without and with a late copy."""
    found = [behind_its_back(off, moves, copy) for moves in (False, True) for copy in (False, True)]
    return next(filter(None, found), None)


def one_then_many(off: Iterable[str], is_forgotten: bool, gives_up: bool) -> str | None:
    """T commits a and b in one range; the reply is lost, the range split.  T goes on, as a many-range commit, or gives up."""
    stage = Stage(off, "ab", split_way="copied")
    do, world = stage.do, stage.world
    writes = {"a": "va", "b": "vb"}
    assert do("a", Range.commit_one, T, 11, {}, writes, {}, 11, 11, True) == ("committed", 11)
    if is_forgotten:
        world.attempts[T] = type("Attempt", (), {"first_ts": 11})
        world.at["a"].forget(15)
    assert do("a", Range.split, "b") == ("ok",)
    if gives_up:
        return "zombie" if do("a", Range.end, T, "a", 11, "ABORTED", 0, None, True)[0] == "aborted" else None
    ts = 11
    for _ in range(2):
        staged = do("a", Range.stage, T, ts, 11, ("a", "b"), "a", True)
        laid = [do(k, Range.prewrite, T, k, value, ts, "a", 11) for k, value in writes.items()]
        if staged[0] != "staged":
            assert staged == (("gone",) if is_forgotten else ("committed", 11))
            return None
        if max(at for _, at in laid) <= ts:
            return "twice"
        ts = world.issue()
    raise AssertionError("neither refused nor committed")


def told_after_a_split(off: Iterable[str]) -> str | None:
    """A one-range commit that was not answered goes on as a many-range commit, or is given up, with its outcome known or forgotten."""
    found = [one_then_many(off, forgotten, gives_up) for forgotten in (False, True) for gives_up in (False, True)]
    return next(filter(None, found), None)


def split_after_commit(off: Iterable[str], is_forgotten: bool) -> str | None:
    """T's blind write of b is applied and its reply lost; then b is split off, and T's gateway sends again."""
    stage = Stage(off, "ab")
    commit = (T, 11, {}, {"b": "vb"}, {}, 11, 11, True)
    assert stage.do("b", Range.commit_one, *commit) == ("committed", 11)
    if is_forgotten:
        stage.world.attempts[T] = type("Attempt", (), {"first_ts": 11})
        stage.world.at["b"].forget(15)
    stage.do("a", Range.split, "b")
    stage.do("b", Range.commit_one, *commit)
    return "twice" if len(stage.versions("b")) > 1 else None


def resent_after_a_split(off: Iterable[str]) -> str | None:
    """A one-range commit sent again to the right side is applied once, with its outcome known or forgotten."""
    return split_after_commit(off, False) or split_after_commit(off, True)


def aborted_before_a_split(off: Iterable[str]) -> str | None:
    """T writes b (its anchor) and c; W aborts it, which leaves a tombstone; b is split off, with a copy of what its leaseholder knows."""
    stage = Stage(off, "ab", "c", split_way="copied")
    stage.do("c", Range.prewrite, T, "c", "vc", 11, "b", 11)
    assert stage.do("b", Range.push, T, "b", 11, 30, True) == ("aborted",)
    stage.do("c", Range.resolve, T, "c", None)
    stage.do("a", Range.split, "b")
    # T's gateway has the acknowledgement of c, and goes on.
    stage.do("b", Range.prewrite, T, "b", "vb", 11, "b", 11)
    return "lost" if stage.do("b", Range.stage, T, 11, 11, ("b", "c"), "b", False)[0] == "staged" else None


def closed_before_a_split(off: Iterable[str]) -> str | None:
    """b is read at a closed timestamp, on a follower; then it is split off, with a copy, and written."""
    stage = Stage(off, "ab", split_way="copied")
    rg = stage.world.at["b"]
    rg.closing = rg.closed = 15
    stage.do("a", Range.split, "b")
    stage.do("b", Range.commit_one, T, 11, {}, {"b": "vb"}, {}, 11, 11, True)
    return "past" if stage.versions("b")[0][0] <= 15 else None


def late_copy_after_a_split(off: Iterable[str]) -> str | None:
    """T read b and writes a, in one range, so its leaseholder may choose c.  The commit arrives after b was split off and written."""
    stage = Stage(off, "ab")
    stage.do("a", Range.split, "b")
    stage.do("b", Range.commit_one, U, 20, {}, {"b": "ub"}, {}, 20, 20, True)
    stage.do("a", Range.read, W, {}, ["a"], 30, None)
    reply = stage.do("a", Range.commit_one, T, 11, {}, {"a": "va"}, {"b": True}, 11, 11, True)
    return None if reply == MISMATCH else "order"


def pushed_while_pending(off: Iterable[str], happens: str) -> str | None:
    """T flushed b; a reader at 15 pushed it and read below its intent; maybe that is forgotten; T commits."""
    stage = Stage(off, "ab")
    stage.do("b", Range.begin, T, 11, "b")
    assert stage.do("b", Range.prewrite, T, "b", "vb", 11, "b", 11, 1) == ("ok", 11)
    assert stage.do("b", Range.read, W, {}, ["b"], 15, None)[0] == "intent"
    assert stage.do("b", Range.push, T, "b", 11, 15, False) == ("pushed",)
    assert stage.do("b", Range.read, W, {T: 15}, ["b"], 15, None) == ("ok", {"b": None})
    stage.world.attempts[T] = type("Attempt", (), {"first_ts": 11})
    if happens == "lease moves":
        stage.world.move_lease(stage.world.at["b"])
    elif happens == "table is full":
        stage.world.at["b"].forget_half()
    return "order" if stage.do("b", Range.commit_flushed, T, 11, 11, ("b",), "b", False)[0] == "committed" else None


def read_below_a_pending_one(off: Iterable[str]) -> str | None:
    """A reader that pushed a pending transaction stays right, also if the leaseholder forgets it."""
    found = [pushed_while_pending(off, happens) for happens in ("nothing", "lease moves", "table is full")]
    return next(filter(None, found), None)


def rolled_back_comes_late(off: Iterable[str]) -> str | None:
    """T flushed a and b, rolled b back, and committed; a copy of b's prewrite arrives before the record is removed."""
    stage = Stage(off, "ab")
    prewrite_b = (T, "b", "vb", 11, "a", 11, 2)
    stage.do("a", Range.prewrite, T, "a", "va", 11, "a", 11, 1)
    stage.do("b", Range.prewrite, *prewrite_b)
    if "savepoint_nothing" in off:
        stage.do("b", Range.resolve, T, "b", None)
    else:
        stage.do("b", Range.prewrite, T, "b", NOTHING, 11, "a", 11, 3)
    assert stage.do("a", Range.commit_flushed, T, 11, 11, ("a", "b"), "a", False) == ("committed", 11)
    for k in "ab":
        stage.do(k, Range.resolve, T, k, 11)
    stage.do("b", Range.prewrite, *prewrite_b)
    assert stage.do("a", Range.push, T, "a", 11, 30, True) == ("committed", 11)
    stage.do("b", Range.resolve, T, "b", 11)
    return "lost" if stage.versions("b") else None


def collected_and_laid_again(off: Iterable[str]) -> str | None:
    """T wrote b, U deleted it, and both versions were collected; now a copy of T's prewrite arrives."""
    stage = Stage(off, "ab")
    prewrite_b = (T, "b", "vb", 11, "a", 11)
    stage.do("a", Range.prewrite, T, "a", "va", 11, "a", 11)
    stage.do("b", Range.prewrite, *prewrite_b)
    stage.do("a", Range.stage, T, 11, 11, ("a", "b"), "a", False)
    stage.do("a", Range.end, T, "a", 11, "COMMITTED", 11, 11)
    for k in "ab":
        stage.do(k, Range.resolve, T, k, 11)
    stage.do("a", Range.remove, T, "a")
    assert stage.do("b", Range.commit_one, U, 13, {}, {"b": None}, {}, 13, 13, True) == ("committed", 13)
    stage.do("b", Range.collect, 15)
    assert stage.versions("b") == []
    stage.do("b", Range.prewrite, *prewrite_b)
    assert stage.do("a", Range.push, T, "a", 11, 30, True) == ("committed", 11)
    stage.do("b", Range.resolve, T, "b", 11)
    return "twice" if stage.versions("b") else None


def committed_under_the_janitor(off: Iterable[str]) -> str | None:
    """The janitor takes T, which is PENDING, for dead; before its push arrives T commits."""
    stage = Stage(off, "ab")
    stage.world.attempts[T] = type("Attempt", (), {"first_ts": 11})
    stage.do("a", Range.begin, T, 11, "a")
    stage.do("b", Range.prewrite, T, "b", "vb", 11, "a", 11, 1)
    janitor = Gateway(stage.world).janitor(1)
    assert next(janitor) is None
    rg, handler, args = janitor.send(None)
    assert stage.do("a", Range.commit_flushed, T, 11, 11, ("b",), "a", False) == ("committed", 11)
    # It must resolve b before it removes the record.
    return None if janitor.send(handler(rg, *args)) else "lost"


def read_while_splitting(off: Iterable[str]) -> str | None:
    """b is being split off; the right side leads elsewhere and is written before the left leaseholder has applied the split."""
    stage = Stage(off, "ab")
    left = stage.world.at["b"]
    command = left.split("b")
    left.log.append(command)
    left.begin_right(*command.args)
    assert stage.do("b", Range.commit_one, U, 25, {}, {"b": "ub"}, {}, 25, 25, True)[0] == "committed"
    return None if left.read(W, {}, ["b"], 30, None) == WAIT else "order"


def aborted_before_it_began(off: Iterable[str]) -> str | None:
    """T's first flush reaches b before its PENDING record is made; W aborts it, and T goes on."""
    stage = Stage(off, "ab")
    stage.do("b", Range.prewrite, T, "b", "vb", 11, "b", 11, 1)
    assert stage.do("b", Range.push, T, "b", 11, 30, True) == ("aborted",)
    stage.do("b", Range.resolve, T, "b", None)
    stage.do("b", Range.begin, T, 11, "b")
    return "lost" if stage.do("b", Range.commit_flushed, T, 11, 11, ("b",), "b", False)[0] == "committed" else None


def collected_under_a_reader(off: Iterable[str], splits: bool) -> str | None:
    """T read b; U deleted it, and all its versions were collected; T refreshes what it read, somebody reads the past."""
    stage = Stage(off, "ab")
    stage.do("b", Range.commit_one, W, 10, {}, {"b": "wb"}, {}, 10, 10, True)
    assert stage.do("b", Range.read, T, {}, ["b"], 11, None) == ("ok", {"b": "wb"})
    assert stage.do("b", Range.commit_one, U, 13, {}, {"b": None}, {}, 13, 13, True) == ("committed", 13)
    stage.do("b", Range.collect, 15)
    if splits:
        stage.do("a", Range.split, "b")
    if stage.do("b", Range.refresh, T, {}, {"b": True}, 11, 20) == ("ok",):
        return "order"
    return "past" if stage.do("b", Range.read, W, {}, ["b"], 12, None) == ("ok", {"b": None}) else None


def read_what_is_collected(off: Iterable[str]) -> str | None:
    """What was read below the threshold cannot be refreshed, nor read again, also after a split."""
    return collected_under_a_reader(off, False) or collected_under_a_reader(off, True)


SCENARIOS: dict[Callable[[Iterable[str]], str | None], tuple[str, ...]] = {
    told_behind_its_back: ("remove_tombstone", "remove_tombstone_outcome", "gone_unknown", "push_before_lease"),
    told_after_a_split: ("split_stage_outcome", "split_stage_floor", "split_end_outcome", "split_end_floor"),
    resent_after_a_split: ("split_outcomes", "split_floor"),
    aborted_before_a_split: ("split_copy_tombstones",),
    closed_before_a_split: ("split_closed",),
    rolled_back_comes_late: ("savepoint_nothing", "savepoint_resolve_notes"),
    read_below_a_pending_one: ("stage_push", "pending_low_water", "full_pushes"),
    committed_under_the_janitor: ("pending_keys",),
    read_while_splitting: ("split_latch",),
    aborted_before_it_began: ("pending_tombstone",),
    read_what_is_collected: ("gc_reads", "gc_refresh", "gc_split"),
    collected_and_laid_again: ("gc_bumps",),
    late_copy_after_a_split: ("split_spans_checked",),
}
"""Scenario → the rules without which it goes wrong."""


def show() -> bool:
    """Print what the scenarios come to; gives whether they are right with all rules."""
    for scenario, rules in SCENARIOS.items():
        for off in ("", *rules):
            print(f"{scenario.__name__:26s} {off or 'all':26s} {scenario({off} - {''}) or 'ok'}")
    return not any(scenario(()) for scenario in SCENARIOS)

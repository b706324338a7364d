"""Histories too rare for chance, written out."""

from collections.abc import Iterable

from tests.model.leaseholder import Range
from tests.model.state import Command
from tests.model.world import World

T = ("T", 0)


def do(rg: Range, handler: object, *args: object) -> tuple:
    """Deliver one request, and apply its command at once."""
    reply = handler(rg, *args)
    return World.apply(reply) if type(reply) is Command else reply


def committed_behind_its_back(off: Iterable[str], lease_moves: bool, late_copy: bool) -> str:
    """T writes a (its anchor) and b at 11.  All is applied, but T's gateway hears nothing; others finish the job.

    Gives what the gateway must tell its client when it then gives up: unknown, committed, or (wrong) aborted.
    """
    world = World(0, frozenset(off))
    a, b = world.ranges = [Range(world, "a"), Range(world, "b")]
    world.next, world.mark = 20, 100
    do(a, Range.stage, T, 11, 11, ("a", "b"))
    do(a, Range.prewrite, T, "a", "va", 11, "a", 11)
    do(b, Range.prewrite, T, "b", "vb", 11, "a", 11)
    # A reader recovers T, resolves its intents and removes its record.
    assert do(a, Range.push, T, 11, 15, False)[0] == "staging"
    assert do(a, Range.query, T, "a", 11) == do(b, Range.query, T, "b", 11) == ("found",)
    assert do(a, Range.end, T, 11, "COMMITTED", 11, 11) == ("committed", 11)
    do(a, Range.resolve, T, "a", 11)
    do(b, Range.resolve, T, "b", 11)
    do(a, Range.remove, T)
    if lease_moves:
        world.move_lease(a)
    if late_copy:
        # A copy of the second prewrite arrives only now; a writer meets its intent and takes T for dead.
        assert do(b, Range.prewrite, T, "b", "vb", 11, "a", 11)[1] > 11
        reply = do(a, Range.push, T, 11, 30, True)
        do(b, Range.resolve, T, "b", reply[1] if reply[0] == "committed" else None)
    reply = do(a, Range.end, T, 11, "ABORTED", 0, None)
    assert b.versions["b"] == [(11, "vb", T)]
    assert not b.intents
    if reply[0] != "gone":
        return reply[0]
    return "unknown" if "gone_unknown" not in off else "aborted"


BEHIND_ITS_BACK = ("remove_tombstone", "remove_tombstone_outcome", "gone_unknown", "push_before_lease")
"""The rules without which `committed_behind_its_back` goes wrong."""


def told_behind_its_back(off: Iterable[str] = ()) -> list[str]:
    """Give what the client is told, without and with a lease move, without and with a late copy."""
    return [committed_behind_its_back(off, moves, copy) for moves in (False, True) for copy in (False, True)]


def show() -> bool:
    """Print what the scenarios come to; gives whether they are right with all rules."""
    for off in ((), *((rule,) for rule in BEHIND_ITS_BACK)):
        told = told_behind_its_back(off)
        print(f"{'+'.join(off) or 'all':26s} told {told}  {'WRONG: it is committed' if 'aborted' in told else 'ok'}")
    return "aborted" not in told_behind_its_back()

"""Histories that are right by construction: what tests of checkers, and measurements of their speed, start from.

Transactions are executed one at a time, each at its own moment, so that their order is known.  What clients see of it is blurred as a real
system would: each transaction is invoked before its moment and answered after it, within its process's time, so that transactions overlap;
some are refused and have no effect, of some nobody knows, whether they had an effect or not.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from tests.checkers.history import History, Op, Outcome, Txn

MOMENT = 1000
"""Time from one transaction's moment to the next one's."""


class Mix(NamedTuple):
    """How many, by how many, and how often which outcome."""

    txns: int = 30
    processes: int = 4
    fail: float = 0.1
    info: float = 0.1


Execute = Callable[[Random, int, bool], tuple[Op, ...]]
"""Execute a transaction: given chance, its number, and whether it takes effect, change the state and give what the client saw."""


def serial(chance: Random, execute: Execute, mix: Mix = Mix(), last: Callable[[], tuple[Op, ...]] | None = None) -> History:  # noqa: B008 (immutable)
    """Execute transactions in a serial order, then one of the reads that `last` makes, when nothing is under way any more."""
    owners = [chance.randrange(mix.processes) for _ in range(mix.txns)]
    next_moment = _next_moments(owners, mix.processes)
    free_from = [0] * mix.processes
    txns = []
    for place, process in enumerate(owners):
        moment = (place + 1) * MOMENT
        invoked = chance.randint(free_from[process], moment)
        free_from[process] = completed = chance.randint(moment, next_moment[place])
        drawn = chance.random()
        outcome = Outcome.FAIL if drawn < mix.fail else Outcome.INFO if drawn < mix.fail + mix.info else Outcome.OK
        takes_effect = outcome is Outcome.OK or (outcome is Outcome.INFO and chance.random() < 0.5)
        ops = execute(chance, place + 1, takes_effect)
        txns.append(Txn(number=place + 1, process=process, invoked=invoked, completed=completed, outcome=outcome, ops=ops))
    if last is not None:
        end = (mix.txns + 2) * MOMENT
        txns.append(Txn(number=mix.txns + 1, process=mix.processes, invoked=end, completed=end + 1, outcome=Outcome.OK, ops=last()))
    return History(txns)


def _next_moments(owners: list[int], processes: int) -> list[int]:
    """Give, of each transaction, the moment of the next one of its process; of the last ones, the end."""
    coming = [(len(owners) + 1) * MOMENT] * processes
    found = [0] * len(owners)
    for place in reversed(range(len(owners))):
        found[place] = coming[owners[place]]
        coming[owners[place]] = (place + 1) * MOMENT
    return found

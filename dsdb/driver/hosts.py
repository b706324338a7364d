"""Which of a URL's hosts is tried first, and which next.

first          in the order of the URL
random         in a random order
round_robin    from the one after that of this process's connection before
weighted       in a random order in which each comes first as often as its weight says; those of weight 0 last
least_loaded   two at random, the one with fewer sessions; then the others
"""

import itertools
import random

from dsdb.driver.errors import DatabaseError, OperationalError
from dsdb.driver.target import Target
from dsdb.driver.wire import Wire

_turns = itertools.count()

_TRY_NEXT = frozenset({"08001", "08006", "53300", "57P01", "57P03"})
"""SQLSTATEs of a host that cannot serve now, where another may."""


def open_wire(target: Target) -> Wire:
    """Open a session at one of the hosts.  Raises OperationalError if none takes it."""
    hosts = ordered(target)
    if target.load_balance == "least_loaded" and len(hosts) > 1:
        wire = _less_loaded(hosts[:2], target)
        if wire is not None:
            return wire
        hosts = hosts[2:] or hosts
    failures: list[DatabaseError] = []
    for host, port in hosts:
        try:
            return Wire.open(host, port, target)
        except DatabaseError as error:
            if error.sqlstate not in _TRY_NEXT:
                raise
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    raise OperationalError(
        f"none of the {len(failures)} hosts takes a session", sqlstate="08001", detail="; ".join(error.message for error in failures)
    )


def ordered(target: Target) -> list[tuple[str, int]]:
    """Give the hosts in the order in which they are tried."""
    hosts = list(target.hosts)
    if target.load_balance == "round_robin":
        turn = next(_turns) % len(hosts)
        return hosts[turn:] + hosts[:turn]
    if target.load_balance == "weighted":
        # Efraimidis and Spirakis: by the least of exponential waiting times, whose rates are the weights.
        waits = {at: random.expovariate(weight) if weight else float("inf") for at, weight in enumerate(target.weights)}
        return [hosts[at] for at in sorted(waits, key=lambda at: (waits[at], random.random()))]
    if target.load_balance != "first":
        random.shuffle(hosts)
    return hosts


def _less_loaded(hosts: list[tuple[str, int]], target: Target) -> Wire | None:
    wires = []
    for host, port in hosts:
        try:
            wires.append(Wire.open(host, port, target))
        except DatabaseError as error:
            if error.sqlstate not in _TRY_NEXT:
                for wire in wires:
                    wire.close()
                raise
    wires.sort(key=lambda wire: wire.welcome.sessions)
    for wire in wires[1:]:
        wire.close(politely=True)
    return wires[0] if wires else None

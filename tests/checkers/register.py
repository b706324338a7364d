"""Linearizability of registers, key by key: does an order of the operations, each within its time, give every answer?

The method is Wing and Gong's search ("Testing and Verifying Concurrent Objects", JPDC 1993) in the just-in-time form of Lowe ("Testing for
linearizability", Concurrency and Computation 2017), with all configurations kept as a set, so that none is searched twice.  Keys are judged
apart, as linearizability is local (Herlihy and Wing 1990).

A configuration is a value of the register, and which of the operations under way have already taken effect.  Events are gone through in the
order of time: an invocation adds an operation to those under way; at an answer only configurations survive in which that operation has
taken effect, which may let others take effect before it.  When none survives, that answer has no explanation.

    time ────▶   write 1 ├──────────────┤                   {∅: None} ─▶ {∅: None}, {w1: 1} ─▶ …
                     read 1 ├──────┤                         at the read's answer only {w1: 1} survives

Invariants:
- Exact for histories within CONFIGURATIONS_MAX.
- An operation of unknown outcome may take effect at any time after its invocation, or never; a refused one never does.
- A read takes effect as early as it can: this excludes nothing, as it changes nothing.
- Unknown writes whose value nobody was given are left out: what follows such a write could follow without it.
"""

from collections import defaultdict
from typing import NamedTuple

from tests.checkers.history import Anomaly, BadHistoryError, Cas, History, Key, Outcome, Read, Txn, Value, Write

RegisterOp = Read | Write | Cas
CONFIGURATIONS_MAX = 200_000
"""Configurations at one moment of one key: with more, its history cannot be decided, and its workload has too many writes at once."""


class UndecidedError(Exception):
    """A history has more configurations than are searched."""


class Configuration(NamedTuple):
    """What may be: the register's value, and which of those under way have taken effect, as bits."""

    value: Value
    done: int


class Call(NamedTuple):
    """An operation on one key."""

    txn: Txn
    op: RegisterOp


def check(history: History, *, initial: Value = None) -> list[Anomaly]:
    """Give an anomaly for each key that is not linearizable.  Raises BadHistoryError for anything but single operations on registers."""
    calls: dict[Key, list[Call]] = defaultdict(list)
    for txn in history.txns:
        if txn.outcome is Outcome.FAIL or not txn.ops:
            continue
        op = txn.ops[0]
        if len(txn.ops) > 1 or not isinstance(op, Read | Write | Cas):
            raise BadHistoryError(f"not a single operation on a register: {txn}")
        if txn.outcome is Outcome.OK or not isinstance(op, Read):
            calls[op.key].append(Call(txn, op))
    found = (_Search(key, initial).run(calls[key]) for key in sorted(calls, key=str))
    return [anomaly for anomaly in found if anomaly is not None]


class _Search:
    """The search of one key."""

    def __init__(self, key: Key, initial: Value) -> None:
        self._key = key
        self._under_way: dict[int, RegisterOp] = {}  # by bit
        self._calls: dict[int, Call] = {}
        self._configurations = {Configuration(initial, 0)}

    def run(self, calls: list[Call]) -> Anomaly | None:
        """Go through the events; at one moment, invocations come first, as what touches may overlap."""
        wanted = {value for call in calls for value in _expects(call)}
        bits: dict[int, int] = {}
        events = []
        for number, call in enumerate(calls):
            ended = call.txn.ended()
            if ended is not None:
                events.append((ended, 1, number))
            elif not _written(call.op) & wanted:
                continue
            events.append((call.txn.invoked, 0, number))
        for _, is_answer, number in sorted(events):
            if not is_answer:
                bits[number] = self._invoke(calls[number])
            else:
                before = self._configurations
                self._answer(bits[number])
                if not self._configurations:
                    return self._anomaly(calls[number], before)
        return None

    def _invoke(self, call: Call) -> int:
        bit = 1
        while bit in self._under_way:
            bit <<= 1
        self._under_way[bit] = call.op
        self._calls[bit] = call
        if isinstance(call.op, Read):
            self._configurations = {self._settled(each) for each in self._configurations}
        return bit

    def _answer(self, bit: int) -> None:
        """Keep what has the operation done, letting others take effect before it where it has not."""
        survivors: set[Configuration] = set()
        known = set(self._configurations)
        waiting = list(known)
        while waiting:
            configuration = waiting.pop()
            if configuration.done & bit:
                survivors.add(configuration._replace(done=configuration.done & ~bit))
                continue
            for other, op in self._under_way.items():
                if configuration.done & other:
                    continue
                after = self._step(configuration, other, op)
                if after is not None and after not in known:
                    known.add(after)
                    waiting.append(after)
                    if len(known) > CONFIGURATIONS_MAX:
                        raise UndecidedError(f"{self._key} has more than {CONFIGURATIONS_MAX} configurations at {self._calls[bit].txn}")
        if survivors:
            del self._under_way[bit], self._calls[bit]
        self._configurations = survivors

    def _step(self, configuration: Configuration, bit: int, op: RegisterOp) -> Configuration | None:
        """Let an operation take effect, if it can."""
        match op:
            case Write():
                value = op.value
            case Cas():
                if configuration.value != op.old:
                    return None
                value = op.new
            case Read():
                return None  # it has taken effect already, wherever it could
        return self._settled(Configuration(value, configuration.done | bit))

    def _settled(self, configuration: Configuration) -> Configuration:
        """Let every read under way take effect that gives this value."""
        done = configuration.done
        for bit, op in self._under_way.items():
            if isinstance(op, Read) and op.value == configuration.value:
                done |= bit
        return Configuration(configuration.value, done)

    def _anomaly(self, call: Call, before: set[Configuration]) -> Anomaly:
        values = sorted({repr(each.value) for each in before})
        others = [self._calls[bit] for bit in sorted(self._under_way) if self._calls[bit] is not call]
        lines = [
            f"{self._key}: no order explains {call.txn}",
            f"  the value was {' or '.join(values)}, unless what is under way has taken effect",
        ]
        lines += [f"  under way: {other.txn}" for other in others]
        return Anomaly(
            name="nonlinearizable", explanation="\n".join(lines), txns=(call.txn.number, *(other.txn.number for other in others))
        )


def _expects(call: Call) -> tuple[Value, ...]:
    """Give the values that the register must have had for a call to succeed."""
    match call.op:
        case Read():
            return (call.op.value,)
        case Cas():
            return (call.op.old,)
        case Write():
            return ()


def _written(op: RegisterOp) -> set[Value]:
    match op:
        case Write():
            return {op.value}
        case Cas():
            return {op.new}
        case Read():
            return set()

"""Whether some order explains a small history, found by trying all of them: what faster checkers are compared with.

Transactions are put one behind another, each where everything is that must come before it; each is replayed on lists, registers and rows,
and must see what it saw.  Unknown ones may be anywhere after their invocation, or left out.

Not here: any cleverness; ten transactions are many.
"""

from collections.abc import Sequence

from tests.checkers.history import (
    Append,
    Cas,
    History,
    Increment,
    Insert,
    Key,
    Op,
    Outcome,
    Read,
    ReadList,
    Scan,
    Select,
    Txn,
    Value,
    Write,
)

State = dict[tuple[str, Key], tuple[Value, ...]]
"""By the kind of thing and its key: a list's values, a register's one, a row's group."""


def is_explained(history: History, *, process: bool = True, realtime: bool = True) -> bool:
    """Say whether the history is serializable, with those orders of clients kept."""
    txns = [txn for txn in history.txns if txn.outcome is not Outcome.FAIL]
    before = [[place for place, one in enumerate(txns) if _precedes(one, other, process, realtime)] for other in txns]
    return _explains(txns, before, frozenset(), {})


def _precedes(one: Txn, other: Txn, process: bool, realtime: bool) -> bool:
    ended = one.ended()
    if ended is None or one is other:
        return False
    is_own = one.process == other.process and (one.invoked, one.number) < (other.invoked, other.number)
    return (realtime and ended < other.invoked) or (process and is_own)


def _explains(txns: Sequence[Txn], before: list[list[int]], done: frozenset[int], state: State) -> bool:
    waiting = [place for place in range(len(txns)) if place not in done]
    if all(txns[place].outcome is Outcome.INFO for place in waiting):
        return True
    for place in waiting:
        if done.issuperset(before[place]):
            after = _replayed(txns[place], state)
            if after is not None and _explains(txns, before, done | {place}, after):
                return True
    return False


def _replayed(txn: Txn, state: State) -> State | None:
    """Give the state behind a transaction; None if it cannot have seen what it saw."""
    after = dict(state)
    return after if all(_step(op, after) for op in txn.ops) else None


def _step(op: Op, state: State) -> bool:
    match op:
        case Append():
            state["list", op.key] = (*state.get(("list", op.key), ()), op.value)
        case ReadList():
            return state.get(("list", op.key), ()) == op.values
        case Write():
            state["register", op.key] = (op.value,)
        case Read() if ("row", op.key) in state:
            return op.value is not None
        case Read():
            return state.get(("register", op.key), (None,)) == (op.value,)
        case Cas():
            is_old = state.get(("register", op.key), (None,)) == (op.old,)
            state["register", op.key] = (op.new,)
            return is_old
        case Increment():
            (value,) = state.get(("register", op.key), (0,))
            assert isinstance(value, int)
            state["register", op.key] = (value + 1,)
            return op.result in (None, value + 1)
        case Insert():
            state["row", op.key] = (op.group,)
        case Scan():
            return {key for kind, key in state if kind == "row" and op.covers(key)} == set(op.keys)
        case Select():
            return {key for (kind, key), group in state.items() if kind == "row" and group == (op.group,)} == set(op.keys)
    return True

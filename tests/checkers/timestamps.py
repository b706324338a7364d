"""Transactions on lists whose commit timestamps are known: is the order of the timestamps the one that explains them?

The timestamps decide exactly what `listappend` has to infer, and find less visible faults: a wrong timestamp that did no harm yet.  Given
are transactions as `listappend` takes them, `ts` with those that were acknowledged; the longest read of each list gives its appends, so a
run ends with a read of all lists (which may have no timestamp).

    order       a transaction that began after another one ended has no higher timestamp
    list-order  the appends of a list are not in the order of their timestamps
    wrong-read  a transaction did not read of a list exactly what was appended below its timestamp

Invariants:
- Transactions without a timestamp may be anywhere, yet what they read must be a prefix of what the list became, whatever their outcome:
  nobody, not even who is refused in the end, reads what is not to stay.
- What was acknowledged and is missing, what was refused and is there, and what is there twice, is found by `listappend`.
"""

from collections import defaultdict
from collections.abc import Iterator

from tests.checkers.history import Anomaly, Append, History, Key, Outcome, ReadList, Txn, Value, anomaly

Values = tuple[Value, ...]


def check(history: History) -> list[Anomaly]:
    """Give the anomalies."""
    reads = [(txn, key, values, own) for txn in history.txns for key, values, own in _reads(txn)]
    lists: dict[Key, Values] = defaultdict(tuple)
    for txn, key, values, own in reads:
        lists[key] = max(lists[key], (*values, *own) if txn.outcome is Outcome.OK else values, key=len)
    writers = {(op.key, op.value): txn for txn in history.txns for op in txn.ops if isinstance(op, Append)}
    timestamps = {key: [writer.ts if (writer := writers.get((key, value))) else None for value in lists[key]] for key in lists}
    found = list(check_order(history))
    for key in sorted(lists, key=str):
        known = [ts for ts in timestamps[key] if ts is not None]
        if known != sorted(known):
            found.append(Anomaly(name="list-order", explanation=f"{key} is {list(lists[key])}, with timestamps {timestamps[key]}"))
    for txn, key, values, _ in reads:
        found += _check_read(txn, key, values, lists[key], timestamps[key])
    return found


def _reads(txn: Txn) -> Iterator[tuple[Key, Values, Values]]:
    """Give each list that a transaction read, what was there of others, and of itself behind it."""
    own: dict[Key, Values] = {}
    for op in txn.ops:
        if isinstance(op, Append):
            own[op.key] = (*own.get(op.key, ()), op.value)
        elif isinstance(op, ReadList):
            mine = own.get(op.key, ())
            if op.values[len(op.values) - len(mine) :] == mine:
                yield op.key, op.values[: len(op.values) - len(mine)], mine


def check_order(history: History) -> Iterator[Anomaly]:
    """Check that real time agrees with the timestamps of those that were acknowledged."""
    done = [(txn, txn.ts, ended) for txn in history.txns if txn.ts is not None and (ended := txn.ended()) is not None]
    by_end = sorted(done, key=lambda one: one[2])
    highest: tuple[Txn, int, int] | None = None
    position = 0
    for txn, ts, _ in done:  # by invocation
        while position < len(by_end) and by_end[position][2] < txn.invoked:
            if highest is None or by_end[position][1] > highest[1]:
                highest = by_end[position]
            position += 1
        if highest is not None and ts <= highest[1]:
            yield anomaly("order", "the second began after the first had ended, and is not above it", highest[0], txn)


def _check_read(txn: Txn, key: Key, values: Values, last: Values, timestamps: list[int | None]) -> Iterator[Anomaly]:
    if last[: len(values)] != values:
        yield anomaly("wrong-read", f"{key} was read as {list(values)}, and became {list(last)}", txn)
    elif txn.ts is not None:
        appended = {op.value for op in txn.ops if isinstance(op, Append) and op.key == key}
        for position, ts in enumerate(timestamps):
            if ts is not None and last[position] not in appended and (ts < txn.ts) != (position < len(values)):
                there = "has" if position < len(values) else "lacks"
                yield anomaly("wrong-read", f"{key} at {txn.ts} {there} {last[position]!r}, appended at {ts}", txn)
                return

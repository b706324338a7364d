"""Long fork: two readers disagree on which of two independent writes came first.

The workload is Jepsen's `long-fork`, after Sovran et al., "Transactional storage for geo-replicated systems" (SOSP 2011): each key is
written once, by a transaction of its own; readers read several keys in one transaction.  Parallel snapshot isolation, and replicas that
apply at their own pace, show such forks; snapshot isolation and serializability do not.

    long-fork      T1 has x and not y, T2 has y and not x
    garbage-read   a value that nobody wrote
    G1a            a value whose write was refused

Invariants:
- Only reads of acknowledged transactions are judged; keys are not there at first.
- Each pair of keys gives one long fork at most.
"""

from itertools import combinations

from tests.checkers.history import Anomaly, BadHistoryError, History, Key, Outcome, Read, Txn, Value, Write, anomaly, describe


def check(history: History) -> list[Anomaly]:
    """Give the anomalies.  Raises BadHistoryError if a key is written twice, or something else than registers is used."""
    writes = _writes(history)
    found: list[Anomaly] = []
    readers: dict[tuple[Key, Key], Txn] = {}  # (seen, not seen) -> the first who did
    forked: set[frozenset[Key]] = set()
    for txn in history.with_outcome(Outcome.OK):
        values = {op.key: op.value for op in txn.ops if isinstance(op, Read)}
        found += _check_values(txn, values, writes)
        for one, other in combinations(sorted(values, key=str), 2):
            if (values[one] is None) == (values[other] is None):
                continue
            seen, missing = (other, one) if values[one] is None else (one, other)
            readers.setdefault((seen, missing), txn)
            opposite = readers.get((missing, seen))
            if opposite is not None and frozenset((seen, missing)) not in forked:
                forked.add(frozenset((seen, missing)))
                text = f"one has {seen} and not {missing}, the other {missing} and not {seen}"
                found.append(anomaly("long-fork", text, txn, opposite))
    return found


def _writes(history: History) -> dict[Key, tuple[Value, Txn]]:
    writes: dict[Key, tuple[Value, Txn]] = {}
    for txn in history.txns:
        for op in txn.ops:
            if isinstance(op, Write) and op.key not in writes and op.value is not None:
                writes[op.key] = (op.value, txn)
            elif not isinstance(op, Read):
                raise BadHistoryError(f"{describe(op)!r} is neither a read nor the first write of a value, in {txn}")
    return writes


def _check_values(txn: Txn, values: dict[Key, Value], writes: dict[Key, tuple[Value, Txn]]) -> list[Anomaly]:
    found = []
    for key, value in values.items():
        written, writer = writes.get(key, (None, None))
        if value is not None and value != written:
            found.append(anomaly("garbage-read", f"nobody wrote {value!r} to {key}", txn))
        elif value is not None and writer is not None and writer.outcome is Outcome.FAIL:
            found.append(anomaly("G1a", f"{key} was read as {value!r}, whose write was refused", txn, writer))
    return found

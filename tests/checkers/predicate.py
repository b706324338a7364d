"""Write skew by predicate (G2): two transactions each insert a row that the other's read should have shown.

The workload is that of Hermitage and of Jepsen's `adya`: each transaction reads all rows of one group or of several, and inserts into
one of them only if it found nothing.  At most one may succeed.  More generally, of two transactions that read a group and inserted into a
group that the other one read, one must have seen the other's row.

    G2           two transactions, each of which read a group that the other inserted into, and missed its row
    not-guarded  a transaction inserted into a group although it had found rows there (only with `is_guarded`)

Invariants:
- Sound: serializable systems have none of these; snapshot isolation has.
- Only acknowledged inserts are judged, by what was read before them.
- Cycles of three transactions and more, stale reads and reads of refused rows are found by `phantom`, from the same history.
"""

from collections import defaultdict

from tests.checkers.history import Anomaly, BadHistoryError, History, Insert, Key, Outcome, Select, Txn, anomaly, describe


def check(history: History, *, is_guarded: bool = True) -> list[Anomaly]:
    """Give the anomalies; `is_guarded` says that the workload inserts only where it found nothing."""
    txns = {txn.number: txn for txn in history.with_outcome(Outcome.OK)}
    inserters: dict[Key, list[tuple[Key, Txn]]] = defaultdict(list)
    for txn in txns.values():
        for op in txn.ops:
            if isinstance(op, Insert) and op.group is not None:
                inserters[op.group].append((op.key, txn))
            elif not isinstance(op, Select):
                raise BadHistoryError(f"{describe(op)!r} is neither an insert into a group nor a read of one, in {txn}")
    missed: dict[tuple[int, int], str] = {}
    found: list[Anomaly] = []
    for txn in txns.values():
        selects = _before_inserts(txn)
        if len(selects) == len(txn.ops):
            continue
        if is_guarded:
            found += _check_guard(txn, selects)
        for select in selects:
            for key, other in inserters[select.group]:
                if other is not txn and key not in select.keys:
                    missed.setdefault((txn.number, other.number), f"T{txn.number} read {select.group} without {key!r} of T{other.number}")
    for (first, second), text in sorted(missed.items()):
        if first < second and (second, first) in missed:
            found.append(anomaly("G2", f"each missed the other's row: {text}, {missed[second, first]}", txns[first], txns[second]))
    return found


def _before_inserts(txn: Txn) -> list[Select]:
    selects: list[Select] = []
    for op in txn.ops:
        if not isinstance(op, Select):
            break
        selects.append(op)
    return selects


def _check_guard(txn: Txn, selects: list[Select]) -> list[Anomaly]:
    groups = {op.group for op in txn.ops if isinstance(op, Insert)}
    full = [select for select in selects if select.group in groups and select.keys]
    return [anomaly("not-guarded", f"it inserted, though {describe(select)}", txn) for select in full]

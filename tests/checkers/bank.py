"""Bank accounts: money moves between accounts, and none is made or lost.

The workload is Jepsen's `bank`: transfers read two registers and write both; readers read all of them.  Snapshot isolation is enough for a
right total, so a wrong one is a torn read, a lost update or a transfer applied by half or twice.

    wrong-total       the accounts that a transaction read do not add up
    negative-balance  an account is overdrawn, where the system refuses that
    wrong-balance     an account is missing, or is not a number

Invariants:
- Only acknowledged transactions are judged, by what they read before they wrote it themselves.
- A transaction that read some of the accounts is judged by its balances only.
"""

from collections.abc import Iterator, Sequence

from tests.checkers.history import Anomaly, BadHistoryError, History, Key, Outcome, Read, Txn, Value, Write, anomaly, describe


def check(history: History, accounts: Sequence[Key], total: int, *, may_be_negative: bool = False) -> list[Anomaly]:
    """Give the anomalies.  Raises BadHistoryError for anything but reads and writes of these accounts."""
    return [each for txn in history.with_outcome(Outcome.OK) for each in _check_txn(txn, set(accounts), total, may_be_negative)]


def _check_txn(txn: Txn, accounts: set[Key], total: int, may_be_negative: bool) -> Iterator[Anomaly]:
    balances = _read(txn, accounts)
    numbers: list[int] = []
    for account, balance in balances.items():
        if not isinstance(balance, int):
            yield anomaly("wrong-balance", f"account {account} has {balance!r}", txn)
            continue
        numbers.append(balance)
        if balance < 0 and not may_be_negative:
            yield anomaly("negative-balance", f"account {account} has {balance}", txn)
    if len(numbers) == len(accounts) and sum(numbers) != total:
        yield anomaly("wrong-total", f"the accounts add up to {sum(numbers)}, not to {total}", txn)


def _read(txn: Txn, accounts: set[Key]) -> dict[Key, Value]:
    balances: dict[Key, Value] = {}
    written: set[Key] = set()
    for op in txn.ops:
        if not isinstance(op, Read | Write) or op.key not in accounts:
            raise BadHistoryError(f"{describe(op)!r} is not of an account, in {txn}")
        if isinstance(op, Write):
            written.add(op.key)
        elif op.key not in written:
            balances.setdefault(op.key, op.value)
    return balances

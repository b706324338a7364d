"""The bank: transfers between accounts, each a serializable transaction that reads two rows and writes both.

    transfer:  read both balances ─▶ does the source have the amount? ─▶ write both balances ─▶ commit
                     ▲                      │ no: others are drawn             │ conflict: undone, and counted
                     └──────────────────────┴──────────────────────────────────┘

hot    few accounts: transactions meet
cold   many: they seldom do

Invariants:
- What is written was computed by the client from what it read.  A side that loses an update, or lets two transactions see each other half
  done, therefore changes the sum of all balances: `check` would see it.
- No balance falls below 0: `check` looks at this too.
- An aborted transfer is tried again at once, on every side, with the same accounts and amount; it is one transfer, however often it is
  tried.
"""

import random
from collections.abc import Callable, Iterator, Sequence

ACCOUNTS = {"bank-hot": 1_000, "bank-cold": 100_000}
"""Workload → number of accounts; not scaled, as it is what makes the workload."""
BALANCE = 1_000
"""Of every account at first."""
AMOUNT_MAX = 10
RANGES = 6
"""Of a table of accounts in dsdb: most transfers then touch two ranges."""
ATTEMPTS_MAX = 1_000
"""Of one transfer; then it has failed."""
INSERT_ROWS_MAX = 1_000

Attempt = Callable[[int, int, int], bool]
"""Try to move an amount from one account to another: (source, target, amount) → whether the source had it.  Raises Aborted."""


class Aborted(Exception):
    """A transaction met another one and was undone."""


class Unsound(RuntimeError):
    """The money is not what it was: a side is not serializable, or the benchmark is wrong."""


def table_name(accounts: int) -> str:
    """Name the table of so many accounts."""
    return f"bank_{accounts}"


def table(accounts: int) -> str:
    """Give the CREATE TABLE of so many accounts."""
    return f"CREATE TABLE {table_name(accounts)} (id BIGINT PRIMARY KEY, balance BIGINT)"


def bounds(accounts: int) -> list[int]:
    """Give the accounts that begin the second and further ranges."""
    return [accounts * number // RANGES for number in range(1, RANGES)]


def fill(accounts: int) -> Iterator[str]:
    """Give the INSERTs of all accounts; none touches two ranges."""
    ends = [*bounds(accounts), accounts]
    for begin, end in zip([0, *ends], ends):
        for first in range(begin, end, INSERT_ROWS_MAX):
            values = ",".join(f"({account},{BALANCE})" for account in range(first, min(first + INSERT_ROWS_MAX, end)))
            yield f"INSERT INTO {table_name(accounts)} VALUES {values}"


def transfer(accounts: int, attempt: Attempt, chance: random.Random) -> int:
    """Make one transfer; give how many attempts were aborted before the one that committed.  Raises Aborted after too many."""
    aborted = 0
    while True:
        source, target = chance.sample(range(accounts), 2)
        amount = chance.randint(1, AMOUNT_MAX)
        while True:
            try:
                if attempt(source, target, amount):
                    return aborted
                break
            except Aborted:
                aborted += 1
                if aborted >= ATTEMPTS_MAX:
                    raise


def sum_query(accounts: int) -> str:
    """Give the query whose row `check` takes."""
    return f"SELECT count(*), sum(balance), min(balance) FROM {table_name(accounts)}"


def check(side: str, accounts: int, found: Sequence[object]) -> None:
    """Compare number, sum and minimum of all balances with what they must be.  Raises Unsound."""
    count, total, least = (int(str(value)) for value in found)
    if (count, total) != (accounts, accounts * BALANCE) or least < 0:
        raise Unsound(
            f"{side} is unsound: {count:,} accounts have {total:,} and the poorest {least:,} after the transfers; "
            f"expected {accounts:,} with {accounts * BALANCE:,}, none below 0"
        )

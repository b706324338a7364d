"""The bank: what is a transfer, what is an abort, and that a changed sum is seen."""

import random
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec
import pytest

from bench import bank
from bench.__main__ import _counts, _names
from bench.clients import SliceOrder, run_slice
from bench.report import markdown, screen_text
from bench.results import SliceLine, summarise
from bench.run import WORK, WORK_GROUPS
from bench.sides.sqlite_file import SqliteClient, SqliteSide
from bench.turns import take_turns
from bench.workloads import workloads
from tests.bench.test_bench_results import line

HOT = bank.ACCOUNTS["bank-hot"]
CONTEXT = click.Context(click.Command("bench"))


@pytest.fixture
def side(tmp_path: Path) -> SqliteSide:
    made = SqliteSide(tmp_path, kv_rows=0, wide_rows=0)
    made.prepare("bank-hot")
    return made


@pytest.fixture
def client(side: SqliteSide) -> Iterator[SqliteClient]:
    (contender,) = side.contenders("bank-hot", 1)
    made = SqliteClient(contender.specs[0].address)
    yield made
    made.close()


def test_an_aborted_transfer_is_tried_again_with_the_same_accounts_and_counted() -> None:
    tried: list[tuple[int, int, int]] = []

    def attempt(source: int, target: int, amount: int) -> bool:
        tried.append((source, target, amount))
        if len(tried) < 4:
            raise bank.Aborted
        return True

    assert bank.transfer(10, attempt, random.Random(1)) == 3
    assert len(tried) == 4
    assert len(set(tried)) == 1
    source, target, amount = tried[0]
    assert source != target
    assert 1 <= amount <= bank.AMOUNT_MAX


def test_accounts_without_funds_are_drawn_anew_and_are_no_abort() -> None:
    tried: list[tuple[int, int, int]] = []

    def attempt(*drawn: int) -> bool:
        tried.append((drawn[0], drawn[1], drawn[2]))
        return len(tried) == 3

    assert bank.transfer(1_000, attempt, random.Random(1)) == 0
    assert len(set(tried)) == 3


def test_a_transfer_that_only_meets_others_has_failed() -> None:
    tried = []

    def attempt(*drawn: int) -> bool:
        tried.append(drawn)
        raise bank.Aborted

    with pytest.raises(bank.Aborted):
        bank.transfer(10, attempt, random.Random(1))
    assert len(tried) == bank.ATTEMPTS_MAX


@pytest.mark.parametrize("accounts", bank.ACCOUNTS.values())
def test_all_accounts_are_inserted_once_and_no_statement_touches_two_ranges(accounts: int) -> None:
    ranges = [*bank.bounds(accounts), accounts]
    assert len(ranges) == bank.RANGES
    seen: list[int] = []
    for statement in bank.fill(accounts):
        found = [int(part.split(",")[0].lstrip("(")) for part in statement.partition("VALUES ")[2].split("),")]
        assert len(found) <= bank.INSERT_ROWS_MAX
        assert len({sum(account >= bound for bound in ranges) for account in found}) == 1
        seen += found
    assert seen == list(range(accounts))


def test_transfers_keep_the_sum_and_move_money(side: SqliteSide, client: SqliteClient) -> None:
    for _ in range(50):
        assert client.transfer(HOT) == 0
    side.check("bank-hot")
    moved = client._connection.execute(f"SELECT count(*) FROM {bank.table_name(HOT)} WHERE balance <> {bank.BALANCE}").fetchone()
    assert moved[0] > 50


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE {table} SET balance = balance + 1 WHERE id = 7",
        "DELETE FROM {table} WHERE id = 7",
        "UPDATE {table} SET balance = balance + CASE id WHEN 7 THEN -1001 ELSE 1001 END WHERE id IN (7, 8)",
    ],
    ids=["sum", "count", "below-zero"],
)
def test_money_that_was_made_or_lost_is_seen(side: SqliteSide, client: SqliteClient, harm: str) -> None:
    side.check("bank-hot")
    client._connection.execute(harm.format(table=bank.table_name(HOT)))
    with pytest.raises(bank.Unsound, match="sqlite is unsound"):
        side.check("bank-hot")


class MeetingClient:
    """A client each of whose transfers is aborted twice."""

    errors: tuple[type[Exception], ...] = ()

    def transfer(self, accounts: int) -> int:
        return 2

    def close(self) -> None:
        pass


def test_a_slice_adds_up_aborts() -> None:
    order = SliceOrder(operation="transfer", argument="rows", rows=HOT, step=1, start_at=0.0, seconds=0.0)
    report, _ = run_slice(MeetingClient(), order, 0)
    assert (len(report.latencies) // 8, report.aborts, report.failures) == (1, 2, 0)


def test_client_processes_make_transfers_in_turns(side: SqliteSide) -> None:
    workload = workloads(kv_rows=0, wide_rows=0)["bank-hot"]
    said: list[str] = []
    (measured,) = take_turns(workload, side.contenders("bank-hot", 2), turns=1, seconds=0.05, say=said.append)
    assert not said
    assert (measured.clients, measured.unit, measured.failures, measured.aborts) == (2, "transfers", 0, 0)
    assert measured.statements > 0
    side.check("bank-hot")


def test_attempts_a_commit_are_counted_over_all_turns_and_shown() -> None:
    def turn(number: int, statements: int, aborts: int) -> SliceLine:
        made: SliceLine = msgspec.structs.replace(
            line("etcd", number, 100), workload="bank-hot", unit="transfers", statements=statements, aborts=aborts
        )
        return made

    lines = [turn(0, 100, 50), turn(1, 300, 50)]
    (found,) = summarise(lines)
    assert (found.attempts, found.aborts) == (1.25, 100)
    assert "1.250 attempts a commit, 100 aborted" in screen_text(lines)
    assert "| 1.250 | 0 |" in markdown(lines)
    assert "attempts a commit" not in screen_text([line("etcd", 0, 100)])


def test_bank_names_both_workloads_and_has_sixteen_clients_unless_told() -> None:
    read_names = _names(WORK, WORK_GROUPS)
    parameter = click.Option(["--work"])
    assert read_names(CONTEXT, parameter, "read,bank,bank-hot") == ("read", "bank-hot", "bank-cold")
    with pytest.raises(click.BadParameter, match="bank"):
        read_names(CONTEXT, parameter, "banks")
    known = workloads(kv_rows=0, wide_rows=0)
    assert known["bank-cold"].client_counts(_counts(CONTEXT, parameter, "")) == [16]
    assert known["bank-cold"].client_counts(_counts(CONTEXT, parameter, "8,1")) == [1, 8]
    assert known["read"].client_counts(()) == [1, 16, 64]
    assert known["bulk"].client_counts(()) == [1, 16]

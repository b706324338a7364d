"""Scripts of transaction statements, made from seeds, on dsdb and on PostgreSQL: the same errors, tags, rows, and status after each.

DSDB_EXPLORE=1 takes new seeds.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

import dsdb
from dsdb.sql.transaction_status import TransactionStatus
from tests.differential.postgres import NoPostgresError, run_postgres

SCRIPTS = 40
STATEMENTS = 25

TEXTS = (
    *("BEGIN", "BEGIN", "BEGIN READ ONLY", "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE"),
    *("COMMIT", "COMMIT", "END", "ROLLBACK", "ABORT"),
    *("SAVEPOINT a", "SAVEPOINT b", "SAVEPOINT a", "ROLLBACK TO a", "ROLLBACK TO SAVEPOINT b", "RELEASE a", "RELEASE SAVEPOINT b"),
    *("SET TRANSACTION READ ONLY", "SET TRANSACTION READ WRITE", "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    *("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SET default_transaction_read_only = off"),
    *("SET extra_float_digits = 1", "SHOW transaction_read_only", "SHOW default_transaction_read_only", "SHOW transaction_isolation"),
    *("SET application_name = 'n%d'", "SHOW application_name", "RESET application_name"),
    *("INSERT INTO t VALUES (%d, %d)", "INSERT INTO t VALUES (%d, %d), (%d, 1)", "INSERT INTO t SELECT id + %d, n FROM t"),
    "INSERT INTO t VALUES (%d, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 100",
    "INSERT INTO t VALUES (%d, 1) ON CONFLICT DO NOTHING",
    *("UPDATE t SET n = n + %d WHERE id > %d", "UPDATE t SET id = id + 1 WHERE id = %d", "UPDATE t SET n = %d RETURNING id, n"),
    "DELETE FROM t WHERE id = %d",
    *("SELECT * FROM t ORDER BY id", "SELECT count(*), sum(n) FROM t", "SELECT * FROM t WHERE id = %d"),
    "SELECT id FROM t WHERE id BETWEEN %d AND 30 ORDER BY id DESC LIMIT 2",
    *("SELECT 1/0", "SELECT * FROM nope", "SELEKT", "BEGIN; INSERT INTO t VALUES (%d, 5); COMMIT"),
)
WITHIN = (
    *("SAVEPOINT a", "SAVEPOINT b", "ROLLBACK TO a", "RELEASE a", "SELECT * FROM t ORDER BY id", "SELECT count(*), sum(n) FROM t"),
    *("INSERT INTO t VALUES (1%d%d, %d)", "UPDATE t SET n = n + %d WHERE id > %d", "DELETE FROM t WHERE id = %d"),
)
"""Most of what is said in a transaction, so that savepoints come to mean something; a failed one is mostly told to go back."""
AFTER_FAILURE = ("ROLLBACK TO a", "ROLLBACK TO a", "ROLLBACK", "COMMIT", "SELECT 1")
FRESH = (
    "ROLLBACK",
    "SET default_transaction_read_only = off",
    "RESET application_name",
    "DELETE FROM t",
    "INSERT INTO t VALUES (1, 10), (2, 20), (3, 30)",
    "BEGIN",
    "SAVEPOINT a",
)

_STATUS = {
    psycopg.pq.TransactionStatus.IDLE: TransactionStatus.NONE,
    psycopg.pq.TransactionStatus.INTRANS: TransactionStatus.ACTIVE,
    psycopg.pq.TransactionStatus.INERROR: TransactionStatus.FAILED,
}


@pytest.fixture(scope="module")
def peers() -> Iterator[tuple[Any, Any]]:
    running = run_postgres()
    try:
        target = running.__enter__()
    except NoPostgresError as error:
        pytest.skip(str(error))
    postgres, ours = psycopg.connect(target, autocommit=True), dsdb.connect(autocommit=True)
    postgres.execute("SET default_transaction_isolation = 'serializable'")
    for connection in (postgres, ours):
        connection.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
    yield postgres, ours
    ours.close()
    postgres.close()
    running.__exit__(None, None, None)


def outcome(connection: Any, sql: str) -> tuple[str, list[tuple[Any, ...]]]:
    """Run a text; give its last statement's tag and rows, or the SQLSTATE."""
    try:
        cursor = connection.execute(sql)
        found = (cursor.statusmessage, sorted(cursor.fetchall()) if cursor.description else [])
        while cursor.nextset():
            found = (cursor.statusmessage, sorted(cursor.fetchall()) if cursor.description else [])
    except (psycopg.Error, dsdb.Error) as error:
        return str(error.sqlstate), []
    return found


def compare(postgres: Any, ours: Any, seed: int) -> None:
    chance = random.Random(seed)
    for sql in FRESH:
        postgres.execute(sql)
        ours.execute(sql)
    said: list[str] = []
    for _ in range(STATEMENTS):
        texts = {TransactionStatus.ACTIVE: WITHIN, TransactionStatus.FAILED: AFTER_FAILURE}.get(ours.transaction_status, TEXTS)
        text = chance.choice(texts if chance.random() < 0.7 else TEXTS)
        sql = text % tuple(chance.randint(1, 8) for _ in range(text.count("%d")))
        said.append(sql)
        theirs = (*outcome(postgres, sql), _STATUS[postgres.info.transaction_status])
        assert (*outcome(ours, sql), ours.transaction_status) == theirs, f"seed {seed}: {'; '.join(said)}"


def test_scripts_of_transactions(peers: tuple[Any, Any]) -> None:
    first = time.time_ns() if os.environ.get("DSDB_EXPLORE") else 0
    for seed in range(first, first + SCRIPTS):
        compare(*peers, seed)

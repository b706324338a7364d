"""Python's values to the node and back, and what has no value on the other side."""

import datetime
import decimal
import enum
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Node

import dsdb
from dsdb.driver.adapt import dump_parameters
from dsdb.driver.connection import Connection
from dsdb.driver.target import Target, parse_target
from dsdb.driver.text import insert_text, is_read_only
from dsdb.driver.values import Shape
from dsdb.protocol.messages import Column
from dsdb.sql.types import SqlType, TypeName

DAYS_MAX = 100_000


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with Node() as node, dsdb.connect(node.url, autocommit=True) as opened:
        yield opened


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    | st.binary()
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.datetimes(timezones=st.just(datetime.UTC))
    | st.timedeltas(datetime.timedelta(-DAYS_MAX), datetime.timedelta(DAYS_MAX))
    | st.uuids()
)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=8))
def test_values_come_back_as_they_went(connection: Connection, values: list[Any]) -> None:
    row = connection.execute("echo", values).fetchone()
    if values:
        assert row == tuple(values)
        assert [type(value) for value in row] == [type(value) for value in values]
        assert [str(value) for value in row] == [str(value) for value in values]


class Number(enum.IntEnum):
    ONE = 1


class Colour(enum.StrEnum):
    RED = "red"


def test_subclasses_and_numpy_count_as_their_base() -> None:
    numpy = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas")
    types, values = dump_parameters([Colour.RED, Number.ONE, numpy.int64(7), numpy.float64(0.5), numpy.bool_(True), pandas.NaT])
    assert values == ["red", 1, 7, 0.5, True, None]
    assert [type(value) for value in values] == [str, int, int, float, bool, type(None)]
    assert types == bytes([TypeName.UNKNOWN, TypeName.INT, TypeName.INT, TypeName.DOUBLE, TypeName.BOOL, TypeName.UNKNOWN])


def test_integers_are_typed_as_literals_are() -> None:
    types, values = dump_parameters((2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63))
    assert list(types) == [TypeName.INT, TypeName.BIGINT, TypeName.INT, TypeName.BIGINT, TypeName.DECIMAL]
    assert values[-1] == str(2**63)


def test_an_aware_time_is_sent_in_utc() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=2))
    types, values = dump_parameters([datetime.datetime(1970, 1, 1, 3, tzinfo=zone)])
    assert (list(types), values) == ([TypeName.TIMESTAMPTZ], [3_600_000_000])


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("a\0b", dsdb.DataError),
        (decimal.Decimal("Infinity"), dsdb.DataError),
        (decimal.Decimal("sNaN"), dsdb.DataError),
        (datetime.time(1, tzinfo=datetime.UTC), dsdb.DataError),
        (object(), dsdb.ProgrammingError),
        ([1], dsdb.ProgrammingError),
    ],
)
def test_what_cannot_be_sent(value: object, kind: type[dsdb.Error]) -> None:
    with pytest.raises(kind):
        dump_parameters([value])


def test_surrogates_and_wrong_containers(connection: Connection) -> None:
    with pytest.raises(dsdb.DataError, match="surrogates"):
        connection.execute("echo", ["\ud800"])
    with pytest.raises(dsdb.DataError, match="surrogates"):
        connection.cursor().executemany("insert VALUES (?)", [("\ud800",)])
    for container in ({"a": 1}, "text", 5):
        with pytest.raises(dsdb.ProgrammingError, match="list or tuple"):
            connection.execute("echo", container)  # type: ignore[arg-type]
    assert connection.execute("echo", [1]).fetchone() == (1,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (TypeName.DATE, 3_000_000),
        (TypeName.DATE, -800_000),
        (TypeName.TIME, 86_400_000_000),
        (TypeName.TIMESTAMP, 2**62),
        (TypeName.TIMESTAMPTZ, -(2**62)),
        (TypeName.INTERVAL, (2**31 - 1, 0, 0)),
    ],
)
def test_what_python_cannot_hold_is_an_error(name: TypeName, value: Any) -> None:
    with pytest.raises(dsdb.DataError, match="outside what Python's type holds"):
        Shape((Column("a", SqlType(name)),)).load([(value,)])


def test_months_are_thirty_days() -> None:
    assert Shape((Column("a", SqlType(TypeName.INTERVAL)),)).load([((1, 2, 3),), (None,)]) == [
        (datetime.timedelta(days=32, microseconds=3),),
        (None,),
    ]


def test_type_objects_cover_every_type_once() -> None:
    groups = (dsdb.STRING, dsdb.BINARY, dsdb.NUMBER, dsdb.DATETIME)
    by_name = {name: [group for group in groups if group == name] for name in TypeName}
    assert {name for name, found in by_name.items() if len(found) != 1} == {TypeName.BOOL, TypeName.UUID}
    assert dsdb.STRING == TypeName.TEXT
    assert dsdb.NUMBER == TypeName.DECIMAL
    assert dsdb.DATETIME == TypeName.INTERVAL
    assert dsdb.BINARY == TypeName.BYTEA
    assert math.isclose(dsdb.TimestampFromTicks(0.0).timestamp(), 0.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (None, Target()),
        ("path/", Target(directory="path/")),
        ("dsdb://h", Target(hosts=(("h", 7432),))),
        ("dsdb:///db", Target(hosts=(("localhost", 7432),), database="db")),
        (
            "dsdb://me@h1:1,[::1]:2,h3/my%20db?load_balance=random&connect_timeout=2.5&application_name=x&autocommit=true&lock_timeout=1s",
            Target(
                hosts=(("h1", 1), ("::1", 2), ("h3", 7432)),
                user="me",
                database="my db",
                load_balance="random",
                connect_timeout=2.5,
                autocommit=True,
                options={"application_name": "x", "lock_timeout": "1s"},
            ),
        ),
        (
            "dsdb://h1,h2/d?load_balance=weighted&weights=3,0.5",
            Target(hosts=(("h1", 7432), ("h2", 7432)), database="d", load_balance="weighted", weights=(3.0, 0.5)),
        ),
    ],
)
def test_targets(text: str | None, wanted: Target) -> None:
    assert parse_target(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "http://h",
        "dsdb://h:0",
        "dsdb://h:x",
        "dsdb://h?load_balance=x",
        "dsdb://h?load_balance=weighted",
        "dsdb://h?weights=1",
        "dsdb://h1,h2?load_balance=weighted&weights=1",
        "dsdb://h1,h2?load_balance=weighted&weights=1,-1",
        "dsdb://h1,h2?load_balance=weighted&weights=0,0",
        "dsdb://h1,h2?load_balance=weighted&weights=nan,1",
        "dsdb://h1,h2?load_balance=weighted&weights=a,1",
        "dsdb://h?connect_timeout=-1",
        "dsdb://h?x=1",
        "dsdb://h?autocommit=on",
        "dsdb://u:p@h",
    ],
)
def test_bad_targets(text: str) -> None:
    with pytest.raises(dsdb.InterfaceError):
        parse_target(text)


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("INSERT INTO t VALUES (?, ?)", "INSERT INTO t VALUES (?, ?), (?, ?)"),
        ('insert into s."T" (a, "b c") values (?,?);', 'INSERT INTO s."T" (a, "b c") VALUES (?,?), (?,?)'),
        ("INSERT INTO t VALUES (?) ON CONFLICT DO NOTHING", "INSERT INTO t VALUES (?), (?) ON CONFLICT DO NOTHING"),
        ("INSERT INTO t VALUES (?) ON CONFLICT (a) DO UPDATE SET a = 1", None),
        ("INSERT INTO t VALUES (?) RETURNING a", None),
        ("INSERT INTO t VALUES (?, 1)", None),
        ("INSERT INTO t VALUES (?, now())", None),
        ("INSERT INTO t VALUES (?), (?)", None),
        ("INSERT INTO t VALUES (?); DELETE FROM t", None),
        ("UPDATE t SET a = ?", None),
    ],
)
def test_which_inserts_are_made_one(sql: str, wanted: str | None) -> None:
    insert = insert_text(sql)
    assert (insert.of_rows(2) if insert else None) == wanted


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [("SELECT 1;", True), ("select 1; delete from t", False), ("WITH x AS (DELETE FROM t) SELECT 1", False), ("", False)],
)
def test_which_texts_only_read(sql: str, wanted: bool) -> None:
    assert is_read_only(sql) is wanted

import decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsdb.protocol.datums import parameter_datums, parameter_types, row_datums
from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.frames import REQUEST_BYTES_MAX, FrameReader, frame
from dsdb.protocol.messages import (
    Batch,
    Bye,
    Cancel,
    ClientMessage,
    Column,
    Complete,
    Credit,
    ErrorMessage,
    Execute,
    Hello,
    Notice,
    Ping,
    Pong,
    Rows,
    Schema,
    ServerMessage,
    TableBatch,
    TableEnd,
    TableInput,
    Welcome,
    decode_client_message,
    decode_columns,
    decode_server_message,
    encode_columns,
    encode_message,
)
from dsdb.protocol.states import ClientSide, NodeSide
from dsdb.sql.types import SqlType, TypeName

INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
DECIMALS = st.decimals(allow_infinity=False, allow_nan=False, places=4) | st.sampled_from(
    [decimal.Decimal(text) for text in ("1E+5", "1.500", "-0.00", "NaN", "9" * 60, "1E-400")]
)
INTERVALS = st.tuples(st.integers(-1000, 1000), st.integers(-100000, 100000), INT64.filter(lambda n: n > -(2**63)))
BY_TYPE: dict[TypeName, st.SearchStrategy[Any]] = {
    TypeName.BOOL: st.booleans(),
    TypeName.SMALLINT: INT64,
    TypeName.INT: INT64,
    TypeName.BIGINT: INT64,
    TypeName.REAL: st.floats(width=32, allow_nan=False),
    TypeName.DOUBLE: st.floats(allow_nan=False),
    TypeName.DECIMAL: DECIMALS,
    TypeName.TEXT: TEXT,
    TypeName.VARCHAR: TEXT,
    TypeName.CHAR: TEXT,
    TypeName.BYTEA: st.binary(max_size=20),
    TypeName.DATE: st.integers(-(2**31) + 1, 2**31 - 1),
    TypeName.TIME: st.integers(0, 86_400_000_000),
    TypeName.TIMESTAMP: INT64,
    TypeName.TIMESTAMPTZ: INT64,
    TypeName.INTERVAL: INTERVALS,
    TypeName.UUID: st.binary(min_size=16, max_size=16),
    TypeName.UNKNOWN: TEXT,
}


def same(left: Any, right: Any) -> bool:
    """Equal, of the same type, and (decimals) of the same spelling."""
    return type(left) is type(right) and repr(left) == repr(right)


def through(message: ClientMessage | ServerMessage) -> Any:
    (received,) = FrameReader(frame_bytes_max=1 << 20).receive(encode_message(message))
    decode = decode_client_message if isinstance(message, ClientMessage) else decode_server_message
    return decode(received)


typed_values = st.lists(
    st.sampled_from(list(TypeName)).flatmap(lambda name: st.tuples(st.just(name), st.none() | BY_TYPE[name])), max_size=6
)


@given(typed_values)
def test_parameters_arrive_exactly(pairs: list[tuple[TypeName, Any]]) -> None:
    sent = Execute(stream=1, sql="SELECT 1", types=bytes(name for name, _ in pairs), values=[value for _, value in pairs])
    received = through(sent)
    types = parameter_types(received.types)
    assert [sql_type.name for sql_type in types] == [name for name, _ in pairs]
    for (_, value), arrived in zip(pairs, parameter_datums(types, received.values)):
        assert same(value, arrived)


@given(typed_values)
def test_rows_arrive_exactly(pairs: list[tuple[TypeName, Any]]) -> None:
    columns = tuple(Column(f"c{at}", SqlType(name)) for at, (name, _) in enumerate(pairs))
    row = tuple(value for _, value in pairs)
    received = through(Rows(stream=7, columns=encode_columns(columns), rows=[row, row], tag="SELECT 2", row_count=2))
    assert decode_columns(bytes(received.columns)) == columns
    for arrived in row_datums(columns, received.rows):
        assert all(same(value, other) for value, other in zip(row, arrived))
        assert len(arrived) == len(row)


@pytest.mark.parametrize(
    "message",
    [
        Hello(user="u", database="d", options={"a": "b"}),
        Credit(stream=3, credit_bytes=5),
        Cancel(stream=3),
        Ping(token=9),
        Bye(),
        Welcome(session_id=1, node_id=2, server_version="x", sessions=4, request_bytes_max=7),
        Batch(stream=1, arrow=memoryview(b"abc")),
        Complete(stream=1, tag="SELECT 3", row_count=3, more=True),
        ErrorMessage(stream=1, sqlstate="42601", message="m", detail="d", hint="h", position=4),
        Notice(stream=1, message="n"),
        Pong(token=9),
    ],
)
def test_messages_round_trip(message: ClientMessage | ServerMessage) -> None:
    assert through(message) == message


def test_a_welcome_of_before_it_told_the_limit_has_the_usual_one() -> None:
    before = frame(msgspec.msgpack.encode([64, 1, 2, "x", 4]))
    assert decode_server_message(before[4:]) == Welcome(
        session_id=1, node_id=2, server_version="x", sessions=4, request_bytes_max=REQUEST_BYTES_MAX
    )


def test_schema_round_trips() -> None:
    received = through(Schema(stream=1, columns=encode_columns(()), arrow=memoryview(b"schema")))
    assert bytes(received.arrow) == b"schema"
    assert decode_columns(bytes(received.columns)) == ()


@given(st.lists(st.binary(max_size=40), max_size=8), st.data())
def test_frames_do_not_depend_on_how_bytes_come(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    reader = FrameReader(frame_bytes_max=64)
    got: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += [bytes(view) for view in reader.receive(stream[:size])]
        stream = stream[size:]
    assert got == payloads
    assert not reader.is_inside_frame


def test_a_truncated_frame_is_noticed() -> None:
    reader = FrameReader(frame_bytes_max=64)
    assert reader.receive(frame(b"abc")[:-1]) == []
    assert reader.is_inside_frame


@pytest.mark.parametrize("pieces", [[b"\xff\xff\xff\x7f"], [b"\xff", b"\xff\xff", b"\x7f"], [b"\x41\x00\x00\x00more"]])
def test_an_oversized_frame_is_refused_by_its_length(pieces: list[bytes]) -> None:
    reader = FrameReader(frame_bytes_max=64)
    with pytest.raises(ProtocolError, match="at most 64"):  # noqa: PT012
        for piece in pieces:
            reader.receive(piece)


# Bytes that come close to messages: valid ones with a few bytes changed, cut or put in.
_VALID = [
    encode_message(message)[4:]
    for message in (
        Hello(user="u", database="d", options={"a": "b"}),
        Execute(stream=1, sql="SELECT $1", types=b"\x03\x07", values=[1, decimal.Decimal("2.5")]),
        Rows(stream=1, columns=encode_columns((Column("a", SqlType(TypeName.INT)),)), rows=[(1,), (None,)], tag="SELECT 2"),
        Batch(stream=1, arrow=memoryview(b"abc")),
        ErrorMessage(stream=1, sqlstate="42601", message="m", position=4),
    )
]


@settings(max_examples=400)
@given(st.sampled_from(_VALID), st.integers(0, 60), st.integers(0, 6), st.binary(max_size=6))
def test_garbage_is_a_protocol_error_and_nothing_else(valid: bytes, at: int, cut: int, put: bytes) -> None:
    data = valid[:at] + put + valid[at + cut :]
    for decode in (decode_client_message, decode_server_message):
        try:
            message = decode(data)
            if isinstance(message, Execute):
                parameter_datums(parameter_types(message.types), message.values)
            if isinstance(message, Rows):
                decode_columns(bytes(message.columns))
        except ProtocolError:
            pass


@given(st.binary(max_size=60))
def test_random_bytes_are_a_protocol_error_and_nothing_else(data: bytes) -> None:
    for decode in (decode_client_message, decode_server_message):
        try:
            decode(data)
        except ProtocolError:
            pass


@pytest.mark.parametrize("data", [b"\x94\x41\x01\x90" + b"\x91" * 100_000, b"\x94\x41\x01\x90\xdd\x7f\xff\xff\xff", b"", b"\xc1"])
def test_hostile_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_server_message(data)


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        (TypeName.INT, 2**63),
        (TypeName.INT, True),
        (TypeName.INT, "1"),
        (TypeName.TEXT, "a\0b"),
        (TypeName.TEXT, b"a"),
        (TypeName.DECIMAL, "Infinity"),
        (TypeName.DECIMAL, "sNaN"),
        (TypeName.DECIMAL, "1E999999"),
        (TypeName.DECIMAL, "x"),
        (TypeName.DECIMAL, 1),
        (TypeName.INTERVAL, [1, 2]),
        (TypeName.INTERVAL, [1, 2, 2**63]),
        (TypeName.UUID, b"short"),
        (TypeName.TIME, -1),
        (TypeName.DATE, 2**40),
        (TypeName.BOOL, 1),
        (TypeName.DOUBLE, 1),
    ],
)
def test_a_parameter_of_the_wrong_form_is_refused(type_name: TypeName, value: object) -> None:
    with pytest.raises(ProtocolError):
        parameter_datums((SqlType(type_name),), [value])


def test_parameters_and_types_must_agree() -> None:
    with pytest.raises(ProtocolError):
        parameter_datums((), [1])
    with pytest.raises(ProtocolError):
        parameter_types(b"\x63")


def test_a_node_hears_hello_first_and_once() -> None:
    side = NodeSide()
    with pytest.raises(ProtocolError, match="Cancel may not come"):
        side.heard(Cancel(stream=1))
    side.heard(Hello(user="u", database="d"))
    with pytest.raises(ProtocolError, match="Hello may not come"):
        side.heard(Hello(user="u", database="d"))
    side.heard(Execute(stream=5, sql=""))
    with pytest.raises(ProtocolError, match="not above"):
        side.heard(Execute(stream=5, sql=""))
    side.heard(Bye())
    with pytest.raises(ProtocolError, match="closed"):
        side.heard(Ping())


def test_a_client_hears_each_answer_in_order() -> None:
    side = ClientSide()
    with pytest.raises(ProtocolError):
        side.heard(Pong())
    side.heard(Welcome(session_id=1, node_id=1, server_version=""))
    raw = msgspec.Raw(b"\x90")
    stream = side.open_stream()
    with pytest.raises(ProtocolError, match="running"):
        side.heard(Batch(stream=stream, arrow=memoryview(b"")))
    side.heard(Rows(stream=stream, columns=raw, rows=[], tag="", more=True))
    side.heard(Schema(stream=stream, columns=raw, arrow=memoryview(b"")))
    side.heard(Batch(stream=stream, arrow=memoryview(b"")))
    with pytest.raises(ProtocolError, match="streaming"):
        side.heard(Rows(stream=stream, columns=raw, rows=[], tag=""))
    side.heard(Complete(stream=stream, tag=""))
    assert side.unanswered == 0
    with pytest.raises(ProtocolError, match="not open"):
        side.heard(ErrorMessage(stream=stream, sqlstate="", message=""))
    side.heard(ErrorMessage(stream=0, sqlstate="57P01", message=""))
    with pytest.raises(ProtocolError, match="closed"):
        side.heard(Pong())


def test_tables_come_in_order_behind_their_statement_and_nothing_else_between() -> None:
    side = NodeSide()
    side.heard(Hello(user="u", database="d"))
    table = TableInput(columns=(Column("a", SqlType(TypeName.INT)),), number=1)
    rows = memoryview(b"")
    side.heard(Execute(stream=1, sql="", tables=(table, table)))
    for wrong in (Execute(stream=2, sql=""), Ping(), TableBatch(stream=1, table=1, arrow=rows), TableEnd(stream=2, table=0)):
        with pytest.raises(ProtocolError):
            side.heard(wrong)
    for right in (TableBatch(stream=1, table=0, arrow=rows), Cancel(stream=1), TableEnd(stream=1, table=0), TableEnd(stream=1, table=1)):
        side.heard(right)
    with pytest.raises(ProtocolError):
        side.heard(TableBatch(stream=1, table=1, arrow=rows))
    side.heard(Execute(stream=2, sql=""))

"""What bad clients and bad peers do to a node's port.  Each attack takes the port and a seeded chance; none may hurt anybody else.

An attack returns what came of it, in a word; what must never come of it is an exception that is not the socket's.
"""

import random
import socket
import struct
import threading
from collections.abc import Callable

import msgspec
import pyarrow as pa

from dsdb.protocol.frames import REQUEST_BYTES_MAX, SQL_MAGIC, SQL_MAGIC_PREFIX, frame
from dsdb.protocol.messages import Bye, Cancel, Column, Credit, Execute, Hello, Ping, TableBatch, TableEnd, TableInput, encode_message
from dsdb.rpc.frames import FRAME_BYTES_MAX, RPC_MAGIC, FrameKind, encode_frame
from dsdb.rpc.server import Hello as NodeHello
from dsdb.sql.types import SqlType, TypeName

Port = tuple[str, int]
Attack = Callable[[Port, random.Random], str]

WAIT_S = 5.0
"""How long an attacker waits for an answer."""
RPC_METHODS = (10, 20, 30, 40, 41, 42, 50, 51)
HELLO = encode_message(Hello(user="root", database="defaultdb"))
OPENING = SQL_MAGIC + HELLO


def end_of(sock: socket.socket) -> str:
    """Read to the end; say how it ended."""
    size = 0
    try:
        while data := sock.recv(1 << 16):
            size += len(data)
            if size > 1 << 20:
                return "answers"
    except TimeoutError:
        return "answered and held" if size else "held"
    except OSError:
        return "reset"
    return "answered and closed" if size else "closed"


def say(port: Port, data: bytes, *, then_close: bool = False) -> str:
    """Send bytes, and see what the node makes of them."""
    with socket.create_connection(port, WAIT_S) as sock:
        sock.settimeout(0.5)
        try:
            sock.sendall(data)
        except OSError:
            return "refused midway"
        if then_close:
            return "left"
        return end_of(sock)


def garbage(port: Port, chance: random.Random) -> str:
    return say(port, chance.randbytes(chance.choice((1, 7, 8, 9, 100, 100_000))), then_close=chance.random() < 0.7)


def other_protocols(port: Port, chance: random.Random) -> str:
    texts = (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"SSH-2.0-x\r\n",
    )
    return say(port, chance.choice(texts))


def other_versions(port: Port, chance: random.Random) -> str:
    magic = chance.choice((SQL_MAGIC_PREFIX, RPC_MAGIC[:-1])) + bytes([chance.choice((0, 2, 255))])
    return say(port, magic + HELLO)


def cut_frame(port: Port, chance: random.Random) -> str:
    data = OPENING + encode_message(Execute(stream=1, sql="SELECT 1"))
    return say(port, data[: chance.randrange(1, len(data))], then_close=chance.random() < 0.8)


def oversized_frame(port: Port, chance: random.Random) -> str:
    length = chance.choice((REQUEST_BYTES_MAX + 1, 0xFFFFFFFF, 0x80000000))
    return say(port, chance.choice((SQL_MAGIC, OPENING)) + struct.pack("<I", length) + b"\x00" * 100)


def promised_frame(port: Port, _: random.Random) -> str:
    """Announce the largest frame, and send little of it."""
    return say(port, OPENING + struct.pack("<I", REQUEST_BYTES_MAX) + b"x" * 100_000, then_close=True)


def mutated_messages(port: Port, chance: random.Random) -> str:
    messages = [
        encode_message(Execute(stream=1, sql="SELECT ? + 1", types=b"\x02", values=[1])),
        encode_message(Execute(stream=2, sql="SELECT * FROM wire_rows")),
        encode_message(Credit(stream=2, credit_bytes=1 << 20)),
        encode_message(Cancel(stream=1)),
        encode_message(Ping(token=5)),
        encode_message(Bye()),
    ]
    data = bytearray(chance.choice((b"", HELLO)) + b"".join(chance.choices(messages, k=5)))
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return say(port, SQL_MAGIC + bytes(data), then_close=chance.random() < 0.7)


def odd_messages(port: Port, chance: random.Random) -> str:
    """Whole frames of right and wrong msgpack: other tags, other types, deep arrays, text that is not UTF-8, order that may not be."""
    odd = (
        [2, 1, "SELECT 1", b"\xff" * 3, [1]],
        [2, 1, "SELECT ?", b"\x02", ["text"]],
        [2, 1, "SELECT ?", b"\x02\x02\x02", [1]],
        [2, 1, "SELECT ?", b"", [1, 2]],
        [2, 1, "SELECT ?", b"\xee", [1]],
        [2, 1, "SELECT ?", b"\x05", [{"a": [1, 2]}]],
        [2, -1, "SELECT 1"],
        [2, 1 << 63, "SELECT 1"],
        [2, 1, "SELECT 1", b"", [], -5, -5, -5],
        [3, 1, 1 << 62],
        [4, 1 << 40],
        [99, 1],
        [1, "root", "defaultdb", {"statement_timeout": "x"}],
        [1, "root", "nowhere"],
        {"a": 1},
        None,
        [],
    )
    message = chance.choice(odd)
    if chance.random() < 0.2:
        body = b"\x91" * 100_000 + b"\xc0"
    elif chance.random() < 0.2:
        body = b"\x93\x02\x01\xa3\xff\xfe\xfd"
    else:
        body = msgspec.msgpack.encode(message)
    return say(port, chance.choice((SQL_MAGIC, OPENING, OPENING, OPENING)) + frame(body), then_close=chance.random() < 0.7)


def bad_tables(port: Port, chance: random.Random) -> str:
    """Give a statement tables whose bytes are wrong, whose types are others, or that come when nobody wants them."""
    batch = pa.record_batch({"a": pa.array([1, 2, 3]), "s": pa.array(["x" * 50, None, "z"])})
    arrow = bytearray(batch.serialize().to_pybytes())
    for _ in range(chance.randrange(0, 12)):
        arrow[chance.randrange(len(arrow))] = chance.randrange(256)
    names = [TypeName(chance.choice(list(TypeName))) for _ in range(2)] if chance.random() < 0.5 else [TypeName.BIGINT, TypeName.TEXT]
    columns = tuple(Column(name, SqlType(kind)) for name, kind in zip("as", names))
    data = OPENING
    if chance.random() < 0.9:
        sql = chance.choice(("SELECT a, s FROM $1", "COPY wire_rows FROM STDIN", "SELECT count(*) FROM $1, $1 AS b"))
        table = TableInput(columns=columns[: chance.randrange(0, 3)], number=0 if sql.startswith("COPY") else 1)
        tables = (table,) * chance.choice((1, 1, 1, 3))
        data += encode_message(Execute(stream=1, sql=sql, types=bytes([18]), values=[None], tables=tables))
    for _ in range(chance.randrange(0, 4)):
        data += encode_message(TableBatch(stream=chance.choice((1, 1, 2)), table=chance.choice((0, 0, 1)), arrow=memoryview(bytes(arrow))))
    if chance.random() < 0.7:
        data += encode_message(TableEnd(stream=1, table=0, rows=chance.randrange(0, 9), failure=chance.choice(("", "", "why"))))
    return say(port, data + encode_message(Ping()), then_close=chance.random() < 0.3)


def node_garbage(port: Port, chance: random.Random) -> str:
    return say(port, RPC_MAGIC + chance.randbytes(chance.choice((1, 11, 1_000, 100_000))), then_close=chance.random() < 0.7)


def node_oversized_frame(port: Port, chance: random.Random) -> str:
    header = struct.pack("<IBHI", chance.choice((0, 6, FRAME_BYTES_MAX + 1, 0xFFFFFFFF)), chance.randrange(256), 40, 1)
    return say(port, RPC_MAGIC + header + b"x" * 100)


def node_frames(port: Port, chance: random.Random) -> str:
    """Well-formed frames of node RPC with any method, kind and call id, and payloads that are msgpack of nothing sensible."""
    frames = []
    if chance.random() < 0.8:
        cluster = chance.choice(("", "0123456789abcdef01234567", "\u0000" * 50))
        frames.append(encode_frame(FrameKind.HELLO, 0, 0, msgspec.msgpack.encode(NodeHello(cluster, chance.randrange(-5, 10)))))  # type: ignore[arg-type]
    for _ in range(chance.randrange(1, 30)):
        kind = chance.choice(list(FrameKind)[1:])
        method = chance.choice((*RPC_METHODS, chance.randrange(0, 65_536)))
        frames.append(encode_frame(kind, method, chance.choice((0, 1, 1, 7, 0xFFFFFFFF)), _payload(chance)))
    return say(port, RPC_MAGIC + b"".join(frames), then_close=chance.random() < 0.7)


def _payload(chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(0, 200))
    if chance.random() < 0.05:
        return b"\x91" * 10_000 + b"\xc0"
    if chance.random() < 0.1:
        return b"\x93\xa3\xff\xfe\xfd\x01\x02"
    return msgspec.msgpack.encode(_value(chance, 0))


def _value(chance: random.Random, depth: int) -> object:
    kind = chance.randrange(8 if depth < 4 else 6)
    if kind == 6:
        return [_value(chance, depth + 1) for _ in range(chance.randrange(6))]
    if kind == 7:
        return {str(n): _value(chance, depth + 1) for n in range(chance.randrange(3))}
    return chance.choice((None, True, chance.randrange(-3, 5), chance.getrandbits(63), "x" * chance.randrange(5), chance.randbytes(8), 1.5))


def same_call_twice(port: Port, _: random.Random) -> str:
    """Use a call id again while its first call runs."""
    hello = encode_frame(FrameKind.HELLO, 0, 0, msgspec.msgpack.encode(NodeHello("", 77)))  # type: ignore[arg-type]
    call = encode_frame(FrameKind.REQUEST, 40, 5, msgspec.msgpack.encode([1]))
    return say(port, RPC_MAGIC + hello + call * 10)


def stops_reading(port: Port, chance: random.Random) -> str:
    """Ask for a large result with all the credit there is, read none of it, and go away after a while."""
    with socket.create_connection(port, WAIT_S) as sock:
        sock.sendall(OPENING + encode_message(Execute(stream=1, sql="SELECT * FROM generate_series(1, 3000000)", credit_bytes=1 << 62)))
        threading.Event().wait(chance.uniform(0.2, 1.0))
    return "left"


def drops(port: Port, chance: random.Random, *, connections: int = 300) -> str:
    """Open many connections and reset them at once."""
    for _ in range(connections):
        with socket.create_connection(port, WAIT_S) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if chance.random() < 0.5:
                sock.sendall(OPENING[: chance.randrange(len(OPENING) + 1)])
    return "left"


ATTACKS: tuple[Attack, ...] = (
    garbage,
    other_protocols,
    other_versions,
    cut_frame,
    oversized_frame,
    promised_frame,
    mutated_messages,
    odd_messages,
    bad_tables,
    node_garbage,
    node_oversized_frame,
    node_frames,
    same_call_twice,
    stops_reading,
    drops,
)


class SlowLoris:
    """Connections that say one byte of their opening at a time, for as long as it lives."""

    def __init__(self, port: Port, connections: int) -> None:
        self._sockets = [socket.create_connection(port, WAIT_S) for _ in range(connections)]
        self._said = 0

    def say_more(self) -> None:
        """Send the next byte on each."""
        for sock in self._sockets:
            try:
                sock.sendall(OPENING[self._said : self._said + 1])
            except OSError:
                pass  # it was hung up on, as it should
        self._said += 1

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

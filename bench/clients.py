"""Client processes: one a client, connected once, told slice by slice what to run and when to begin.

    pool ── SliceOrder(start_at) ─▶ every client: wait for start_at, run until the time is over ── SliceReport ─▶ pool

Invariants:
- All clients of a slice begin at the same moment of the monotonic clock and stop beginning statements at the same moment.
- Processes come from a fork server: no client inherits threads, connections or gRPC's state.
"""

import array
import multiprocessing
import random
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

import msgspec

from bench.sides.port import Client, ClientSpec, Contender, open_client
from bench.workloads import Argument, Workload

CONNECT_S = 60.0
"""How long all clients may take to start and connect."""
ANSWER_S = 120.0
"""How much longer than its slice a client may take to answer."""
LEAD_S = 0.1
"""Between the order and the begin of a slice: every client has it by then."""
FAILURES_IN_A_ROW_MAX = 20

_CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, before there is any thread: 64 clients that each import their driver would keep the machine busy for half a minute.
_CONTEXT.set_forkserver_preload(["bench.clients", "dsdb.driver.connection", "psycopg", "pymysql", "grpc_tools", "grpc"])


class SliceOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a client does next.

    operation: the client's; argument: what it gets: a key drawn below `rows`, a key counted up by `step` from a base of the client's
    own, or `rows` itself; start_at: on the monotonic clock; seconds: 0 for exactly one operation.
    """

    operation: str
    argument: Argument
    rows: int
    step: int
    start_at: float
    seconds: float


class SliceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a client did.

    latencies: seconds, as the bytes of doubles; aborts: attempts that were undone and made again within operations that succeeded; error:
    the first failure's text.
    """

    latencies: bytes
    elapsed_s: float
    cpu_s: float
    failures: int
    aborts: int
    error: str


class ClientFailed(Exception):
    """A client process ended, or could not go on."""


class ClientPool:
    """The clients of one contender, connected from `__enter__` to `__exit__`."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> "ClientPool":
        try:
            for spec in self.contender.specs:
                ours, theirs = _CONTEXT.Pipe()
                process = _CONTEXT.Process(target=_client_main, args=(spec, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            for pipe in self._pipes:
                self._receive(pipe, CONNECT_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self._end()

    def run(self, workload: Workload, *, seconds: float) -> list[SliceReport]:
        """Run a slice on all clients.  Raises ClientFailed."""
        self.begin(workload, seconds=seconds)
        return self.reports(seconds=seconds)

    def begin(self, workload: Workload, *, seconds: float) -> None:
        """Have all clients begin a slice, and do not wait.  Raises ClientFailed."""
        order = SliceOrder(
            operation=workload.operation,
            argument=workload.argument,
            rows=workload.rows,
            step=workload.step,
            start_at=time.monotonic() + LEAD_S,
            seconds=seconds,
        )
        for pipe in self._pipes:
            try:
                pipe.send_bytes(msgspec.msgpack.encode(order))
            except BrokenPipeError:
                raise ClientFailed(f"{self.contender.label}: a client process ended") from None

    def reports(self, *, seconds: float) -> list[SliceReport]:
        """Wait for the end of the slice of so many seconds.  Raises ClientFailed."""
        return [msgspec.msgpack.decode(self._receive(pipe, seconds + ANSWER_S), type=SliceReport) for pipe in self._pipes]

    def _receive(self, pipe: Connection, timeout_s: float) -> bytes:
        if not pipe.poll(timeout_s):
            raise ClientFailed(f"{self.contender.label}: a client did not answer for {timeout_s:.0f} s")
        try:
            answer = pipe.recv_bytes()
        except (EOFError, ConnectionResetError):
            raise ClientFailed(f"{self.contender.label}: a client process ended") from None
        if answer[:1] == b"!":
            raise ClientFailed(f"{self.contender.label}: {answer[1:].decode()}")
        return answer

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()


def _client_main(spec: ClientSpec, pipe: Connection) -> None:
    try:
        client = open_client(spec)
        pipe.send_bytes(b"connected")
        base = random.getrandbits(38) << 24
        while True:
            try:
                order = msgspec.msgpack.decode(pipe.recv_bytes(), type=SliceOrder)
            except EOFError:
                break
            report, base = run_slice(client, order, base)
            pipe.send_bytes(msgspec.msgpack.encode(report))
        client.close()
    except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # the pool is gone, and wants no report
    except Exception as error:  # the root of a client process: what happened goes to the pool
        pipe.send_bytes(f"!{type(error).__name__}: {error}".encode())


def run_slice(client: Client, order: SliceOrder, base: int) -> tuple[SliceReport, int]:
    """Run one slice; give the report and the next unused key."""
    operation = getattr(client, order.operation)
    latencies = array.array("d")
    failures = in_a_row = aborts = 0
    error = ""
    clock = time.perf_counter
    draw = random.Random().randrange
    time.sleep(max(0.0, order.start_at - time.monotonic()))
    cpu = time.process_time()
    begun = now = clock()
    while True:
        match order.argument:
            case "drawn":
                key = draw(order.rows)
            case "counted":
                key, base = base, base + order.step
            case "rows":
                key = order.rows
        try:
            again = operation(key)
        except client.errors as failure:
            failures, in_a_row = failures + 1, in_a_row + 1
            error = error or f"{type(failure).__name__}: {failure}"
            if in_a_row == FAILURES_IN_A_ROW_MAX:
                raise
            now = clock()
        else:
            in_a_row = 0
            aborts += again or 0
            after = clock()
            latencies.append(after - now)
            now = after
        if now - begun >= order.seconds:
            break
    report = SliceReport(
        latencies=latencies.tobytes(),
        elapsed_s=now - begun,
        cpu_s=time.process_time() - cpu,
        failures=failures,
        aborts=aborts,
        error=error,
    )
    return report, base

"""A statement port that does what its text says, and a node that is nothing but a listener with sessions."""

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa
import trio
from sqlglot import exp

from dsdb.session import SessionLimits, SessionServer, StatementPort
from dsdb.sql import errors
from dsdb.sql.execute.open_transaction import OpenTransaction
from dsdb.sql.execute.result import Notice, Parameter, Result, ResultColumn, batch_of_rows
from dsdb.sql.execute.session import SessionState
from dsdb.sql.parse import ParsedStatement
from dsdb.sql.transaction_status import Begin
from dsdb.sql.types import BIGINT, TEXT, SqlType, TypeName
from tests.sql.local_txn import LocalStore

NUMBER = (ResultColumn("n", BIGINT),)


class ScriptedExecutor:
    """Runs `echo`, `point ?`, `batches N EACH`, `rows N`, `sleep S`, `update S`, `create S`, `fail SQLSTATE`, `bug`, `insert …`, …

    `update S` sleeps before it commits, `create S` after, and `returning N` gives N rows after it has committed.
    """

    def __init__(self) -> None:
        self.inserted: list[tuple[Any, ...]] = []
        self.cancelled: list[str] = []
        self.ended: list[bool] = []
        self.batches_given = 0
        self.streams_closed = 0
        self._columns: dict[tuple[SqlType, ...], tuple[ResultColumn, ...]] = {}

    async def prepared(self, text: str) -> Sequence[ParsedStatement]:
        return [ParsedStatement(text=part.strip(), tree=exp.Null()) for part in text.split(";") if part.strip()]

    async def end(self, session: SessionState) -> None:
        self.ended.append(session.transaction is not None)
        session.transaction = None

    async def run(
        self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], *, begin: Begin = Begin.NO
    ) -> Result:
        verb, *words = statement.text.split()
        match verb.lower():
            case "point":
                return Result("SELECT 1", columns=NUMBER, rows=[(parameters[0].value,)], row_count=1)
            case "echo" | "select":
                types = tuple(SqlType(TypeName.TEXT) if p.type.name is TypeName.UNKNOWN else p.type for p in parameters)
                columns = self._columns.setdefault(types, tuple(ResultColumn(f"c{at}", t) for at, t in enumerate(types)))
                return Result("SELECT 1", columns=columns, rows=[tuple(p.value for p in parameters)], row_count=1)
            case "batches":
                return Result("SELECT", columns=NUMBER, batches=self._batches(int(words[0]), int(words[1])))
            case "large":
                texts = [("x" * int(words[1]),)] * int(words[0])
                return Result("SELECT", columns=(ResultColumn("t", TEXT),), batches=_once(batch_of_rows(texts, (ResultColumn("t", TEXT),))))
            case "rows":
                count = int(words[0])
                return Result(f"SELECT {count}", columns=NUMBER, rows=[(n,) for n in range(count)], row_count=count)
            case "sleep" | "update" | "create" as kind:
                if kind == "create":
                    session.note_commit()
                try:
                    await trio.sleep(float(words[0]))
                except trio.Cancelled:
                    self.cancelled.append(statement.text)
                    raise
                if kind == "update":
                    session.note_commit()
                return Result("SLEEP", notices=(Notice("slept", "01000", "WARNING"),))
            case "returning":
                session.note_commit()
                count = int(words[0])
                return Result(f"UPDATE {count}", columns=NUMBER, rows=[(n,) for n in range(count)], row_count=count)
            case "insert":
                return self._insert(statement.text, parameters)
            case "fail":
                kind = next(k for k in vars(errors).values() if isinstance(k, type) and getattr(k, "sqlstate", "") == words[0])
                raise kind("it failed", detail="detail", hint="hint", position=3)
            case "bug":
                raise ValueError("secret detail")
            case "begin":
                session.transaction = OpenTransaction(
                    LocalStore().begin(), now=0, settings=session.settings, is_implicit=False, read_only=False
                )
                return Result("BEGIN")
            case "set":
                session.change_setting(words[0], words[1])
                return Result("SET")
            case "show":
                return Result("SHOW", columns=(ResultColumn("v", TEXT),), rows=[(session.setting(words[0]),)], row_count=1)
        raise errors.SqlSyntaxError(f'syntax error at or near "{verb}"', position=1)

    def _insert(self, text: str, parameters: Sequence[Parameter]) -> Result:
        if "several ranges" in text and text.count("(") > 2:
            raise errors.FeatureNotSupportedError("several ranges")
        values = [p.value for p in parameters]
        width = text[text.index("VALUES") :].split(")")[0].count("?") or 1
        rows = [tuple(values[at : at + width]) for at in range(0, len(values), width)]
        if any(row[0] == -1 for row in rows):
            raise errors.UniqueViolationError("duplicate key")
        self.inserted += rows
        return Result(f"INSERT 0 {len(rows)}", row_count=len(rows))

    async def _batches(self, count: int, each: int) -> AsyncIterator[pa.RecordBatch]:
        try:
            for at in range(count):
                self.batches_given += 1
                yield batch_of_rows([(at * each + n,) for n in range(each)], NUMBER)
                await trio.lowlevel.checkpoint()
        finally:
            self.streams_closed += 1


async def _once(batch: pa.RecordBatch) -> AsyncIterator[pa.RecordBatch]:
    yield batch


class Node:
    """A listener in a thread of its own."""

    def __init__(
        self, limits: SessionLimits | None = None, *, node_id: int = 1, port: int = 0, executor: StatementPort | None = None
    ) -> None:
        self.executor = ScriptedExecutor()
        self.server = SessionServer(executor or self.executor, node_id=node_id, limits=limits)
        self.port = port
        self._ready = threading.Event()
        self._stopping = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.server.run)
                listeners = await nursery.start(trio.serve_tcp, self.server.serve, self.port)
                self.port = listeners[0].socket.getsockname()[1]
                self._ready.set()

    @property
    def url(self) -> str:
        return f"dsdb://127.0.0.1:{self.port}/defaultdb"

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run(function, *args, trio_token=self._token)

    def call_sync(self, function: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run_sync(function, *args, trio_token=self._token)

    def stop(self) -> None:
        if self._thread.is_alive():
            self.call_sync(self._scope.cancel)
            self._thread.join(10)

    def __enter__(self) -> "Node":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

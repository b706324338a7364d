"""The shell's hands: runs statements on a connection and writes what they give; Ctrl-C cancels them at the node."""

import contextlib
import itertools
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import msgspec

from dsdb.cli.formats import BINARY_WRITERS, TEXT_WRITERS, FormatError, write_expanded, write_table
from dsdb.cli.shell_text import StatementSplitter, describe_error
from dsdb.driver.connection import Connection, connect_to
from dsdb.driver.copying import is_copy, read_copy, run_copy
from dsdb.driver.errors import Error
from dsdb.driver.results import Inline, Streamed
from dsdb.driver.target import Target
from dsdb.protocol.datums import row_datums
from dsdb.protocol.messages import Column

if TYPE_CHECKING:
    import pyarrow as pa


class ResultChunks:
    """A result of the driver, in chunks of datums or in batches."""

    def __init__(self, result: Inline | Streamed) -> None:
        self._result = result

    @property
    def columns(self) -> Sequence[Column]:
        """Its columns."""
        return self._result.shape.columns

    def rows(self) -> Iterator[list[tuple[Any, ...]]]:
        """Its rows, as datums."""
        result = self._result
        if isinstance(result, Inline):
            yield row_datums(self.columns, result.rows)
            return
        from dsdb.sql.execute.result import ResultColumn, rows_of_batch  # noqa: PLC0415, RUF100

        columns = [ResultColumn(column.name, column.type) for column in self.columns]
        while (batch := result.next_batch()) is not None:
            yield rows_of_batch(batch, columns)

    def batches(self) -> Iterator["pa.RecordBatch"]:
        """Its rows as record batches."""
        result = self._result
        if isinstance(result, Streamed):
            while (batch := result.next_batch()) is not None:
                yield batch
            return
        from dsdb.sql.execute.result import ResultColumn, batch_of_rows  # noqa: PLC0415, RUF100

        columns = [ResultColumn(column.name, column.type) for column in self.columns]
        yield batch_of_rows(row_datums(self.columns, result.rows), columns)

    def schema(self) -> "pa.Schema":
        """Its schema."""
        from dsdb.sql.execute.result import ResultColumn, arrow_schema  # noqa: PLC0415, RUF100

        return arrow_schema([ResultColumn(column.name, column.type) for column in self.columns])


class Shell:
    """Runs statements and writes their results.

    is_timing: say how long each took; is_expanded: write rows as lists; was_binary_written: arrow and parquet take one result only.
    """

    def __init__(self, target: Target, *, output_format: str, out: IO[str], err: IO[str]) -> None:
        # Every statement that is typed commits by itself, unless BEGIN was typed before it.
        self.target = msgspec.structs.replace(target, autocommit=True)
        self.connection: Connection = connect_to(self.target)
        self.output_format = output_format
        self.out = out
        self.err = err
        self.is_terminal = out.isatty()
        self.is_timing = False
        self.is_expanded = False
        # Grows whenever tables may have changed, for those who remember them.
        self.catalog_changes = 0
        self._was_binary_written = False

    def close(self) -> None:
        """End the session."""
        self.connection.close()

    def change_database(self, name: str) -> None:
        """Go on in another database.  Raises Error."""
        target = msgspec.structs.replace(self.target, database=name)
        connection = connect_to(target)
        self.connection.close()
        self.target, self.connection = target, connection
        self.catalog_changes += 1

    def run(self, sql: str, lines: Iterator[str] | None = None) -> bool:
        """Run a statement and write its results; say whether it succeeded.  lines: of the text behind it, for COPY … FROM STDIN."""
        began = time.perf_counter()
        try:
            with self._cancelling():
                if is_copy(sql):
                    self._copy(sql, lines or iter(()))
                    return True
                answer = self.connection.run_statement(sql, ())
                while (result := answer.next_result()) is not None:
                    self._write_notices()
                    self._write(result)
        except (Error, FormatError) as error:
            self._write_notices()
            self.out.flush()
            self.err.write((describe_error(error, sql) if isinstance(error, Error) else f"ERROR: {error}") + "\n")
            self.err.flush()
            return False
        finally:
            if self.is_timing:
                self.out.write(f"Time: {(time.perf_counter() - began) * 1000:.3f} ms\n")
            self.out.flush()
        return True

    def run_lines(self, lines: Iterator[str], meta: Callable[[str], bool]) -> bool:
        """Run the statements of a text, line by line; stop at the first that fails, and say whether none did."""
        splitter = StatementSplitter()
        for line in lines:
            if splitter.is_blank and line.lstrip().startswith("\\"):
                splitter.take_rest()
                if not meta(line.strip()):
                    return False
                continue
            if not all(self.run(statement, lines) for statement in splitter.feed(line)):
                return False
        rest = splitter.take_rest()
        return not rest or self.run(rest)

    def _copy(self, sql: str, lines: Iterator[str]) -> None:
        """Run a COPY: its files are here; STDIN is the text behind it, up to a line of `\\.`, or standard input if there is none."""
        copy = read_copy(sql)
        self.out.flush()
        if not copy.is_from:
            pipe: IO[bytes] | None = self.out.buffer if hasattr(self.out, "buffer") else None
            rows = run_copy(self.connection, sql, pipe)
            if copy.file is None:
                return
        elif copy.file is not None:
            rows = run_copy(self.connection, sql, None)
        else:
            with tempfile.TemporaryFile() as data:
                behind = next(lines, None)
                source = sys.stdin if behind is None else itertools.chain([behind], lines)
                data.writelines(line.encode() for line in itertools.takewhile(lambda line: line.rstrip("\r\n") != "\\.", source))
                data.seek(0)
                rows = run_copy(self.connection, sql, data)
        if self.output_format == "table":
            self.out.write(f"COPY {rows}\n")

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement for the shell itself.  Raises Error."""
        return self.connection.execute(sql).fetchall()

    def _write(self, result: Inline | Streamed) -> None:
        chunks = ResultChunks(result)
        if not chunks.columns:
            if self.output_format == "table" and result.tag:
                self.out.write(result.tag + "\n")
            if result.tag.split(" ")[0] in ("CREATE", "DROP", "ALTER", "TRUNCATE"):
                self.catalog_changes += 1
        elif self.output_format in BINARY_WRITERS:
            self._write_binary(chunks)
        elif self.output_format in TEXT_WRITERS:
            TEXT_WRITERS[self.output_format](chunks, self.out)
        elif self.is_expanded:
            write_expanded(chunks, self.out)
        else:
            write_table(chunks, self.out, is_terminal=self.is_terminal)

    def _write_binary(self, chunks: ResultChunks) -> None:
        if self.is_terminal:
            raise FormatError(f"{self.output_format} is not for terminals: redirect the output to a file or a pipe")
        if self._was_binary_written:
            raise FormatError(f"{self.output_format} takes one result only: give the statements one by one")
        self._was_binary_written = True
        self.out.flush()
        binary: IO[bytes] = self.out.buffer  # type: ignore[attr-defined]
        BINARY_WRITERS[self.output_format](chunks, binary, chunks.schema())
        binary.flush()

    def _write_notices(self) -> None:
        notices = self.connection.notices
        for notice in notices:
            self.err.write(f"{notice.severity}: {notice}\n")
        notices.clear()

    @contextlib.contextmanager
    def _cancelling(self) -> Iterator[None]:
        """Let the first Ctrl-C cancel the statement at the node, and the second interrupt the shell itself."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGINT)

        def cancel(number: int, frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, before)
            # In a thread of its own: this one may be in the middle of a send.
            threading.Thread(target=self.connection.cancel, daemon=True).start()

        signal.signal(signal.SIGINT, cancel)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def standard_streams() -> tuple[IO[str], IO[str]]:
    """Give standard output and error as they are now."""
    return sys.stdout, sys.stderr

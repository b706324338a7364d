"""DuckDB as a peer of fetches: no server and no network, so the least that such a fetch can cost."""

from collections.abc import Callable, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from bench import rows
from bench.sides.port import ClientSpec, Contender, timed_in_interpreter


class DuckdbSide:
    """A database file that clients open for reading."""

    name = "duckdb"

    def __init__(self, directory: Path, *, kv_rows: int, wide_rows: int) -> None:
        self._file = directory / "peer.duckdb"
        self._wide_rows = wide_rows
        self.version = duckdb.__version__

    def start(self) -> None:
        """Do nothing: there is no server."""

    def servers(self) -> Sequence[int]:
        """Give none."""
        return ()

    def prepare(self, workload: str) -> None:
        """Make and fill the table that is fetched."""
        if workload not in ("fetch-arrow", "fetch-pandas") or self._file.exists():
            return
        with duckdb.connect(str(self._file)) as connection:
            connection.execute(rows.WIDE_TABLE)
            for statement in rows.wide_fill(self._wide_rows):
                connection.execute(statement)

    def check(self, workload: str) -> None:
        """Do nothing: it takes part in no workload that could break something."""

    def contenders(self, workload: str, clients: int) -> list[Contender]:
        """Say who takes part."""
        if workload not in ("fetch-arrow", "fetch-pandas"):
            return []
        spec = ClientSpec(module="duckdb_file", address=str(self._file))
        return [Contender(label="duckdb, in process", is_dsdb=False, specs=(spec,) * clients, servers=())]

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give the opening of a database in memory, in a new interpreter."""
        return {"duckdb, embedded": lambda: timed_in_interpreter("import duckdb; duckdb.connect().execute('SELECT 1').fetchone()")}

    def close(self) -> None:
        """Do nothing."""


class DuckdbClient:
    """A client that only fetches."""

    errors: tuple[type[Exception], ...] = ()

    def __init__(self, path: str) -> None:
        self._connection = duckdb.connect(path, read_only=True)

    def fetch_arrow(self, count: int) -> None:
        """Fetch an Arrow table."""
        table: pa.Table = self._connection.sql("SELECT * FROM wide").to_arrow_table()
        assert table.shape == (count, rows.WIDE_COLUMNS), table.shape

    def fetch_pandas(self, count: int) -> None:
        """Fetch a data frame."""
        frame = self._connection.sql("SELECT * FROM wide").df()
        assert frame.shape == (count, rows.WIDE_COLUMNS), frame.shape

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def open_client(address: str) -> DuckdbClient:
    """Open the file."""
    return DuckdbClient(address)

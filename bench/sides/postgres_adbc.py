"""PostgreSQL through ADBC, whose C driver makes Arrow of the rows: the fair peer of fetches."""

from bench.rows import WIDE_COLUMNS


class AdbcClient:
    """A client that only fetches."""

    errors: tuple[type[Exception], ...] = ()

    def __init__(self, address: str) -> None:
        from adbc_driver_postgresql import dbapi  # type: ignore[import-untyped]  # noqa: PLC0415, RUF100

        self._connection = dbapi.connect(address, autocommit=True)

    def fetch_arrow(self, count: int) -> None:
        """Fetch an Arrow table."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT * FROM wide")
            table = cursor.fetch_arrow_table()
        assert table.shape == (count, WIDE_COLUMNS), table.shape

    def fetch_pandas(self, count: int) -> None:
        """Fetch an Arrow table and make a data frame of it."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT * FROM wide")
            frame = cursor.fetch_arrow_table().to_pandas()
        assert frame.shape == (count, WIDE_COLUMNS), frame.shape

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def open_client(address: str) -> AdbcClient:
    """Connect."""
    return AdbcClient(address)

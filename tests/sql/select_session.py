"""A few tables with rows, and queries over them through binder, planner and engine, without the statements around them."""

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

import pyarrow as pa

from dsdb.sql.bind.scalar import BindContext, ParameterTypes
from dsdb.sql.execute.engine import EngineLimits, QueryEngine
from dsdb.sql.execute.result import rows_of_batch
from dsdb.sql.execute.select import run_select
from dsdb.sql.parse import parse_statements
from dsdb.sql.plan.explain import explain_stages, text_lines
from dsdb.sql.plan.select import SelectPlan, plan_select
from dsdb.sql.ports import LeafStage
from dsdb.sql.rows import Row, primary_key, row_value
from dsdb.sql.schema import ColumnDescriptor, DatabaseDescriptor, IndexColumn, IndexDescriptor, TableDescriptor
from dsdb.sql.text import format_text, parse_text
from dsdb.sql.types import (
    BIGINT,
    BOOL,
    BYTEA,
    DATE,
    DOUBLE,
    INT,
    INTERVAL,
    NUMERIC,
    SMALLINT,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
    SqlType,
    TypeName,
)
from dsdb.storage.datum import Datum
from dsdb.storage.rowcodec import decode_batches
from tests.sql.local_txn import LocalStore, LocalTransaction

NOW = 1_700_000_000_000_000


def table(table_id: int, name: str, columns: Sequence[tuple[str, SqlType]], key: Sequence[str]) -> TableDescriptor:
    names = [column for column, _ in columns]
    return TableDescriptor(
        table_id=table_id,
        database_id=1,
        name=name,
        version=1,
        columns=tuple(
            ColumnDescriptor(column_id=number, name=column, type=type_, nullable=column not in key)
            for number, (column, type_) in enumerate(columns, start=1)
        ),
        primary=IndexDescriptor(index_id=1, name=f"{name}_pkey", columns=tuple(IndexColumn(names.index(part) + 1) for part in key)),
        next_column_id=len(columns) + 1,
        next_index_id=2,
    )


USERS = table(1, "users", [("id", INT), ("name", TEXT), ("city", TEXT), ("age", INT)], ["id"])
ORDERS = table(
    2, "orders", [("user_id", INT), ("number", INT), ("amount", SqlType(TypeName.DECIMAL, 10, 2)), ("day", DATE)], ["user_id", "number"]
)
KINDS = table(
    3,
    "kinds",
    [
        ("id", SMALLINT),
        ("b", BOOL),
        ("big", BIGINT),
        ("d", DOUBLE),
        ("n", NUMERIC),
        ("v", SqlType(TypeName.VARCHAR, length=5)),
        ("c", SqlType(TypeName.CHAR, length=3)),
        ("raw", BYTEA),
        ("day", DATE),
        ("at", TIME),
        ("ts", TIMESTAMP),
        ("tz", TIMESTAMPTZ),
        ("span", INTERVAL),
        ("u", UUID),
    ],
    ["id"],
)
EMPTY = table(4, "empty", [("id", INT), ("x", TEXT)], ["id"])

ROWS: dict[str, list[str]] = {
    "users": ["1|ann|berlin|30", "2|bob|paris|25", "3|cid|berlin|NULL", "4|dan|NULL|41", "5|eve|paris|25"],
    "orders": ["1|1|10.00|2024-01-05", "1|2|25.50|2024-02-01", "2|1|99.99|2024-01-05", "5|1|0.50|2024-03-09", "5|2|7.25|NULL"],
    "kinds": [
        "1|t|9007199254740993|1.5|1.50|abc|x|\\x00ff|2024-02-29|23:59:59.5|2024-02-29 12:00:00|2024-02-29 12:00:00+00|1 mon 2 days|"
        "00000000-0000-0000-0000-000000000005",
        "2|f|-1|NaN|100|héllo|xyz|\\x|0001-01-01|00:00:00|1969-12-31 23:59:59|1969-12-31 23:59:59+00|-03:00:00|"
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "3|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL",
    ],
    "empty": [],
}


class FixedCatalog:
    """ports.CatalogSnapshot of the tables above."""

    version = 1
    lease_expiration: Any = None

    def __init__(self, *tables: TableDescriptor) -> None:
        self._tables = {found.name: found for found in tables}

    def database(self, name: str) -> DatabaseDescriptor | None:
        return next((found for found in self.databases() if found.name == name), None)

    def databases(self) -> Sequence[DatabaseDescriptor]:
        return [DatabaseDescriptor(database_id=1, name="defaultdb")]

    def table(self, database_id: int, name: str) -> TableDescriptor | None:
        return self._tables.get(name)

    def tables(self, database_id: int) -> Sequence[TableDescriptor]:
        return list(self._tables.values())

    def sequence(self, database_id: int, name: str) -> None:
        return None

    def sequence_by_id(self, sequence_id: int) -> None:
        return None


CATALOG = FixedCatalog(USERS, ORDERS, KINDS, EMPTY)


class TwoNodeRunner:
    """ports.StageRunner of a cluster that keeps the odd rows on one node and the even ones on another."""

    def __init__(self, engine: QueryEngine) -> None:
        self._engine = engine
        self.stages: list[LeafStage] = []
        self.closed = 0

    async def run(self, stage: LeafStage, txn: LocalTransaction, report: object = None) -> AsyncIterator[pa.RecordBatch]:
        self.stages.append(stage)
        scan = stage.scan
        ts = await txn.read_timestamp()
        layouts = {layout.layout_id: layout for layout in scan.layouts}
        values = [value for span in scan.spans for _, value in txn.read_span(ts, span)]
        try:
            for node in (0, 1):
                batch = decode_batches(values[node::2][: scan.limit], layouts, scan.columns).rename_columns(list(scan.names))
                if stage.sql is None:
                    yield batch
                    continue
                inputs = {"input": pa.Table.from_batches([batch])}
                inputs |= {keys.name: pa.ipc.open_stream(keys.data).read_all() for keys in stage.keys}
                found = await self._engine.run(stage.sql, inputs)
                for part in found.to_batches():
                    yield part
        finally:
            self.closed += 1

    def seen_rows(self, spans: Sequence[Any]) -> int | None:
        return None

    async def placement(self, spans: Sequence[Any]) -> list[tuple[int, int]]:
        return [(1, len(spans)), (2, len(spans))]


class SelectSession:
    """Runs queries; a context manager."""

    def __init__(self, limits: EngineLimits | None = None) -> None:
        self.engine = QueryEngine(limits or EngineLimits(memory_bytes_max=128 << 20, connections=2))
        self.store = LocalStore()
        self.runner = TwoNodeRunner(self.engine)

    async def __aenter__(self) -> "SelectSession":
        txn = self.store.begin()
        for found in (USERS, ORDERS, KINDS, EMPTY):
            for line in ROWS[found.name]:
                row = [None if text == "NULL" else parse_text(text, column.type) for text, column in zip(line.split("|"), found.columns)]
                key = [row[part.column_id - 1] for part in found.primary.columns]
                txn.insert(primary_key(found, key), row_value(found, row))
        await txn.commit()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.engine.close()

    def plan(self, sql: str, parameters: Sequence[tuple[SqlType, Datum]] = ()) -> SelectPlan:
        [statement] = parse_statements(sql)
        types = ParameterTypes([type_ for type_, _ in parameters])
        context = BindContext(parameters=types, parameter_count=statement.parameters)
        assert not hasattr(statement.tree, "statement"), "not a query"
        return plan_select(statement.tree, CATALOG, 1, context)  # type: ignore[arg-type]

    async def query(self, sql: str, *parameters: tuple[SqlType, Datum]) -> list[Row]:
        return (await self.result(sql, *parameters))[1]

    async def result(self, sql: str, *parameters: tuple[SqlType, Datum]) -> tuple[SelectPlan, list[Row]]:
        plan = self.plan(sql, parameters)
        values = [*(value for _, value in parameters), NOW]
        result = await run_select(plan, values, self.store.begin(), self.runner, self.engine)  # type: ignore[arg-type]
        rows: list[Row] = []
        assert result.batches is not None
        async for batch in result.batches:
            rows += rows_of_batch(batch, plan.columns)
        return plan, rows

    async def explain(self, sql: str, *parameters: tuple[SqlType, Datum]) -> list[str]:
        values = [*(value for _, value in parameters), NOW]
        return text_lines(await explain_stages(self.plan(sql, parameters), values, self.runner))  # type: ignore[arg-type]


def shown(plan: SelectPlan, rows: Sequence[Row]) -> list[str]:
    """Print a result: a line of names with types, and a line a row."""
    lines = [" ".join(f"{column.name}:{column.type}" for column in plan.columns)]
    for row in rows:
        lines.append(" | ".join("NULL" if value is None else format_text(value, column.type) for value, column in zip(row, plan.columns)))
    return lines

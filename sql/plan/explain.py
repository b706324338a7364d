"""EXPLAIN of a query: its stages as SQL, from the gateway down, each with where it runs and which keys it reads.

gateway
  SELECT c2 AS c5, CAST(coalesce(sum(p1), 0) AS BIGINT) AS c6 FROM t1 GROUP BY c2
  actual: 12 rows in 3.1 ms, 2.0 ms of them in the engine; 24 rows, 384 bytes gathered
t1: leaf over users on node 1 (2 ranges), node 3 (1 range)
  keys: id from 5
  SELECT c2, count(*) AS p1 FROM (SELECT * FROM input WHERE (c3 > 7)) AS t1 GROUP BY c2
  node 1: read 9000 rows, gave 12, in 1.5 ms, 1.0 ms of them in the engine; blocks: 1 read, 3 pruned; moved 0 bytes

The lines of what was done are EXPLAIN ANALYZE's.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from dsdb.sql.plan.select import LeafPlan, SelectPlan
from dsdb.sql.plan.stages import INPUT, gateway_sql, leaf_stage, row_count
from dsdb.sql.ports import FragmentCounts, StageReport, StageRunner
from dsdb.sql.rows import rows_of
from dsdb.sql.system_tables import SYSTEM_SCHEMA
from dsdb.sql.text import format_text
from dsdb.storage.datum import Datum
from dsdb.storage.errors import KeyFormatError
from dsdb.storage.keycodec import key_codec
from dsdb.storage.keys import Span

SPANS_SHOWN = 3


class StageLines(msgspec.Struct, kw_only=True):
    """A stage, for people and programs.  nodes: (id, number of ranges) of those it runs on; columns: names in its SQL, and the table's."""

    name: str
    kind: str
    table: str | None = None
    nodes: list[tuple[int, int]] | None = None
    keys: str | None = None
    sql: str | None = None
    cut: str = ""
    """What LIMIT leaves of the rows, in words."""
    columns: dict[str, str] | None = None
    waits: list[str] = []
    """By which columns it may be read only in part, if other stages give few keys."""
    actual: list[str] = []
    counts: dict[int, FragmentCounts] = {}
    """By node: what was done."""


async def explain_stages(plan: SelectPlan, parameters: Sequence[Datum], runner: StageRunner) -> list[StageLines]:
    """Give the stages of a planned query, the gateway first.  Raises SqlError's about a parameter's value."""
    limit = offset = None
    if plan.gateway is None:
        limit, offset = row_count(plan.limit, parameters, "LIMIT"), row_count(plan.offset, parameters, "OFFSET")
        cut = "".join(f", {word} {count}" for word, count in (("limit", limit), ("offset", offset)) if count is not None)
        found = [StageLines(name="gateway", kind="stream", cut=cut)]
    else:
        found = [StageLines(name="gateway", kind="query", sql=gateway_sql(plan, parameters))]
    for leaf in plan.leaves:
        stage = leaf_stage(leaf, parameters, limit=None if limit is None else limit + (offset or 0))
        placement = await runner.placement(stage.scan.spans) if stage.scan.spans else []
        columns = ", ".join(name for name, _ in leaf.columns)
        found.append(
            StageLines(
                name=leaf.input_name,
                kind="leaf",
                table=leaf.table.name,
                nodes=placement,
                keys=_spelled_spans(leaf, stage.scan.spans),
                sql=stage.sql or f"SELECT {columns} FROM {INPUT}",
                cut="" if stage.scan.limit is None else f", at most {stage.scan.limit} of each node",
                columns={name: leaf.table.columns[position].name for name, position in leaf.columns},
                waits=_waits(plan, leaf),
            )
        )
    for virtual in plan.virtual:
        shown = {name: virtual.table.columns[position].name for name, position in virtual.columns}
        found.append(StageLines(name=virtual.input_name, kind="virtual", table=f"{SYSTEM_SCHEMA}.{virtual.table.name}", columns=shown))
    for given in plan.given:
        found.append(StageLines(name=given.input_name, kind="given", table=given.name, columns={name: name for name, _ in given.columns}))
    return found


def _waits(plan: SelectPlan, leaf: LeafPlan) -> list[str]:
    if leaf.partial is not None or leaf.tail is not None:
        return []
    return [f"{edge.target_column} in {edge.source}.{edge.source_column}" for edge in plan.edges if edge.target == leaf.input_name]


def stage_counts(stage: StageLines, report: StageReport) -> None:
    """Add what the fragments of a stage did."""
    stage.counts = dict(sorted(report.nodes.items()))
    for node_id, counts in stage.counts.items():
        engine = f", {_milliseconds(counts.engine_s)} of them in the engine" if counts.engine_s else ""
        blocks = f"; blocks: {counts.blocks_read} read, {counts.blocks_pruned} pruned" if counts.blocks_read or counts.blocks_pruned else ""
        done = f"read {_counted(counts.rows_read, 'row')}, gave {counts.rows_given}, in {_milliseconds(counts.seconds)}{engine}"
        stage.actual.append(f"node {node_id}: {done}{blocks}; moved {_counted(counts.moved_bytes, 'byte')}")
    if report.fragments > len(report.nodes):
        stage.actual.append(f"{report.fragments} fragments, as some broke off and were run again elsewhere")


def gateway_counts(stage: StageLines, *, rows: int, seconds: float, engine_s: float, gathered_rows: int, gathered_bytes: int) -> None:
    """Add what the gateway did."""
    engine = f", {_milliseconds(engine_s)} of them in the engine" if engine_s else ""
    gathered = f"; {_counted(gathered_rows, 'row')}, {_counted(gathered_bytes, 'byte')} gathered" if stage.kind == "query" else ""
    stage.actual.append(f"actual: {_counted(rows, 'row')} in {_milliseconds(seconds)}{engine}{gathered}")


def text_lines(stages: Sequence[StageLines]) -> list[str]:
    """Give the lines of EXPLAIN."""
    lines: list[str] = []
    for stage in stages:
        match stage.kind:
            case "stream":
                lines.append(f"gateway: rows as they come{stage.cut}")
            case "query":
                lines += ["gateway", f"  {stage.sql}"]
            case "leaf":
                places = ", ".join(f"node {node_id} ({_counted(ranges, 'range')})" for node_id, ranges in stage.nodes or ())
                lines.append(f"{stage.name}: leaf over {stage.table} on {places or 'no node: no key can match'}")
                lines += [f"  keys: {stage.keys}", f"  {stage.sql}{stage.cut}"]
                lines += [f"  perhaps only: {', '.join(stage.waits)}"] if stage.waits else []
            case "virtual":
                lines.append(f"{stage.name}: Virtual table {stage.table}")
            case _:
                lines.append(f"{stage.name}: rows given with the statement as {stage.table}")
        if stage.kind == "given":
            lines.append(f"  columns: {', '.join(stage.columns or ())}")
        elif stage.columns is not None:
            lines.append(f"  columns: {', '.join(f'{name} = {column}' for name, column in stage.columns.items())}")
        lines += [f"  {line}" for line in stage.actual]
    return lines


def json_text(stages: Sequence[StageLines]) -> str:
    """Give EXPLAIN (FORMAT JSON): a list of stages, the gateway first."""
    documents: list[dict[str, Any]] = []
    for stage in stages:
        document = {"stage": stage.name, "kind": stage.kind, "table": stage.table, "keys": stage.keys, "sql": stage.sql}
        document = {key: value for key, value in document.items() if value is not None}
        if stage.nodes is not None:
            document["nodes"] = [{"node": node_id, "ranges": ranges} for node_id, ranges in stage.nodes]  # type: ignore[assignment]
        if stage.columns is not None:
            document["columns"] = stage.columns  # type: ignore[assignment]
        if stage.waits:
            document["perhaps_only"] = stage.waits  # type: ignore[assignment]
        if stage.counts:
            done = [{"node": node_id} | _fields(counts) for node_id, counts in stage.counts.items()]
            document["actual"] = done  # type: ignore[assignment]
        elif stage.actual:
            document["actual"] = stage.actual  # type: ignore[assignment]
        documents.append(document)
    return msgspec.json.format(msgspec.json.encode(documents), indent=2).decode()


def _fields(counts: FragmentCounts) -> dict[str, int | float]:
    return {name: getattr(counts, name) for name in counts.__struct_fields__}


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _spelled_spans(leaf: LeafPlan, spans: Sequence[Span]) -> str:
    if not spans:
        return "none"
    if spans == (rows_of(leaf.table).span,):
        return "all"
    shown = "; ".join(_spelled_span(leaf, span) for span in spans[:SPANS_SHOWN])
    more = len(spans) - SPANS_SHOWN
    return shown if more <= 0 else f"{shown}; and {_counted(more, 'span')} more"


def _spelled_span(leaf: LeafPlan, span: Span) -> str:
    start, end = _spelled_key(leaf, span.start), _spelled_key(leaf, span.end)
    if span.end == span.start + b"\x00":
        return f"({start})"
    return f"({start}) to ({end})"


def _spelled_key(leaf: LeafPlan, key: bytes) -> str:
    """Spell the columns of a key, or of the longest readable prefix of a boundary."""
    rows = rows_of(leaf.table)
    columns = rows.key_columns()
    for count in range(len(columns), 0, -1):
        codec = key_codec(rows.key_codec.columns[:count])
        try:
            values, _ = codec.decode_from(key, len(rows.prefix))
        except (KeyFormatError, IndexError, ValueError):
            continue
        spelled = ("NULL" if value is None else format_text(value, column.type) for value, column in zip(values, columns))
        return ", ".join(spelled)
    return "" if key.startswith(rows.prefix) else "end"

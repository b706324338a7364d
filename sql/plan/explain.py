"""EXPLAIN of a query: its stages as SQL, from the gateway down, each with where it runs and which keys it reads.

gateway
  SELECT c2 AS c5, count(*) AS c6 FROM t1 GROUP BY c2
t1: leaf over users on node 1 (2 ranges), node 3 (1 range)
  keys: id from 5
  SELECT c2 FROM input WHERE (c3 > 7)
"""

from collections.abc import Sequence

from dsdb.sql.plan.select import LeafPlan, SelectPlan
from dsdb.sql.plan.stages import INPUT, gateway_sql, leaf_stage, row_count
from dsdb.sql.ports import StageRunner
from dsdb.sql.rows import rows_of
from dsdb.sql.system_tables import SYSTEM_SCHEMA
from dsdb.sql.text import format_text
from dsdb.storage.datum import Datum
from dsdb.storage.errors import KeyFormatError
from dsdb.storage.keycodec import key_codec
from dsdb.storage.keys import Span

SPANS_SHOWN = 3


async def explain_select(plan: SelectPlan, parameters: Sequence[Datum], runner: StageRunner) -> list[str]:
    """Give the lines of EXPLAIN for a planned query.  Raises SqlError's about a parameter's value."""
    lines = []
    limit = offset = None
    if plan.gateway is None:
        limit, offset = row_count(plan.limit, parameters, "LIMIT"), row_count(plan.offset, parameters, "OFFSET")
        cut = "".join(f", {word} {count}" for word, count in (("limit", limit), ("offset", offset)) if count is not None)
        lines.append(f"gateway: rows as they come{cut}")
    else:
        lines += ["gateway", f"  {gateway_sql(plan, parameters)}"]
    for leaf in plan.leaves:
        stage = leaf_stage(leaf, parameters, limit=None if limit is None else limit + (offset or 0))
        placement = await runner.placement(stage.scan.spans) if stage.scan.spans else []
        places = ", ".join(f"node {node_id} ({_counted(ranges, 'range')})" for node_id, ranges in placement) or "no node: no key can match"
        lines.append(f"{leaf.input_name}: leaf over {leaf.table.name} on {places}")
        lines.append(f"  keys: {_spelled_spans(leaf, stage.scan.spans)}")
        columns = ", ".join(name for name, _ in leaf.columns)
        scan_limit = "" if stage.scan.limit is None else f", at most {stage.scan.limit} of each node"
        lines.append(f"  {stage.sql or f'SELECT {columns} FROM {INPUT}'}{scan_limit}")
        shown = ", ".join(f"{name} = {leaf.table.columns[position].name}" for name, position in leaf.columns)
        lines.append(f"  columns: {shown}")
    for virtual in plan.virtual:
        lines.append(f"{virtual.input_name}: Virtual table {SYSTEM_SCHEMA}.{virtual.table.name}")
        shown = ", ".join(f"{name} = {virtual.table.columns[position].name}" for name, position in virtual.columns)
        lines.append(f"  columns: {shown}")
    for given in plan.given:
        lines.append(f"{given.input_name}: rows given with the statement as {given.name}")
        lines.append(f"  columns: {', '.join(name for name, _ in given.columns)}")
    return lines


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

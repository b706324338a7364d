"""How fast keys and rows become bytes and Arrow: `python bench/bench_codec.py` prints µs a value and million rows a second."""

import decimal
import time
from collections.abc import Callable, Sequence

from dsdb.storage.datum import Datum, Kind
from dsdb.storage.keycodec import KeyCodec, KeyColumn
from dsdb.storage.rowarrow import LayoutColumn, field_name, rows_to_batch
from dsdb.storage.rowcodec import RowLayout, codec_for, decode_batches

REPEATS = 7
LINEITEM = RowLayout(
    layout_id=7,
    columns=(
        LayoutColumn(column_id=1, kind=Kind.INT),
        LayoutColumn(column_id=2, kind=Kind.INT, width=4),
        LayoutColumn(column_id=3, kind=Kind.DECIMAL, precision=15, scale=2),
        LayoutColumn(column_id=4, kind=Kind.DECIMAL, precision=15, scale=2),
        LayoutColumn(column_id=5, kind=Kind.DECIMAL, precision=15, scale=2),
        LayoutColumn(column_id=6, kind=Kind.DATE),
        LayoutColumn(column_id=7, kind=Kind.TEXT),
        LayoutColumn(column_id=8, kind=Kind.TEXT),
    ),
)


def lineitem(number: int) -> tuple[Datum, ...]:
    cents = decimal.Decimal(number * 7919 % 10_000_000).scaleb(-2)
    return (
        number,
        number % 20_000,
        decimal.Decimal(number % 50),
        cents,
        decimal.Decimal("0.04"),
        9_000 + number % 2_500,
        "N",
        "DELIVER IN PERSON",
    )


def seconds(work: Callable[[], object]) -> float:
    """Give the shortest of several runs."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def print_each(name: str, work: Callable[[], object], loops: int = 20_000) -> None:
    def run() -> None:
        for _ in range(loops):
            work()

    print(f"{name:44} {seconds(run) / loops * 1e6:9.3f} µs")


def print_rate(name: str, work: Callable[[], object], rows: int) -> None:
    print(f"{name:44} {rows / seconds(work) / 1e6:9.2f} M rows/s")


def bench_keys() -> None:
    prefix = b"\x10\x01\x05\x01\x07\x01\x01"
    shapes: list[tuple[str, list[Kind], list[Datum]]] = [
        ("int", [Kind.INT], [12345]),
        ("text", [Kind.TEXT], ["Customer#000000001"]),
        ("decimal", [Kind.DECIMAL], [decimal.Decimal("33203.72")]),
        ("four-part", [Kind.INT, Kind.INT, Kind.DATE, Kind.TEXT], [12345, 7, 9_500, "AIR"]),
    ]
    for name, kinds, values in shapes:
        codec = KeyCodec([KeyColumn(kind=kind) for kind in kinds])
        key = codec.encode(values, prefix)
        print_each(f"key encode, {name}", lambda codec=codec, values=values: codec.encode(values, prefix))
        print_each(f"key decode, {name}", lambda codec=codec, key=key: codec.decode(key, len(prefix)))
    rows = 65_536
    batch = rows_to_batch(LINEITEM.columns, [field_name(number) for number in range(1, 9)], [lineitem(number) for number in range(rows)])
    integers = KeyCodec([KeyColumn(kind=Kind.INT), KeyColumn(kind=Kind.INT)])
    print_rate("keys in bulk, two ints", lambda: integers.encode_batch([batch.column(0), batch.column(1)], prefix), rows)
    keys = integers.encode_batch([batch.column(0), batch.column(1)], prefix)
    print_rate("keys from bulk, two ints", lambda: integers.decode_batch(keys, len(prefix), LINEITEM.columns[:2]), rows)
    texts = KeyCodec([KeyColumn(kind=Kind.INT), KeyColumn(kind=Kind.TEXT)])
    print_rate("keys in bulk, int and text", lambda: texts.encode_batch([batch.column(0), batch.column(7)], prefix), rows)


def bench_rows() -> None:
    codec = codec_for(LINEITEM)
    row = lineitem(4711)
    with_null = (*row[:7], None)
    value = codec.encode(row)
    print_each("row encode, 8 columns", lambda: codec.encode(row))
    print_each("row encode, 8 columns, one NULL", lambda: codec.encode(with_null))
    print_each("row decode, 8 columns", lambda: codec.decode(value))
    print_each("row decode, 2 of 8 columns", lambda: codec.decode_columns(value, (1, 6)))
    ids = [column.column_id for column in LINEITEM.columns]
    print_each("decode a batch of 1 row", lambda: codec.decode_batch([value], ids), 1_000)
    print_each("rows_to_batch of 1 row", lambda: rows_to_batch(LINEITEM.columns, list("abcdefgh"), [row]), 1_000)
    rows = [lineitem(number) for number in range(65_536)]
    values = [codec.encode(each) for each in rows]
    for size in (4_096, 16_384, 65_536):
        print_rate(f"decode in bulk, 8 columns, {size} rows", lambda size=size: decode_all(values[:size]), size)
    print_rate("decode in bulk, 2 of 8 columns, 16384 rows", lambda: codec.decode_batch(values[:16_384], [1, 4]), 16_384)
    batch = codec.decode_batch(values, ids)
    print_rate("encode in bulk, 8 columns", lambda: codec.encode_batch(batch), len(rows))


def decode_all(values: Sequence[bytes]) -> None:
    decode_batches(values, {LINEITEM.layout_id: LINEITEM}, LINEITEM.columns)


if __name__ == "__main__":
    bench_keys()
    bench_rows()

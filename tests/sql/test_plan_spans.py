"""Spans of a filter hold exactly the rows that the conditions they took are true of: checked against the conditions themselves."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsdb.sql.bind.bound import type_of
from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.bind.scalar import BindContext, ParameterTypes, ScopeColumn, bind_scalar
from dsdb.sql.evaluate import compile_scalar
from dsdb.sql.parse import parse_expression
from dsdb.sql.plan.spans import SPANS_MAX, KeyAccess, key_access, spans_of
from dsdb.sql.rows import primary_key, rows_of
from dsdb.sql.schema import ColumnDescriptor, IndexColumn, IndexDescriptor, TableDescriptor
from dsdb.sql.types import INT, TEXT, SqlType, TypeName
from dsdb.storage.datum import Datum

CHAR3 = SqlType(TypeName.CHAR, length=3)
COLUMNS: tuple[tuple[str, SqlType], ...] = (("a", INT), ("b", INT), ("c", TEXT), ("d", INT), ("e", CHAR3))


def make_table(*key: tuple[str, bool]) -> TableDescriptor:
    names = [name for name, _ in COLUMNS]
    return TableDescriptor(
        table_id=7,
        database_id=1,
        name="t",
        version=1,
        columns=tuple(ColumnDescriptor(column_id=i, name=name, type=type_) for i, (name, type_) in enumerate(COLUMNS, start=1)),
        primary=IndexDescriptor(
            index_id=1, name="t_pkey", columns=tuple(IndexColumn(names.index(name) + 1, descending) for name, descending in key)
        ),
        next_column_id=9,
        next_index_id=2,
    )


ABC = make_table(("a", False), ("b", False), ("c", False))
DESCENDING = make_table(("a", True), ("b", True), ("c", False))


class Names:
    """A scope in which each column is called by its own name."""

    def resolve(self, parts: tuple[str, ...], position: int | None) -> ScopeColumn:
        ordinal = [name for name, _ in COLUMNS].index(parts[0])
        return ScopeColumn(engine_name=parts[0], type=COLUMNS[ordinal][1], nullable=True, ordinal=ordinal)


POSITIONS = {name: position for position, (name, _) in enumerate(COLUMNS)}


def access_of(condition: str, table: TableDescriptor = ABC, parameters: Sequence[SqlType] = ()) -> KeyAccess:
    context = BindContext(parameters=ParameterTypes(parameters), parameter_count=len(parameters))
    bound = bind_scalar(parse_expression(condition), Names(), context)
    return key_access(table, conjuncts_of(bound), POSITIONS)


@pytest.mark.parametrize(
    ("condition", "spans", "residual"),
    [
        ("a = 1", 1, 0),
        ("a = 1 AND b = 2 AND c = 'x'", 1, 0),
        ("a = 1 AND b = 2 AND c = 'x' AND d = 4", 1, 1),
        ("a IN (3, 1, 2, 1)", 3, 0),
        ("a = 1 OR a = 2", 2, 0),
        ("a IN (1, 2) AND b IN (1, 2, 3)", 6, 0),
        ("a > 1 AND b = 2", 1, 1),
        ("1 < a AND 5 >= a", 1, 0),
        ("a BETWEEN 1 AND 3", 1, 0),
        ("a > 3 AND a < 2", 0, 0),
        ("a = 1 AND a = 2", 1, 1),
        ("b = 2", 1, 1),
        ("a = NULL", 0, 0),
        ("a + 1 = 2", 1, 1),
        ("a = 5000000000", 1, 0),
        ("a = b", 1, 1),
        ("a = 1.5", 1, 1),
        ("a <> 1", 1, 1),
        ("a = 1 OR b = 2", 1, 1),
        ("NOT (a = 1)", 1, 1),
    ],
)
def test_conditions_are_taken_or_left(condition: str, spans: int, residual: int) -> None:
    access = access_of(condition)
    assert (len(access.spans(())), len(access.residual)) == (spans, residual)


def test_a_whole_key_is_a_point() -> None:
    access = access_of("c = 'x' AND b = 2 AND a = 1")
    assert access.is_point
    assert access.prefixes(()) == [(1, 2, "x")]
    [span] = access.spans(())
    assert span.start == primary_key(ABC, (1, 2, "x"))
    assert not access_of("a = 1 AND b = 2").is_point


def test_parameters_are_bound_at_each_use() -> None:
    access = access_of("a = $1 AND b > $2", parameters=[INT, INT])
    assert access.residual == ()
    first, second = access.spans((1, 5)), access.spans((2, 7))
    assert first != second
    assert first == access_of("a = 1 AND b > 5").spans(())
    assert access.spans((None, 5)) == ()
    assert access.spans((1, None)) == ()


def test_char_is_found_without_its_blanks() -> None:
    table = make_table(("e", False))
    assert access_of("e = 'x'", table).spans(()) == access_of("e = 'x  '", table).spans(())
    assert access_of("e = 'x'", table).spans(())[0].contains(primary_key(table, ("x  ",)))


def test_products_of_lists_are_bounded() -> None:
    many = ", ".join(map(str, range(100)))
    access = access_of(f"a IN ({many}) AND b IN ({many})")
    assert SPANS_MAX < 100 * 100
    assert len(access.spans(())) == 100
    assert len(access.residual) == 1


def test_without_conditions_all_keys_are_read() -> None:
    assert spans_of(ABC, [], (), POSITIONS) == ((rows_of(ABC).span,), ())


values = st.integers(min_value=-2, max_value=3)
texts = st.sampled_from(["", "a", "b", "ab"])
operators = st.sampled_from(["=", "<", "<=", ">", ">="])


@st.composite
def conditions(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from(["a", "b", "c", "d"]))
    literal = (lambda: f"'{draw(texts)}'") if column == "c" else (lambda: str(draw(values)))
    match draw(st.integers(min_value=0, max_value=3)):
        case 0:
            return f"{column} IN ({', '.join(literal() for _ in range(draw(st.integers(min_value=1, max_value=3))))})"
        case 1:
            return f"({column} = {literal()} OR {column} = {literal()})"
        case 2:
            return f"{literal()} {draw(operators)} {column}"
        case _:
            return f"{column} {draw(operators)} {literal()}"


ROWS: list[tuple[Datum, ...]] = [(a, b, c, 1, "x") for a, b, c in itertools.product(range(-2, 4), range(-2, 4), ["", "a", "ab", "b"])]


@given(st.lists(conditions(), min_size=1, max_size=4), st.sampled_from([ABC, DESCENDING]))
@settings(max_examples=150, deadline=None)
def test_spans_and_residual_together_are_the_condition(parts: list[str], table: TableDescriptor) -> None:
    context = BindContext()
    whole = bind_scalar(parse_expression(" AND ".join(parts)), Names(), context)
    assert type_of(whole).name is TypeName.BOOL
    access = key_access(table, conjuncts_of(whole), POSITIONS)
    spans = access.spans(())
    assert all(not span.is_empty for span in spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(spans))
    wanted = compile_scalar(whole, POSITIONS)
    residual = [compile_scalar(part, POSITIONS) for part in access.residual]
    for row in ROWS:
        key = rows_of(table).key(row)
        is_found = any(span.contains(key) for span in spans) and all(condition(row, ()) for condition in residual)
        assert is_found == bool(wanted(row, ())), (parts, row)

from pathlib import Path

import pytest

from dsdb.sql.functions import BY_NAME, OVERLOADS, POSTGRES_FUNCTIONS, FunctionKind, choose
from dsdb.sql.functions.casts import cast_context, cast_function
from dsdb.sql.functions.describe import describe
from dsdb.sql.types import BIGINT, BOOL, DATE, DOUBLE, INT, NUMERIC, REAL, SMALLINT, TEXT, TIMESTAMP, UNKNOWN, SqlType, TypeName

PAGE = Path(__file__).parents[2] / "docs" / "sql-functions.md"


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text().strip() == describe().strip(), "run python -m dsdb.sql.functions.describe > docs/sql-functions.md"


def test_no_function_is_both_there_and_missing() -> None:
    assert not POSTGRES_FUNCTIONS & set(BY_NAME)


def test_every_overload_runs_somewhere() -> None:
    for overload in OVERLOADS.values():
        assert overload.engine is not None or overload.evaluate is not None, overload.key
        if overload.kind is not FunctionKind.SCALAR:
            assert overload.evaluate is None, overload.key


@pytest.mark.parametrize(
    ("name", "types", "arguments"),
    [
        ("+", [SMALLINT, INT], ("int4", "int4")),
        ("+", [INT, NUMERIC], ("numeric", "numeric")),
        ("+", [REAL, INT], ("float4", "float8")),
        ("+", [INT, UNKNOWN], ("int4", "int4")),
        ("+", [TIMESTAMP, UNKNOWN], ("timestamp", "interval")),
        ("sqrt", [INT], ("float8",)),
        ("round", [INT], ("float8",)),
        ("round", [NUMERIC], ("numeric",)),
        ("length", [UNKNOWN], ("text",)),
        ("length", [SqlType(TypeName.VARCHAR, length=3)], ("text",)),
        ("date_trunc", [UNKNOWN, DATE], ("text", "timestamptz")),
        ("date_trunc", [TEXT, TIMESTAMP], ("text", "timestamp")),
        ("sum", [BIGINT], ("int8",)),
        ("avg", [DOUBLE], ("float8",)),
    ],
)
def test_overloads_are_chosen_as_postgres_does(name: str, types: list[SqlType], arguments: tuple[str, ...]) -> None:
    overload = choose(name, types)
    assert overload is not None
    assert overload.arguments == arguments


def test_no_overload_for_strange_types() -> None:
    assert choose("+", [BOOL, INT]) is None
    assert choose("lower", [INT]) is None


def test_every_cast_that_exists_has_a_function() -> None:
    types = [SqlType(name) for name in TypeName if name is not TypeName.UNKNOWN]
    for source in types:
        for target in types:
            context = cast_context(source, target)
            if context is not None:
                function = cast_function(source, target)
                assert function is None or callable(function)


def test_like_takes_no_time_for_patterns_with_many_wildcards() -> None:
    from dsdb.sql.functions.strings import like_pattern

    assert like_pattern("%a" * 50 + "b", "\\", False).fullmatch("a" * 3_000) is None
    for text, pattern, matches in (
        ("abcab", "%ab", True),
        ("aab", "a%ab", True),
        ("ab", "%a%ab", False),
        ("", "%%", True),
        ("a%b", "a\\%b", True),
    ):
        assert (like_pattern(pattern, "\\", False).fullmatch(text) is not None) == matches, (text, pattern)

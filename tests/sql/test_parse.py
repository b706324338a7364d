import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import exp

from dsdb.sql.errors import (
    FeatureNotSupportedError,
    NumericOutOfRangeError,
    ProgramLimitError,
    SqlError,
    SqlSyntaxError,
    StatementTooComplexError,
)
from dsdb.sql.parse import (
    CreateDatabaseStatement,
    ExplainStatement,
    SetStatement,
    ShowStatement,
    SplitAtStatement,
    TruncateStatement,
    parse_expression,
    parse_statements,
    position_of,
)
from dsdb.sql.parse_transaction import TransactionStatement, Verb
from dsdb.sql.parse_values import read_values


def one(sql: str) -> object:
    (statement,) = parse_statements(sql)
    return statement.tree


def test_names_fold_unless_quoted() -> None:
    tree = one('SELECT Foo, "Bar", LOWER(Baz) FROM Schema_1.T AS Alias')
    assert isinstance(tree, exp.Select)
    assert {node.name for node in tree.find_all(exp.Identifier)} == {"foo", "Bar", "baz", "schema_1", "t", "alias"}
    assert [node.this for node in tree.find_all(exp.Anonymous)] == ["lower"]


def test_tables_may_be_called_like_functions() -> None:
    tree = one("INSERT INTO Count (lower) VALUES (upper(length))")
    assert isinstance(tree, exp.Insert)
    assert {node.name for node in tree.find_all(exp.Identifier)} == {"count", "lower", "length"}


@pytest.mark.parametrize(
    ("sql", "numbers"),
    [("SELECT ? FROM t WHERE a = ? LIMIT ?", [1, 2, 3]), ("SELECT $2, $1, $2", [1, 2, 2])],
)
def test_parameters_are_numbered(sql: str, numbers: list[int]) -> None:
    (statement,) = parse_statements(sql)
    assert isinstance(statement.tree, exp.Expr)
    assert sorted(int(node.this.this) for node in statement.tree.find_all(exp.Parameter)) == numbers
    assert statement.parameters == max(numbers)


def test_parameters_of_both_styles_are_refused() -> None:
    with pytest.raises(SqlSyntaxError, match="not both"):
        parse_statements("SELECT ?, $1")


def test_statements_keep_their_own_text() -> None:
    statements = parse_statements("SELECT 1; ;SHOW TABLES;\nSELECT ';' -- ;\n")
    assert [statement.text for statement in statements] == ["SELECT 1", "SHOW TABLES", "SELECT ';'"]
    assert parse_statements(" ; ") == []


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SHOW COLUMNS FROM a.T", ShowStatement(subject="columns", table=("a", "t"))),
        ("SHOW CREATE TABLE t", ShowStatement(subject="create table", table=("t",))),
        ("SHOW RANGES FROM TABLE t", ShowStatement(subject="ranges", table=("t",))),
        ("SHOW statement_timeout", ShowStatement(subject="statement_timeout")),
        ("TRUNCATE a, b RESTART IDENTITY", TruncateStatement(tables=(("a",), ("b",)), restart_identity=True)),
        ("CREATE DATABASE IF NOT EXISTS X", CreateDatabaseStatement(name="x", if_not_exists=True)),
        ("SET statement_timeout TO 100", SetStatement(name="statement_timeout", value="100")),
        ("SET a = 'B c'", SetStatement(name="a", value="B c")),
        ("RESET a", SetStatement(name="a", value=None)),
        ("BEGIN", TransactionStatement(verb=Verb.BEGIN, tag="BEGIN")),
        ("begin work isolation level read committed, not deferrable", TransactionStatement(verb=Verb.BEGIN, tag="BEGIN")),
        (
            "BEGIN AS OF SYSTEM TIME Follower_Read_Timestamp()",
            TransactionStatement(verb=Verb.BEGIN, tag="BEGIN", as_of="follower_read_timestamp()"),
        ),
        (
            "START TRANSACTION READ ONLY AS OF SYSTEM TIME '-10s'",
            TransactionStatement(verb=Verb.BEGIN, tag="START TRANSACTION", read_only=True, as_of="-10s"),
        ),
        ("END TRANSACTION AND NO CHAIN", TransactionStatement(verb=Verb.COMMIT, tag="COMMIT")),
        ("ABORT", TransactionStatement(verb=Verb.ROLLBACK, tag="ROLLBACK")),
        ("SAVEPOINT Some", TransactionStatement(verb=Verb.SAVEPOINT, tag="SAVEPOINT", name="some")),
        ('ROLLBACK WORK TO "Some"', TransactionStatement(verb=Verb.ROLLBACK_TO, tag="ROLLBACK", name="Some")),
        ("RELEASE SAVEPOINT x", TransactionStatement(verb=Verb.RELEASE, tag="RELEASE", name="x")),
        ("SET TRANSACTION READ WRITE", TransactionStatement(verb=Verb.SET_TRANSACTION, tag="SET", read_only=False)),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            TransactionStatement(verb=Verb.SET_CHARACTERISTICS, tag="SET", read_only=True),
        ),
    ],
)
def test_own_statements(sql: str, expected: object) -> None:
    assert one(sql) == expected


@pytest.mark.parametrize(
    ("sql", "state"),
    [
        ("COMMIT AND CHAIN", "0A000"),
        ("PREPARE TRANSACTION 'x'", "0A000"),
        ("COMMIT PREPARED 'x'", "0A000"),
        ("SET TRANSACTION SNAPSHOT 'x'", "0A000"),
        ("BEGIN READ ONLY,", "42601"),
        ("BEGIN NOW", "42601"),
        ("SAVEPOINT", "42601"),
        ("ROLLBACK TO", "42601"),
        ("DELETE FROM t AS OF SYSTEM TIME '-1s'", "0A000"),
        ("SELECT * FROM t AS OF SYSTEM TIME now()", "42601"),
        ("SELECT * FROM a AS OF SYSTEM TIME '-1s', b AS OF SYSTEM TIME '-2s'", "0A000"),
        ("BEGIN READ WRITE AS OF SYSTEM TIME '-1s'", "42601"),
    ],
)
def test_refused_about_transactions(sql: str, state: str) -> None:
    with pytest.raises(SqlError) as caught:
        parse_statements(sql)
    assert caught.value.sqlstate == state


def test_as_of_system_time_is_of_the_statement() -> None:
    (statement,) = parse_statements("SELECT a FROM t AS OF SYSTEM TIME '-10s' WHERE b > (SELECT 1 FROM u AS OF SYSTEM TIME '-10s')")
    assert statement.as_of == "-10s"
    assert isinstance(statement.tree, exp.Select)
    assert statement.tree.args["where"] is not None
    (plain,) = parse_statements("SELECT system AS of FROM time")
    assert plain.as_of is None


def test_split_at_rows() -> None:
    tree = one("ALTER TABLE t SPLIT AT VALUES (1, 'a'), (2, 'b')")
    assert isinstance(tree, SplitAtStatement)
    assert [[node.this for node in row] for row in tree.rows] == [["1", "a"], ["2", "b"]]


def test_explain_holds_its_statement() -> None:
    (statement,) = parse_statements("EXPLAIN (ANALYZE) SELECT $1")
    assert isinstance(statement.tree, ExplainStatement)
    assert statement.tree.analyze
    assert isinstance(statement.tree.statement.tree, exp.Select)
    assert statement.parameters == 1


@pytest.mark.parametrize(
    ("sql", "error", "position"),
    [
        ("SELEC 1", SqlSyntaxError, 1),
        ("SELECT 1 FROM t WHERE * 2", SqlSyntaxError, 25),
        ("SELECT 'abc", SqlSyntaxError, 8),
        ("SELECT 1; SELECT (1", SqlSyntaxError, 19),
        ("SHOW COLUMNS t", SqlSyntaxError, 14),
        ("TRUNCATE", SqlSyntaxError, 9),
        ("GRANT ALL ON t TO x", FeatureNotSupportedError, 1),
    ],
)
def test_errors_have_positions(sql: str, error: type[SqlError], position: int) -> None:
    with pytest.raises(error) as caught:
        parse_statements(sql)
    assert caught.value.position == position


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("SELECT " + "(" * 10_000 + "SELECT 1" + ")" * 10_000, StatementTooComplexError),
        ("SELECT " + "+".join(["1"] * 50_000), StatementTooComplexError),
        ("SELECT 1 WHERE " + " AND ".join(["a"] * 50_000), StatementTooComplexError),
        ("SELECT " + "NOT " * 5_000 + "TRUE", StatementTooComplexError),
        ("SELECT 1" + " UNION SELECT 1" * 5_000, StatementTooComplexError),
        ("SELECT " + "CASE WHEN a THEN " * 5_000, StatementTooComplexError),
        ("SELECT '" + "x" * (100 << 20) + "'", ProgramLimitError),
        ("SELECT '" + "x" * (5 << 20) + "'", ProgramLimitError),
        ("EXPLAIN " * 5_000 + "SELECT 1", ProgramLimitError),
    ],
    ids=["nested", "chain", "and", "not", "union", "case", "100MB", "5MB", "explain"],
)
def test_hostile_texts_are_refused_quickly(sql: str, error: type[SqlError]) -> None:
    before = time.process_time()
    with pytest.raises(error):
        parse_statements(sql)
    assert time.process_time() - before < 3


def test_texts_below_the_limits_pass() -> None:
    for sql in (
        "SELECT " + "(" * 98 + "1" + ")" * 98,
        "SELECT " + "+".join(["1"] * 200),
        "SELECT 1 WHERE " + " OR ".join(["a = 1"] * 1_500),
        "SELECT 1" + " UNION SELECT 1" * 99,
    ):
        assert len(parse_statements(sql)) == 1


def test_bulk_values_are_read_by_the_fast_reader() -> None:
    rows = ", ".join(f"({i}, 'it''s', NULL, -1.50, TRUE)" for i in range(1_000))
    (statement,) = parse_statements(f'INSERT INTO "T" (a, b, c, d, e) VALUES {rows} ON CONFLICT DO NOTHING RETURNING a;')
    assert statement.rows is not None
    assert len(statement.rows) == 1_000
    assert [repr(value) for value in statement.rows[7]] == ["7", '"it\'s"', "None", "Decimal('-1.50')", "True"]
    assert isinstance(statement.tree, exp.Insert)
    assert statement.tree.args["returning"] is not None


def test_an_error_behind_bulk_rows_has_its_place() -> None:
    sql = "INSERT INTO t VALUES " + ", ".join(["(1, 'x')"] * 500) + " ON CONFLICT DO NOTHIN"
    with pytest.raises(SqlSyntaxError) as caught:
        parse_statements(sql)
    assert caught.value.position is not None
    assert sql[caught.value.position - 1 :].startswith("NOTHIN")


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES (1 + 1)",
        "INSERT INTO t VALUES (E'\\n')",
        "INSERT INTO t VALUES ('a' 'b')",
        "INSERT INTO t VALUES ('a'::text)",
        "INSERT INTO t VALUES ($1)",
        "INSERT INTO t VALUES (DEFAULT)",
        "INSERT INTO t VALUES (1) , (2",
        "INSERT INTO t SELECT 1",
    ],
)
def test_the_fast_reader_leaves_expressions_alone(sql: str) -> None:
    assert read_values(sql) is None


_LITERALS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.text(st.characters(blacklist_characters="\x00", codec="utf-8"), max_size=5)
)


@given(st.lists(st.lists(_LITERALS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_fast_reader_gives_back_what_was_written(rows: list[list[object]]) -> None:
    def spell(value: object) -> str:
        return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else "NULL" if value is None else str(value)

    text = "INSERT INTO t VALUES" + ",\n".join("(" + " ,".join(map(spell, row)) + ")" for row in rows)
    read = read_values(text)
    assert read is not None
    assert [list(row) for row in read.rows] == rows


def test_expressions_of_descriptors() -> None:
    expression = parse_expression("a + now()")
    assert isinstance(expression, exp.Add)
    assert position_of(expression) == 8


@pytest.mark.parametrize(
    ("text", "parameters"),
    [("SELECT $1,$2", 2), ("INSERT INTO t VALUES ($1,$2,$3)", 3), ("SELECT '$5,$6', $1,$2", 2), ("SELECT '$1,$2$'", 0)],
)
def test_numbered_parameters_stand_side_by_side_without_blanks(text: str, parameters: int) -> None:
    assert parse_statements(text)[0].parameters == parameters


@pytest.mark.parametrize("number", ["9" * 5_000, "1e-999999999", "1E+999999999", "." + "9" * 5_000, "1e2000"])
@pytest.mark.parametrize("text", ["SELECT {}", "INSERT INTO t VALUES ({})" + " " * 1_000])
def test_numbers_that_no_type_holds_are_refused_before_they_are_read(number: str, text: str) -> None:
    with pytest.raises(NumericOutOfRangeError):
        parse_statements(text.format(number))


def test_millions_of_spaces_are_refused_quickly() -> None:
    for text in (" " * 15_000_000, "INSERT" + " " * 15_000_000, "INSERT INTO t" + " " * 15_000_000):
        with pytest.raises(ProgramLimitError):
            parse_statements(text)


@pytest.mark.parametrize("text", ["INSERT INTO t (VALUES (1), (2))", "INSERT INTO t (a) (VALUES (1), (2)) RETURNING a"])
def test_the_rows_of_an_insert_may_stand_in_parentheses(text: str) -> None:
    tree = parse_statements(text)[0].tree
    assert isinstance(tree, exp.Insert)
    source = tree.expression.this if isinstance(tree.expression, exp.Subquery | exp.Paren) else tree.expression
    assert source.find(exp.Values) is not None
    assert len(source.find(exp.Values).expressions) == 2

"""Rows compared with what a query gives, written as queries over plain values.

    (a, b) IN (SELECT x, y …)   ─▶   (SELECT CASE WHEN bool_or(a = x AND b = y) THEN TRUE
                                                  WHEN bool_or((a = x AND b = y) IS NULL) THEN NULL ELSE FALSE END FROM (SELECT x, y …))
    (a, b) = (SELECT x, y …)    ─▶   (SELECT a = x AND b = y FROM (SELECT x, y …))

Invariants:
- Three-valued logic is kept: a NULL that could make a row equal makes the answer NULL.
- The names given to the query's columns have blanks, so that no name of the row means them.
"""

from collections.abc import Sequence

from sqlglot import exp

EXACT_COLUMNS = "exact columns"
"""In an alias's meta: its query must have as many columns as the alias names."""


def expand_rows(expr: exp.Expr) -> exp.Expr:
    """Give an unbound expression without rows compared with queries; those inside its sub-queries stay."""
    if not any(_expansion(node) is not None for node in _own_nodes(expr)):
        return expr
    return _expanded(expr.copy())


def _own_nodes(expr: exp.Expr) -> Sequence[exp.Expr]:
    return list(expr.walk(prune=lambda node: isinstance(node, exp.Query) and node is not expr))


def _expanded(expr: exp.Expr) -> exp.Expr:
    # From the leaves up, so that what replaces a node holds expanded ones.
    for node in reversed(_own_nodes(expr)):
        replacement = _expansion(node)
        if replacement is not None:
            if node is expr:
                return replacement
            node.replace(replacement)
    return expr


def _expansion(node: exp.Expr) -> exp.Expr | None:
    if isinstance(node, exp.In):
        query = node.args.get("query")
        if query is None and len(node.expressions) == 1 and isinstance(node.expressions[0], exp.Values):
            query = exp.Subquery(this=node.expressions[0].copy())
        if query is None:
            return None
        if isinstance(node.this, exp.Tuple):
            return _quantified(node.this, query, is_any=True, is_equal=True)
        return None if node.args.get("query") is not None else exp.In(this=node.this.copy(), query=query)
    if isinstance(node, exp.EQ | exp.NEQ) and isinstance(node.this, exp.Tuple):
        right, is_equal = node.expression, isinstance(node, exp.EQ)
        if isinstance(right, exp.Any | exp.All) and isinstance(right.this, exp.Query):
            return _quantified(node.this, right.this, is_any=isinstance(right, exp.Any), is_equal=is_equal)
        if isinstance(right, exp.Subquery):
            names = _names(node.this)
            return _over(_compared(node.this, names, is_equal), right, names)
    return None


def _names(row: exp.Tuple) -> list[str]:
    return [f"column {number} of the query" for number in range(1, len(row.expressions) + 1)]


def _compared(row: exp.Tuple, names: Sequence[str], is_equal: bool) -> exp.Expr:
    columns = [exp.column(exp.to_identifier(name, quoted=True)) for name in names]
    parts = [exp.EQ(this=value.copy(), expression=found) for value, found in zip(row.expressions, columns)]
    equal = exp.and_(*parts, copy=False)
    return equal if is_equal else exp.Not(this=exp.Paren(this=equal))


def _quantified(row: exp.Tuple, query: exp.Expr, *, is_any: bool, is_equal: bool) -> exp.Expr:
    names = _names(row)
    comparison = exp.Paren(this=_compared(row, names, is_equal))
    unknown = exp.Is(this=comparison.copy(), expression=exp.Null())
    decisive = comparison.copy() if is_any else exp.Not(this=comparison.copy())
    answer = exp.Case(
        ifs=[
            exp.If(this=exp.Anonymous(this="bool_or", expressions=[decisive]), true=exp.Boolean(this=is_any)),
            exp.If(this=exp.Anonymous(this="bool_or", expressions=[unknown]), true=exp.Null()),
        ],
        default=exp.Boolean(this=not is_any),
    )
    return _over(answer, query, names)


def _over(answer: exp.Expr, query: exp.Expr, names: Sequence[str]) -> exp.Expr:
    columns = [exp.to_identifier(name, quoted=True) for name in names]
    alias = exp.TableAlias(this=exp.to_identifier("the query", quoted=True), columns=columns)
    alias.meta[EXACT_COLUMNS] = True
    inner = query.this if isinstance(query, exp.Subquery) and not query.args.get("alias") else query
    source = exp.Subquery(this=inner.copy(), alias=alias)
    return exp.Subquery(this=exp.Select(expressions=[answer], from_=exp.From(this=source)))

"""What counts as a difference: spelling and last digits only where they must."""

from __future__ import annotations

from dsdb.sql.types import TypeName
from tests.differential.compare import difference
from tests.differential.peers import Outcome


def _outcome(type_: TypeName, *values: str) -> Outcome:
    return Outcome(("v",), (type_,), tuple((value,) for value in values))


def test_decimals_of_one_value_stand_in_any_order() -> None:
    first = _outcome(TypeName.DECIMAL, "1", "1.000")
    assert not difference(first, _outcome(TypeName.DECIMAL, "1.000", "1"), order=[0])
    assert difference(_outcome(TypeName.DECIMAL, "1", "2"), _outcome(TypeName.DECIMAL, "2", "1"), order=[0])


def test_large_values_that_are_nearly_the_same_are_paired() -> None:
    first = _outcome(TypeName.DECIMAL, "123456789018", "123456789020")
    assert not difference(first, _outcome(TypeName.DECIMAL, "123456789020", "123456789018"), is_quotient=True)
    assert difference(first, _outcome(TypeName.DECIMAL, "123456789020", "123456789019"), is_quotient=True)


def test_zeros_of_both_signs_are_one_value() -> None:
    first = _outcome(TypeName.DOUBLE, "-1", "-0", "0.5")
    assert not difference(first, _outcome(TypeName.DOUBLE, "0", "-1", "0.5"))
    assert difference(first, _outcome(TypeName.DOUBLE, "0", "1", "0.5"))

"""Amounts: what is taken is an integer in its limits, whatever is offered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from payflow.core.money import EXPONENTS, MAX_AMOUNT, is_amount, is_currency

ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.decimals(), st.text(), st.binary())


@given(ANYTHING)
def test_only_integers_within_the_limits_are_amounts(value: object) -> None:
    assert is_amount(value) == (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_AMOUNT)


@given(st.text(max_size=4))
def test_only_codes_of_the_table_are_currencies(code: str) -> None:
    assert is_currency(code) == (code in set(EXPONENTS))


@given(st.sampled_from(sorted(EXPONENTS)))
def test_every_code_has_a_small_exponent(code: str) -> None:
    assert EXPONENTS[code] in range(5)

"""Amounts and currencies."""

from __future__ import annotations

import re

import pytest

from payflow.core.money import EXPONENTS, MAX_AMOUNT, TABLE_DATE, is_amount, is_currency


@pytest.mark.parametrize(
    ("code", "exponent"),
    [
        ("EUR", 2),
        ("USD", 2),
        ("JPY", 0),
        ("KRW", 0),
        ("UGX", 0),
        ("ISK", 0),
        ("KWD", 3),
        ("TND", 3),
        ("CLF", 4),
        ("UYW", 4),
    ],
)
def test_currencies_have_their_minor_units(code: str, exponent: int) -> None:
    assert exponent == EXPONENTS[code]
    assert is_currency(code)


@pytest.mark.parametrize("code", ["XCG", "ZWG", "SLE", "VED", "XAD"])
def test_codes_that_are_new_in_the_table_are_known(code: str) -> None:
    assert is_currency(code)


@pytest.mark.parametrize("code", ["BGN", "HRK", "ANG", "SLL", "CUC", "ZWL", "DEM"])
def test_codes_that_left_the_table_are_refused(code: str) -> None:
    assert not is_currency(code)


@pytest.mark.parametrize("code", ["XAU", "XDR", "XTS", "XXX"])
def test_codes_without_a_minor_unit_are_no_money(code: str) -> None:
    assert not is_currency(code)


@pytest.mark.parametrize("code", ["eur", "EU", "EURO", "", " EUR", "EUR\n", "978"])
def test_a_code_is_compared_letter_by_letter(code: str) -> None:
    assert not is_currency(code)


def test_the_table_is_whole_and_cannot_be_changed() -> None:
    assert "2026-01-01" == TABLE_DATE
    assert 165 == len(EXPONENTS)
    assert all(re.fullmatch("[A-Z]{3}", code) for code in EXPONENTS)
    with pytest.raises(TypeError):
        EXPONENTS["EUR"] = 3  # type: ignore[index]


@pytest.mark.parametrize("value", [1, 2, MAX_AMOUNT])
def test_amounts_within_the_limits(value: int) -> None:
    assert is_amount(value)


@pytest.mark.parametrize("value", [0, -1, MAX_AMOUNT + 1, True, 1.0, "1", None])
def test_what_is_no_amount(value: object) -> None:
    assert not is_amount(value)


def test_thousands_of_largest_amounts_fit_a_64_bit_sum() -> None:
    assert 9_223 * MAX_AMOUNT < 2**63

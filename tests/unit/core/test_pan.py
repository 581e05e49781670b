"""Card numbers in text: what is found, and what is left alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payflow.core import pan
from payflow.core.pan import holds_card, may_hold_card, passes_luhn

# Numbers that the schemes and processors publish for tests.
CARDS = (
    "4111111111111111", "4242424242424242", "4222222222222", "5555555555554444", "2223003122003222", "378282246310005",
    "6011111111111117",
    "3530111333300000", "30569309025904", "6200000000000005", "6304000000000000", "4000056655665556",
    "6555900000604105",
    "4000000000000000006",
)  # fmt: skip


def completed(digits: str) -> str:
    """With its check digit."""
    return next(digits + str(check) for check in range(10) if passes_luhn(f"{digits}{check}".encode()))


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_found_bare_and_in_groups(card: str) -> None:
    by_four = [card[start : start + 4] for start in range(0, len(card), 4)]
    texts = [card, f"card: {card}.", f"({card})", *(mark.join(by_four) for mark in (" ", "-", ".", "\u00a0", "\u2013"))]

    assert [text for text in texts if not holds_card(text)] == []
    assert [text for text in texts if not holds_card(text, identifier=True)] == []
    assert all(may_hold_card(text.encode()) for text in texts)


@pytest.mark.parametrize("card", CARDS)
def test_a_card_that_touches_letters_is_found(card: str) -> None:
    assert holds_card(f"card{card}x")


@pytest.mark.parametrize("card", CARDS)
def test_another_last_digit_is_no_card(card: str) -> None:
    assert not holds_card(card[:-1] + str((int(card[-1]) + 1) % 10))


@pytest.mark.parametrize(
    "text",
    [
        "", "4111", "411111111111", "x" * 500, "41111111111111111111", "0000000000000000",
        "2026-11-25T17:00:00.123456Z", "550e8400-e29b-41d4-a716-446655440000", "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "4,111,111,111,111,111",
        "4111 1111\n1111 1111", "4111  1111  1111  1111",
    ],
)  # fmt: skip
def test_other_text_is_left_alone(text: str) -> None:
    assert not holds_card(text)


def test_digits_of_other_scripts_count() -> None:
    assert holds_card("\uff14" + "\uff11" * 15)
    assert holds_card("\u0664" + "\u0661" * 15)


def test_a_card_behind_other_groups_is_found() -> None:
    assert holds_card("ref 42 4111 1111 1111 1111 7")


def test_an_identifier_is_refused_only_with_the_prefix_of_a_scheme() -> None:
    serial = completed("202511250000000")

    assert holds_card(serial)
    assert not holds_card(serial, identifier=True)
    assert holds_card("4111111111111111", identifier=True)


def test_hex_text_is_refused_only_with_the_prefix_of_a_scheme() -> None:
    serial = completed("202511250000000")

    assert not holds_card(f"ab{serial}cd")


@given(st.integers(min_value=10**11, max_value=10**17))
def test_every_number_that_passes_luhn_is_found_in_free_text(number: int) -> None:
    assert holds_card(f"no. {completed(str(number))}") is (len(str(number)) + 1 >= 13)


@given(st.text(alphabet="0123456789 -.ab/é\\", max_size=60))
def test_the_quick_look_clears_nothing_that_holds_a_card(text: str) -> None:
    if holds_card(text):
        assert may_hold_card(text.encode())


@given(st.text(max_size=80))
def test_any_text_is_looked_at_without_an_error(text: str) -> None:
    holds_card(text)
    holds_card(text, identifier=True)


@given(st.from_regex(r"[0-9]{2,19}", fullmatch=True).filter(str.isascii))
def test_luhn_agrees_with_its_definition(digits: str) -> None:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value

    assert passes_luhn(digits.encode()) is (total % 10 == 0)


def naive_stretch(run: bytes, *, scheme_only: bool) -> bool:
    """By the definition: every stretch of whole groups, summed anew."""
    groups = re.findall(rb"[0-9]+", run)
    stretches = (b"".join(groups[first:last]) for first in range(len(groups)) for last in range(first, len(groups) + 1))
    return any(
        13 <= len(digits) <= 19
        and passes_luhn(digits)
        and digits.strip(b"0") != b""
        and (not scheme_only or pan._SCHEME.fullmatch(digits) is not None)
        for digits in stretches
    )


@given(
    st.one_of(
        st.lists(st.from_regex(rb"[0-9]{1,6}", fullmatch=True), min_size=1, max_size=24).map(b" ".join),
        st.lists(st.sampled_from([b"0", b"00", b"4", b"11", b"1111", b"41"]), min_size=1, max_size=24).map(b"-".join),
        st.from_regex(rb"[0-9]{12,21}", fullmatch=True),
    ),
    st.booleans(),
)
def test_stretches_agree_with_their_definition(run: bytes, scheme_only: bool) -> None:
    assert pan._passing_stretch(run, scheme_only=scheme_only) is naive_stretch(run, scheme_only=scheme_only)


def lines_run(call: Callable[[], object]) -> int:
    """Lines of core/pan.py that a call runs: work that a slow machine does not change."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != pan.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def without_card(groups: int) -> bytes:
    """Single digits of which no stretch passes."""
    digits = b"1"
    while len(digits) < groups:
        fits = (digits + b"%d" % one for one in range(10))
        digits = next(more for more in fits if not any(passes_luhn(more[-size:]) for size in range(13, 20)))
    return b" ".join(digits[place : place + 1] for place in range(groups))


@pytest.mark.parametrize("run", [without_card(2000), b" ".join([b"0"] * 2000), b" ".join([b"0"] * 60 + [b"1"]) * 33])
@pytest.mark.parametrize("scheme_only", [False, True])
def test_a_request_full_of_digits_is_little_work(run: bytes, scheme_only: bool) -> None:
    groups = len(run.split())

    assert lines_run(lambda: pan._passing_stretch(run, scheme_only=scheme_only)) < 20 * groups

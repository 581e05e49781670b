"""The count window against a plain list of the last N calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payflow.core.window import NO_RATE, CountWindow


def filled(window: CountWindow, calls: str) -> CountWindow:
    """Record one call a letter: `.` fast success, `s` slow success, `F` failure, `S` slow failure."""
    for call in calls:
        window.record(failed=call in "FS", slow=call in "sS")
    return window


def counts(window: CountWindow) -> tuple[int, int, int, int]:
    return window.total, window.failed, window.slow, window.slow_failed


def test_empty_window_knows_no_rate() -> None:
    window = CountWindow(4, 1)

    assert counts(window) == (0, 0, 0, 0)
    assert (window.failure_rate, window.slow_call_rate) == (NO_RATE, NO_RATE)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [(".", (1, 0, 0, 0)), ("s", (1, 0, 1, 0)), ("F", (1, 1, 0, 0)), ("S", (1, 1, 1, 1)), (".sFS", (4, 2, 2, 1))],
)
def test_each_kind_of_call_is_counted_once(calls: str, expected: tuple[int, int, int, int]) -> None:
    assert counts(filled(CountWindow(4, 1), calls)) == expected


def test_rates_are_unknown_below_the_minimum_and_percent_from_it_on() -> None:
    window = filled(CountWindow(10, 3), "Fs")
    before = (window.failure_rate, window.slow_call_rate)

    filled(window, ".")

    assert before == (NO_RATE, NO_RATE)
    assert window.failure_rate == pytest.approx(33.333333, abs=1e-4)
    assert window.slow_call_rate == pytest.approx(33.333333, abs=1e-4)


def test_minimum_is_capped_at_the_size() -> None:
    window = filled(CountWindow(2, 100), "F.")

    assert window.minimum == 2
    assert window.failure_rate == 50.0


@pytest.mark.parametrize("first", ".sFS")
def test_newest_call_takes_the_place_of_the_oldest(first: str) -> None:
    window = filled(CountWindow(3, 1), first + "FF")

    filled(window, ".")

    assert counts(window) == (3, 2, 0, 0)


@pytest.mark.parametrize(("size", "minimum"), [(0, 1), (1, 0)])
def test_window_of_nothing_is_a_programming_mistake(size: int, minimum: int) -> None:
    with pytest.raises(AssertionError):
        CountWindow(size, minimum)


@given(size=st.integers(1, 7), calls=st.text(".sFS", max_size=40))
def test_counters_equal_a_recount_of_the_last_calls(size: int, calls: str) -> None:
    last = calls[-size:]

    window = filled(CountWindow(size, 1), calls)

    slow_failed = last.count("S")
    assert counts(window) == (len(last), last.count("F") + slow_failed, last.count("s") + slow_failed, slow_failed)

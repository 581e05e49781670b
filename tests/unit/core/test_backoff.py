"""Backoff: growth, cap, jitter, and what construction refuses."""

from __future__ import annotations

import math
import random

import pytest

from payflow.core.backoff import Backoff


def test_sv_15_without_jitter_the_delays_are_exactly_the_grown_ones() -> None:
    backoff = Backoff(initial_s=0.1, factor=2, cap_s=5, jitter=False)

    delays = [backoff.delay_s(attempt, draw=0.5) for attempt in range(8)]

    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5], rel=1e-12)


def test_sv_15_with_full_jitter_each_delay_lies_between_zero_and_its_ceiling() -> None:
    backoff = Backoff(initial_s=0.1, factor=2, cap_s=5, jitter=True)
    chance = random.Random(15)

    delays = [backoff.delay_s(attempt, chance.random()) for attempt in range(8)]

    assert all(0 <= delay <= min(5, 0.1 * 2**attempt) for attempt, delay in enumerate(delays))
    assert len(set(delays)) > 1


def test_full_jitter_reaches_both_ends() -> None:
    backoff = Backoff(initial_s=0.1, factor=2, cap_s=5)

    assert backoff.delay_s(3, draw=0.0) == 0.0
    assert backoff.delay_s(3, draw=1.0) == pytest.approx(0.8)


def test_an_absurd_attempt_number_still_gives_the_cap() -> None:
    """2.0**1100 is no float; a child that crashes now and then for months gets that far."""
    assert Backoff(cap_s=5, jitter=False).delay_s(1100, draw=0.0) == 5


def test_initial_zero_means_always_at_once() -> None:
    backoff = Backoff(initial_s=0, cap_s=5, jitter=False)

    assert [backoff.delay_s(attempt, draw=1.0) for attempt in (0, 1, 1100)] == [0, 0, 0]


def test_longest_total_sums_the_ceilings() -> None:
    assert Backoff(initial_s=1, factor=2, cap_s=30).longest_total_s(10) == 181


def test_all_problems_are_in_one_error() -> None:
    with pytest.raises(ValueError) as caught:
        Backoff(initial_s=-1, factor=0.5, cap_s=-2, reset_after_s=0)

    assert all(name in str(caught.value) for name in ("initial_s", "factor", "cap_s", "reset_after_s"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["initial_s", "factor", "cap_s", "reset_after_s"])
def test_numbers_that_are_none_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Backoff(**{name: value})


def test_a_cap_below_the_first_delay_is_refused() -> None:
    with pytest.raises(ValueError, match="cap_s must be finite and at least initial_s"):
        Backoff(initial_s=2, cap_s=1)


@pytest.mark.parametrize(("attempt", "draw"), [(-1, 0.5), (0, -0.1), (0, 1.1)])
def test_arguments_out_of_range_are_a_bug_of_the_caller(attempt: int, draw: float) -> None:
    with pytest.raises(AssertionError):
        Backoff().delay_s(attempt, draw)

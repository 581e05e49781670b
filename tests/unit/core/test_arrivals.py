"""Schedules and plans of a load run."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payflow.core.arrivals import LARGEST_AMOUNT, Arrival, Mix, Step, amount, constant, parse_mix, poisson, schedule

DRAWS = st.floats(0, 1, exclude_max=True)
RATES = st.floats(0.5, 500)
DURATIONS = st.floats(0.01, 5)


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    capture = draw(st.floats(0, 1))
    return Mix(capture, draw(st.floats(0, capture)), draw(st.floats(0, math.nextafter(1 - capture, 0))))


# ------------------------------------------------------------------ schedules
def test_constant_is_rate_times_duration_at_equal_distances() -> None:
    assert [0.0, 0.25, 0.5, 0.75] == list(constant(4, 1.0))


def test_constant_does_not_drift() -> None:
    """A distance that is added up a million times is off by more than itself."""
    *_, last = constant(3_000, 100.0)

    assert last == 299_999 / 3_000


def test_poisson_has_the_rate_and_the_scatter() -> None:
    offsets = list(poisson(1_000, 60.0, random.Random(7).random))
    gaps = [after - before for before, after in itertools.pairwise(offsets)]
    mean = sum(gaps) / len(gaps)

    assert len(offsets) == pytest.approx(60_000, rel=0.02)
    # The standard deviation of an exponential distance is its mean.
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.02)


@given(st.sampled_from(Arrival), RATES, DURATIONS, st.integers(0, 1000))
def test_offsets_rise_within_the_run_and_the_seed_repeats_them(
    arrival: Arrival, rate: float, duration_s: float, seed: int
) -> None:
    first, again = (
        list(schedule(arrival, rate=rate, duration_s=duration_s, draw=random.Random(seed).random)) for _ in range(2)
    )

    assert first == again
    assert first == sorted(first)
    assert all(0 <= offset < duration_s for offset in first)


# ------------------------------------------------------------------ plans
@given(mixes(), DRAWS)
def test_every_plan_is_legal(mix: Mix, draw: float) -> None:
    """What is refunded was captured; what is voided was not."""
    assert mix.plan(draw) in {(), (Step.CAPTURE,), (Step.CAPTURE, Step.REFUND), (Step.VOID,)}


def test_plans_have_the_shares_of_the_mix() -> None:
    mix, draw = Mix(0.5, 0.1, 0.2), random.Random(3).random
    plans = Counter(mix.plan(draw()) for _ in range(50_000))

    assert plans[Step.CAPTURE, Step.REFUND] == pytest.approx(5_000, rel=0.1)
    assert plans[Step.CAPTURE,] == pytest.approx(20_000, rel=0.05)
    assert plans[Step.VOID,] == pytest.approx(10_000, rel=0.05)


def test_share_of_one_is_everybody_and_of_zero_nobody() -> None:
    assert {Mix(1, 1).plan(draw / 100) for draw in range(100)} == {(Step.CAPTURE, Step.REFUND)}
    assert {Mix(void=1).plan(draw / 100) for draw in range(100)} == {(Step.VOID,)}
    assert {Mix().plan(draw / 100) for draw in range(100)} == {()}


@given(DRAWS)
def test_amounts_are_within_their_bounds(draw: float) -> None:
    assert 100 <= amount(draw) < LARGEST_AMOUNT


# ------------------------------------------------------------------ what people write
def test_mix_is_read_as_written() -> None:
    assert parse_mix(" capture=0.5, refund = .1 ,void=0.2,") == Mix(0.5, 0.1, 0.2)
    assert parse_mix("") == Mix()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("capture", "no number"),
        ("capture=x", "no number"),
        ("steal=0.1", "is not one of"),
        ("capture=0.1,capture=0.2", "each once"),
        ("capture=1.5", "share from 0 to 1"),
        ("capture=-0.1", "share from 0 to 1"),
        ("capture=nan", "share from 0 to 1"),
        ("refund=0.1", "at most capture"),
        ("capture=0.6,void=0.5", "at most 1"),
    ],
)
def test_mix_that_cannot_be_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_mix(text)

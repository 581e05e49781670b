"""The breaker's machine, driven by a clock that is a number. Ids such as DX-06 are rows of cases/breaker_cases.yaml."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from payflow.core.breaker import (
    EVENTS_KEPT,
    TRANSITIONS,
    Breaker,
    BreakerConfig,
    Cause,
    EventKind,
    IllegalTransition,
    Outcome,
    OutcomeKind,
    Permit,
    Rejected,
    State,
    status_body,
)

WAIT_S = 30.0
LONGEST_HALF_OPEN_S = 60.0
SLOW_S = 5.0
TRIALS = 3
FAST = Outcome(OutcomeKind.SUCCESS, 0.05)
SLOW = Outcome(OutcomeKind.SUCCESS, SLOW_S + 0.001)
FAILED = Outcome(OutcomeKind.FAILURE, 0.1)
SLOW_FAILED = Outcome(OutcomeKind.FAILURE, 15.0)
IGNORED = Outcome(OutcomeKind.IGNORED, 0.2)


def make(**changes: float | bool) -> Breaker:
    return Breaker("kafka-publisher", BreakerConfig(**changes))  # type: ignore[arg-type]


def admit(breaker: Breaker, now: float = 0.0) -> Permit:
    answer = breaker.acquire(now)
    assert isinstance(answer, Permit)
    return answer


def refuse(breaker: Breaker, now: float = 0.0) -> Rejected:
    answer = breaker.acquire(now)
    assert isinstance(answer, Rejected)
    return answer


def call(breaker: Breaker, *outcomes: Outcome, now: float = 0.0) -> None:
    for outcome in outcomes:
        breaker.record(admit(breaker, now), outcome, now)


def half_open(**changes: float | bool) -> Breaker:
    """Return a breaker whose first trial round began at 0."""
    breaker = make(**changes)
    breaker.transition(State.OPEN, 0.0)
    breaker.transition(State.HALF_OPEN, 0.0)
    breaker.take_events()
    return breaker


def moves(breaker: Breaker) -> list[tuple[State, State, Cause]]:
    return [(event.from_state, event.to_state, event.cause) for event in breaker.take_events()]


# ------------------------------------------------------------------ configuration
def test_defaults_are_those_of_the_kafka_publisher() -> None:
    config = BreakerConfig()

    expected = (50.0, 50.0, SLOW_S, 20, 5, WAIT_S, TRIALS, True, LONGEST_HALF_OPEN_S)
    assert tuple(getattr(config, field.name) for field in fields(config)) == expected


def test_all_problems_of_a_configuration_are_told_at_once() -> None:
    with pytest.raises(ValueError) as caught:
        BreakerConfig(
            failure_rate_threshold=0,
            slow_call_rate_threshold=101,
            slow_call_duration_threshold_s=0,
            sliding_window_size=0,
            minimum_number_of_calls=0,
            wait_duration_in_open_state_s=-1,
            permitted_number_of_calls_in_half_open_state=0,
            max_wait_duration_in_half_open_state_s=-1,
        )

    problems = str(caught.value).split("; ")
    numbers = [field.name for field in fields(BreakerConfig) if not field.name.startswith("automatic")]
    assert [problem.split()[0] for problem in problems] == numbers


@pytest.mark.parametrize(
    "changes",
    [
        {"failure_rate_threshold": float("nan")},
        {"sliding_window_size": 2.5},
        {"wait_duration_in_open_state_s": float("inf")},
        {"max_wait_duration_in_half_open_state_s": 0.0001},
    ],
)
def test_nonsense_numbers_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        BreakerConfig(**changes)  # type: ignore[arg-type]


# ------------------------------------------------------------------ CLOSED
def test_closed_breaker_opens_when_the_failure_rate_is_reached() -> None:
    """PF-02: the fifth failure is the first that counts, for five calls are the minimum."""
    breaker = make()
    call(breaker, FAILED, FAILED, FAILED, FAILED)
    before = breaker.state

    call(breaker, FAILED)

    assert (before, breaker.state) == (State.CLOSED, State.OPEN)
    assert moves(breaker) == [(State.CLOSED, State.OPEN, Cause.AUTO)]


def test_success_that_reaches_the_minimum_can_open_the_breaker() -> None:
    """SM-07: E E E S S opens at 60 % with the last S."""
    breaker = make()
    call(breaker, FAILED, FAILED, FAILED, FAST)
    before = breaker.state

    call(breaker, FAST)

    assert (before, breaker.state) == (State.CLOSED, State.OPEN)


def test_slow_calls_open_the_breaker_though_nothing_fails() -> None:
    """F35: the broker answers, but too late."""
    breaker = make()

    call(breaker, SLOW, SLOW, SLOW, FAST, FAST)

    (event,) = breaker.take_events()
    assert (event.kind, event.failure_rate, event.slow_call_rate) == (EventKind.STATE_TRANSITION, 0.0, 60.0)
    assert breaker.state is State.OPEN


@pytest.mark.parametrize("bad", [SLOW, FAILED])
def test_rate_is_judged_with_every_call_above_the_minimum(bad: Outcome) -> None:
    breaker = make()
    call(breaker, *[FAST] * 5, *[bad] * 4)
    before = breaker.state

    call(breaker, bad)

    assert (before, breaker.state) == (State.CLOSED, State.OPEN)


def test_call_of_exactly_the_slow_duration_is_not_slow() -> None:
    breaker = make()

    call(breaker, Outcome(OutcomeKind.SUCCESS, SLOW_S), SLOW, SLOW_FAILED)

    snapshot = breaker.snapshot(0.0)
    assert (snapshot.buffered_calls, snapshot.slow_calls, snapshot.slow_failed_calls) == (3, 2, 1)


def test_rate_just_below_the_limit_stays_closed() -> None:
    breaker = make(sliding_window_size=100)

    call(breaker, FAST, FAST, FAST, FAST, FAST, FAILED, FAILED, FAILED, FAILED)

    assert breaker.state is State.CLOSED
    assert breaker.snapshot(0.0).failure_rate == pytest.approx(44.444443, abs=1e-4)


def test_old_failures_leave_the_window() -> None:
    breaker = make(sliding_window_size=4, minimum_number_of_calls=4, failure_rate_threshold=75)

    call(breaker, FAILED, FAILED, FAST, FAST, FAST, FAST, FAILED, FAILED)

    assert breaker.state is State.CLOSED


def test_minimum_above_the_window_is_capped_at_it() -> None:
    breaker = make(sliding_window_size=2, minimum_number_of_calls=100)

    call(breaker, FAILED, FAILED)

    assert breaker.state is State.OPEN


def test_ignored_outcome_is_no_evidence() -> None:
    breaker = make()

    call(breaker, *[IGNORED] * 10)

    snapshot = breaker.snapshot(0.0)
    assert (snapshot.buffered_calls, snapshot.calls_total[OutcomeKind.IGNORED]) == (0, 10)
    assert snapshot.calls_duration_s_total[OutcomeKind.IGNORED] == pytest.approx(2.0)


# ------------------------------------------------------------------ OPEN
def test_open_breaker_refuses_and_tells_when_to_come_back() -> None:
    breaker = make()
    breaker.transition(State.OPEN, 100.0)

    rejected = refuse(breaker, 110.0)

    assert rejected == Rejected(20.0, State.OPEN)
    assert breaker.admits_at(110.0) == 130.0
    assert breaker.snapshot(110.0).not_permitted_calls == 1


def test_timer_ends_the_wait_exactly_when_it_is_due() -> None:
    """PF-03."""
    breaker = make()
    breaker.transition(State.OPEN, 0.0)
    breaker.tick(29.999)
    before = breaker.state

    breaker.tick(WAIT_S)

    assert (before, breaker.state) == (State.OPEN, State.HALF_OPEN)
    assert moves(breaker)[-1] == (State.OPEN, State.HALF_OPEN, Cause.TIMER)


def test_call_after_the_wait_is_admitted_though_the_timer_is_late() -> None:
    breaker = make()
    breaker.transition(State.OPEN, 0.0)

    admit(breaker, WAIT_S + 1)

    assert breaker.state is State.HALF_OPEN


def test_without_the_timer_the_first_call_after_the_wait_begins_half_open() -> None:
    """DX-06, PF-11: strict, still refused at exactly the end of the wait; and nothing happens without a call."""
    breaker = make(automatic_transition_from_open_to_half_open_enabled=False)
    breaker.transition(State.OPEN, 0.0)
    breaker.tick(3600.0)
    idle = (breaker.state, breaker.next_due())
    at_the_end = refuse(breaker, WAIT_S)

    admit(breaker, 30.001)

    assert idle == (State.OPEN, None)
    assert at_the_end.retry_after_s is not None
    assert at_the_end.retry_after_s > 0
    assert moves(breaker)[-1] == (State.OPEN, State.HALF_OPEN, Cause.AUTO)


def test_coming_back_when_told_is_always_enough() -> None:
    breaker = make(automatic_transition_from_open_to_half_open_enabled=False)
    breaker.transition(State.OPEN, 0.1)
    admits_at = breaker.admits_at(0.2)

    assert admits_at is not None
    assert isinstance(breaker.acquire(admits_at), Permit)


def test_outcome_of_a_call_admitted_before_the_opening_goes_into_the_window_it_came_from() -> None:
    breaker = make()
    late = admit(breaker)
    call(breaker, *[FAILED] * 5)

    breaker.record(late, FAST, 1.0)

    snapshot = breaker.snapshot(1.0)
    assert (snapshot.state, snapshot.buffered_calls, snapshot.failed_calls) == (State.OPEN, 6, 5)
    assert snapshot.late_outcomes_total == 0


def test_failures_in_open_judge_nothing() -> None:
    breaker = make()
    late = [admit(breaker) for _ in range(10)]
    call(breaker, *[FAILED] * 5)
    epoch = breaker.epoch

    for permit in late:
        breaker.record(permit, SLOW_FAILED, 1.0)

    assert (breaker.state, breaker.epoch) == (State.OPEN, epoch)


# ------------------------------------------------------------------ HALF_OPEN
def test_half_open_admits_the_permitted_calls_and_no_more() -> None:
    breaker = half_open()

    answers = [breaker.acquire(0.0) for _ in range(TRIALS + 2)]

    assert [isinstance(answer, Permit) for answer in answers] == [True, True, True, False, False]
    assert answers[-1] == Rejected(None, State.HALF_OPEN)
    assert breaker.admits_at(0.0) is None


def test_ended_trial_gives_no_permit_back() -> None:
    breaker = half_open(permitted_number_of_calls_in_half_open_state=2)

    call(breaker, FAST)
    admit(breaker)

    assert refuse(breaker).state is State.HALF_OPEN


def test_released_and_ignored_trials_make_room_for_another() -> None:
    """SM-03, SM-21."""
    breaker = half_open()
    first, second, _ = admit(breaker), admit(breaker), admit(breaker)

    breaker.release(first)
    breaker.record(second, IGNORED, 0.0)

    assert [isinstance(breaker.acquire(0.0), Permit) for _ in range(3)] == [True, True, False]
    assert breaker.snapshot(0.0).released_total == 1


def test_release_of_a_permit_that_took_no_slot_makes_no_room() -> None:
    """DX-49: the round never grows beyond its size."""
    breaker = half_open()
    permit = admit(breaker)
    breaker.release(permit)

    breaker.release(Permit(permit.generation, 0.0))
    breaker.release(Permit(permit.generation, 0.0))

    assert sum(isinstance(breaker.acquire(0.0), Permit) for _ in range(9)) == TRIALS


def test_good_trials_close_the_breaker_with_an_empty_window() -> None:
    breaker = half_open()

    call(breaker, FAST, FAST, FAST)

    assert moves(breaker) == [(State.HALF_OPEN, State.CLOSED, Cause.AUTO)]
    assert breaker.snapshot(0.0).buffered_calls == 0
    assert breaker.next_due() is None


def test_one_bad_trial_of_three_still_closes() -> None:
    """PF-04: 33 % is below the limit."""
    breaker = half_open()

    call(breaker, FAILED, FAST, FAST)

    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("bad", [FAILED, SLOW, SLOW_FAILED])
def test_bad_trials_open_the_breaker_again_with_the_full_wait(bad: Outcome) -> None:
    breaker = half_open()

    call(breaker, FAST, bad, bad, now=7.0)

    assert moves(breaker) == [(State.HALF_OPEN, State.OPEN, Cause.AUTO)]
    assert breaker.next_due() == 7.0 + WAIT_S


def test_verdict_waits_for_the_minimum_even_when_it_is_certain() -> None:
    """DX-16."""
    breaker = half_open()

    call(breaker, FAILED, FAILED)

    assert breaker.state is State.HALF_OPEN


def test_minimum_below_the_permitted_calls_decides_earlier() -> None:
    """DX-13, DX-14: the trials still in flight then belong to no current window."""
    breaker = half_open(minimum_number_of_calls=2, permitted_number_of_calls_in_half_open_state=10)
    permits = [admit(breaker) for _ in range(10)]
    for permit in permits[:2]:
        breaker.record(permit, FAST, 1.0)

    for permit in permits[2:]:
        breaker.record(permit, FAILED, 2.0)

    snapshot = breaker.snapshot(2.0)
    assert (snapshot.state, snapshot.buffered_calls, snapshot.late_outcomes_total) == (State.CLOSED, 0, 8)
    assert snapshot.calls_total[OutcomeKind.FAILURE] == 8


@pytest.mark.parametrize("late", [FAST, FAILED, IGNORED])
def test_late_outcome_of_a_call_admitted_in_closed_moves_no_round(late: Outcome) -> None:
    """DX-02, DX-03, DX-04."""
    breaker = make()
    old = [admit(breaker) for _ in range(TRIALS)]
    call(breaker, *[FAILED] * 5)
    breaker.tick(WAIT_S)
    trials = [admit(breaker, WAIT_S) for _ in range(TRIALS)]

    for permit in old:
        breaker.record(permit, late, WAIT_S)

    assert (breaker.state, breaker.snapshot(WAIT_S).buffered_calls) == (State.HALF_OPEN, 0)
    assert refuse(breaker, WAIT_S).state is State.HALF_OPEN
    assert len(trials) == TRIALS


def test_late_release_gives_the_new_round_nothing() -> None:
    breaker = half_open()
    old = admit(breaker)
    breaker.transition(State.HALF_OPEN, 1.0)
    new = [admit(breaker, 1.0) for _ in range(TRIALS)]

    breaker.release(old)

    assert refuse(breaker, 1.0).state is State.HALF_OPEN
    assert len(new) == TRIALS


def test_round_that_does_not_end_goes_back_to_open() -> None:
    """A lost permit or ignored-only traffic cannot park the breaker in HALF_OPEN."""
    breaker = half_open()
    admit(breaker)
    due = breaker.next_due()

    breaker.tick(LONGEST_HALF_OPEN_S)

    assert due == LONGEST_HALF_OPEN_S
    assert moves(breaker) == [(State.HALF_OPEN, State.OPEN, Cause.TIMER)]
    assert breaker.next_due() == LONGEST_HALF_OPEN_S + WAIT_S


def test_without_a_limit_the_round_lasts() -> None:
    """DX-17."""
    breaker = half_open(max_wait_duration_in_half_open_state_s=0)

    breaker.tick(86_400.0)

    assert (breaker.state, breaker.next_due()) == (State.HALF_OPEN, None)


def test_deadline_wins_over_an_outcome_that_comes_after_it() -> None:
    breaker = half_open()
    permits = [admit(breaker) for _ in range(TRIALS)]

    for permit in permits:
        breaker.record(permit, FAST, LONGEST_HALF_OPEN_S)

    assert moves(breaker) == [(State.HALF_OPEN, State.OPEN, Cause.TIMER)]
    assert breaker.snapshot(LONGEST_HALF_OPEN_S).buffered_calls == TRIALS


# ------------------------------------------------------------------ by hand
@pytest.mark.parametrize("origin", State)
@pytest.mark.parametrize("to", State)
def test_operator_moves_along_the_table_only(origin: State, to: State) -> None:
    breaker = half_open()
    if origin is not State.HALF_OPEN:
        breaker.transition(origin, 0.0)
    breaker.take_events()
    epoch = breaker.epoch

    if (origin, to) in TRANSITIONS:
        breaker.transition(to, 1.0)
        assert (breaker.state, breaker.epoch) == (to, epoch + 1)
        assert moves(breaker) == ([(origin, to, Cause.OPERATOR)] if origin is not to else [])
    else:
        with pytest.raises(IllegalTransition) as caught:
            breaker.transition(to, 1.0)
        assert (caught.value.origin, caught.value.to, caught.value.cause) == (origin, to, Cause.OPERATOR)
        assert (breaker.state, breaker.epoch, moves(breaker)) == (origin, epoch, [])


def test_cause_that_the_table_does_not_know_is_refused() -> None:
    breaker = make()
    breaker.transition(State.OPEN, 0.0)

    with pytest.raises(IllegalTransition, match="cannot go from OPEN to CLOSED \\(cause auto\\)"):
        breaker.transition(State.CLOSED, 0.0, cause=Cause.AUTO)


def test_open_again_by_hand_restarts_the_wait_and_keeps_the_window() -> None:
    """DX-20."""
    breaker = make()
    call(breaker, *[FAILED] * 5)

    breaker.transition(State.OPEN, 8.0)

    assert breaker.next_due() == 8.0 + WAIT_S
    assert breaker.snapshot(8.0).buffered_calls == 5


def test_timer_of_a_state_dies_with_it() -> None:
    """DX-24, DX-25: closed by hand, the breaker does not move by itself; opened again, it waits in full."""
    breaker = make()
    breaker.transition(State.OPEN, 0.0)
    breaker.transition(State.CLOSED, 1.0)
    breaker.tick(40.0)
    closed = (breaker.state, breaker.next_due())
    breaker.transition(State.OPEN, 41.0)

    breaker.tick(42.0)

    assert closed == (State.CLOSED, None)
    assert (breaker.state, breaker.next_due()) == (State.OPEN, 71.0)


# ------------------------------------------------------------------ mistakes, events, reports
@pytest.mark.parametrize("again", ["record", "release"])
def test_permit_is_settled_once(again: str) -> None:
    breaker = make()
    permit = admit(breaker)
    breaker.release(permit)

    with pytest.raises(AssertionError):
        breaker.record(permit, FAST, 0.0) if again == "record" else breaker.release(permit)


def test_negative_duration_and_time_that_runs_back_are_mistakes() -> None:
    breaker = make()
    with pytest.raises(AssertionError):
        breaker.record(admit(breaker), Outcome(OutcomeKind.SUCCESS, -0.1), 0.0)
    breaker.transition(State.OPEN, 10.0)

    with pytest.raises(AssertionError):
        breaker.transition(State.CLOSED, 9.0)


def test_event_carries_the_rates_that_were_its_reason_and_is_taken_once() -> None:
    breaker = make()
    call(breaker, FAILED, FAILED, FAILED, FAILED, SLOW_FAILED, now=3.0)

    (event,) = breaker.take_events()

    assert (event.name, event.now, event.epoch) == ("kafka-publisher", 3.0, 1)
    assert (event.failure_rate, event.slow_call_rate) == (100.0, 20.0)
    assert breaker.take_events() == []


def test_untaken_events_are_bounded_and_the_lost_ones_counted() -> None:
    breaker = make()
    for step in range(EVENTS_KEPT + 3):
        breaker.transition(State.CLOSED if step % 2 else State.OPEN, 0.0)

    kept = breaker.take_events()

    assert (len(kept), kept[-1].epoch) == (EVENTS_KEPT, EVENTS_KEPT + 3)
    assert breaker.snapshot(0.0).events_dropped_total == 3


def test_snapshot_accounts_for_calls_moves_and_time() -> None:
    breaker = Breaker("ledger", BreakerConfig(), now=1_000.0)
    call(breaker, FAST, FAILED, FAILED, FAILED, FAILED, now=1_010.0)
    refuse(breaker, 1_020.0)
    call(breaker, FAST, FAST, FAST, now=1_045.0)

    snapshot = breaker.snapshot(1_050.0)

    assert snapshot.calls_total == {OutcomeKind.SUCCESS: 4, OutcomeKind.FAILURE: 4, OutcomeKind.IGNORED: 0}
    assert snapshot.calls_duration_s_total[OutcomeKind.SUCCESS] == pytest.approx(0.2)
    assert snapshot.state_s_total == {State.CLOSED: 15.0, State.OPEN: 35.0, State.HALF_OPEN: 0.0}
    assert (snapshot.not_permitted_calls, snapshot.not_permitted_total) == (0, 1)
    assert snapshot.transitions_total == {
        (State.CLOSED, State.OPEN, Cause.AUTO): 1,
        (State.OPEN, State.HALF_OPEN, Cause.TIMER): 1,
        (State.HALF_OPEN, State.CLOSED, Cause.AUTO): 1,
    }
    assert (snapshot.epoch, snapshot.retry_after_s) == (3, 0.0)


def test_looking_moves_nothing() -> None:
    breaker = make()
    breaker.transition(State.OPEN, 0.0)

    snapshot = breaker.snapshot(3_600.0)

    assert (snapshot.state, snapshot.retry_after_s) == (State.OPEN, 0.0)
    assert breaker.state is State.OPEN


def test_snapshot_of_an_exhausted_round_names_no_time() -> None:
    breaker = half_open(permitted_number_of_calls_in_half_open_state=1)
    admit(breaker)

    assert breaker.snapshot(0.0).retry_after_s is None


def test_status_body_is_the_seeds_json() -> None:
    """The body of GET /circuit-breaker/{name}, byte for byte."""
    breaker = make(sliding_window_size=25)
    call(breaker, *[FAST] * 14, *[SLOW] * 11)

    body = status_body(breaker.snapshot(0.0))

    assert json.dumps(body, separators=(",", ":")) == (
        '{"state":"CLOSED","numberOfSuccessfulCalls":25,"numberOfFailedCalls":0,"numberOfSlowCalls":11,'
        '"numberOfSlowSuccessfulCalls":11,"numberOfSlowFailedCalls":0,"numberOfBufferedCalls":25,'
        '"numberOfNotPermittedCalls":0,"failureRate":"0.00%","slowCallRate":"44.00%"}'
    )


def test_status_body_shows_an_unknown_rate_as_minus_one() -> None:
    body = status_body(make().snapshot(0.0))

    assert (body["failureRate"], body["slowCallRate"]) == ("-1.00%", "-1.00%")

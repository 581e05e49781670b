"""Any sequence of commands on one payment keeps its money in order; the table and the rules of the API agree."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from payflow.core.payment import (
    TRANSITIONS,
    Capture,
    Command,
    Decision,
    EventType,
    Payment,
    Refund,
    Refusal,
    RefusalCode,
    Status,
    Void,
    decide,
)
from tests.support.payment_writes import AT_US, authorize

ID = b"p" * 16
AMOUNT = 50
AMOUNTS = st.none() | st.integers(1, AMOUNT + 5)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(Capture, st.just(ID), AMOUNTS),
    st.builds(Refund, st.just(ID), AMOUNTS, st.just("broken")),
    st.builds(Void, st.just(ID)),
)
STEPS = st.lists(st.tuples(COMMANDS, st.integers(AT_US - 5, AT_US + 5)), max_size=12)


def _authorized() -> Payment:
    decision = decide(None, authorize(AMOUNT), AT_US, payment_id=ID)
    assert isinstance(decision, Decision)
    return decision.payment


def _run(steps: list[tuple[Command, int]], look: Callable[[Payment, Command, Decision | Refusal], None]) -> Payment:
    payment = _authorized()
    for command, at_us in steps:
        result = decide(payment, command, at_us)
        look(payment, command, result)
        if isinstance(result, Decision):
            payment = result.payment
    return payment


@given(STEPS)
def test_money_never_exceeds_what_came_before_it(steps: list[tuple[Command, int]]) -> None:
    def look(before: Payment, _: Command, result: Decision | Refusal) -> None:
        if isinstance(result, Refusal):
            return
        after = result.payment
        assert 0 <= after.refunded_amount <= after.captured_amount <= after.amount == AMOUNT
        assert before.captured_amount <= after.captured_amount
        assert before.refunded_amount <= after.refunded_amount
        assert result.amount >= 1

    _run(steps, look)


@given(STEPS)
def test_the_status_says_what_the_amounts_say(steps: list[tuple[Command, int]]) -> None:
    payment = _run(steps, lambda *_: None)

    captured, refunded = payment.captured_amount, payment.refunded_amount
    by_amounts = {
        Status.AUTHORIZED: captured == 0,
        Status.VOIDED: captured == 0,
        Status.PARTIALLY_CAPTURED: 0 < captured < AMOUNT and refunded == 0,
        Status.CAPTURED: captured == AMOUNT and refunded == 0,
        Status.PARTIALLY_REFUNDED: 0 < refunded < captured,
        Status.REFUNDED: 0 < refunded == captured,
    }
    assert by_amounts[payment.status]


@given(STEPS)
def test_the_events_add_up_to_the_payment(steps: list[tuple[Command, int]]) -> None:
    moved = {EventType.CAPTURED: 0, EventType.REFUNDED: 0, EventType.VOIDED: 0}

    def look(_: Payment, __: Command, result: Decision | Refusal) -> None:
        if isinstance(result, Decision):
            moved[result.event_type] += result.amount

    payment = _run(steps, look)

    assert (payment.captured_amount, payment.refunded_amount) == (moved[EventType.CAPTURED], moved[EventType.REFUNDED])
    assert moved[EventType.VOIDED] == (AMOUNT if payment.status is Status.VOIDED else 0)


@given(STEPS)
def test_version_and_time_only_go_up_and_a_refusal_changes_nothing(steps: list[tuple[Command, int]]) -> None:
    accepted = 0

    def look(before: Payment, command: Command, result: Decision | Refusal) -> None:
        nonlocal accepted
        if isinstance(result, Refusal):
            assert before is result.payment
            assert (result.code is RefusalCode.ILLEGAL_TRANSITION) == (
                (before.status, type(command)) not in TRANSITIONS
            )
            return
        accepted += 1
        assert before.version + 1 == result.payment.version
        assert before.updated_at_us < result.payment.updated_at_us

    payment = _run(steps, look)

    assert accepted + 1 == payment.version


@given(STEPS)
def test_the_first_refund_ends_capturing(steps: list[tuple[Command, int]]) -> None:
    refunded = False

    def look(_: Payment, command: Command, result: Decision | Refusal) -> None:
        nonlocal refunded
        if refunded:
            assert not (isinstance(command, Capture | Void) and isinstance(result, Decision))
        refunded = refunded or (isinstance(result, Decision) and isinstance(command, Refund))

    _run(steps, look)

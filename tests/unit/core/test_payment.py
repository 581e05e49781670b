"""The transition table of payments and the decision that reads it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from payflow.core.payment import (
    TRANSITIONS,
    Authorize,
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
    state_diagram,
)

ID = b"p" * 16
AT_US = 1_764_000_000_000_000


def _payment(status: Status, *, amount: int = 100, captured: int = 0, refunded: int = 0) -> Payment:
    return Payment(ID, "m-1", "o-1", amount, "EUR", status, captured, refunded, "tea", {"a": "b"}, AT_US, AT_US, 3)


STANDING = {
    Status.AUTHORIZED: _payment(Status.AUTHORIZED),
    Status.PARTIALLY_CAPTURED: _payment(Status.PARTIALLY_CAPTURED, captured=60),
    Status.CAPTURED: _payment(Status.CAPTURED, captured=100),
    Status.PARTIALLY_REFUNDED: _payment(Status.PARTIALLY_REFUNDED, captured=100, refunded=30),
    Status.REFUNDED: _payment(Status.REFUNDED, captured=100, refunded=100),
    Status.VOIDED: _payment(Status.VOIDED),
}
COMMANDS: dict[str, Command] = {"capture": Capture(ID, None), "refund": Refund(ID, None, "broken"), "void": Void(ID)}
ALLOWED = {
    (Status.AUTHORIZED, "capture"): Status.CAPTURED,
    (Status.PARTIALLY_CAPTURED, "capture"): Status.CAPTURED,
    (Status.PARTIALLY_CAPTURED, "refund"): Status.REFUNDED,
    (Status.CAPTURED, "refund"): Status.REFUNDED,
    (Status.PARTIALLY_REFUNDED, "refund"): Status.REFUNDED,
    (Status.AUTHORIZED, "void"): Status.VOIDED,
}


@pytest.mark.parametrize(("status", "name"), list(product(Status, COMMANDS)))
def test_every_state_allows_what_the_rules_say_and_nothing_else(status: Status, name: str) -> None:
    payment = STANDING[status]

    result = decide(payment, COMMANDS[name], AT_US + 1)

    if (status, name) not in ALLOWED:
        assert Refusal(RefusalCode.ILLEGAL_TRANSITION, payment) == result
        return
    assert isinstance(result, Decision)
    assert (ALLOWED[status, name], 4, AT_US + 1) == (
        result.payment.status,
        result.payment.version,
        result.payment.updated_at_us,
    )


def test_authorize_opens_a_payment() -> None:
    command = Authorize("m-1", 1050, "EUR", "o-1", "tea", {"a": "b"})

    result = decide(None, command, AT_US, payment_id=ID)

    expected = Payment(ID, "m-1", "o-1", 1050, "EUR", Status.AUTHORIZED, 0, 0, "tea", {"a": "b"}, AT_US, AT_US, 1)
    assert Decision(expected, EventType.AUTHORIZED, 1050) == result


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_on_an_unknown_payment_is_not_found(name: str) -> None:
    assert Refusal(RefusalCode.NOT_FOUND) == decide(None, COMMANDS[name], AT_US)


@pytest.mark.parametrize(
    ("status", "amount", "next_status", "moved"),
    [
        (Status.AUTHORIZED, 99, Status.PARTIALLY_CAPTURED, 99),
        (Status.AUTHORIZED, 100, Status.CAPTURED, 100),
        (Status.PARTIALLY_CAPTURED, 39, Status.PARTIALLY_CAPTURED, 39),
        (Status.PARTIALLY_CAPTURED, 40, Status.CAPTURED, 40),
        (Status.PARTIALLY_CAPTURED, None, Status.CAPTURED, 40),
    ],
)
def test_captures_add_up_to_the_authorized_amount(
    status: Status, amount: int | None, next_status: Status, moved: int
) -> None:
    before = STANDING[status]

    result = decide(before, Capture(ID, amount), AT_US + 1)

    assert isinstance(result, Decision)
    assert (next_status, before.captured_amount + moved, 0) == (
        result.payment.status,
        result.payment.captured_amount,
        result.payment.refunded_amount,
    )
    assert (EventType.CAPTURED, moved) == (result.event_type, result.amount)


@pytest.mark.parametrize(
    ("status", "amount", "next_status", "moved"),
    [
        (Status.PARTIALLY_CAPTURED, 59, Status.PARTIALLY_REFUNDED, 59),
        (Status.PARTIALLY_CAPTURED, 60, Status.REFUNDED, 60),
        (Status.CAPTURED, 1, Status.PARTIALLY_REFUNDED, 1),
        (Status.PARTIALLY_REFUNDED, 69, Status.PARTIALLY_REFUNDED, 69),
        (Status.PARTIALLY_REFUNDED, None, Status.REFUNDED, 70),
    ],
)
def test_refunds_add_up_to_the_captured_amount(
    status: Status, amount: int | None, next_status: Status, moved: int
) -> None:
    before = STANDING[status]

    result = decide(before, Refund(ID, amount, "broken"), AT_US + 1)

    assert isinstance(result, Decision)
    assert (next_status, before.captured_amount, before.refunded_amount + moved) == (
        result.payment.status,
        result.payment.captured_amount,
        result.payment.refunded_amount,
    )
    assert (EventType.REFUNDED, moved) == (result.event_type, result.amount)


@pytest.mark.parametrize(
    ("status", "command", "left"),
    [
        (Status.AUTHORIZED, Capture(ID, 101), 100),
        (Status.PARTIALLY_CAPTURED, Capture(ID, 41), 40),
        (Status.PARTIALLY_CAPTURED, Refund(ID, 61, "x"), 60),
        (Status.PARTIALLY_REFUNDED, Refund(ID, 71, "x"), 70),
    ],
)
def test_more_than_is_left_is_refused_and_says_what_is_left(status: Status, command: Command, left: int) -> None:
    assert Refusal(RefusalCode.AMOUNT_EXCEEDS, STANDING[status], left) == decide(STANDING[status], command, AT_US)


def test_a_void_releases_the_whole_authorization() -> None:
    result = decide(STANDING[Status.AUTHORIZED], Void(ID), AT_US + 1)

    assert isinstance(result, Decision)
    assert (EventType.VOIDED, 100, 0) == (result.event_type, result.amount, result.payment.captured_amount)


@pytest.mark.parametrize(
    ("now_us", "updated_at_us"), [(AT_US - 10**9, AT_US + 1), (AT_US, AT_US + 1), (AT_US + 7, AT_US + 7)]
)
def test_time_of_a_payment_never_stands_still_or_goes_back(now_us: int, updated_at_us: int) -> None:
    result = decide(STANDING[Status.AUTHORIZED], Void(ID), now_us)

    assert isinstance(result, Decision)
    assert updated_at_us == result.payment.updated_at_us


def test_what_was_authorized_is_never_changed() -> None:
    before = STANDING[Status.AUTHORIZED]

    result = decide(before, Capture(ID, 10), AT_US + 5)

    assert isinstance(result, Decision)
    expected = replace(before, status=Status.PARTIALLY_CAPTURED, captured_amount=10, updated_at_us=AT_US + 5, version=4)
    assert expected == result.payment


def test_the_diagram_shows_every_transition_of_the_table() -> None:
    diagram = state_diagram()

    assert diagram.startswith("stateDiagram-v2\n    AUTHORIZED --> CAPTURED: capture\n")
    for (status, _), step in TRANSITIONS.items():
        assert f"    {status or '[*]'} --> {step.next_status}: " in diagram
        assert f"    {status or '[*]'} --> {step.next_status_partly}: " in diagram
    assert diagram.endswith("    REFUNDED --> [*]\n    VOIDED --> [*]\n")

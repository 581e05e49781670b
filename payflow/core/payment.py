"""Payments: their states, the commands that move them, and the one function that decides.

Amounts are integers in minor units; times are integer microseconds UTC; ids are 16 bytes (UUIDv7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final

from payflow.core.value import value


class Status(StrEnum):
    """State of a payment, as the API shows it."""

    AUTHORIZED = "AUTHORIZED"
    PARTIALLY_CAPTURED = "PARTIALLY_CAPTURED"
    CAPTURED = "CAPTURED"
    PARTIALLY_REFUNDED = "PARTIALLY_REFUNDED"
    REFUNDED = "REFUNDED"
    VOIDED = "VOIDED"


class EventType(StrEnum):
    """What happened to a payment; the CloudEvents type."""

    AUTHORIZED = "payment.authorized"
    CAPTURED = "payment.captured"
    REFUNDED = "payment.refunded"
    VOIDED = "payment.voided"


@value
class Payment:
    """Current state of one payment."""

    id: bytes
    merchant_id: str
    order_id: str | None
    amount: int
    currency: str
    status: Status
    captured_amount: int
    refunded_amount: int
    description: str | None
    metadata: Mapping[str, str]
    created_at_us: int
    updated_at_us: int
    version: int


@value
class Authorize:
    """Open a payment."""

    merchant_id: str
    amount: int
    currency: str
    order_id: str | None
    description: str | None
    metadata: Mapping[str, str]


@value
class Capture:
    """Take money that was authorized; `amount` None takes all that is left."""

    payment_id: bytes
    amount: int | None


@value
class Refund:
    """Give captured money back; `amount` None gives all that is left."""

    payment_id: bytes
    amount: int | None
    reason: str


@value
class Void:
    """Release an authorization that was not captured."""

    payment_id: bytes


Command = Authorize | Capture | Refund | Void


# ------------------------------------------------------------------ what may follow what
@dataclass(frozen=True, slots=True)
class Step:
    """What a command does to a payment in a state that allows it.

    The next state depends on whether anything is left to capture or refund.
    """

    event_type: EventType
    next_status: Status
    next_status_partly: Status


_AUTHORIZE: Final = Step(EventType.AUTHORIZED, Status.AUTHORIZED, Status.AUTHORIZED)
_CAPTURE: Final = Step(EventType.CAPTURED, Status.CAPTURED, Status.PARTIALLY_CAPTURED)
_REFUND: Final = Step(EventType.REFUNDED, Status.REFUNDED, Status.PARTIALLY_REFUNDED)
_VOID: Final = Step(EventType.VOIDED, Status.VOIDED, Status.VOIDED)

# The only place that knows which command is allowed when. A pair that is absent is refused. None: there is no payment
# yet.
TRANSITIONS: Final[Mapping[tuple[Status | None, type[Command]], Step]] = MappingProxyType(
    {
        (None, Authorize): _AUTHORIZE,
        (Status.AUTHORIZED, Capture): _CAPTURE,
        (Status.PARTIALLY_CAPTURED, Capture): _CAPTURE,
        (Status.PARTIALLY_CAPTURED, Refund): _REFUND,
        (Status.CAPTURED, Refund): _REFUND,
        (Status.PARTIALLY_REFUNDED, Refund): _REFUND,
        (Status.AUTHORIZED, Void): _VOID,
    }
)


def state_diagram() -> str:
    """The table as a mermaid state diagram."""
    edges = {
        (status, target, command.__name__.lower())
        for (status, command), step in TRANSITIONS.items()
        for target in (step.next_status, step.next_status_partly)
    }
    sources = {status for status, _ in TRANSITIONS}
    lines = [f"    {source or '[*]'} --> {target}: {label}" for source, target, label in edges]
    ends = [f"    {status} --> [*]" for status in Status if status not in sources]
    return "\n".join(["stateDiagram-v2", *sorted(lines), *sorted(ends), ""])


# ------------------------------------------------------------------ the decision
class RefusalCode(IntEnum):
    """Why a command changed nothing; http_api.py holds the status and problem type of each."""

    NOT_FOUND = 1
    ILLEGAL_TRANSITION = 2
    AMOUNT_EXCEEDS = 3
    KEY_REUSED = 4
    ORDER_EXISTS = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command changed nothing and its key was not used.

    `payment` is the payment that stands in the way, if there is one; `left` what could still be captured or refunded.
    """

    code: RefusalCode
    payment: Payment | None = None
    left: int | None = None


@value
class Decision:
    """A command takes effect: the payment after it, what happened, and the money this step moves (for a void: what it
    releases).
    """

    payment: Payment
    event_type: EventType
    amount: int


def decide(
    payment: Payment | None, command: Command, at_us: int, *, payment_id: bytes | None = None
) -> Decision | Refusal:
    """What `command` does at `at_us`. `payment_id` is the id that a new payment takes; other commands do not use it.

    `updated_at_us` is never before or at the step before, whatever the clock says.
    """
    if isinstance(command, Authorize):
        return _authorize(command, at_us, payment_id)
    if payment is None:
        return Refusal(RefusalCode.NOT_FOUND)
    assert payment.id == command.payment_id
    step = TRANSITIONS.get((payment.status, type(command)))
    if step is None:
        return Refusal(RefusalCode.ILLEGAL_TRANSITION, payment)
    if isinstance(command, Void):
        return Decision(_after(payment, step.next_status, at_us), step.event_type, payment.amount)
    capturing = isinstance(command, Capture)
    left = payment.amount - payment.captured_amount if capturing else payment.captured_amount - payment.refunded_amount
    amount = left if command.amount is None else command.amount
    assert amount >= 1
    if amount > left:
        return Refusal(RefusalCode.AMOUNT_EXCEEDS, payment, left)
    status = step.next_status if amount == left else step.next_status_partly
    captured, refunded = (amount, 0) if capturing else (0, amount)
    return Decision(_after(payment, status, at_us, captured=captured, refunded=refunded), step.event_type, amount)


def _after(payment: Payment, status: Status, at_us: int, *, captured: int = 0, refunded: int = 0) -> Payment:
    # Written out: `dataclasses.replace` takes four times as long, and this runs once a command.
    return Payment(
        payment.id,
        payment.merchant_id,
        payment.order_id,
        payment.amount,
        payment.currency,
        status,
        payment.captured_amount + captured,
        payment.refunded_amount + refunded,
        payment.description,
        payment.metadata,
        payment.created_at_us,
        max(at_us, payment.updated_at_us + 1),
        payment.version + 1,
    )


def _authorize(command: Authorize, at_us: int, payment_id: bytes | None) -> Decision:
    assert payment_id is not None
    assert command.amount >= 1
    payment = Payment(
        payment_id,
        command.merchant_id,
        command.order_id,
        command.amount,
        command.currency,
        _AUTHORIZE.next_status,
        0,
        0,
        command.description,
        command.metadata,
        at_us,
        at_us,
        1,
    )
    return Decision(payment, _AUTHORIZE.event_type, command.amount)

"""Payments: their states, the commands that move them, and the one function that decides.

Amounts are integers in minor units; times are integer microseconds UTC; ids are 16 bytes (UUIDv7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Authorize:
    """Open a payment."""

    merchant_id: str
    amount: int
    currency: str
    order_id: str | None
    description: str | None
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Capture:
    """Take money that was authorized; `amount` None takes all that is left."""

    payment_id: bytes
    amount: int | None


@dataclass(frozen=True, slots=True)
class Refund:
    """Give captured money back; `amount` None gives all that is left."""

    payment_id: bytes
    amount: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Void:
    """Release an authorization that was not captured."""

    payment_id: bytes


Command = Authorize | Capture | Refund | Void

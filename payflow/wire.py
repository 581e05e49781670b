"""Bytes that leave the process: the body of a payment, the event on Kafka, their times and ids. And the way back for
events.

Members and their order are a promise to clients; so is that a stored answer never changes. Encoders are built once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Final

import msgspec

from payflow.core.ledger import LedgerEvent
from payflow.core.money import MAX_AMOUNT
from payflow.core.outbox import Event
from payflow.core.payment import EventType, Payment
from payflow.errors import UndecodableEvent

SCHEMA_VERSION: Final = 1

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_SECOND_US: Final = 1_000_000
_SOURCE: Final = b"/payflow"
_SPEC_VERSION: Final = b"1.0"
_CONTENT_TYPE: Final = b"application/json"
# Longest reason; msgspec's messages name the member and the rule.

_encode: Final = msgspec.json.Encoder().encode


# ------------------------------------------------------------------ ids and times
def id_text(raw: bytes) -> str:
    """A 16-byte id as lower-case UUID text."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def id_bytes(text: str) -> bytes | None:
    """The id that `text` is in the one form `id_text` writes, else None."""
    try:
        raw = bytes.fromhex(text.replace("-", ""))
    except ValueError:
        return None
    return raw if len(raw) == 16 and id_text(raw) == text else None


# All payments of a write group share one time, and a page of a list shares few seconds.
@lru_cache(maxsize=1024)
def time_text(at_us: int) -> str:
    """Microseconds UTC as RFC 3339 with `Z` and six digits."""
    second, microsecond = divmod(at_us, _SECOND_US)
    return f"{_second_text(second)}.{microsecond:06d}Z"


@lru_cache(maxsize=64)
def _second_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


# ------------------------------------------------------------------ payment
class PaymentBody(msgspec.Struct, frozen=True):
    """A payment as every answer shows it."""

    id: str
    merchant_id: str
    order_id: str | None
    amount: int
    currency: str
    status: str
    captured_amount: int
    refunded_amount: int
    description: str | None
    metadata: Mapping[str, str]
    created_at: str
    updated_at: str
    version: int


def payment_body(payment: Payment) -> PaymentBody:
    """The body that stands for `payment`."""
    return PaymentBody(
        id_text(payment.id),
        payment.merchant_id,
        payment.order_id,
        payment.amount,
        payment.currency,
        payment.status,
        payment.captured_amount,
        payment.refunded_amount,
        payment.description,
        payment.metadata,
        time_text(payment.created_at_us),
        time_text(payment.updated_at_us),
        payment.version,
    )


def encode_answer(payment: Payment) -> bytes:
    """The answer to the command that made `payment` what it is."""
    return _encode(payment_body(payment))


# ------------------------------------------------------------------ event: out
class EventBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The value of a record.

    `version` and the totals are the payment's after this step; `amount` is what this step moved.
    """

    schema_version: int
    event_id: str
    payment_id: str
    merchant_id: str
    version: int
    type: str
    at: str
    amount: int
    currency: str
    authorized_amount: int
    captured_amount: int
    refunded_amount: int
    reason: str | None = None


def encode_event(event: Event) -> bytes:
    """The value of the event's record."""
    payment = event.payment
    return _encode(
        EventBody(
            SCHEMA_VERSION,
            id_text(event.id),
            id_text(payment.id),
            payment.merchant_id,
            payment.version,
            event.type,
            time_text(event.at_us),
            event.amount,
            payment.currency,
            payment.amount,
            payment.captured_amount,
            payment.refunded_amount,
            event.reason,
        )
    )


def event_headers(
    *, event_id: bytes, event_type: EventType, at_us: int, payment_id: bytes, traceparent: str | None
) -> tuple[tuple[str, bytes], ...]:
    """CloudEvents 1.0, binary mode."""
    trace = () if traceparent is None else (("traceparent", traceparent.encode()),)
    return (
        ("ce_id", id_text(event_id).encode()),
        ("ce_type", event_type.encode()),
        ("ce_source", _SOURCE),
        ("ce_time", time_text(at_us).encode()),
        ("ce_specversion", _SPEC_VERSION),
        ("ce_subject", id_text(payment_id).encode()),
        *trace,
        ("content-type", _CONTENT_TYPE),
    )


# ------------------------------------------------------------------ event: in
_Total = Annotated[int, msgspec.Meta(ge=0, le=MAX_AMOUNT)]
_Amount = Annotated[int, msgspec.Meta(ge=1, le=MAX_AMOUNT)]


class _VersionOnly(msgspec.Struct):
    schema_version: int


class _Incoming(msgspec.Struct):
    """What a reader needs of an event. Members it does not know are skipped: a newer writer may add optional ones."""

    schema_version: int
    event_id: str
    payment_id: str
    merchant_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    version: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    type: EventType
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    amount: _Amount
    # The form only: a consumer older than a new currency has to book it all the same.
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z")]
    authorized_amount: _Amount
    captured_amount: _Total
    refunded_amount: _Total


_decode_version: Final = msgspec.json.Decoder(_VersionOnly).decode
_decode_event: Final = msgspec.json.Decoder(_Incoming).decode


_PLACE: Final = re.compile(r" - at `[$.\w\[\]]*`$")


def _unknown_version(version: int) -> str:
    """A large number is no version, and may be a card number."""
    return f"unknown schema version {version}" if 0 <= version < 10_000 else "unknown schema version"


def _without_values(error: Exception) -> str:
    """What is wrong and where, never what was there: the reason goes into logs and headers."""
    place = _PLACE.search(str(error))
    if isinstance(error, msgspec.ValidationError):
        return f"not an event of this schema{place[0] if place else ''}"
    return "not JSON, or not UTF-8"


def decode_event(value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> LedgerEvent:
    """The event that a record carries. Raises UndecodableEvent for whatever will be as unreadable tomorrow."""
    if value is None:
        raise UndecodableEvent("the record has no value")
    body = _body(value)
    event_id, payment_id = id_bytes(body.event_id), id_bytes(body.payment_id)
    if event_id is None or payment_id is None:
        raise UndecodableEvent("event_id or payment_id is not a lower-case UUID")
    for name, content in headers:
        if name == "ce_id" and content != body.event_id.encode():
            raise UndecodableEvent("ce_id differs from event_id")
    if (
        not body.refunded_amount <= body.captured_amount <= body.authorized_amount
        or body.amount > body.authorized_amount
    ):
        raise UndecodableEvent("the amounts contradict each other")
    at_us = (body.at - _EPOCH) // _MICROSECOND
    return LedgerEvent(
        event_id, payment_id, body.version, body.type, at_us, body.amount, body.currency, body.merchant_id
    )


def _body(value: bytes) -> _Incoming:
    try:
        body = _decode_event(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse_other_version(value)
        raise UndecodableEvent(_without_values(error)) from None
    if body.schema_version != SCHEMA_VERSION:
        raise UndecodableEvent(_unknown_version(body.schema_version))
    return body


def _refuse_other_version(value: bytes) -> None:
    """Another version may have other members: that it is another version is then the reason."""
    try:
        version = _decode_version(value).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if version != SCHEMA_VERSION:
        raise UndecodableEvent(_unknown_version(version))

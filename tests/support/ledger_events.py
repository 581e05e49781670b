"""Builders for ledger tests: events with readable ids, and their deliveries."""

from __future__ import annotations

from collections.abc import Iterable

from payflow.core.ledger import Delivery, LedgerEvent
from payflow.core.payment import EventType

AT_US = 1_764_000_000_000_000


def id_of(name: str) -> bytes:
    """16 bytes that can be read in a failure message."""
    return name.encode().rjust(16, b".")


def event(
    payment: str = "p1",
    version: int = 1,
    kind: EventType | None = None,
    *,
    amount: int = 1000,
    currency: str = "EUR",
    merchant: str = "shop",
    event_id: bytes | None = None,
    at_us: int = AT_US,
) -> LedgerEvent:
    """An event of `payment`; by default version 1 authorizes and every later one captures."""
    if kind is None:
        kind = EventType.AUTHORIZED if version == 1 else EventType.CAPTURED
    return LedgerEvent(
        event_id=id_of(f"{payment}-v{version}") if event_id is None else event_id,
        payment_id=id_of(payment),
        version=version,
        type=kind,
        at_us=at_us,
        amount=amount,
        currency=currency,
        merchant_id=merchant,
    )


def deliveries(events: Iterable[LedgerEvent], *, partition: int = 0, first_offset: int = 0) -> list[Delivery]:
    """The events at consecutive offsets of one partition."""
    return [
        Delivery(partition, offset, event_, b"raw " + event_.event_id)
        for offset, event_ in enumerate(events, first_offset)
    ]

"""The double-entry ledger: from a payment event to balanced postings, or the reason why not.

Authorize and void book nothing. Capture debits `cash` and credits `merchant_payable:{merchant}`; refund is the reverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from payflow.core.payment import EventType


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """What the ledger needs of an event. `version` is the payment's version after this step: authorized = 1, then + 1."""

    event_id: bytes
    payment_id: bytes
    version: int
    type: EventType
    at_us: int
    amount: int
    currency: str
    merchant_id: str


class Side(StrEnum):
    """Side of a posting."""

    DEBIT = "debit"
    CREDIT = "credit"


@dataclass(frozen=True, slots=True)
class Posting:
    """One line of an entry; `amount` > 0."""

    account: str
    side: Side
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A balanced entry, booked once per event."""

    event_id: bytes
    payment_id: bytes
    at_us: int
    postings: tuple[Posting, ...]


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event with its place in the source. `raw` is the record's value, kept for events that are held."""

    partition: int
    offset: int
    event: LedgerEvent
    raw: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A delivery that no retry can book; it belongs into the dead-letter topic before the position may pass it."""

    delivery: Delivery
    reason: str


@dataclass(frozen=True, slots=True)
class Booking:
    """What one ledger transaction did.

    `booked`: event ids that are in the ledger now and that this delivery or a duplicate of it brought (acknowledge all of them);
    `duplicates` and `held` are counts; `entries` counts new entries; `refused` stopped the position of their partition.
    """

    booked: tuple[bytes, ...]
    entries: int
    duplicates: int
    held: int
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class CurrencyBalance:
    """Sums over all postings of one currency, in minor units. Balanced means equal."""

    currency: str
    debit: int
    credit: int


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """Sums of one account and currency, in minor units."""

    account: str
    currency: str
    debit: int
    credit: int

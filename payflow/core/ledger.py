"""The double-entry ledger: from a payment event to balanced postings, or the reason why not.

Authorize and void book nothing. Capture debits `cash` and credits `merchant_payable:{merchant}`; refund is the reverse.
What a payment may do was decided once, in `payment.decide`; here an event only has to keep the books right. Batches of
events are the business of `booking`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from payflow.core.payment import EventType
from payflow.core.value import value

MAX_INTEGER: Final = 2**63 - 1  # amounts, sums, versions and times live in signed 64 bit columns
CASH: Final = "cash"
_ID_BYTES: Final = 16
_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_MERCHANT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


# ------------------------------------------------------------------ values
@value
class LedgerEvent:
    """What the ledger needs of an event.

    `version` is the payment's version after this step: authorized = 1, then + 1.
    """

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


@value
class Posting:
    """One line of an entry; `amount` > 0."""

    account: str
    side: Side
    amount: int
    currency: str


@value
class Entry:
    """A balanced entry, booked once per event."""

    event_id: bytes
    payment_id: bytes
    at_us: int
    postings: tuple[Posting, ...]


@value
class Delivery:
    """An event with its place in the source. `raw` is the record's value, kept for events that are held."""

    partition: int
    offset: int
    event: LedgerEvent
    raw: bytes


class Reason(StrEnum):
    """Why an event cannot be booked. The words are metric labels and go into dead letters: few, and never changed."""

    MALFORMED = "malformed"
    AMOUNT_OUT_OF_RANGE = "amount_out_of_range"
    CURRENCY_INVALID = "currency_invalid"
    UNBALANCED = "unbalanced"
    EVENT_ID_REUSED = "event_id_reused"
    VERSION_TAKEN = "version_taken"
    PAYMENT_CONTRADICTED = "payment_contradicted"
    ACCOUNT_OVERFLOW = "account_overflow"


@dataclass(frozen=True, slots=True)
class Refused:
    """A delivery that no retry can book; it belongs into the dead-letter topic before the position may pass it.

    `reason` is the word of a `Reason`.
    """

    delivery: Delivery
    reason: str


@dataclass(frozen=True, slots=True)
class Booking:
    """What one ledger transaction did.

    `booked`: event ids that are in the ledger now and that this delivery or a duplicate of it brought (acknowledge all
    of them); `duplicates` and `held` are counts; `entries` counts new entries; `refused` stopped the position of their
    partition. `blocked`: held events whose turn came now but which contradict the books. They stay held, stop no
    position and need no dead letter; only a person can help them.
    """

    booked: tuple[bytes, ...]
    entries: int
    duplicates: int
    held: int
    refused: tuple[Refused, ...]
    blocked: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class CurrencyBalance:
    """Sums over all postings of one currency, in minor units. Balanced means equal.

    `drift` adds up how far the accounts' kept sums are from their postings; only an audit looks, elsewhere it is 0.
    """

    currency: str
    debit: int
    credit: int
    drift: int = 0

    @property
    def imbalance(self) -> int:
        """0 when the books are right; else how wrong they are, in minor units."""
        return abs(self.debit - self.credit) + self.drift


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """Sums of one account and currency, in minor units."""

    account: str
    currency: str
    debit: int
    credit: int


# ------------------------------------------------------------------ one event
def postings(event: LedgerEvent) -> tuple[Posting, ...]:
    """The lines of an event: capture debits cash and credits what we owe the merchant, refund is the reverse."""
    payable = f"merchant_payable:{event.merchant_id}"
    if event.type is EventType.CAPTURED:
        debit, credit = CASH, payable
    elif event.type is EventType.REFUNDED:
        debit, credit = payable, CASH
    else:
        return ()
    amount, currency = event.amount, event.currency
    return Posting(debit, Side.DEBIT, amount, currency), Posting(credit, Side.CREDIT, amount, currency)


def check(entry: Entry) -> Reason | None:
    """Why an entry must not be booked, or None: it has lines in one currency, amounts > 0, debits equal to credits."""
    currencies = {posting.currency for posting in entry.postings}
    if len(currencies) > 1 or not all(map(_CURRENCY.fullmatch, currencies)):
        return Reason.CURRENCY_INVALID
    difference = 0
    for posting in entry.postings:
        if not 1 <= posting.amount <= MAX_INTEGER:
            return Reason.AMOUNT_OUT_OF_RANGE
        difference += posting.amount if posting.side is Side.DEBIT else -posting.amount
    return Reason.UNBALANCED if difference or not entry.postings else None


def entry_of(event: LedgerEvent) -> Entry | None:
    """The entry of an event, or None where no money moves."""
    lines = postings(event)
    return Entry(event.event_id, event.payment_id, event.at_us, lines) if lines else None


def flaw(event: LedgerEvent) -> Reason | None:
    """What is wrong with an event whatever the books say, or None."""
    if len(event.event_id) != _ID_BYTES or len(event.payment_id) != _ID_BYTES:
        return Reason.MALFORMED
    if not 1 <= event.version <= MAX_INTEGER or not 0 <= event.at_us <= MAX_INTEGER:
        return Reason.MALFORMED
    if (event.version == 1) is not (event.type is EventType.AUTHORIZED) or not _MERCHANT.fullmatch(event.merchant_id):
        return Reason.MALFORMED
    if not 0 <= event.amount <= MAX_INTEGER:
        return Reason.AMOUNT_OUT_OF_RANGE
    if not _CURRENCY.fullmatch(event.currency):
        return Reason.CURRENCY_INVALID
    entry = entry_of(event)
    return check(entry) if entry is not None else None

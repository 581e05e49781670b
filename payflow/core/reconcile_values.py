"""What is compared when payments and ledger are reconciled, and what comes out. See reconcile.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import merge
from itertools import groupby
from operator import attrgetter

from payflow.core.ledger import LedgerEvent, Posting
from payflow.core.outbox import RowState
from payflow.core.payment import EventType
from payflow.core.value import value


# ------------------------------------------------------------------ what is compared
@value
class PaymentSums:
    """The current state of a payment, as far as money is concerned."""

    payment_id: bytes
    merchant_id: str
    currency: str
    captured: int
    refunded: int
    version: int


@value
class Committed:
    """An event of the payments database. `place` is (log, partition, offset) once it was published."""

    payment_id: bytes
    version: int
    event_id: bytes
    type: EventType
    at_us: int
    amount: int
    state: RowState
    place: tuple[str, int, int] | None
    marked_booked: bool


@value
class HeldVersion:
    """An event that waits in the ledger for its predecessor."""

    payment_id: bytes
    version: int
    event_id: bytes


@value
class Line:
    """One posting of an entry; None for an entry that has none."""

    payment_id: bytes
    version: int
    event_id: bytes
    posting: Posting | None


@dataclass(slots=True)
class Books:
    """All that is known of one payment, each list in order of versions."""

    payment_id: bytes
    payment: PaymentSums | None = None
    committed: list[Committed] = field(default_factory=list)
    booked: list[LedgerEvent] = field(default_factory=list)
    held: list[HeldVersion] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


Item = PaymentSums | Committed | LedgerEvent | HeldVersion | Line


def by_payment(*streams: Iterable[Item]) -> Iterator[Books]:
    """Merge streams that are sorted by payment id."""
    key = attrgetter("payment_id")
    for payment_id, items in groupby(merge(*streams, key=key), key=key):
        books = Books(payment_id)
        for item in items:
            match item:
                case PaymentSums():
                    books.payment = item
                case Committed():
                    books.committed.append(item)
                case LedgerEvent():
                    books.booked.append(item)
                case HeldVersion():
                    books.held.append(item)
                case _:
                    books.lines.append(item)
        yield books


# ------------------------------------------------------------------ what comes out
class Stand(StrEnum):
    """How far a committed event is."""

    BOOKED = "booked"
    HELD = "held"
    PUBLISHED = "published"
    PENDING = "pending"
    PARKED = "parked"
    LOST = "lost"


class Kind(StrEnum):
    """What a difference is about."""

    NOT_BOOKED = "not_booked"
    NOT_COMMITTED = "not_committed"
    DIFFERENT_EVENT = "different_event"
    VERSION_GAP = "version_gap"
    PAYMENT_SUMS = "payment_sums"
    ENTRY = "entry"
    HELD_FOR_EVER = "held_for_ever"
    ACCOUNT_SUMS = "account_sums"
    CURRENCY_SUMS = "currency_sums"


@value
class Difference:
    """One thing that does not agree. A difference of accounts or currencies has no payment."""

    kind: Kind
    payment_id: bytes | None
    version: int | None
    text: str


@dataclass(slots=True)
class CurrencyTotals:
    """Captures and refunds of one currency in minor units: committed, booked, and on their way."""

    committed: int = 0
    booked: int = 0
    on_the_way: int = 0

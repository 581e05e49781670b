"""Reconciling: payments, their committed events, and the books, compared payment by payment.

What is compared are two pictures, that of the ledger taken first. So what is booked in it is committed in the other
one, and an event that is marked as booked but not in the books may have been booked since: `booked_since` is asked.
Input is sorted by payment and version and is never held for more than one payment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from typing import Final

from payflow.core.ledger import AccountBalance, LedgerEvent, Side, postings
from payflow.core.outbox import RowState
from payflow.core.payment import EventType
from payflow.core.reconcile_values import (
    Books,
    Committed,
    CurrencyTotals,
    Difference,
    Kind,
    PaymentSums,
    Stand,
)

_MONEY: Final = (EventType.CAPTURED, EventType.REFUNDED)
_WAITING: Final = {RowState.PENDING: Stand.PENDING, RowState.PARKED: Stand.PARKED, RowState.PUBLISHED: Stand.PUBLISHED}


class Reconciliation:
    """Takes payments one by one and keeps nothing of them but counts.

    `positions`: (log, partition) -> next offset that the consumer reads; `booked_since` tells whether an event is in
    the ledger now.
    """

    def __init__(self, positions: Mapping[tuple[str, int], int], booked_since: Callable[[bytes], bool]) -> None:
        self._positions = positions
        self._booked_since = booked_since
        self._accounts: dict[tuple[str, str], dict[Side, int]] = {}
        self.payments = self.events = self.entries = self.differences = 0
        self.stands = dict.fromkeys(Stand, 0)
        self.currencies: dict[tuple[str, EventType], CurrencyTotals] = {}

    def add(self, books: Books) -> list[Difference]:
        """Compare one payment; what does not agree, in order of its finding."""
        self.payments += books.payment is not None
        self.events += len(books.committed)
        booked = {event.version: event for event in books.booked}
        found = [
            *_gaps(books),
            *self._ways(books, booked),
            *_not_committed(books),
            *_payment_sums(books),
            *self._entries(books, booked),
        ]
        self.differences += len(found)
        return found

    def finish(self, accounts: Iterable[AccountBalance]) -> list[Difference]:
        """After the last payment: the sums that accounts keep, and those of each currency."""
        found = []
        for account in accounts:
            sums = self._accounts.pop((account.account, account.currency), {})
            debit, credit = sums.get(Side.DEBIT, 0), sums.get(Side.CREDIT, 0)
            if (debit, credit) != (account.debit, account.credit):
                text = (
                    f"account {account.account} in {account.currency} keeps debit {account.debit} and credit "
                    f"{account.credit}, its postings add up to {debit} and {credit}"
                )
                found.append(Difference(Kind.ACCOUNT_SUMS, None, None, text))
        for (currency, event_type), totals in sorted(self.currencies.items()):
            if totals.committed != totals.booked + totals.on_the_way:
                text = (
                    f"{event_type.value} in {currency}: {totals.committed} committed, {totals.booked} booked and "
                    f"{totals.on_the_way} on the way"
                )
                found.append(Difference(Kind.CURRENCY_SUMS, None, None, text))
        self.differences += len(found)
        return found

    # ------------------------------------------------------------------ one payment
    def _ways(self, books: Books, booked: Mapping[int, LedgerEvent]) -> Iterator[Difference]:
        """Every committed event is booked as it was committed, or on its way."""
        held = {event.event_id for event in books.held}
        head = len(books.booked)
        for event in books.committed:
            there = booked.get(event.version)
            lost = None
            if there is not None:
                stand = Stand.BOOKED
                if there != _expected(event, books.payment):
                    yield _difference(Kind.DIFFERENT_EVENT, event, f"is not the event that is booked: {_how(there)}")
            elif event.event_id in held:
                stand = Stand.HELD
                if event.version <= head + 1:
                    yield _difference(Kind.HELD_FOR_EVER, event, "is held although nothing before it is missing")
            elif lost := self._loss(event):
                stand = Stand.LOST
                yield _difference(Kind.NOT_BOOKED, event, lost)
            else:
                stand = _WAITING[event.state]
            self.stands[stand] += 1
            self._total(event, books.payment, there, lost=stand is Stand.LOST)

    def _loss(self, event: Committed) -> str | None:
        """Why an event that is not in the picture of the books will not come by itself, or None."""
        if event.marked_booked:
            return None if self._booked_since(event.event_id) else "is marked as booked and is not in the ledger"
        if event.state is not RowState.PUBLISHED or event.place is None:
            return None
        log, partition, offset = event.place
        if offset >= self._positions.get((log, partition), 0):
            return None
        return (
            f"was published to partition {partition} at offset {offset}, which the consumer has passed, and is neither "
            "booked nor held: look into the dead-letter topic"
        )

    def _total(
        self, event: Committed, payment: PaymentSums | None, there: LedgerEvent | None, *, lost: bool
    ) -> None:
        if event.type not in _MONEY or payment is None:
            return
        totals = self.currencies.setdefault((payment.currency, event.type), CurrencyTotals())
        totals.committed += event.amount
        if there is not None:
            totals.booked += there.amount
        elif not lost:
            totals.on_the_way += event.amount

    def _entries(self, books: Books, booked: Mapping[int, LedgerEvent]) -> Iterator[Difference]:
        """Every booked event has exactly the lines that it has to have, and nothing else has any."""
        entries = {version: tuple(lines) for version, lines in groupby(books.lines, key=attrgetter("version"))}
        self.entries += len(entries)
        for line in books.lines:
            if line.posting is not None:
                sums = self._accounts.setdefault((line.posting.account, line.posting.currency), {})
                sums[line.posting.side] = sums.get(line.posting.side, 0) + line.posting.amount
        for version in sorted({*entries, *booked}):
            event = booked.get(version)
            wanted = [] if event is None else [(event.event_id, posting) for posting in postings(event)]
            if wanted != [(line.event_id, line.posting) for line in entries.get(version, ())]:
                what = "an entry without its event" if event is None else "an entry that differs from its event"
                yield Difference(Kind.ENTRY, books.payment_id, version, f"the ledger has {what}")


# ------------------------------------------------------------------ parts that count nothing
def _gaps(books: Books) -> Iterator[Difference]:
    for where, versions in (
        ("committed", [event.version for event in books.committed]),
        ("booked", [event.version for event in books.booked]),
    ):
        if versions != list(range(1, len(versions) + 1)):
            text = f"versions that are {where} have a gap: {', '.join(map(str, versions))}"
            yield Difference(Kind.VERSION_GAP, books.payment_id, None, text)


def _not_committed(books: Books) -> Iterator[Difference]:
    versions = {event.version for event in books.committed}
    ids = {event.event_id for event in books.committed}
    for event in books.booked:
        if event.version not in versions:
            text = "is booked and was not committed here"
            yield Difference(Kind.NOT_COMMITTED, books.payment_id, event.version, text)
    for held in books.held:
        if held.event_id not in ids:
            text = "is held in the ledger and was not committed here"
            yield Difference(Kind.NOT_COMMITTED, books.payment_id, held.version, text)


def _payment_sums(books: Books) -> Iterator[Difference]:
    payment = books.payment
    if payment is None:
        if books.committed:
            yield Difference(Kind.PAYMENT_SUMS, books.payment_id, None, "has events and is not there itself")
        return
    captured, refunded = (sum(event.amount for event in books.committed if event.type is kind) for kind in _MONEY)
    state = (payment.version, payment.captured, payment.refunded)
    told = (books.committed[-1].version if books.committed else 0, captured, refunded)
    if state != told:
        text = "has version {}, captured {} and refunded {}; its events say {}, {} and {}".format(*state, *told)
        yield Difference(Kind.PAYMENT_SUMS, books.payment_id, None, text)


def _expected(event: Committed, payment: PaymentSums | None) -> LedgerEvent | None:
    """The event as the ledger has to have it."""
    if payment is None:
        return None
    return LedgerEvent(
        event.event_id,
        event.payment_id,
        event.version,
        event.type,
        event.at_us,
        event.amount,
        payment.currency,
        payment.merchant_id,
    )


def _how(event: LedgerEvent) -> str:
    return f"{event.type.value} of {event.amount} {event.currency}, event id {event.event_id.hex()}"


def _difference(kind: Kind, event: Committed, text: str) -> Difference:
    return Difference(kind, event.payment_id, event.version, f"{event.type.value} of {event.amount} {text}")

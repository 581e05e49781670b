"""Bodies of the payments API, as msgspec types: they decode the requests, encode the answers, and are the schemas of
/openapi.json.

Shape only: what a payment may do is decided behind the port. A request type counts the strings of its own JSON text
(`json_strings`), by which strict_json sees duplicate members, and names its free texts (`texts`) for the search for
card numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from payflow.core.ledger import AccountBalance, CurrencyBalance, Entry
from payflow.core.money import MAX_AMOUNT, is_currency
from payflow.core.payment import Authorize, Capture, Command, Payment, Refund, Void
from payflow.ports import PaymentEventView
from payflow.wire import PaymentBody, id_text, payment_body, time_text

# Python's $ would let a line end pass; openapi.py shows the portable spelling.
_MERCHANT: Final = Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+\Z", examples=["m-1001"])
# Checked against the table of currencies, by which a pattern is saved; body_errors.py reads `extra`.
_CURRENCY: Final = Meta(
    examples=["EUR"],
    description="ISO 4217, upper case. A code that is unknown or withdrawn is refused.",
    extra_json_schema={"pattern": "^[A-Z]{3}$"},
    extra={
        "accepts": is_currency,
        "code": "unknown_currency",
        "detail": "is not a currency in use (ISO 4217, upper case)",
    },
)
Amount = Annotated[
    int,
    Meta(ge=1, le=MAX_AMOUNT, examples=[12500], description="Minor units of the currency: 12500 EUR is 125.00 euro."),
]
OrderId = Annotated[
    str, Meta(min_length=1, max_length=64, examples=["order-77"], description="Unique for a merchant, for ever.")
]
Description = Annotated[str, Meta(max_length=500, examples=["two tickets"])]
Metadata = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=40)], Annotated[str, Meta(max_length=500)]],
    Meta(max_length=20, examples=[{"channel": "web"}]),
]
Reason = Annotated[str, Meta(min_length=1, max_length=500, examples=["returned goods"])]


# ------------------------------------------------------------------ requests
class PaymentRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Authorize a payment."""

    merchant_id: Annotated[str, _MERCHANT]
    amount: Amount
    currency: Annotated[str, _CURRENCY]
    order_id: OrderId | UnsetType | None = UNSET
    description: Description | UnsetType | None = UNSET
    metadata: Metadata | UnsetType | None = UNSET

    def json_strings(self) -> int:
        count = 5  # merchant_id and currency with their values, and the name of amount
        if self.order_id is not UNSET:
            count += 1 if self.order_id is None else 2
        if self.description is not UNSET:
            count += 1 if self.description is None else 2
        if self.metadata is not UNSET:
            count += 1 if self.metadata is None else 1 + 2 * len(self.metadata)
        return count

    def texts(self) -> Iterator[tuple[tuple[str, ...], str, bool]]:
        """(where, text, whether it is an identifier)."""
        yield ("merchant_id",), self.merchant_id, True
        if self.order_id:
            yield ("order_id",), self.order_id, True
        if self.description:
            yield ("description",), self.description, False
        for name, value in (self.metadata or {}).items():
            yield ("metadata",), name, False
            yield ("metadata", name), value, False

    def command(self, _: bytes) -> Command:
        return Authorize(
            self.merchant_id,
            self.amount,
            self.currency,
            self.order_id or None,
            None if self.description is UNSET else self.description,
            self.metadata or {},
        )


class CaptureRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Capture part of an authorization, or, without an amount, all that is left."""

    amount: Amount | UnsetType = UNSET

    def command(self, payment_id: bytes) -> Command:
        return Capture(payment_id, self.amount or None)

    def json_strings(self) -> int:
        return 0 if self.amount is UNSET else 1

    def texts(self) -> Iterator[tuple[tuple[str, ...], str, bool]]:
        return iter(())


class RefundRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Refund part of what was captured, or, without an amount, all that is left."""

    reason: Reason
    amount: Amount | UnsetType = UNSET

    def command(self, payment_id: bytes) -> Command:
        return Refund(payment_id, self.amount or None, self.reason)

    def json_strings(self) -> int:
        return 2 if self.amount is UNSET else 3

    def texts(self) -> Iterator[tuple[tuple[str, ...], str, bool]]:
        yield ("reason",), self.reason, False


class VoidRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing to say: an empty body or an empty object."""

    def command(self, payment_id: bytes) -> Command:
        return Void(payment_id)

    def json_strings(self) -> int:
        return 0

    def texts(self) -> Iterator[tuple[tuple[str, ...], str, bool]]:
        return iter(())


WriteRequest = PaymentRequest | CaptureRequest | RefundRequest | VoidRequest


# ------------------------------------------------------------------ answers
class PaymentEvent(msgspec.Struct, frozen=True):
    """One step of a payment, with its way through the outbox."""

    id: str
    type: str
    at: str
    amount: int
    outbox: str
    partition: int | None
    offset: int | None
    published_at: str | None
    booked_at: str | None


class PaymentWithEvents(PaymentBody, frozen=True):
    """A payment and its timeline, oldest step first."""

    events: list[PaymentEvent]


class PaymentList(msgspec.Struct, frozen=True):
    """One page of payments, newest first. `next_cursor` is null on the last page."""

    items: list[PaymentBody]
    next_cursor: str | None


class LedgerPosting(msgspec.Struct, frozen=True):
    """One line of an entry."""

    account: str
    side: str
    amount: int
    currency: str


class LedgerEntry(msgspec.Struct, frozen=True):
    """A balanced entry, booked once per event."""

    event_id: str
    at: str
    postings: list[LedgerPosting]


class LedgerOfPayment(msgspec.Struct, frozen=True):
    """What the ledger booked for a payment; empty while nothing was captured or booked."""

    payment_id: str
    entries: list[LedgerEntry]


class LedgerAccount(msgspec.Struct, frozen=True):
    """Sums of one account in one currency, in minor units."""

    account: str
    currency: str
    debit: int
    credit: int


class AccountList(msgspec.Struct, frozen=True):
    """One page of accounts, ordered by account and currency."""

    items: list[LedgerAccount]
    next_cursor: str | None


class CurrencyTotal(msgspec.Struct, frozen=True):
    """Sums over all postings of one currency."""

    currency: str
    debit: int
    credit: int
    balanced: bool


class TrialBalance(msgspec.Struct, frozen=True):
    """The check of the whole ledger: every currency balances."""

    currencies: list[CurrencyTotal]


def payment_with_events(payment: Payment, events: Sequence[PaymentEventView]) -> PaymentWithEvents:
    body = payment_body(payment)
    return PaymentWithEvents(
        **{name: getattr(body, name) for name in body.__struct_fields__},
        events=[
            PaymentEvent(
                id=id_text(event.id),
                type=event.type.value,
                at=time_text(event.at_us),
                amount=event.amount,
                outbox=event.outbox,
                partition=event.partition,
                offset=event.offset,
                published_at=None if event.published_at_us is None else time_text(event.published_at_us),
                booked_at=None if event.booked_at_us is None else time_text(event.booked_at_us),
            )
            for event in events
        ],
    )


def payment_list(payments: Sequence[Payment], next_cursor: str | None) -> PaymentList:
    return PaymentList(items=[payment_body(payment) for payment in payments], next_cursor=next_cursor)


def ledger_of_payment(payment_id: str, entries: Sequence[Entry]) -> LedgerOfPayment:
    return LedgerOfPayment(
        payment_id=payment_id,
        entries=[
            LedgerEntry(
                event_id=id_text(entry.event_id),
                at=time_text(entry.at_us),
                postings=[
                    LedgerPosting(one.account, one.side.value, one.amount, one.currency) for one in entry.postings
                ],
            )
            for entry in entries
        ],
    )


def account_list(balances: Sequence[AccountBalance], next_cursor: str | None) -> AccountList:
    return AccountList(
        items=[LedgerAccount(one.account, one.currency, one.debit, one.credit) for one in balances],
        next_cursor=next_cursor,
    )


def trial_balance(balances: Sequence[CurrencyBalance]) -> TrialBalance:
    return TrialBalance(
        [CurrencyTotal(one.currency, one.debit, one.credit, one.debit == one.credit) for one in balances]
    )

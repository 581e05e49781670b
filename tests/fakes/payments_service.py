"""A PaymentsService in memory: the real fold over dictionaries, so that its answers are those of the product.

`fail_with` is raised by the next calls; `gate`, when set, holds every submit until it is opened. `submitted` keeps what
came in.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from payflow import wire
from payflow.core.idempotency import StoredKey
from payflow.core.ledger import AccountBalance, CurrencyBalance, Entry, Posting, Side
from payflow.core.outbox import Accepted, Group, Loaded, Refusal, Submit
from payflow.core.payment import EventType, Payment
from payflow.ports import PaymentEventView, PaymentQuery

START_US = 1_770_000_000_000_000


def counting_ids(start: int = 1) -> Callable[[], bytes]:
    """Ids of the shape of UUIDv7, in order."""
    counter = itertools.count(start)

    def new() -> bytes:
        number = next(counter)
        return number.to_bytes(6, "big") + b"\x70\x00\x80" + number.to_bytes(7, "big")

    return new


class PaymentsServiceFake:
    """See the module."""

    def __init__(self) -> None:
        self.submitted: list[Submit] = []
        self.request_ids: list[str] = []
        self.fail_with: BaseException | None = None
        self.gate: asyncio.Event | None = None
        self._new_id = counting_ids()
        self._payments: dict[bytes, Payment] = {}
        self._orders: dict[tuple[str, str], Payment] = {}
        self._keys: dict[bytes, StoredKey] = {}
        self._events: dict[bytes, list[PaymentEventView]] = {}
        self._now_us = START_US

    @property
    def count(self) -> int:
        """Payments that were written."""
        return len(self._payments)

    async def submit(self, request: Submit, *, request_id: str) -> Accepted | Refusal:
        self.request_ids.append(request_id)
        await self._before()
        self.submitted.append(request)
        self._now_us += 1_000
        group = Group([request], at_us=self._now_us, new_id=self._new_id, codec=wire)
        group.scopes(self._payments)
        changes = group.fold(Loaded(self._payments, self._orders, self._keys))
        for payment in (*changes.created, *changes.updated):
            self._payments[payment.id] = payment
            if payment.order_id is not None:
                self._orders[payment.merchant_id, payment.order_id] = payment
        for row in changes.rows:
            payment = row.event.payment
            self._keys[row.scope] = StoredKey(row.fingerprint, payment.id, payment.version, row.answer)
            self._events.setdefault(payment.id, []).append(
                _view(row.event.id, row.event.type, payment, row.event.amount)
            )
        outcome = changes.outcomes[0]
        assert isinstance(outcome, Accepted | Refusal)
        return outcome

    async def payment(self, payment_id: bytes) -> tuple[Payment, tuple[PaymentEventView, ...]] | None:
        await self._before()
        payment = self._payments.get(payment_id)
        return None if payment is None else (payment, tuple(self._events[payment_id]))

    async def payments(self, query: PaymentQuery) -> list[Payment]:
        await self._before()
        found = sorted(self._payments.values(), key=_place, reverse=True)
        return [payment for payment in found if _matches(payment, query)][: query.limit]

    async def ledger_entries(self, payment_id: bytes) -> list[Entry]:
        await self._before()
        return [
            entry
            for event in self._events.get(payment_id, [])
            if (entry := _entry(self._payments[payment_id], event)) is not None
        ]

    async def ledger_accounts(self, *, after: tuple[str, str] | None, limit: int) -> list[AccountBalance]:
        await self._before()
        sums: dict[tuple[str, str], list[int]] = {}
        for posting in self._postings():
            sides = sums.setdefault((posting.account, posting.currency), [0, 0])
            sides[posting.side is Side.CREDIT] += posting.amount
        rows = [AccountBalance(*key, debit, credit) for key, (debit, credit) in sorted(sums.items())]
        return [row for row in rows if after is None or (row.account, row.currency) > after][:limit]

    async def trial_balance(self) -> list[CurrencyBalance]:
        await self._before()
        sums: dict[str, list[int]] = {}
        for posting in self._postings():
            sums.setdefault(posting.currency, [0, 0])[posting.side is Side.CREDIT] += posting.amount
        return [CurrencyBalance(currency, *both) for currency, both in sorted(sums.items())]

    def _postings(self) -> Sequence[Posting]:
        return [
            posting
            for payment_id, events in self._events.items()
            for event in events
            if (entry := _entry(self._payments[payment_id], event)) is not None
            for posting in entry.postings
        ]

    async def _before(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.fail_with is not None:
            raise self.fail_with


def _place(payment: Payment) -> tuple[int, bytes]:
    return payment.created_at_us, payment.id


def _matches(payment: Payment, query: PaymentQuery) -> bool:
    return (
        (query.merchant_id is None or payment.merchant_id == query.merchant_id)
        and (query.status is None or payment.status is query.status)
        and (query.from_us is None or payment.created_at_us >= query.from_us)
        and (query.to_us is None or payment.created_at_us < query.to_us)
        and (query.after is None or _place(payment) < query.after)
    )


def _view(event_id: bytes, kind: EventType, payment: Payment, amount: int) -> PaymentEventView:
    return PaymentEventView(
        event_id, kind, payment.version, payment.updated_at_us, amount, "pending", None, None, None, None
    )


def _entry(payment: Payment, event: PaymentEventView) -> Entry | None:
    if event.type not in {EventType.CAPTURED, EventType.REFUNDED}:
        return None
    first, second = (Side.DEBIT, Side.CREDIT) if event.type is EventType.CAPTURED else (Side.CREDIT, Side.DEBIT)
    return Entry(
        event.id,
        payment.id,
        event.at_us,
        (
            Posting("cash", first, event.amount, payment.currency),
            Posting(f"merchant_payable:{payment.merchant_id}", second, event.amount, payment.currency),
        ),
    )

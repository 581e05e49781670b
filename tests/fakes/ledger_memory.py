"""The ledger in memory: both ports over the same fold as the file. It passes the same contract suite."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import chain

from payflow.core.booking import Account, Batch, Changes, Loaded, Sums
from payflow.core.ledger import (
    AccountBalance,
    Booking,
    CurrencyBalance,
    Delivery,
    Entry,
    LedgerEvent,
    Side,
    postings,
)


class LedgerMemory:
    """`ports.Ledger` and `ports.LedgerReader` in one.

    `failures` are raised by the next calls of `book`, one each, before anything is written; `late_failures` after
    everything is written, as a COMMIT whose answer was lost; `read_failures` by the next reads of positions and audits.
    `delay_s` passes before a booking.
    """

    def __init__(self) -> None:
        self.failures: deque[Exception] = deque()
        self.late_failures: deque[Exception] = deque()
        self.read_failures: deque[Exception] = deque()
        self.delay_s = 0.0
        self.books = 0
        self.booking = False
        self.applied: dict[bytes, LedgerEvent] = {}
        self.booked_at_us: dict[bytes, int] = {}
        self._heads: dict[bytes, LedgerEvent] = {}
        self._entries: list[Entry] = []
        self._sums: dict[Account, Sums] = {}
        self._held: dict[bytes, tuple[Delivery, int]] = {}
        self._positions: dict[tuple[str, str], dict[int, int]] = {}

    async def open(self) -> None:
        """Nothing to open: what was booked is there again, as in a file."""

    async def close(self) -> None:
        """Nothing to close."""

    # ------------------------------------------------------------------ ports.Ledger
    async def positions(self, source_id: str, topic: str) -> Mapping[int, int]:
        if self.read_failures:
            raise self.read_failures.popleft()
        return dict(self._positions.get((source_id, topic), {}))

    async def book(
        self,
        deliveries: Sequence[Delivery],
        *,
        source_id: str,
        topic: str,
        positions: Mapping[int, int],
        at_us: int,
    ) -> Booking:
        assert not self.booking, "one transaction at a time"
        self.books += 1
        if self.delay_s:
            self.booking = True
            try:
                await asyncio.sleep(self.delay_s)
            finally:
                self.booking = False
        if self.failures:
            raise self.failures.popleft()
        batch = Batch(deliveries)
        loaded = self._load(batch)
        accounts = batch.accounts(loaded)
        sums = {account: self._sums[account] for account in accounts if account in self._sums}
        changes = batch.fold(loaded, sums, positions)
        self._write(changes, at_us)
        self._positions.setdefault((source_id, topic), {}).update(changes.positions)
        if self.late_failures:
            raise self.late_failures.popleft()
        return changes.booking

    async def audit(self) -> list[CurrencyBalance]:
        if self.read_failures:
            raise self.read_failures.popleft()
        booked: dict[Account, Sums] = {}
        for line in chain.from_iterable(postings(event) for event in self.applied.values()):
            account = line.account, line.currency
            debit, credit = booked.get(account, (0, 0))
            is_debit = line.side is Side.DEBIT
            booked[account] = debit + line.amount * is_debit, credit + line.amount * (not is_debit)
        drift = {
            account: sum(abs(a - b) for a, b in zip(booked.get(account, (0, 0)), kept, strict=True))
            for account, kept in self._sums.items()
        }
        return _per_currency(booked, drift)

    # ------------------------------------------------------------------ ports.LedgerReader
    async def entries(self, payment_id: bytes) -> list[Entry]:
        return [entry for entry in self._entries if entry.payment_id == payment_id]

    async def accounts(self, *, after: tuple[str, str] | None, limit: int) -> list[AccountBalance]:
        page = sorted(account for account in self._sums if account > (after or ("", "")))[:limit]
        return [AccountBalance(*account, *self._sums[account]) for account in page]

    async def trial_balance(self) -> list[CurrencyBalance]:
        return _per_currency(self._sums, {})

    async def held(self) -> tuple[int, int | None]:
        return len(self._held), min((held_at_us for _, held_at_us in self._held.values()), default=None)

    # ------------------------------------------------------------------ one transaction
    def _load(self, batch: Batch) -> Loaded:
        payment_ids, event_ids = set(batch.payment_ids), set(batch.event_ids)
        return Loaded(
            heads={p: self._heads[p] for p in payment_ids if p in self._heads},
            applied={e: self.applied[e] for e in event_ids if e in self.applied},
            held=[d for e, (d, _) in self._held.items() if e in event_ids or d.event.payment_id in payment_ids],
        )

    def _write(self, changes: Changes, at_us: int) -> None:
        for event, entry in changes.applied:
            assert event.event_id not in self.applied
            self.applied[event.event_id] = self._heads[event.payment_id] = event
            self.booked_at_us[event.event_id] = at_us
            if entry is not None:
                self._entries.append(entry)
        self._sums.update(changes.sums)
        for delivery in changes.released:
            del self._held[delivery.event.event_id]
        for delivery in changes.held:
            assert delivery.event.event_id not in self._held
            self._held[delivery.event.event_id] = delivery, at_us


def _per_currency(sums: Mapping[Account, Sums], drift: Mapping[Account, int]) -> list[CurrencyBalance]:
    currencies = sorted({currency for _, currency in sums})
    return [
        CurrencyBalance(
            wanted,
            sum(debit for (_, currency), (debit, _) in sums.items() if currency == wanted),
            sum(credit for (_, currency), (_, credit) in sums.items() if currency == wanted),
            sum(difference for (_, currency), difference in drift.items() if currency == wanted),
        )
        for wanted in currencies
    ]

"""The payments database in memory: both sides of the port over dictionaries, decided by the same fold as the real one.

Verified: tests/contract/test_outbox_store.py runs on it and on the file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from payflow import wire
from payflow.core.idempotency import StoredKey
from payflow.core.outbox import (
    ROW_LIFE,
    VOLATILE_PREFIX,
    Audit,
    Backlog,
    Changes,
    Done,
    Event,
    Group,
    Loaded,
    MarkBooked,
    MarkPublished,
    Outcome,
    Park,
    PendingRow,
    Purge,
    Requeue,
    RowState,
    Unpublish,
    Write,
)
from payflow.core.payment import Payment
from payflow.errors import StoreRejected
from payflow.ports import Ids, PaymentEventView, PaymentQuery


@dataclass(slots=True)
class _Row:
    seq: int
    event: Event
    traceparent: str | None
    scope: bytes
    payload: bytes | None
    has_answer: bool = True
    payload_bytes: int = 0
    state: RowState = RowState.PENDING
    broker_id: str | None = None
    partition: int | None = None
    offset: int | None = None
    published_at_us: int | None = None
    booked_at_us: int | None = None

    def back_to_pending(self) -> None:
        self.state = RowState.PENDING
        self.broker_id = self.partition = self.offset = self.published_at_us = None


@dataclass(slots=True)
class _Data:
    payments: dict[bytes, Payment] = field(default_factory=dict)
    keys: dict[bytes, tuple[int, StoredKey]] = field(default_factory=dict)
    rows: dict[int, _Row] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    audit: list[Audit] = field(default_factory=list)


class OutboxMemory:
    """Store and reader in one object.

    `fail_next` is raised by the next commits, in order, before anything changes; `fail_late` after everything is
    written, as a COMMIT whose answer was lost; `fail_reads` by the next reads of pending rows. `delay_s` passes before
    a commit and, on an unchanged picture, before a read returns.
    """

    def __init__(self, *, ids: Ids) -> None:
        self._ids = ids
        self._data = _Data()
        self.is_open = False
        self.fail_next: list[Exception] = []
        self.fail_late: list[Exception] = []
        self.fail_reads: list[Exception] = []
        self.refuses: Callable[[Write], bool] = lambda _: False
        self.delay_s = 0.0
        self.read_delay_s: float | None = None  # the same as delay_s
        self.opened = 0
        self.groups: list[tuple[Write, ...]] = []

    # ---------------------------------------------------------------- store
    async def open(self) -> None:
        self.is_open = True
        self.opened += 1

    async def close(self) -> None:
        self.is_open = False

    async def commit(self, writes: Sequence[Write], *, at_us: int) -> list[Outcome]:
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.fail_next:
            raise self.fail_next.pop(0)
        if any(map(self.refuses, writes)):
            raise StoreRejected("one write is bad")
        group = Group(writes, at_us=at_us, new_id=self._ids.new, codec=wire)
        payments = {key: self._data.payments[key] for key in group.payment_ids() if key in self._data.payments}
        by_order = {(p.merchant_id, p.order_id): p for p in self._data.payments.values() if p.order_id is not None}
        orders = {order: by_order[order] for order in group.orders() if order in by_order}
        keys = {scope: self._data.keys[scope][1] for scope in group.scopes(payments) if scope in self._data.keys}
        changes = group.fold(Loaded(payments, orders, keys))
        self._write(changes)
        outcomes = list(changes.outcomes)
        for place, write in changes.others:
            outcomes[place] = Done(self._other(write))
        self.groups.append(tuple(writes))
        if self.fail_late:
            raise self.fail_late.pop(0)
        return [outcome for outcome in outcomes if outcome is not None]

    def _write(self, changes: Changes) -> None:
        for payment in (*changes.created, *changes.updated):
            self._data.payments[payment.id] = payment
        for row in changes.rows:
            seq = len(self._data.rows) + 1
            self._data.rows[seq] = _Row(
                seq, row.event, row.traceparent, row.scope, row.payload, payload_bytes=len(row.payload)
            )
            stored = StoredKey(row.fingerprint, row.event.payment.id, row.event.payment.version, row.answer)
            self._data.keys[row.scope] = (seq, stored)

    def _other(self, write: Write) -> int:
        match write:
            case MarkPublished():
                return sum(self._mark_published(write, mark.seq, mark.partition, mark.offset) for mark in write.rows)
            case MarkBooked():
                return self._mark_booked(write)
            case Park():
                return self._move(write, write.seq)
            case Requeue():
                moved = sum(self._move(write, seq) for seq in write.seqs)
                for seq in write.seqs:
                    self._data.held.pop(seq, None)
                return moved
            case Unpublish():
                return sum(
                    self._move(write, row.seq)
                    for row in self._data.rows.values()
                    if row.broker_id not in {None, write.broker_id}
                    and row.broker_id.startswith(VOLATILE_PREFIX)
                    and row.booked_at_us is None
                )
            case Audit():
                self._data.audit.append(write)
            case Purge():
                return self._purge(write)
        return 1

    def _move(self, write: Write, seq: int) -> bool:
        """One move of the table; whether the row moved."""
        row = self._data.rows.get(seq)
        target = None if row is None else ROW_LIFE.get((row.state, type(write)))
        if row is None or target is None or row.payload is None:
            return False
        if target is RowState.PENDING:
            row.back_to_pending()
        row.state = target
        if isinstance(write, Park):
            self._data.held[seq] = write.error
        return True

    def _mark_published(self, write: MarkPublished, seq: int, partition: int, offset: int) -> bool:
        if not self._move(write, seq):
            return False
        row = self._data.rows[seq]
        row.broker_id, row.partition, row.offset, row.published_at_us = write.broker_id, partition, offset, write.at_us
        return True

    def _mark_booked(self, write: MarkBooked) -> int:
        fresh = [r for r in self._data.rows.values() if r.event.id in write.event_ids and r.booked_at_us is None]
        for row in fresh:
            row.booked_at_us = write.at_us
        return len(fresh)

    def _purge(self, write: Purge) -> int:
        rows = self._data.rows.values()
        answered = [row for row in rows if row.has_answer and row.event.at_us < write.keys_before_us][: write.limit]
        for row in answered:
            row.has_answer = False
            if self._data.keys[row.scope][0] == row.seq:
                del self._data.keys[row.scope]
        old = [
            row
            for row in rows
            if row.payload is not None
            and row.state is RowState.PUBLISHED
            and (row.published_at_us or 0) < write.published_before_us
        ][: write.limit]
        for row in old:
            row.payload = None
        return len(answered) + len(old)

    # ---------------------------------------------------------------- reader
    def _ready(self) -> list[_Row]:
        held = {self._data.rows[seq].event.payment.id for seq in self._data.held}
        return [
            row
            for row in self._data.rows.values()
            if row.state is RowState.PENDING and row.event.payment.id not in held
        ]

    async def pending(self, *, after_seq: int, limit: int, max_bytes: int) -> list[PendingRow]:
        if self.fail_reads:
            raise self.fail_reads.pop(0)
        rows: list[PendingRow] = []
        room = max_bytes
        for row in [row for row in self._ready() if row.seq > after_seq][:limit]:
            assert row.payload is not None
            room -= len(row.payload)
            if rows and room < 0:
                break
            event = row.event
            headers = wire.event_headers(
                event_id=event.id,
                event_type=event.type,
                at_us=event.at_us,
                payment_id=event.payment.id,
                traceparent=row.traceparent,
            )
            key = wire.id_text(event.payment.id).encode()
            rows.append(PendingRow(row.seq, event.id, key, row.payload, headers, event.at_us))
        if delay_s := self.delay_s if self.read_delay_s is None else self.read_delay_s:
            await asyncio.sleep(delay_s)
        return rows

    async def backlog(self) -> Backlog:
        ready = self._ready()
        return Backlog(
            pending=sum(row.state is RowState.PENDING for row in self._data.rows.values()),
            parked=len(self._data.held),
            held_keys=len({self._data.rows[seq].event.payment.id for seq in self._data.held}),
            oldest_pending_at_us=ready[0].event.at_us if ready else None,
        )

    async def unbooked_bytes(self, broker_id: str) -> Mapping[int, int]:
        sums: dict[int, int] = {}
        for row in self._data.rows.values():
            if row.broker_id == broker_id and row.booked_at_us is None and row.partition is not None:
                sums[row.partition] = sums.get(row.partition, 0) + row.payload_bytes
        return sums

    async def payment(self, payment_id: bytes) -> tuple[Payment, tuple[PaymentEventView, ...]] | None:
        payment = self._data.payments.get(payment_id)
        if payment is None:
            return None
        return payment, tuple(
            PaymentEventView(
                row.event.id,
                row.event.type,
                row.event.payment.version,
                row.event.at_us,
                row.event.amount,
                row.state.name.lower(),
                row.partition,
                row.offset,
                row.published_at_us,
                row.booked_at_us,
            )
            for row in self._data.rows.values()
            if row.event.payment.id == payment_id
        )

    async def payments(self, query: PaymentQuery) -> list[Payment]:
        found = [
            payment
            for payment in self._data.payments.values()
            if query.merchant_id in {None, payment.merchant_id}
            and query.status in {None, payment.status}
            and (query.from_us is None or payment.created_at_us >= query.from_us)
            and (query.to_us is None or payment.created_at_us < query.to_us)
            and (query.after is None or (payment.created_at_us, payment.id) < query.after)
        ]
        found.sort(key=lambda payment: (payment.created_at_us, payment.id), reverse=True)
        return found[: query.limit]

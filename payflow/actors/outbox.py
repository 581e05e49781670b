"""The outbox actor: sole writer of the payments database. It decides and stores in groups and answers after COMMIT.

A group is whatever waits: take everything, one transaction, repeat; no timer. Splitting after a rejected write, the
probe of a full disk and the slices of retention live here, because they hold for any store.

Invariants: no answer before the store's commit returned; a write whose outcome is unknown is said to be unknown and the
file is opened anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

from payflow.actor import Actor, ActorRef
from payflow.core.outbox import (
    Done,
    MarkBooked,
    MarkPublished,
    Outcome,
    Probe,
    Purge,
    Requeue,
    Submit,
    Unpublish,
    Write,
)
from payflow.errors import MailboxFull, OutcomeUnknown, StoreBusy, StoreOutcomeUnknown, StoreRejected, StoreUnavailable
from payflow.mailbox import Envelope
from payflow.messages import BrokerMoved, Rewind, Tick, Wake, WhereIsKafka
from payflow.ports import Clock, OutboxStore

PROBE: Final = "probe"
PURGE: Final = "purge"
UNPUBLISH: Final = "unpublish"
# 200 rows a slice stay below one commit of a full group, so retention never holds the writer.
PURGE_ROWS: Final = 200
PURGE_IDLE_S: Final = 30.0
# Up to 10,000 rows a second leave: more than arrive.
PURGE_BUSY_S: Final = 0.02
# After a commit the loop gets turns until so many of them brought nothing, at most so many in all. Who was answered
# writes again within them: 64 connections make groups of 63 instead of 30, which saves a tenth of the CPU a payment.
QUIET_TURNS: Final = 4
GATHER_TURNS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """Retention in seconds; how often a store that refused a write is probed."""

    idempotency_retention_s: float
    published_retention_s: float
    probe_interval_s: float


@dataclass(frozen=True, slots=True)
class OutboxSnapshot:
    """What the debug page shows. `writable` is False from a refused write until a probe succeeded."""

    writable: bool
    groups_total: int
    writes_total: int
    splits_total: int
    largest_group: int
    last_error: str | None


class Outbox(Actor):
    """Handles `core.outbox.Write` messages in batches; BrokerMoved from the embedded broker; its own ticks."""

    def __init__(
        self,
        store: OutboxStore,
        *,
        publisher: ActorRef | None,
        broker: ActorRef | None,
        clock: Clock,
        settings: OutboxSettings,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._broker = broker
        self._clock = clock
        self._settings = settings
        self._moved: BrokerMoved | None = None
        self._writable = True
        self._probing = False
        self._groups = self._writes = self._splits = self._largest = 0
        self._last_error: str | None = None

    async def on_start(self, stack: AsyncExitStack) -> None:
        """Open the file; a dependency that is not there fails the start."""
        stack.push_async_callback(self._store.close)
        await self._store.open()
        self.ctx.tell_later(PURGE_IDLE_S, Tick(PURGE))
        if self._publisher is not None:
            # An instance before this one may have made rows pending and crashed before it said so.
            self._publisher.tell(Rewind())
        if self._broker is not None:
            with suppress(MailboxFull):  # then others have asked, and the answer goes to all
                self._broker.tell(WhereIsKafka())
        else:  # a real cluster: what an embedded broker took and nobody booked has to go there
            self.ctx.ref.tell(Tick(UNPUBLISH))

    def snapshot(self) -> OutboxSnapshot:
        """Small and cheap, no I/O."""
        return OutboxSnapshot(self._writable, self._groups, self._writes, self._splits, self._largest, self._last_error)

    async def handle_batch(self, batch: Sequence[Envelope]) -> None:
        """One group: commit, then answer each write, then say who should know."""
        try:
            await self._handle(batch)
        except StoreOutcomeUnknown as error:
            unknown = OutcomeUnknown(retry_after_s=1.0)
            for envelope in batch:
                self.ctx.fail(envelope, unknown)
            self._note(error)
            raise  # a crash: the supervisor opens the file anew, and repeated it ends the process

    async def _handle(self, batch: Sequence[Envelope]) -> None:
        envelopes: list[Envelope] = []
        for envelope in batch:
            match envelope.payload:
                case Tick(duty=duty):
                    await self._duty(duty)
                case BrokerMoved() as moved:
                    self._moved = moved
                    await self._unpublish()
                case WhereIsKafka():
                    if self._moved and self._publisher:
                        self._publisher.tell(self._moved)
                case _:
                    envelopes.append(envelope)
        if not envelopes:
            return
        writes = [self._current(envelope.payload) for envelope in envelopes]
        self._groups += 1
        self._writes += len(writes)
        self._largest = max(self._largest, len(writes))
        for envelope, outcome in zip(envelopes, await self._commit(writes), strict=True):
            if isinstance(outcome, Exception):
                self.ctx.fail(envelope, outcome)
            else:
                self.ctx.reply(envelope, outcome)
        self._notify(writes)
        await self._gather()

    async def _gather(self) -> None:
        """Let the loop go on while it brings writes for the next group. No timer: an idle loop is through at once."""
        quiet, (depth, *_) = 0, self.ctx.ref.load()
        for _ in range(GATHER_TURNS):
            await asyncio.sleep(0)
            before, (depth, *_) = depth, self.ctx.ref.load()
            quiet = 0 if depth > before else quiet + 1
            if quiet == QUIET_TURNS:
                return

    # ------------------------------------------------------------------ the group
    async def _commit(self, writes: Sequence[Write]) -> list[Outcome | Exception]:
        """One transaction; after a rejected write the group is decided again in halves, then singly, so that only the
        bad one fails.
        """
        try:
            outcomes = await self._store.commit(writes, at_us=self._clock.wall_us())
        except StoreRejected as error:
            if len(writes) == 1:
                self.ctx.emit("outbox.write_rejected", write=type(writes[0]).__name__, error=str(error))
                return [error]
            self._splits += 1
            middle = len(writes) // 2
            return await self._commit(writes[:middle]) + await self._commit(writes[middle:])
        except (StoreUnavailable, StoreBusy) as error:
            self._becomes_unwritable(error)
            return [error] * len(writes)
        if not self._writable:
            self._writable = True
            self.ctx.emit("outbox.writable")
        return list(outcomes)

    def _current(self, write: Write) -> Write:
        """A mark for a memory-only broker that is gone marks nothing: its rows were put back to pending."""
        if isinstance(write, MarkPublished) and self._moved and self._moved.broker_id != write.broker_id:
            return MarkPublished((), write.broker_id, write.at_us)
        return write

    def _notify(self, writes: Sequence[Write]) -> None:
        if self._publisher is None:
            return
        if any(isinstance(write, (Requeue, Unpublish)) for write in writes):
            self._publisher.tell(Rewind())
        elif any(isinstance(write, (Submit, MarkBooked)) for write in writes):
            self._publisher.tell(Wake())

    # ------------------------------------------------------------------ broker and duties
    async def _unpublish(self) -> None:
        """What went to a memory-only broker other than the one there is now is pending again; then its clients hear."""
        moved = self._moved
        outcome = (await self._commit([Unpublish(moved.broker_id if moved else "")]))[0]
        if isinstance(outcome, Exception):
            self.ctx.tell_later(self._settings.probe_interval_s, Tick(UNPUBLISH))
            return
        if isinstance(outcome, Done) and outcome.rows:
            self.ctx.emit("outbox.unpublished", rows=outcome.rows, broker_id=moved.broker_id if moved else None)
        if self._publisher is not None:
            if moved is not None:
                self._publisher.tell(moved)
            self._publisher.tell(Rewind())  # it may have heard of this broker before its rows were pending

    async def _duty(self, duty: str) -> None:
        if duty == PROBE:
            self._probing = False
            outcome = (await self._commit([Probe()]))[0]
            if isinstance(outcome, Exception):
                self._probe_later()
        elif duty == UNPUBLISH:
            await self._unpublish()
        elif duty == PURGE:
            now_us = self._clock.wall_us()
            purge = Purge(
                keys_before_us=now_us - round(self._settings.idempotency_retention_s * 1e6),
                published_before_us=now_us - round(self._settings.published_retention_s * 1e6),
                limit=PURGE_ROWS,
            )
            outcome = (await self._commit([purge]))[0]
            more = isinstance(outcome, Done) and outcome.rows >= PURGE_ROWS
            self.ctx.tell_later(PURGE_BUSY_S if more else PURGE_IDLE_S, Tick(PURGE))

    def _becomes_unwritable(self, error: StoreUnavailable | StoreBusy) -> None:
        if self._writable:
            self._writable = False
            self.ctx.emit("outbox.unwritable", error=str(error))
        self._note(error)
        self._probe_later()

    def _probe_later(self) -> None:
        if not self._probing:
            self._probing = True
            self.ctx.tell_later(self._settings.probe_interval_s, Tick(PROBE))

    def _note(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"

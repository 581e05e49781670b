"""The consumer: reads the events' topic and books each event once. Sole owner of the ledger database.

A fetch task hands records to the mailbox; the actor books them in one transaction with the position. What cannot be
booked now (the ledger is locked or full) waits here with the fetching stopped and uses up nothing; what can never be
booked goes to the dead-letter topic, and the position passes it only after that write was acknowledged.

Invariants: only the actor's handlers write to the ledger, one transaction at a time; what belongs to a source that was
given up (records, poison, positions) goes with it, because the ledger's position says where to go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

from payflow.actor import Actor, ActorRef
from payflow.actors.auditor import Auditor
from payflow.actors.consumer_values import ConsumerCounters, ConsumerSettings, ConsumerSnapshot
from payflow.actors.dead_letters import DeadLetterWriter, Poison
from payflow.actors.lag import ASK_EVERY_S, ASK_TIMEOUT_S, LOST_AFTER_FAILURES, Lag
from payflow.actors.records import positions_after, sort_out
from payflow.actors.storing import Storing, store
from payflow.core.ledger import Booking
from payflow.core.outbox import MarkBooked, Unpublish
from payflow.errors import (
    BrokerUnavailable,
    LaneUnavailable,
    MailboxFull,
    OffsetOutOfRange,
    PayflowError,
    StoreBusy,
    StoreUnavailable,
)
from payflow.mailbox import Envelope
from payflow.messages import BrokerMoved, Fetched, PositionLost, Reconnect, Tick, WhereIsKafka
from payflow.ports import Clock, EventLog, Ledger, LogInfo, Record, RecordSource

__all__ = ["Consumer", "ConsumerCounters", "ConsumerSettings", "ConsumerSnapshot"]

BOOK: Final = "book"
LAG: Final = "lag"
CLOSE_TIMEOUT_S: Final = 2.0
# Fetches that may wait here during one transaction; without it a locked ledger would fill the mailbox with records.
FETCHES_AHEAD: Final = 8
LATE_MARKS_S: Final = 10.0
GENERATIONS_AN_INSTANCE: Final = 1 << 32


class Consumer(Actor):
    """Handles Fetched, PositionLost, BrokerMoved, Reconnect and its own ticks, in batches."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        open_source: Callable[[str, str | None], RecordSource],
        open_dead_letters: Callable[[str, str | None], EventLog],
        bootstrap: str | None,
        outbox: ActorRef | None,
        broker: ActorRef | None,
        clock: Clock,
        draw: Callable[[], float],
        settings: ConsumerSettings,
        counters: ConsumerCounters,
    ) -> None:
        self._ledger = ledger
        self._open_source = open_source
        self._letters = DeadLetterWriter(
            lambda: open_dead_letters(self._bootstrap or "", self._broker_id),
            topic=settings.dead_letter_topic,
            source_topic=settings.topic,
            timeout_s=settings.connect_timeout_s,
            clock=clock,
            delay_s=lambda failures: settings.backoff.delay_s(failures, draw()),
            failed=self._dead_letter_failed,
        )
        self._bootstrap = bootstrap
        self._broker_id: str | None = None
        self._outbox = outbox
        self._broker = broker
        self._clock = clock
        self._draw = draw
        self._settings = settings
        self._counters = counters
        self._source: RecordSource | None = None
        self._info: LogInfo | None = None
        self._generation = 0
        self._positions: dict[int, int] = {}
        self._queued = 0  # records in the mailbox
        self._waiting: list[Record] = []
        self._poison: list[Poison] = []
        self._burying: asyncio.Task[None] | None = None
        self._passed: dict[int, int] = {}  # positions behind dead letters that are acknowledged, not yet in the ledger
        self._acks = Storing(outbox, self._mark_booked, delayed=self._acks_delayed) if outbox is not None else None
        self._stopped: set[int] = set()
        self._attempt = 0
        self._failures = 0
        self._resting = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._hears_broker = True
        self._draining = False
        self._lag = Lag(counters, clock)
        self._last_error: str | None = None

    # ------------------------------------------------------------------ life
    async def on_start(self, stack: AsyncExitStack) -> None:
        """Open the ledger; Kafka comes when it comes."""
        # The mailbox outlives a crash. What is in it is not ours: its position would pass what the crashed one lost.
        self._generation = self.ctx.instance * GENERATIONS_AN_INSTANCE
        stack.push_async_callback(self._ledger.close)
        await self._ledger.open()
        stack.push_async_callback(self._close_clients)
        if self._acks is not None:
            self.ctx.spawn(self._acks.run(), name="acks")
        if self._outbox is not None and self._settings.volatile and self.ctx.instance > 1:
            # What the crashed one had booked and not acknowledged would count against the broker's memory for ever.
            self.ctx.spawn(self._publish_again(self._outbox), name="unpublish")
        if self._bootstrap is not None:
            self._connect()
        elif self._broker is not None:
            with suppress(MailboxFull):  # then others have asked, and the answer goes to all
                self._broker.tell(WhereIsKafka())
        auditor = Auditor(
            self._ledger,
            interval_s=self._settings.audit_interval_s,
            counters=self._counters,
            ctx=self.ctx,
        )
        self.ctx.spawn(auditor.run(), name="audit")
        self.ctx.spawn(self._watch_lag(), name="lag")

    async def on_drain(self) -> None:
        """No record is fetched after this returns; what was fetched before is handled, and every ack is stored."""
        self._draining = True
        self._generation += 1
        if self._acks is not None:
            await self._acks.settled()

    def snapshot(self) -> ConsumerSnapshot:
        """Small and cheap."""
        return ConsumerSnapshot(
            self._info is not None and self._hears_broker,
            self._info.log_id if self._info else None,
            dict(self._positions),
            len(self._waiting),
            len(self._poison),
            tuple(sorted(self._stopped)),
            self._last_error,
        )

    async def handle_batch(self, batch: Sequence[Envelope]) -> None:
        """Everything that was fetched meanwhile is booked in one transaction."""
        for envelope in batch:
            match envelope.payload:
                case Fetched(generation=generation, records=records) if generation == self._generation:
                    self._queued -= len(records)
                    self._waiting.extend(record for record in records if record.partition not in self._stopped)
                case PositionLost(generation=generation) as lost if generation == self._generation:
                    await self._position_lost(lost)
                case BrokerMoved(bootstrap=bootstrap, broker_id=broker_id):
                    if broker_id != self._broker_id:
                        self._bootstrap, self._broker_id = bootstrap, broker_id
                        self._disconnect()
                        self._connect()
                case Reconnect():
                    self._connect()
                case Tick(duty=duty) if duty == BOOK:
                    self._resting = False
                case _:
                    pass
        await self._book()
        self._update_idle()

    # ------------------------------------------------------------------ booking
    async def _book(self) -> None:
        """One transaction for all that waits. Nothing is booked while poison waits for its dead letter: order and
        position stay simple.
        """
        info, generation = self._info, self._generation
        if info is None or self._poison or self._resting or not (self._waiting or self._passed):
            return
        records = self._waiting
        deliveries, poison = sort_out(records)
        positions = self._passed | positions_after(records, poison=poison)
        try:
            booking = await self._ledger.book(
                deliveries,
                source_id=info.log_id,
                topic=self._settings.topic,
                positions=positions,
                at_us=self._clock.wall_us(),
            )
        except (StoreBusy, StoreUnavailable) as error:
            self._book_later(error)
            return
        # StoreRejected is a crash: the fold refuses what it can name, so this is a defect of ours.
        self._failures = 0
        self._count(booking)
        if generation != self._generation:
            return  # the source was given up meanwhile; whatever comes again is known by its event id
        self._waiting, self._passed = [], {}
        self._lag.booked(records[-1].timestamp_ms if records else None)
        by_place = {(record.partition, record.offset): record for record in records}
        for refused in booking.refused:
            record = by_place[refused.delivery.partition, refused.delivery.offset]
            poison.append(Poison(record, refused.reason, refused.reason))
        if poison:
            self._poison = poison
            self._burying = self.ctx.spawn(self._bury(positions_after(records)), name="dead-letters")
        else:
            self._positions.update(positions)

    def _count(self, booking: Booking) -> None:
        self._counters.entries_total += booking.entries
        self._counters.booked_total += len(booking.booked)
        self._counters.duplicates_total += booking.duplicates
        self._counters.out_of_order_total += booking.held
        for blocked in booking.blocked:  # durably held, and no retry will book it: a person has to look
            event = blocked.delivery.event
            self.ctx.emit(
                "consumer.held_event_blocked",
                event_id=event.event_id.hex(),
                version=event.version,
                reason=blocked.reason,
            )
        if self._acks is not None:
            self._acks.add(booking.booked)

    def _book_later(self, error: PayflowError) -> None:
        """The ledger's trouble, not the events': wait with backoff; no attempt is counted against anything."""
        delay_s = self._settings.backoff.delay_s(self._failures, self._draw())
        self._failures += 1
        self._note(error)
        self.ctx.emit(
            "consumer.ledger_unavailable", failures=self._failures, retry_in_s=round(delay_s, 3), error=self._last_error
        )
        self._resting = True
        self._send_later(delay_s, Tick(BOOK))

    async def _bury(self, positions: dict[int, int]) -> None:
        """Until every dead letter is acknowledged nothing else is booked; the next transaction passes them."""
        totals = self._counters.dead_lettered_total
        while self._poison:
            poison = self._poison[0]
            await self._letters.write(poison)
            del self._poison[0]
            totals[poison.code] = totals.get(poison.code, 0) + 1
            self.ctx.emit("consumer.dead_lettered", **poison.place, reason=poison.reason)
        self._passed |= positions
        await self.ctx.ref.send(Tick(BOOK))

    def _dead_letter_failed(self, poison: Poison, error: PayflowError) -> None:
        self._note(error)
        self.ctx.emit("consumer.dead_letter_failed", **poison.place, error=self._last_error)

    # ------------------------------------------------------------------ acknowledgements to the outbox of this process
    def _mark_booked(self, event_ids: tuple[bytes, ...]) -> MarkBooked:
        return MarkBooked(event_ids, self._clock.wall_us())

    def _acks_delayed(self, error: PayflowError) -> None:
        events = len(self._acks or ())
        self.ctx.emit("consumer.acks_delayed", events=events, error=f"{type(error).__name__}: {error}")

    async def _publish_again(self, outbox: ActorRef) -> None:
        """Everything that was published and is not known to be booked; copies are dropped by their event ids.

        Twice, because marks that are on their way to the outbox make rows published after the first time.
        """
        await store(outbox, Unpublish(""), delayed=self._acks_delayed)
        await asyncio.sleep(LATE_MARKS_S)
        await store(outbox, Unpublish(""), delayed=self._acks_delayed)

    # ------------------------------------------------------------------ fetching
    async def _fetch(self, source: RecordSource, generation: int) -> None:
        """Act at once when idle, then at most one fetch in `pace_s`, so that groups grow; wait while something cannot
        be booked.
        """
        while await self._may_fetch(generation):
            started_at = self._clock.now()
            try:
                records = await source.fetch(
                    max_records=self._settings.fetch_records, timeout_s=self._settings.fetch_timeout_s
                )
            except OffsetOutOfRange as error:
                await self.ctx.ref.send(PositionLost(generation, error.partition, error.offset))
                return
            except (BrokerUnavailable, LaneUnavailable) as error:
                self._lost(source, error)
                return
            if generation != self._generation:
                return
            self._attempt = 0
            if records:
                self._queued += len(records)
                self._update_idle()
                await self.ctx.ref.send(Fetched(generation, records))
                await asyncio.sleep(max(0.0, self._settings.pace_s - (self._clock.now() - started_at)))

    async def _may_fetch(self, generation: int) -> bool:
        await self._idle.wait()
        return generation == self._generation

    def _update_idle(self) -> None:
        """Fetching waits while records wait here for the ledger or for a dead letter."""
        blocked = bool(self._poison) or self._resting
        self._counters.paused = blocked
        if blocked or self._queued + len(self._waiting) >= FETCHES_AHEAD * self._settings.fetch_records:
            self._idle.clear()
        else:
            self._idle.set()

    async def _position_lost(self, lost: PositionLost) -> None:
        source = self._source
        assert source is not None, "without a source the generation is another"
        self._counters.offset_out_of_range_total += 1
        self.ctx.emit(
            "consumer.position_lost", partition=lost.partition, offset=lost.offset, volatile=self._settings.volatile
        )
        if self._settings.volatile and self._outbox is not None:
            # What the broker dropped before it was booked is still in the outbox: publish it again, read what is left
            # from its beginning. The other partitions go back to what is booked.
            self.ctx.spawn(self._publish_again(self._outbox), name="unpublish")
            self._positions.pop(lost.partition, None)
            self._forget()
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    await source.seek(self._positions)
            except (TimeoutError, BrokerUnavailable, LaneUnavailable) as error:
                self._lost(source, error)
            if self._source is not source:
                return
        else:
            self._stopped.add(lost.partition)
            source.pause([lost.partition])
        self.ctx.spawn(self._fetch(source, self._generation), name="fetch")

    # ------------------------------------------------------------------ the client's life
    def _connect(self) -> None:
        if self._bootstrap is None or self._source is not None or self._draining:
            return
        self._source = self._open_source(self._bootstrap, self._broker_id)
        self.ctx.spawn(self._open(self._source, self._generation), name="connect")

    async def _open(self, source: RecordSource, generation: int) -> None:
        failure: Exception | None = None
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                info = await source.open()
                positions = dict(await self._ledger.positions(info.log_id, self._settings.topic))
                if generation == self._generation:
                    await source.seek(positions)
        except (TimeoutError, BrokerUnavailable, LaneUnavailable, StoreBusy, StoreUnavailable) as error:
            failure = error
        if generation != self._generation:
            await source.close(timeout_s=CLOSE_TIMEOUT_S)  # closed while it was opening, and open again since
            return
        if failure is not None:
            self._lost(source, failure)
            return
        self._info, self._positions, self._stopped = info, positions, set()
        self._hears_broker = True
        self._lag.connected()
        self.ctx.emit("consumer.connected", source_id=info.log_id, partitions=info.partitions)
        self.ctx.spawn(self._fetch(source, generation), name="fetch")
        # Health reads what is published after a message: without one, an idle topic would never make this role ready.
        await self.ctx.ref.send(Tick(BOOK))

    def _lost(self, source: RecordSource, error: Exception) -> None:
        if self._source is not source:
            return
        self._disconnect()
        self._note(error)
        self._attempt += 1
        self.ctx.emit("consumer.not_connected", attempt=self._attempt, error=self._last_error)
        delay_s = self._settings.backoff.delay_s(self._attempt - 1, self._draw())
        self._send_later(delay_s, Reconnect(self._attempt))

    def _disconnect(self) -> None:
        source, self._source, self._info = self._source, None, None
        self._forget()
        if source is not None:
            self._counters.rebuilt_total += 1
            self.ctx.spawn(source.close(timeout_s=CLOSE_TIMEOUT_S), name="close")
            self.ctx.spawn(self._letters.close(), name="close-dead-letters")

    def _forget(self) -> None:
        """Records in the mailbox and here are read again: the position in the ledger says where to go on."""
        self._generation += 1
        self._queued = 0
        self._waiting, self._poison, self._passed = [], [], {}
        if self._burying is not None:
            self._burying.cancel()
        self._update_idle()

    async def _close_clients(self) -> None:
        await self._letters.close()
        if self._source is not None:
            await self._source.close(timeout_s=CLOSE_TIMEOUT_S)

    # ------------------------------------------------------------------ lag
    async def _watch_lag(self) -> None:
        """Lag in records and in seconds; a client that lost its broker or stopped making progress is replaced.

        The position is told to Kafka here and not with each booking: it is for lag tools only.
        """
        failures = 0
        while True:
            await asyncio.sleep(ASK_EVERY_S)
            source, generation = self._source, self._generation
            self._lag.grow()
            if source is None or self._info is None or self._draining:
                failures = 0
                continue
            try:
                async with asyncio.timeout(ASK_TIMEOUT_S):
                    bounds = await source.bounds()
                if generation == self._generation:
                    await source.commit(dict(self._positions))
            except (TimeoutError, BrokerUnavailable, LaneUnavailable) as error:
                failures += 1
                self._hears(False)
                if failures >= LOST_AFTER_FAILURES:
                    self._lost(source, error)
                continue
            failures = 0
            self._hears(True)
            if generation == self._generation:
                self._lag.read(sum(max(0, end - self._positions.get(p, first)) for p, (first, end) in bounds.items()))
                if self._lag.stalled and self._idle.is_set() and not self._stopped:
                    self._lost(source, BrokerUnavailable("no progress while records wait"))

    def _hears(self, hears: bool) -> None:
        """Whether the broker answered the last question; a change is published at once, for health."""
        if hears != self._hears_broker:
            self._hears_broker = hears
            self._send_later(0, Tick(LAG))

    # ------------------------------------------------------------------ small things
    def _note(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"

    def _send_later(self, delay_s: float, message: object) -> None:
        """Like ctx.tell_later, but it waits for room: a reconnect that a full mailbox refused would be the last one."""
        self.ctx.spawn(self._send_after(delay_s, message), name="later")

    async def _send_after(self, delay_s: float, message: object) -> None:
        await asyncio.sleep(delay_s)
        await self.ctx.ref.send(message)

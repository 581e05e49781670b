"""The consumer: reads the events' topic and books each event once. Sole owner of the ledger database.

A fetch task hands records to the mailbox; the actor books them in one transaction with the position. What cannot be booked now (the ledger is locked
or full) waits here with the fetching stopped and uses up nothing; what can never be booked goes to the dead-letter topic, and the position passes it
only after that write was acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from payflow.actor import Actor, ActorRef
from payflow.core.backoff import Backoff
from payflow.core.ledger import Delivery
from payflow.core.outbox import MarkBooked, Unpublish
from payflow.errors import (
    ActorError,
    BrokerUnavailable,
    LaneUnavailable,
    OffsetOutOfRange,
    PayflowError,
    ProducerBroken,
    StoreBusy,
    StoreRejected,
    StoreUnavailable,
    UndecodableEvent,
)
from payflow.mailbox import Envelope
from payflow.messages import BrokerMoved, Fetched, PositionLost, Reconnect, Tick, WhereIsKafka
from payflow.ports import Clock, EventLog, Ledger, LogInfo, LogRecord, Record, RecordSource
from payflow.wire import decode_event

AUDIT: Final = "audit"
BOOK: Final = "book"
LAG: Final = "lag"
CLOSE_TIMEOUT_S: Final = 2.0
ACK_TIMEOUT_S: Final = 5.0
LAG_INTERVAL_S: Final = 2.0
# The client never asks `bootstrap_servers` again by itself: brokers that all moved are found by a new client only.
LOST_AFTER_FAILURES: Final = 3
# The end of the log moves and our position does not: the client lost its way (aiokafka issue 703), build another.
STALLED_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """Times in seconds. `volatile` says that the broker keeps its log in memory only (embedded)."""

    topic: str
    dead_letter_topic: str
    volatile: bool
    pace_s: float = 0.05
    fetch_timeout_s: float = 1.0
    fetch_records: int = 500
    connect_timeout_s: float = 15.0
    audit_interval_s: float = 60.0
    backoff: Backoff = Backoff(initial_s=0.25, factor=2.0, cap_s=10.0)


@dataclass(slots=True)
class ConsumerCounters:
    """Monotonic counts and last readings, read by metrics; they outlive the actor's instances."""

    entries_total: int = 0
    booked_total: int = 0
    duplicates_total: int = 0
    out_of_order_total: int = 0
    dead_lettered_total: dict[str, int] = field(default_factory=dict)
    offset_out_of_range_total: int = 0
    rebuilt_total: int = 0
    lag_records: int = 0
    lag_seconds: float = 0.0
    imbalance: dict[str, int] = field(default_factory=dict)
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ConsumerSnapshot:
    """What the debug page shows."""

    connected: bool
    source_id: str | None
    positions: dict[int, int]
    waiting_records: int
    dead_letters_waiting: int
    stopped_partitions: tuple[int, ...]
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that no retry can book."""

    record: Record
    reason: str


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
        self._open_dead_letters = open_dead_letters
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
        self._waiting: list[Record] = []
        self._poison: list[Poison] = []
        self._dead_letters: EventLog | None = None
        self._acks: set[bytes] = set()
        self._acking = False
        self._stopped: set[int] = set()
        self._failures = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._progress_at = self._caught_up_at = 0.0
        self._booked_timestamp_ms = 0
        self._last_error: str | None = None

    # ------------------------------------------------------------------ life
    async def on_start(self, stack: AsyncExitStack) -> None:
        """Open the ledger; Kafka comes when it comes."""
        stack.push_async_callback(self._ledger.close)
        await self._ledger.open()
        stack.push_async_callback(self._close_clients)
        if self._bootstrap is not None:
            self._connect(0)
        elif self._broker is not None:
            self._broker.tell(WhereIsKafka())
        self.ctx.tell_later(self._settings.audit_interval_s, Tick(AUDIT))
        self.ctx.spawn(self._watch_lag(), name="lag")

    async def on_drain(self) -> None:
        """No record is fetched after this returns; what was fetched before has been handled."""
        self._draining = True
        self._generation += 1
        while self._acks and self._outbox is not None:
            await self._ack()

    def snapshot(self) -> ConsumerSnapshot:
        """Small and cheap."""
        return ConsumerSnapshot(
            self._source is not None,
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
                    self._waiting.extend(record for record in records if record.partition not in self._stopped)
                case PositionLost(generation=generation) as lost if generation == self._generation:
                    await self._position_lost(lost)
                case BrokerMoved(bootstrap=bootstrap, broker_id=broker_id):
                    if broker_id != self._broker_id:
                        self._bootstrap, self._broker_id = bootstrap, broker_id
                        self._disconnect()
                        self._connect(0)
                case Reconnect(attempt=attempt):
                    self._connect(attempt)
                case Tick(duty=duty) if duty == AUDIT:
                    await self._audit()
                case _:
                    pass
        await self._book()

    # ------------------------------------------------------------------ booking
    async def _book(self) -> None:
        """One transaction for all that waits. Nothing is booked while poison waits for its dead letter: order and position stay simple."""
        if not self._waiting or self._poison or self._info is None:
            self._update_idle()
            return
        info, records = self._info, self._waiting
        deliveries, poison = _sort_out(records)
        positions = _positions_after(records, {p.record.partition: p.record.offset for p in reversed(poison)})
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
        except StoreRejected as error:
            # The fold refuses what it can name; this is a defect of ours, and the supervisor has the last word on it.
            self._last_error = str(error)
            raise
        self._failures = 0
        self._counters.paused = False
        self._waiting = []
        self._progress_at = self._clock.now()
        self._booked_timestamp_ms = records[-1].timestamp_ms
        self._counters.entries_total += booking.entries
        self._counters.booked_total += len(booking.booked)
        self._counters.duplicates_total += booking.duplicates
        self._counters.out_of_order_total += booking.held
        by_place = {(record.partition, record.offset): record for record in records}
        poison += [Poison(by_place[r.delivery.partition, r.delivery.offset], r.reason) for r in booking.refused]
        self._acks.update(booking.booked)
        self._start_ack()
        if poison:
            self._poison = poison
            final = _positions_after(records, {})
            self.ctx.spawn(self._write_dead_letters(info, final), name="dead-letters")
        else:
            self._positions.update(positions)
        self._update_idle()

    def _book_later(self, error: PayflowError) -> None:
        """The ledger's trouble, not the events': wait with backoff; no attempt is counted against anything."""
        delay_s = self._settings.backoff.delay_s(self._failures, self._draw())
        self._failures += 1
        self._counters.paused = True
        self._last_error = f"{type(error).__name__}: {error}"
        self.ctx.emit(
            "consumer.ledger_unavailable", failures=self._failures, retry_in_s=round(delay_s, 3), error=self._last_error
        )
        self._update_idle()
        self.ctx.tell_later(delay_s, Tick(BOOK))

    async def _write_dead_letters(self, info: LogInfo, positions: dict[int, int]) -> None:
        """Until every dead letter is acknowledged nothing else is booked; the position passes them afterwards, in a transaction of its own."""
        generation = self._generation
        while self._poison and generation == self._generation:
            poison = self._poison[0]
            try:
                await self._append_dead_letter(poison)
            except (BrokerUnavailable, LaneUnavailable, ProducerBroken, TimeoutError) as error:
                self._last_error = f"dead letter: {type(error).__name__}: {error}"
                self.ctx.emit(
                    "consumer.dead_letter_failed",
                    partition=poison.record.partition,
                    offset=poison.record.offset,
                    error=self._last_error,
                )
                await self._drop_dead_letter_log()
                await asyncio.sleep(self._settings.backoff.delay_s(self._failures, self._draw()))
                self._failures += 1
                continue
            self._failures = 0
            code = poison.reason.partition(":")[0]
            totals = self._counters.dead_lettered_total
            totals[code] = totals.get(code, 0) + 1
            self.ctx.emit(
                "consumer.dead_lettered",
                partition=poison.record.partition,
                offset=poison.record.offset,
                reason=poison.reason,
            )
            if generation == self._generation:
                self._poison.pop(0)
        if generation != self._generation:
            return
        await self._ledger.book(
            [], source_id=info.log_id, topic=self._settings.topic, positions=positions, at_us=self._clock.wall_us()
        )
        self._positions.update(positions)
        self._update_idle()
        self.ctx.ref.tell(Tick(BOOK))

    async def _append_dead_letter(self, poison: Poison) -> None:
        record, topic = poison.record, self._settings.topic
        if self._dead_letters is None:
            assert self._bootstrap is not None
            log = self._open_dead_letters(self._bootstrap, self._broker_id)
            self._dead_letters = log
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await log.open()
        headers = (
            *record.headers,
            ("payflow_reason", poison.reason.encode()),
            ("payflow_source_topic", topic.encode()),
            ("payflow_source_partition", str(record.partition).encode()),
            ("payflow_source_offset", str(record.offset).encode()),
        )
        letter = LogRecord(record.key, record.value, headers, self._clock.wall_us() // 1000)
        async with asyncio.timeout(self._settings.connect_timeout_s):
            await self._dead_letters.append(self._settings.dead_letter_topic, 0, [letter])

    # ------------------------------------------------------------------ acknowledgements to the outbox of this process
    def _start_ack(self) -> None:
        if self._outbox is not None and self._acks and not self._acking:
            self.ctx.spawn(self._ack(), name="ack")

    async def _ack(self) -> None:
        """Booked events go to the outbox until it has stored that they are; one request at a time."""
        if self._acking or self._outbox is None:
            await asyncio.sleep(0)
            return
        self._acking = True
        try:
            while self._acks:
                batch = tuple(self._acks)
                try:
                    await self._outbox.ask(MarkBooked(batch, self._clock.wall_us()), timeout_s=ACK_TIMEOUT_S)
                except (ActorError, PayflowError) as error:
                    self.ctx.emit("consumer.acks_delayed", events=len(batch), error=f"{type(error).__name__}: {error}")
                    await asyncio.sleep(self._settings.fetch_timeout_s)
                    continue
                self._acks.difference_update(batch)
        finally:
            self._acking = False

    # ------------------------------------------------------------------ fetching
    async def _fetch(self, source: RecordSource, generation: int) -> None:
        """Act at once when idle, then at most one fetch in `pace_s`, so that groups grow; wait while something cannot be booked."""
        while generation == self._generation:
            await self._idle.wait()
            started_at = self._clock.now()
            try:
                records = await source.fetch(
                    max_records=self._settings.fetch_records, timeout_s=self._settings.fetch_timeout_s
                )
            except OffsetOutOfRange as error:
                await self.ctx.ref.send(PositionLost(generation, error.partition, error.offset))
                return
            except BrokerUnavailable as error:
                self._lost(source, error)
                return
            if records and generation == self._generation:
                await self.ctx.ref.send(Fetched(generation, records))
                await asyncio.sleep(max(0.0, self._settings.pace_s - (self._clock.now() - started_at)))

    def _update_idle(self) -> None:
        """Fetching waits while records wait here for the ledger or for a dead letter."""
        if self._poison or (self._waiting and self._failures):
            self._idle.clear()
        else:
            self._idle.set()

    async def _position_lost(self, lost: PositionLost) -> None:
        self._counters.offset_out_of_range_total += 1
        self.ctx.emit(
            "consumer.position_lost", partition=lost.partition, offset=lost.offset, volatile=self._settings.volatile
        )
        source, info = self._source, self._info
        if source is None or info is None:
            return
        if self._settings.volatile and self._outbox is not None:
            # What the broker dropped before it was booked is still in the outbox: publish it again, read what is left from its beginning.
            await self._outbox.ask(Unpublish(""), timeout_s=ACK_TIMEOUT_S)
            self._positions.pop(lost.partition, None)
            await source.seek(self._positions)
        else:
            self._stopped.add(lost.partition)
            source.pause([lost.partition])
        self.ctx.spawn(self._fetch(source, self._generation), name="fetch")

    # ------------------------------------------------------------------ the client's life
    def _connect(self, attempt: int) -> None:
        if self._bootstrap is None or self._source is not None or self._draining:
            return
        self._source = self._open_source(self._bootstrap, self._broker_id)
        self.ctx.spawn(self._open(self._source, attempt), name="connect")

    async def _open(self, source: RecordSource, attempt: int) -> None:
        generation = self._generation
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                info = await source.open()
                positions = dict(await self._ledger.positions(info.log_id, self._settings.topic))
                await source.seek(positions)
        except (TimeoutError, BrokerUnavailable, LaneUnavailable) as error:
            if generation == self._generation:
                self._lost(source, error, attempt=attempt)
            return
        if generation != self._generation:
            return
        self._info, self._positions, self._stopped = info, positions, set()
        self._progress_at = self._caught_up_at = self._clock.now()
        self.ctx.emit("consumer.connected", source_id=info.log_id, partitions=info.partitions)
        self.ctx.spawn(self._fetch(source, generation), name="fetch")

    def _lost(self, source: RecordSource, error: Exception, *, attempt: int = 0) -> None:
        if self._source is not source:
            return
        self._disconnect()
        self._last_error = f"{type(error).__name__}: {error}"
        self.ctx.emit("consumer.not_connected", attempt=attempt + 1, error=self._last_error)
        self.ctx.tell_later(self._settings.backoff.delay_s(attempt, self._draw()), Reconnect(attempt + 1))

    def _disconnect(self) -> None:
        """Records in the mailbox and here belong to a source that is gone: the position in the ledger says where to go on."""
        source, self._source, self._info = self._source, None, None
        self._generation += 1
        self._counters.rebuilt_total += 1
        self._waiting, self._poison = [], []
        self._update_idle()
        if source is not None:
            self.ctx.spawn(source.close(timeout_s=CLOSE_TIMEOUT_S), name="close")
        if self._dead_letters is not None:
            self.ctx.spawn(self._drop_dead_letter_log(), name="close-dead-letters")

    async def _drop_dead_letter_log(self) -> None:
        log, self._dead_letters = self._dead_letters, None
        if log is not None:
            await log.discard(timeout_s=CLOSE_TIMEOUT_S)

    async def _close_clients(self) -> None:
        await self._drop_dead_letter_log()
        if self._source is not None:
            await self._source.close(timeout_s=CLOSE_TIMEOUT_S)

    # ------------------------------------------------------------------ audit and lag
    async def _audit(self) -> None:
        self.ctx.tell_later(self._settings.audit_interval_s, Tick(AUDIT))
        balances = await self._ledger.audit()
        self._counters.imbalance = {b.currency: b.debit - b.credit for b in balances}
        for balance in balances:
            if balance.debit != balance.credit:
                self.ctx.emit("ledger.imbalance", currency=balance.currency, debit=balance.debit, credit=balance.credit)

    def _lag_s(self, now: float) -> float:
        """Age of the oldest unbooked record: it is younger than the last booked one, and than the last time nothing was left."""
        since_booked_s = self._clock.wall_us() / 1e6 - self._booked_timestamp_ms / 1e3
        return max(0.0, min(since_booked_s, now - self._caught_up_at))

    async def _watch_lag(self) -> None:
        """Lag in records and in seconds; a client that lost its broker or stopped making progress is replaced.

        The position is told to Kafka here and not with each booking: it is for lag tools only.
        """
        failures = 0
        while True:
            await asyncio.sleep(LAG_INTERVAL_S)
            source, info = self._source, self._info
            if source is None or info is None:
                failures = 0
                continue
            try:
                ends = await source.end_offsets()
            except BrokerUnavailable as error:
                failures += 1
                if failures >= LOST_AFTER_FAILURES:
                    self._lost(source, error)
                continue
            failures = 0
            await source.commit(dict(self._positions))
            lag = sum(max(0, end - self._positions.get(partition, 0)) for partition, end in ends.items())
            now = self._clock.now()
            if lag == 0:
                self._progress_at = self._caught_up_at = now
            self._counters.lag_records = lag
            self._counters.lag_seconds = self._lag_s(now) if lag else 0.0
            stalled = now - self._progress_at > STALLED_AFTER_S and self._idle.is_set() and not self._stopped
            if stalled and not self._draining:
                self._lost(source, BrokerUnavailable(f"no progress for {STALLED_AFTER_S:g} s while {lag} records wait"))


def _sort_out(records: Sequence[Record]) -> tuple[list[Delivery], list[Poison]]:
    """Decode; what cannot be decoded is poison."""
    deliveries: list[Delivery] = []
    poison: list[Poison] = []
    for record in records:
        try:
            event = decode_event(record.value, record.headers)
        except UndecodableEvent as error:
            poison.append(Poison(record, error.reason))
        else:
            deliveries.append(Delivery(record.partition, record.offset, event, record.value or b""))
    return deliveries, poison


def _positions_after(records: Sequence[Record], stops: dict[int, int]) -> dict[int, int]:
    """Next offset a partition after these records, but not beyond the first stop of a partition."""
    positions = {record.partition: record.offset + 1 for record in records}
    return {partition: min(offset, stops.get(partition, offset)) for partition, offset in positions.items()}

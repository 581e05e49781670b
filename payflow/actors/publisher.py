"""The publisher: moves outbox rows to Kafka behind the breaker, in sequence per payment.

No handler waits for the broker. A group is an owned task; what became of it is settled in one place (`_settle`) without
an await, and the next cycle is asked for by a coalesced message. A refusal by the breaker is not an attempt: nothing is
sent, nothing is counted, rows stay.

Outcome unknown (our own delivery deadline passed, or the producer broke): the rows stay pending and the producer is
discarded before any of its keys is sent again; a copy that still lands is dropped by its event id in the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from payflow.actor import Actor, ActorRef
from payflow.actors.producers import Producers
from payflow.actors.storing import Storing, store
from payflow.core.backoff import Backoff
from payflow.core.breaker import Outcome, OutcomeKind, Permit
from payflow.core.lanes import Lane, Window
from payflow.core.outbox import MarkPublished, Park, PendingRow, PublishedRow
from payflow.core.routing import partition_for
from payflow.errors import (
    BrokerUnavailable,
    LaneUnavailable,
    MailboxClosed,
    PayflowError,
    ProducerBroken,
    RecordRejected,
    StoreBusy,
    StoreUnavailable,
)
from payflow.guard import Guard
from payflow.messages import BrokerMoved, Poll, Reconnect, Rewind, Tick, Wake, WhereIsKafka
from payflow.ports import Clock, EventLog, LogInfo, LogRecord, OutboxReader

CYCLE: Final = "cycle"
GROUP_ROWS: Final = 500
# An operator's mistake (topic, rights) is looked at again this often: soon after the repair, rare enough for the log.
LANE_RETRY_S: Final = 5.0
EVERY_SEQ: Final = 2**63
# A broker that answers needs milliseconds; discarding the producer and the broker's child need their time as well.
DRAIN_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherSettings:
    """Times in seconds. `unbooked_limit_bytes`: what a memory-only broker may hold unbooked a partition, else None."""

    topic: str
    pace_s: float = 0.05
    poll_s: float = 1.0
    delivery_timeout_s: float = 15.0
    page_rows: int = 1000
    window_rows: int = 4000
    window_bytes: int = 4 << 20
    unbooked_limit_bytes: int | None = None
    backoff: Backoff = field(default_factory=partial(Backoff, initial_s=0.25, factor=2.0, cap_s=10.0))


@dataclass(slots=True)
class PublisherCounters:
    """Monotonic counts, read by metrics; they outlive the actor's instances."""

    published_total: int = 0
    unknown_total: int = 0
    rebuilt_total: int = 0
    poll_found_total: int = 0
    parked_total: int = 0
    partial_total: int = 0
    observe: Callable[[str, float], None] = lambda _outcome, _duration_s: None


@dataclass(frozen=True, slots=True)
class PublisherSnapshot:
    """What the debug page shows."""

    connected: bool
    log_id: str | None
    window_rows: int
    cursor: int
    in_flight: int
    marks_waiting: int
    lanes_held: int
    last_error: str | None


class Publisher(Actor):
    """Handles Wake, Poll, Rewind, BrokerMoved, Reconnect and its own ticks."""

    def __init__(
        self,
        *,
        reader: OutboxReader,
        outbox: ActorRef,
        guard: Guard,
        open_log: Callable[[str, str | None], EventLog],
        bootstrap: str | None,
        clock: Clock,
        draw: Callable[[], float],
        settings: PublisherSettings,
        counters: PublisherCounters,
    ) -> None:
        self._reader = reader
        self._outbox = outbox
        self._guard = guard
        self._producers = Producers(open_log, timeout_s=settings.delivery_timeout_s)
        self._bootstrap = bootstrap
        self._broker_id: str | None = None
        self._clock = clock
        self._draw = draw
        self._settings = settings
        self._counters = counters
        self._window = Window(max_rows=settings.window_rows, max_bytes=settings.window_bytes)
        self._info: LogInfo | None = None
        self._generation = 0
        self._marks = Storing(outbox, self._mark, stored=self._marks_stored, delayed=self._marks_delayed)
        self._sends: set[asyncio.Task[None]] = set()
        self._holds: set[asyncio.Task[None]] = set()
        self._known: tuple[str, int] | None = None
        # Of a read under way, what lies above this seq is no longer what the store would say.
        self._stale_above = 0
        self._rewound = False
        self._first_lane = 0
        self._next_cycle_at = 0.0
        self._cycle_timer: asyncio.TimerHandle | None = None
        self._cycle_due_at = 0.0
        self._draining = False
        self._drain_ends_at = 0.0
        self._last_error: str | None = None

    # ------------------------------------------------------------------ life
    async def on_start(self, stack: AsyncExitStack) -> None:
        """Never waits for Kafka; with the embedded broker its address comes as BrokerMoved."""
        stack.push_async_callback(self._reader.close)
        await self._reader.open()
        stack.callback(self._guard.on_admission(self._poke))
        stack.push_async_callback(self._producers.close)
        if self._bootstrap is not None:
            self.ctx.ref.tell(Reconnect(0))
        else:
            self._outbox.tell(WhereIsKafka())
        self.ctx.spawn(self._marks.run(), name="marks")
        self.ctx.tell_later(self._settings.poll_s, Poll())

    async def on_drain(self) -> None:
        """Stop at a row boundary: nothing new starts, what is in flight ends or is given up, marks are stored.

        A broker that does not answer must not hold up the end: what it did not acknowledge stays pending. A producer
        that was given up is not waited for: its rows are pending whatever it still says.
        """
        if not self._draining:
            self._draining = True
            self._drain_ends_at = self._clock.now() + DRAIN_TIMEOUT_S  # once: the stop drains again
        while (tasks := self._sends | self._holds) and (left_s := self._drain_ends_at - self._clock.now()) > 0:
            await asyncio.wait(tasks, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        await self._marks.settled()

    def snapshot(self) -> PublisherSnapshot:
        """Small and cheap."""
        lanes, now = self._window.lanes, self._clock.now()
        return PublisherSnapshot(
            connected=self._info is not None,
            log_id=self._info.log_id if self._info else None,
            window_rows=self._window.rows,
            cursor=self._window.cursor,
            in_flight=sum(len(lane.in_flight) for lane in lanes),
            marks_waiting=len(self._marks),
            lanes_held=sum(lane.not_before > now for lane in lanes),
            last_error=self._last_error,
        )

    async def handle(self, message: object) -> None:
        """Every message is a reason to look; only some change what is looked at."""
        match message:
            case BrokerMoved(bootstrap=bootstrap, broker_id=broker_id):
                if broker_id != self._broker_id:
                    self._bootstrap, self._broker_id = bootstrap, broker_id
                    self._disconnect()
                    self._connect(0)
            case Reconnect(attempt=attempt):
                self._connect(attempt)
            case Rewind():
                # A mark that is being stored may have been overtaken by what made its row pending: look again after.
                self._rewound = len(self._marks) > 0
                self._rewind()
            case Poll():
                self.ctx.tell_later(self._settings.poll_s, Poll())
                if not self._window.rows:  # whatever is pending, wherever: nothing stays behind the cursor for good
                    self._rewind()
            case Tick(duty=duty) if duty == CYCLE:
                self._cycle_timer = None
            case _:
                pass
        await self._cycle(polled=isinstance(message, Poll))

    # ------------------------------------------------------------------ one cycle: load, then start groups
    async def _cycle(self, *, polled: bool) -> None:
        if self._info is None or self._draining:
            return
        now = self._clock.now()
        if now < self._next_cycle_at:
            self._cycle_later(self._next_cycle_at - now)
            return
        self._next_cycle_at = now + self._settings.pace_s
        info = self._info
        try:
            more, loaded = await self._load(info)
            await self._refresh_unbooked(info)
        except (StoreBusy, StoreUnavailable) as error:
            more, loaded = False, 0  # what is loaded can go; the poll reads again
            self._note(error)
            self.ctx.emit("publisher.outbox_unreadable", error=self._last_error)
        if polled:
            self._counters.poll_found_total += loaded
        if self._info is info and not self._draining:  # else the log was lost meanwhile; the rows wait in the window
            self._start_groups()
        if more:
            self._cycle_later(self._settings.pace_s)

    async def _load(self, info: LogInfo) -> tuple[bool, int]:
        """(whether to read on soon, rows that were new to the window)."""
        room_rows, room_bytes = self._window.room
        if not room_rows or not room_bytes:
            return False, 0
        cursor, self._stale_above = self._window.cursor, 0
        limit = min(room_rows, self._settings.page_rows)
        rows = await self._reader.pending(after_seq=cursor, limit=limit, max_bytes=room_bytes)
        if self._info is not info or self._stale_above > cursor:
            return True, 0
        return len(rows) == limit, self._window.load(rows, lambda key: partition_for(key, info.partitions))

    def _rewind(self) -> None:
        self._window.rewind()
        self._stale_above = EVERY_SEQ

    async def _refresh_unbooked(self, info: LogInfo) -> None:
        """Only for a memory-only broker: its unbooked bytes are counted anew once a lane is half way to the limit."""
        limit = self._settings.unbooked_limit_bytes
        if limit is None or all(lane.unbooked_bytes < limit // 2 for lane in self._window.lanes):
            return
        stored = await self._reader.unbooked_bytes(info.log_id)
        if self._info is not info:
            return
        unmarked: dict[int, int] = {}
        for row in self._marks:
            unmarked[row.partition] = unmarked.get(row.partition, 0) + self._window.size_of(row.seq)
        for lane in self._window.lanes:
            lane.unbooked_bytes = stored.get(lane.partition, 0) + unmarked.get(lane.partition, 0)

    def _start_groups(self) -> None:
        """No await in here: permits and lanes must still hold when the tasks are made."""
        now, lanes = self._clock.now(), self._window.lanes
        # Not always the same lane first: half open, a lane without a leader must not use up every trial.
        self._first_lane = first = (self._first_lane + 1) % len(lanes)
        for lane in (*lanes[first:], *lanes[:first]):
            if not lane.ready(now, unbooked_limit=self._settings.unbooked_limit_bytes):
                if lane.queue and not lane.in_flight and lane.not_before > now:
                    self._cycle_later(lane.not_before - now)
                continue
            permits = self._guard.acquire_many(min(len(lane.queue), GROUP_ROWS))
            if not permits:
                break  # open: the guard wakes us when it admits again
            rows = self._window.take(lane, len(permits))
            task = self._own(self._sends, self._send(lane, rows, permits), name=f"send-{lane.partition}")
            # Also of a task that was cancelled, even before its first step: what is not recorded goes back.
            task.add_done_callback(partial(self._task_ended, permits))

    # ------------------------------------------------------------------ one group
    def _send(self, lane: Lane, rows: Sequence[PendingRow], permits: list[Permit]) -> Coroutine[Any, Any, None]:
        log = self._producers.current
        assert log is not None
        return self._send_by(log, self._generation, lane, rows, permits)

    async def _send_by(
        self, log: EventLog, generation: int, lane: Lane, rows: Sequence[PendingRow], permits: list[Permit]
    ) -> None:
        started_at = self._clock.now()
        records = [LogRecord(row.key, row.payload, row.headers, row.created_at_us // 1000) for row in rows]
        error: PayflowError | None = None
        count, base_offset = 0, 0
        try:
            async with asyncio.timeout(self._settings.delivery_timeout_s):
                count, base_offset = await log.append(self._settings.topic, lane.partition, records)
        except TimeoutError:
            error = ProducerBroken(f"no answer within {self._settings.delivery_timeout_s:g} s, outcome unknown")
            self._counters.unknown_total += len(rows)
        except (RecordRejected, LaneUnavailable, BrokerUnavailable, ProducerBroken) as raised:
            error = raised
        took_s = self._clock.now() - started_at
        current = generation == self._generation
        if current or error is None:
            self._record(permits, count, error, took_s)
        else:
            self._give_back(permits)  # we gave the producer up: that says nothing about the broker there is now
        if current:
            self._settle(lane, rows, (count, base_offset), error)
        self._poke()

    def _record(self, permits: list[Permit], count: int, error: PayflowError | None, took_s: float) -> None:
        """One call = one record. What is the record's or the operator's fault says nothing about the broker."""
        if isinstance(error, (RecordRejected, LaneUnavailable)):
            self._counters.observe("rejected", took_s)
        else:
            kind = OutcomeKind.SUCCESS if error is None else OutcomeKind.FAILURE
            called = count if error is None else len(permits)
            recorded, permits[:] = permits[:called], permits[called:]
            for permit in recorded:
                self._guard.record(permit, Outcome(kind, took_s))
            self._counters.observe(kind.value, took_s)
        self._give_back(permits)

    def _task_ended(self, permits: list[Permit], _task: asyncio.Task[None]) -> None:
        self._give_back(permits)

    def _give_back(self, permits: list[Permit]) -> None:
        while permits:
            self._guard.release(permits.pop())

    def _settle(
        self, lane: Lane, rows: Sequence[PendingRow], appended: tuple[int, int], error: PayflowError | None
    ) -> None:
        """The one place where a group's end changes state. No await."""
        count, base_offset = appended
        if error is None:
            if count < len(rows):
                self._counters.partial_total += 1
            taken = self._window.acknowledged(lane, count)
            self._marks.add(PublishedRow(row.seq, lane.partition, base_offset + i) for i, row in enumerate(taken))
            self._counters.published_total += count
            return
        self._note(error)
        if isinstance(error, RecordRejected):
            self._window.acknowledged(lane, 0)
            self._park(lane, rows[0], str(error))
        elif isinstance(error, LaneUnavailable):
            self._window.failed(lane, not_before=self._clock.now() + LANE_RETRY_S)
            self.ctx.emit("publisher.lane_held", partition=lane.partition, error=str(error))
        else:
            # The first retry comes at once; after two attempts in a row the lane backs off with jitter.
            delay_s = self._settings.backoff.delay_s(lane.failures - 1, self._draw()) if lane.failures else 0.0
            self._window.failed(lane, not_before=self._clock.now() + delay_s)
            self.ctx.emit(
                "publisher.group_failed",
                partition=lane.partition,
                rows=len(rows),
                failures=lane.failures,
                error=self._last_error,
            )
            if isinstance(error, ProducerBroken):
                self._disconnect()
                self._connect(0)

    # ------------------------------------------------------------------ what goes back to the outbox
    def _mark(self, rows: tuple[PublishedRow, ...]) -> MarkPublished:
        assert self._known is not None
        return MarkPublished(rows, self._known[0], self._clock.wall_us())

    def _marks_stored(self, rows: tuple[PublishedRow, ...]) -> None:
        self._window.release(row.seq for row in rows)
        self._stale_above = max(self._stale_above, *(row.seq for row in rows))
        if self._rewound:
            self._rewound = False
            self._rewind()
        self._poke()

    def _marks_delayed(self, error: PayflowError) -> None:
        self.ctx.emit("publisher.marks_delayed", rows=len(self._marks), error=f"{type(error).__name__}: {error}")

    def _park(self, lane: Lane, row: PendingRow, reason: str) -> None:
        self._window.bar(lane, row.key)
        self._counters.parked_total += 1
        self.ctx.emit("publisher.row_parked", seq=row.seq, key=row.key.decode(), error=reason)
        self._own(self._holds, self._hold(row, reason), name=f"park-{row.seq}")

    async def _hold(self, row: PendingRow, reason: str) -> None:
        """Until the hold is stored the key stays barred, so nothing later of this payment can pass the parked row."""
        park = Park(row.seq, reason, self._clock.wall_us())
        await store(self._outbox, park, delayed=partial(self._park_delayed, row))
        self._window.unbar(row.key)
        self._stale_above = EVERY_SEQ  # a read that began before the hold still shows the rows behind it

    def _park_delayed(self, row: PendingRow, error: PayflowError) -> None:
        self.ctx.emit("publisher.park_delayed", seq=row.seq, error=f"{type(error).__name__}: {error}")

    # ------------------------------------------------------------------ the producer's life
    def _connect(self, attempt: int) -> None:
        if self._bootstrap is None or self._producers.current is not None or self._draining:
            return
        log = self._producers.make(self._bootstrap, self._broker_id)
        self.ctx.spawn(self._open(log, attempt), name="connect")

    async def _open(self, log: EventLog, attempt: int) -> None:
        try:
            info = await self._producers.open(log)
        except (BrokerUnavailable, LaneUnavailable, ProducerBroken) as error:
            self._note(error)
            self.ctx.emit("publisher.not_connected", attempt=attempt + 1, error=self._last_error)
            self.ctx.tell_later(self._settings.backoff.delay_s(attempt, self._draw()), Reconnect(attempt + 1))
            return
        if info is None:
            return
        if self._known != (info.log_id, info.partitions):
            self._window.reset(info.partitions)
            self._marks.clear()
            self._known = (info.log_id, info.partitions)
        self._info = info
        self.ctx.emit("publisher.connected", log_id=info.log_id, partitions=info.partitions)
        self._poke()

    def _disconnect(self) -> None:
        """The producer is given up: its groups' outcomes are unknown, their rows go back to the head of their lanes."""
        self._info = None
        self._generation += 1
        self._counters.rebuilt_total += self._producers.retire()
        self._sends = set()  # they end at their deadline and are asked for nothing but what they say about the broker
        for lane in self._window.lanes:
            if lane.in_flight:
                self._window.failed(lane, not_before=0.0)

    # ------------------------------------------------------------------ small things
    def _note(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"

    def _own(
        self, tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], *, name: str
    ) -> asyncio.Task[None]:
        task = self.ctx.spawn(work, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def _poke(self) -> None:
        if not self._draining:
            with suppress(MailboxClosed):  # the breaker may call when we are about to be gone
                self.ctx.ref.tell(Wake())

    def _cycle_later(self, delay_s: float) -> None:
        due_at = self._clock.now() + max(0.0, delay_s)
        if self._cycle_timer is not None:
            if self._cycle_due_at <= due_at:
                return
            self._cycle_timer.cancel()
        self._cycle_due_at = due_at
        self._cycle_timer = self.ctx.tell_later(max(0.0, delay_s), Tick(CYCLE))

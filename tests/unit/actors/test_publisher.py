"""The publisher alone: a real outbox behind it, no consumer, the broker a list."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from payflow.actors.outbox import Outbox, OutboxSettings
from payflow.actors.publisher import Publisher, PublisherCounters, PublisherSettings, PublisherSnapshot
from payflow.core.breaker import Breaker, BreakerConfig, State
from payflow.core.outbox import Requeue
from payflow.core.payment import Capture
from payflow.errors import LaneUnavailable, ProducerBroken, StoreBusy, StoreOutcomeUnknown
from payflow.guard import Guard
from payflow.mailbox import Overflow
from payflow.messages import BrokerMoved, Poll, Reconnect, Rewind, Wake
from payflow.ports import LogInfo, LogRecord
from payflow.supervisor import Batch, ChildSpec, System
from tests.fakes.event_log import EventLogFake, MemoryLog
from tests.fakes.outbox_memory import OutboxMemory
from tests.support.actors import Events, supervisor
from tests.support.payment_writes import CountingIds, accepted, authorize, submit
from tests.support.pipeline import DEAD_LETTERS, TOPIC, LoopClock
from tests.support.virtual_loop import advance, settle, virtual


class WatchedLog(EventLogFake):
    """Notes when it is opened, used and discarded; a discard may take a while."""

    def __init__(self, bench: Bench, number: int) -> None:
        super().__init__(bench.memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS)
        self._bench = bench
        self._number = number

    def _say(self, what: str) -> None:
        self._bench.diary.append(f"{what} {self._number}")

    async def open(self) -> LogInfo:
        self._say("open")
        return await super().open()

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        self._say("append")
        self._bench.groups.append((partition, [record.key or b"" for record in records]))
        return await super().append(topic, partition, records)

    async def discard(self, *, timeout_s: float) -> None:
        if self._bench.discard_s:
            await asyncio.sleep(self._bench.discard_s)
        await super().discard(timeout_s=timeout_s)
        self._say("discarded")


@dataclass
class Bench:
    """The world around one publisher."""

    settings: PublisherSettings
    bootstrap: str | None
    partitions: int
    breaker: BreakerConfig
    clock: LoopClock = field(default_factory=LoopClock)
    counters: PublisherCounters = field(default_factory=PublisherCounters)
    events: Events = field(default_factory=Events)
    diary: list[str] = field(default_factory=list)
    groups: list[tuple[int, list[bytes]]] = field(default_factory=list)
    discard_s: float = 0.0

    def __post_init__(self) -> None:
        self.store = OutboxMemory(ids=CountingIds())
        self.memory = MemoryLog("cluster-1", partitions=self.partitions)
        self.guard = Guard(Breaker("kafka-publisher", self.breaker, now=0.0), self.clock)
        outbox = ChildSpec("outbox", self._outbox, capacity=2048, overflow=Overflow.REJECT, batch=Batch(512))
        publisher = ChildSpec("publisher", self._publisher, capacity=256, overflow=Overflow.COALESCE, lossy=True)
        spec = supervisor(outbox, publisher, max_restarts=100)
        self.system = System(spec, emit=self.events, draw=lambda: 0.5)
        self.outbox, self.publisher = self.system.ref("outbox"), self.system.ref("publisher")
        self._opened = 0

    def _outbox(self) -> Outbox:
        settings = OutboxSettings(idempotency_retention_s=1e6, published_retention_s=1e6, probe_interval_s=1.0)
        return Outbox(self.store, publisher=self.publisher, broker=None, clock=self.clock, settings=settings)

    def _publisher(self) -> Publisher:
        return Publisher(
            reader=self.store,
            outbox=self.outbox,
            guard=self.guard,
            open_log=self._open_log,
            bootstrap=self.bootstrap,
            clock=self.clock,
            draw=lambda: 0.5,
            settings=self.settings,
            counters=self.counters,
        )

    def _open_log(self, bootstrap: str, broker_id: str | None) -> WatchedLog:
        self._opened += 1
        return WatchedLog(self, self._opened)

    async def pay(self, payments: int = 1, *, captures: int = 0) -> list[bytes]:
        ids = []
        for _ in range(payments):
            ids.append(accepted(await self.outbox.ask(submit(authorize()), timeout_s=5.0)).payment_id)
            for _ in range(captures):
                await self.outbox.ask(submit(Capture(ids[-1], 1)), timeout_s=5.0)
        return ids

    def states(self) -> list[str]:
        return [row.state.name.lower() for row in self.store._data.rows.values()]

    async def look(self) -> PublisherSnapshot:
        view = await self.system.snapshot("publisher", timeout_s=1.0)
        assert isinstance(view.value, PublisherSnapshot)
        return view.value


@asynccontextmanager
async def publishing(
    *,
    bootstrap: str | None = "kafka:9092",
    partitions: int = 1,
    breaker: BreakerConfig | None = None,
    before: Callable[[Bench], None] = lambda bench: None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    bench = Bench(PublisherSettings(topic=TOPIC, **settings), bootstrap, partitions, breaker or BreakerConfig())
    before(bench)
    await bench.system.start()
    await settle()
    try:
        yield bench
    finally:
        await bench.system.stop(grace_s=0)
        bench.guard.close()


# ------------------------------------------------------------------ sending
@virtual
async def test_first_row_goes_at_once_and_is_marked() -> None:
    async with publishing() as bench:
        await advance(10.0)

        await bench.pay()
        await settle()

        assert ["published"] == bench.states()
        assert 0 == (await bench.look()).window_rows


@virtual
async def test_under_load_at_most_one_cycle_starts_in_a_pace() -> None:
    async with publishing(pace_s=0.5) as bench:
        for _ in range(100):
            await bench.pay()
            await advance(0.02)
        await advance(1.0)

        assert len(bench.groups) <= 6
        assert {"published"} == set(bench.states())


@virtual
async def test_lost_wake_up_is_found_by_the_poll() -> None:
    """F48."""
    async with publishing() as bench:
        await bench.store.commit([submit(authorize())], at_us=1)

        await advance(1.2)

        assert ["published"] == bench.states()
        assert 1 == bench.counters.poll_found_total


@virtual
async def test_row_that_became_pending_behind_the_cursor_is_found_by_the_poll() -> None:
    async with publishing() as bench:
        await bench.pay(3)
        await settle()
        await bench.store.commit([Requeue((1,))], at_us=1)

        await advance(2.5)

        assert ["published"] * 3 == bench.states()
        assert 4 == len(bench.memory.history)


@virtual
async def test_payment_never_has_two_groups_in_flight() -> None:
    async with publishing(partitions=3) as bench:
        bench.memory.slow(0.4)
        ids = await bench.pay(6, captures=3)
        await advance(0.1)
        keys = [key for _, group in bench.groups for key in set(group)]

        assert len(keys) == len(set(keys)) == len(ids)


@virtual
async def test_rows_behind_a_partial_batch_go_in_the_next_group() -> None:
    async with publishing() as bench:
        bench.memory.reject(lambda record: b'"version":4' in (record.value or b""))
        await bench.pay(captures=2)
        await bench.pay()
        await advance(1.0)
        bench.memory.mend()

        assert ["published"] * 4 == bench.states()


@virtual
async def test_window_never_holds_more_rows_than_it_may() -> None:
    async with publishing(window_rows=10, page_rows=7) as bench:
        bench.memory.hang()
        await bench.pay(50)
        await advance(5.0)

        assert (await bench.look()).window_rows <= 10


@virtual
async def test_small_window_drains_a_long_backlog() -> None:
    def preload(bench: Bench) -> None:
        bench.memory.refuse()

    async with publishing(window_rows=10, page_rows=7, before=preload) as bench:
        await bench.pay(100)
        bench.memory.mend()

        await advance(15.0)

        assert {"published"} == set(bench.states())


# ------------------------------------------------------------------ outcomes
@virtual
async def test_old_producer_is_gone_before_its_keys_are_sent_again() -> None:
    """F36, F42: discard takes a while and everybody waits for it."""
    async with publishing(delivery_timeout_s=3.0) as bench:
        bench.discard_s = 1.5
        bench.memory.hang()
        await bench.pay()
        await advance(3.1)
        bench.memory.mend()
        await advance(3.0)

        assert ["open 1", "append 1", "discarded 1", "open 2", "append 2"] == bench.diary
        assert 1 == bench.counters.unknown_total


@virtual
async def test_broker_that_moves_during_a_discard_waits_for_it_as_well() -> None:
    async with publishing(bootstrap=None, delivery_timeout_s=3.0) as bench:
        bench.publisher.tell(BrokerMoved("a:1", "cluster-1"))
        await settle()
        bench.discard_s = 1.5
        bench.memory.hang()
        await bench.pay()
        await advance(3.1)
        bench.publisher.tell(BrokerMoved("b:1", "cluster-2"))
        bench.memory.mend()
        await advance(10.0)

        assert bench.diary.index("discarded 1") < bench.diary.index("open 3")
        assert "open 2" not in bench.diary
        assert ["published"] == bench.states()


@virtual
async def test_late_outcome_of_a_replaced_producer_changes_nothing() -> None:
    async with publishing(partitions=2, delivery_timeout_s=3.0) as bench:
        bench.memory.slow(2.0)
        await bench.pay(8)
        await advance(0.5)
        bench.publisher.tell(BrokerMoved("b:1", "cluster-1"))
        await advance(1.8)
        in_flight = (await bench.look()).in_flight
        await advance(5.0)

        assert 8 == in_flight
        assert {"published"} == set(bench.states())
        assert 0 == (await bench.look()).window_rows


@virtual
async def test_reconnect_of_a_connected_producer_changes_nothing() -> None:
    async with publishing() as bench:
        bench.publisher.tell(Reconnect(3))
        await advance(1.0)

        assert ["open 1"] == bench.diary


@virtual
async def test_connecting_is_tried_again_with_backoff() -> None:
    async with publishing(before=lambda bench: bench.memory.refuse()) as bench:
        await advance(60.0)
        bench.memory.mend()
        await advance(10.0)

        assert (await bench.look()).connected
        assert 5 <= sum(line.startswith("open") for line in bench.diary) <= 20


@virtual
async def test_missing_rights_hold_the_lane_without_a_word_to_the_breaker() -> None:
    async with publishing() as bench:
        bench.memory.refuse(lambda: LaneUnavailable("no rights"))
        await bench.pay(10)
        await advance(21.0)

        assert 0 == bench.guard.snapshot().buffered_calls
        assert 1 == (await bench.look()).lanes_held
        assert 4 <= len(bench.groups) <= 6


@virtual
async def test_third_attempt_in_a_row_waits() -> None:
    """The first retry comes at once, then the lane backs off."""
    async with publishing(breaker=BreakerConfig(minimum_number_of_calls=20)) as bench:
        bench.memory.refuse()
        await bench.pay()
        await advance(0.13)
        assert 2 <= len(bench.groups) <= 3

        await advance(60.0)

        assert len(bench.groups) < 25


# ------------------------------------------------------------------ breaker
@virtual
async def test_open_breaker_is_not_asked_by_sending_and_wakes_the_publisher() -> None:
    async with publishing(poll_s=1000.0) as bench:
        bench.memory.refuse()
        await bench.pay(10)
        await advance(1.0)
        assert bench.guard.state is State.OPEN
        bench.memory.mend()
        before = len(bench.groups)

        await advance(28.0)
        assert before == len(bench.groups)
        await advance(2.0)

        assert {"published"} == set(bench.states())


@virtual
async def test_group_is_cut_to_the_permits() -> None:
    async with publishing() as bench:
        bench.memory.refuse()
        await bench.pay(10)
        await advance(1.0)
        bench.memory.mend()
        del bench.groups[:]

        await advance(31.0)

        assert [3, 7] == [len(keys) for _, keys in bench.groups]


@virtual
async def test_half_open_trials_do_not_all_go_to_the_lane_without_a_leader() -> None:
    async with publishing(partitions=3) as bench:
        await bench.pay(30)
        await settle()
        bench.memory.refuse()
        await bench.pay(30)
        await advance(1.0)
        bench.memory.mend()
        bench.memory.refused_partitions.add(0)
        del bench.groups[:]

        await advance(100.0)

        assert {1, 2} <= {partition for partition, _ in bench.groups}


@virtual
async def test_trials_of_a_publisher_that_is_stopped_are_given_back() -> None:
    """Also of a group whose task had not begun."""
    async with publishing() as bench:
        bench.memory.refuse()
        await bench.pay(10)
        await advance(1.0)
        bench.memory.mend()
        bench.memory.hang()
        await advance(31.0)
        assert bench.guard.state is State.HALF_OPEN
        assert [] == bench.guard.acquire_many(1)

        await bench.system.restart("publisher", reason="test")
        bench.memory.mend()
        await advance(1.0)

        assert bench.guard.state is State.CLOSED
        assert {"published"} == set(bench.states())


# ------------------------------------------------------------------ marks
@virtual
async def test_marks_wait_for_the_outbox_and_are_stored_once_it_is_back() -> None:
    async with publishing() as bench:
        await bench.pay(2)
        bench.store.fail_next += [StoreBusy("locked")] * 3
        await advance(0.5)
        assert 2 == (await bench.look()).marks_waiting

        await advance(5.0)

        assert ["published"] * 2 == bench.states()
        assert 2 == len(bench.memory.history)


@virtual
async def test_marks_are_stored_while_the_broker_is_away() -> None:
    async with publishing() as bench:
        bench.store.fail_next.append(StoreBusy("locked"))
        bench.store.fail_next.clear()
        await bench.pay()
        bench.store.fail_next.append(StoreBusy("locked"))
        await settle()
        bench.memory.refuse(lambda: ProducerBroken("fenced"))
        await bench.pay()
        await advance(10.0)

        assert "published" == bench.states()[0]


@virtual
async def test_drain_waits_for_the_answer_and_stores_the_marks() -> None:
    async with publishing() as bench:
        bench.memory.slow(2.0)
        await bench.pay(3)
        await advance(0.1)
        bench.store.fail_next.append(StoreBusy("locked"))

        drained = await bench.system.drain("publisher", timeout_s=10.0)

        assert drained
        assert ["published"] * 3 == bench.states()


@virtual
async def test_draining_publisher_starts_nothing() -> None:
    async with publishing() as bench:
        assert await bench.system.drain("publisher", timeout_s=1.0)

        await bench.pay()
        await advance(5.0)

        assert ["pending"] == bench.states()


@virtual
async def test_drain_does_not_wait_for_a_producer_that_was_given_up() -> None:
    async with publishing(partitions=2, delivery_timeout_s=15.0) as bench:
        bench.memory.hang()
        await bench.pay(10)
        await advance(1.0)
        bench.publisher.tell(BrokerMoved("b:1", "cluster-1"))
        await settle()
        bench.memory.refuse()
        before = bench.clock.now()

        assert await bench.system.drain("publisher", timeout_s=14.0)

        assert bench.clock.now() - before < 1.0


# ------------------------------------------------------------------ parking, rewinding, stale reads
@virtual
async def test_rejected_row_is_parked_though_the_outbox_refuses_at_first() -> None:
    async with publishing() as bench:
        bench.memory.reject(lambda record: True)
        bench.store.refuses = lambda write: False
        await bench.pay(captures=2)
        bench.store.fail_next += [StoreBusy("locked")] * 2
        await advance(5.0)

        assert ["parked", "pending", "pending"] == bench.states()
        assert 1 == len(bench.groups)


@virtual
async def test_read_that_began_before_the_hold_does_not_let_later_rows_pass() -> None:
    """The rows behind a parked one may be in an answer that was read before the hold was stored."""
    async with publishing() as bench:
        (bad,) = await bench.pay()
        await settle()
        key = bad.hex().encode()
        bench.memory.reject(lambda record: (record.key or b"").replace(b"-", b"") == key)
        bench.store.delay_s = 0.2
        for _ in range(6):
            await bench.pay()
            await bench.outbox.ask(submit(Capture(bad, 1)), timeout_s=5.0)
        await advance(10.0)

        sent = [group_key for _, keys in bench.groups for group_key in keys if group_key.replace(b"-", b"") == key]
        assert 2 == len(sent) - sum(keys.count(sent[0]) - 1 for _, keys in bench.groups if sent[0] in keys)
        assert 1 == bench.states().count("parked")


@virtual
async def test_rewind_that_meets_rows_waiting_for_their_mark_looks_again_after_it() -> None:
    async with publishing(pace_s=0.001) as bench:
        bench.store.delay_s = 0.05
        await bench.pay(2)
        for _ in range(20):
            bench.outbox.tell(Requeue((1, 2)))
            bench.publisher.tell(Rewind())
            await advance(0.03)

        await advance(5.0)

        assert ["published"] * 2 == bench.states()


@virtual
async def test_unreadable_outbox_is_no_crash() -> None:
    async with publishing() as bench:
        bench.store.fail_reads += [StoreBusy("locked")] * 3
        await bench.pay()
        await advance(4.0)

        assert ["published"] == bench.states()
        assert [] == bench.events.of("actor.crashed")


# ------------------------------------------------------------------ the embedded broker
@virtual
async def test_lane_stops_at_the_unbooked_limit() -> None:
    async with publishing(unbooked_limit_bytes=4000) as bench:
        for _ in range(60):
            await bench.pay()
            await advance(0.1)

        sent = sum(len(record.value or b"") for record in bench.memory.history)
        assert 4000 <= sent < 7000
        assert "pending" in bench.states()


@virtual
async def test_new_broker_is_read_from_the_first_pending_row() -> None:
    async with publishing(bootstrap=None) as bench:
        bench.publisher.tell(BrokerMoved("a:1", "one"))
        await bench.pay(3)
        await advance(1.0)
        bench.memory.replace("two")
        bench.outbox.tell(BrokerMoved("b:1", "two"))

        await advance(2.0)

        assert ["published"] * 3 == bench.states()
        assert 3 == len(bench.memory.records(TOPIC))


@virtual
async def test_mark_for_a_broker_that_is_gone_marks_nothing() -> None:
    async with publishing(bootstrap=None) as bench:
        bench.publisher.tell(BrokerMoved("a:1", "one"))
        await settle()
        bench.store.delay_s = 0.5
        paying = asyncio.create_task(bench.pay(2))
        await advance(1.8)
        bench.memory.replace("two")
        bench.outbox.tell(BrokerMoved("b:1", "two"))
        await advance(15.0)
        await paying

        assert {"two"} == {row.broker_id for row in bench.store._data.rows.values()}


@virtual
async def test_crash_of_the_outbox_does_not_lose_a_hint_to_rewind() -> None:
    """The requeue was committed and its answer lost: the new outbox says it anew."""
    async with publishing(poll_s=1000.0) as bench:
        await bench.pay(2)
        await settle()
        bench.store.fail_late.append(StoreOutcomeUnknown("EIO"))
        bench.outbox.tell(Requeue((1,)))

        await advance(2.0)

        assert ["published"] * 2 == bench.states()


@virtual
async def test_messages_of_any_kind_are_survived_without_a_broker() -> None:
    async with publishing(bootstrap=None) as bench:
        for message in (Wake(), Poll(), Rewind(), Reconnect(0)):
            bench.publisher.tell(message)
        await advance(1.0)

        assert [] == bench.events.of("actor.crashed")
        assert not (await bench.look()).connected

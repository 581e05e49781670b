"""The publisher alone: the breaker's permits, marks, parked rows, reads that are stale, the embedded broker."""

from __future__ import annotations

import asyncio

from payflow.core.breaker import State
from payflow.core.outbox import MarkPublished, Requeue
from payflow.core.payment import Capture
from payflow.errors import ProducerBroken, StoreBusy, StoreOutcomeUnknown
from payflow.messages import BrokerMoved, Poll, Reconnect, Rewind, Wake
from tests.support.payment_writes import submit
from tests.support.pipeline import TOPIC
from tests.support.publisher_bench import publishing
from tests.support.virtual_loop import advance, settle, virtual


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
        bench.store.refuses = lambda write: isinstance(write, MarkPublished)
        await bench.pay()
        await advance(0.5)
        bench.memory.refuse(lambda: ProducerBroken("fenced"))
        await bench.pay()
        await advance(5.0)
        bench.store.refuses = lambda write: False
        await advance(5.0)

        assert ["published", "pending"] == bench.states()


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
    """The row behind a parked one is in an answer that was read before the hold was stored and came after it."""
    async with publishing(page_rows=1, poll_s=1000.0) as bench:
        (bad,) = await bench.pay()
        await advance(1.0)
        bench.memory.reject(lambda record: b'"version":2' in (record.value or b""))
        bench.system.pause("publisher", max_s=1000.0, by="test")
        for _ in range(3):
            await bench.outbox.ask(submit(Capture(bad, 1)), timeout_s=5.0)
        bench.store.delay_s, bench.store.read_delay_s = 0.5, 0.7
        bench.system.resume("publisher", by="test")
        await advance(10.0)

        assert ["published", "parked", "pending", "pending"] == bench.states()


@virtual
async def test_rewind_that_meets_rows_waiting_for_their_mark_looks_again_after_it() -> None:
    """Mark and requeue share a group; the publisher hears of the requeue before it hears that the mark is stored."""
    async with publishing(poll_s=1000.0) as bench:
        bench.memory.slow(0.1)
        await bench.pay()
        bench.system.pause("outbox", max_s=4.0, by="test")
        await advance(0.5)
        bench.outbox.tell(Requeue((1,)))
        bench.store.delay_s = 0.2
        bench.system.resume("outbox", by="test")
        bench.publisher.tell(Wake())
        await advance(10.0)

        assert ["published"] == bench.states()
        assert 2 == len(bench.memory.history)


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
        bench.memory.replace("embedded-one")
        bench.publisher.tell(BrokerMoved("a:1", "embedded-one"))
        await bench.pay(3)
        await advance(1.0)
        bench.memory.replace("embedded-two")
        bench.outbox.tell(BrokerMoved("b:1", "embedded-two"))

        await advance(2.0)

        assert ["published"] * 3 == bench.states()
        assert 3 == len(bench.memory.records(TOPIC))


@virtual
async def test_mark_for_a_broker_that_is_gone_marks_nothing() -> None:
    async with publishing(bootstrap=None) as bench:
        bench.memory.replace("embedded-one")
        bench.publisher.tell(BrokerMoved("a:1", "embedded-one"))
        await settle()
        bench.store.delay_s = 0.5
        paying = asyncio.create_task(bench.pay(2))
        await advance(1.8)
        bench.memory.replace("embedded-two")
        bench.outbox.tell(BrokerMoved("b:1", "embedded-two"))
        await advance(15.0)
        await paying

        assert {"embedded-two"} == {row.broker_id for row in bench.store._data.rows.values()}


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

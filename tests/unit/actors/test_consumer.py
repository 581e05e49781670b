"""The consumer alone: booking, the client's life, lost positions, audit and lag."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from payflow.core.outbox import Unpublish
from payflow.errors import BrokerUnavailable, LaneUnavailable, StoreBusy, StoreDamaged, StoreUnavailable
from payflow.messages import BrokerMoved, Reconnect, Tick
from tests.support.consumer_bench import GARBAGE, ConsumerWorld, event_record, world
from tests.support.pipeline import DEAD_LETTERS, TOPIC
from tests.support.virtual_loop import advance, virtual


# ------------------------------------------------------------------ booking
@virtual
async def test_records_are_booked_with_their_position_and_acknowledged() -> None:
    async with world(partitions=2) as w:
        await w.put(event_record(1), event_record(1, version=2))
        await w.put(event_record(2), partition=1)
        await advance(1.0)

        assert {0: 2, 1: 1} == await w.positions()
        assert set(w.ledger.applied) == w.acked()
        assert (3, 1) == (w.counters.booked_total, w.counters.entries_total)


@virtual
async def test_copy_in_the_same_fetch_is_booked_once() -> None:
    """F59."""
    async with world() as w:
        await w.put(event_record(1), event_record(1))
        await advance(1.0)

        assert (1, 1) == (w.counters.booked_total, w.counters.duplicates_total)
        assert {0: 2} == await w.positions()


@virtual
async def test_version_that_comes_too_early_waits_in_the_ledger() -> None:
    """F60."""
    async with world() as w:
        await w.put(event_record(1, version=2))
        await advance(1.0)
        assert 1 == w.counters.out_of_order_total
        await w.put(event_record(1))
        await advance(1.0)

        assert 2 == w.counters.booked_total
        assert {0: 2} == await w.positions()


@virtual
async def test_locked_ledger_is_retried_with_growing_waits_however_much_arrives() -> None:
    """F58: one attempt a wait, not one a message."""
    async with world(fetch_records=1) as w:
        w.ledger.failures.extend([StoreBusy("locked")] * 100)
        for number in range(60):
            await w.put(event_record(number + 1))
        await advance(30.0)

        assert w.ledger.books <= 12
        assert w.counters.paused
        w.ledger.failures.clear()
        await advance(20.0)
        assert 60 == w.counters.booked_total
        assert not w.counters.paused


@virtual
async def test_other_messages_do_not_shorten_the_wait_for_a_locked_ledger() -> None:
    async with world() as w:
        w.ledger.failures.extend([StoreBusy("locked")] * 100)
        await w.put(event_record(1))
        for _ in range(200):
            w.system.ref("consumer").tell(Tick("nonsense"))
            await advance(0.1)

        assert w.ledger.books <= 12


@virtual
async def test_nothing_is_fetched_while_the_ledger_is_locked() -> None:
    async with world(fetch_records=10) as w:
        w.ledger.failures.extend([StoreUnavailable("full")] * 100)
        await w.put(*(event_record(number + 1) for number in range(100)))
        await advance(30.0)

        assert (await w.look()).waiting_records <= 30


@virtual
async def test_a_damaged_ledger_is_a_crash_and_is_not_waited_for() -> None:
    """The next instance opens the file, which refuses it, or it was not damaged after all."""
    async with world() as w:
        w.ledger.failures.append(StoreDamaged("malformed"))
        await w.put(event_record(1))
        await advance(5.0)

        assert 1 == len(w.events.of("actor.crashed"))
        assert [] == w.events.of("consumer.ledger_unavailable")
        assert {0: 1} == await w.positions()


@virtual
async def test_source_lost_during_a_booking_leaves_nothing_of_it_behind() -> None:
    async with world(bootstrap=None) as w:
        w.system.ref("consumer").tell(BrokerMoved("a:1", "one"))
        w.ledger.delay_s = 2.0
        await w.put(GARBAGE, event_record(1))
        await advance(1.0)
        w.memory.refuse()
        w.open_s = 12.0
        await advance(5.0)
        assert 1 == len(w.ledger.applied)
        assert 0 == (await w.look()).dead_letters_waiting
        w.memory.mend()
        await advance(30.0)

        assert {0: 2} == await w.positions()
        assert 1 == len(w.memory.records(DEAD_LETTERS))
        assert [] == w.events.of("actor.crashed")


@virtual
async def test_fetch_that_waited_for_the_ledger_does_not_go_on_with_a_source_that_is_gone() -> None:
    async with world(bootstrap=None) as w:
        w.system.ref("consumer").tell(BrokerMoved("a:1", "one"))
        w.ledger.failures.extend([StoreBusy("locked")] * 6)
        await w.put(event_record(1))
        await advance(3.0)
        w.system.ref("consumer").tell(BrokerMoved("b:1", "two"))
        await advance(30.0)

        assert {0: 1} == await w.positions()
        assert [] == w.events.of("actor.crashed")


# ------------------------------------------------------------------ the client's life
@pytest.mark.parametrize("error", [BrokerUnavailable, LaneUnavailable])
@virtual
async def test_source_that_fails_is_replaced_from_the_ledgers_position(error: type[Exception]) -> None:
    async with world() as w:
        await w.put(event_record(1))
        await advance(1.0)
        w.memory.refuse(lambda: error("gone"))  # type: ignore[arg-type, return-value]
        await advance(20.0)
        w.memory.mend()
        await w.put(event_record(2))
        await advance(10.0)

        assert {0: 2} == await w.positions()
        assert [] == w.events.of("actor.crashed")
        assert 3 <= len(w.sources) <= 14


@virtual
async def test_locked_ledger_delays_the_connection_and_is_no_crash() -> None:
    made = ConsumerWorld(partitions=1, volatile=False, bootstrap="kafka:9092")
    made.ledger.read_failures.extend([StoreBusy("locked"), StoreUnavailable("full")])
    async with made.running():
        await made.put(event_record(1))
        await advance(5.0)

        assert {0: 1} == await made.positions()
        assert [] == made.events.of("actor.crashed")


@virtual
async def test_source_that_opens_after_it_was_given_up_is_closed_again() -> None:
    async with world(bootstrap=None) as w:
        w.open_s = 2.0
        w.system.ref("consumer").tell(BrokerMoved("a:1", "one"))
        await advance(0.5)
        w.open_s = 0.0
        w.system.ref("consumer").tell(BrokerMoved("b:1", "two"))
        await advance(5.0)

        assert [False, True] == [source.is_open for source in w.sources]


@virtual
async def test_same_broker_twice_and_reconnects_change_nothing() -> None:
    async with world(bootstrap=None) as w:
        for message in (BrokerMoved("a:1", "one"), BrokerMoved("a:1", "one"), Reconnect(1), Tick("nonsense")):
            w.system.ref("consumer").tell(message)
            await advance(0.5)

        assert 1 == len(w.sources)


@virtual
async def test_reconnect_is_not_lost_to_a_full_mailbox() -> None:
    async with world() as w:
        w.memory.refuse()
        await advance(5.0)
        w.system.pause("consumer", max_s=30.0, by="test")
        for _ in range(256):
            w.system.ref("consumer").tell(Tick("nonsense"))
        await advance(20.0)
        w.memory.mend()
        await w.put(event_record(1))
        w.system.resume("consumer", by="test")
        await advance(20.0)

        assert 1 == w.counters.booked_total


@virtual
async def test_silent_source_is_replaced_when_records_wait_for_a_minute() -> None:
    async with world() as w:
        w.sources[0].pause([0])
        await w.put(event_record(1))
        await advance(70.0)

        assert 2 == len(w.sources)
        assert 1 == w.counters.booked_total


# ------------------------------------------------------------------ lost positions
async def lose_position(w: ConsumerWorld, numbers: Sequence[int]) -> None:
    """Book one record, then let retention take what comes next before it is read."""
    await w.put(event_record(numbers[0]))
    await advance(1.0)
    w.system.pause("consumer", max_s=60.0, by="test")
    w.sources[-1].pause([0])
    await w.put(*(event_record(number) for number in numbers[1:]))
    w.memory.truncate(TOPIC, 0, 3)
    w.sources[-1].resume([0])
    w.system.resume("consumer", by="test")
    await advance(5.0)


@virtual
async def test_lost_position_stops_that_partition_only() -> None:
    """F61."""
    async with world(partitions=2) as w:
        await lose_position(w, [1, 2, 3, 4, 5])
        await w.put(event_record(9), partition=1)
        await advance(5.0)

        assert {0: 1, 1: 1} == await w.positions()
        assert (0,) == (await w.look()).stopped_partitions
        assert 1 == w.counters.offset_out_of_range_total
        assert [] == w.heard["broker"]


@virtual
async def test_lost_position_on_a_volatile_broker_reads_what_is_left_and_has_the_rest_published_again() -> None:
    async with world(volatile=True) as w:
        w.answers["outbox"] = lambda message: StoreBusy("locked") if len(w.heard["outbox"]) < 4 else None
        await lose_position(w, [1, 2, 3, 4, 5])
        await advance(5.0)

        assert Unpublish("") in w.heard["outbox"]
        assert {0: 5} == await w.positions()
        assert [] == w.events.of("actor.crashed")


# ------------------------------------------------------------------ audit and lag
@virtual
async def test_audit_that_the_ledger_refuses_is_tried_again_next_time() -> None:
    async with world(audit_interval_s=10.0) as w:
        w.ledger.read_failures.append(StoreBusy("locked"))
        await w.put(event_record(1), event_record(1, version=2))
        await advance(10.5)
        assert {} == w.counters.imbalance
        await advance(10.0)

        assert {"EUR": 0} == w.counters.imbalance
        assert [] == w.events.of("actor.crashed")


@virtual
async def test_lag_grows_while_records_wait_and_ends_with_them() -> None:
    async with world() as w:
        await w.put(event_record(1))
        await advance(5.0)
        w.ledger.failures.extend([StoreBusy("locked")] * 6)
        await w.put(event_record(2), event_record(3))
        await advance(8.5)
        assert 2 == w.counters.lag_records
        assert 4.0 <= w.counters.lag_seconds <= 12.5

        await advance(60.0)

        assert (0, 0.0) == (w.counters.lag_records, w.counters.lag_seconds)


@virtual
async def test_lag_in_seconds_grows_while_the_broker_is_away() -> None:
    """I7: a figure that stands still would say that all is well."""
    async with world() as w:
        w.ledger.failures.extend([StoreBusy("locked")] * 100)
        await w.put(event_record(1))
        await advance(5.0)
        w.memory.refuse()
        await advance(60.0)

        assert 1 == w.counters.lag_records
        assert w.counters.lag_seconds > 50.0


@virtual
async def test_position_is_told_to_kafka_for_the_lag_tools() -> None:
    """F53: informational, and never ahead of the ledger."""
    async with world() as w:
        await w.put(event_record(1))
        await advance(5.0)

        assert {0: 1} == w.memory.committed


@virtual
async def test_broker_that_stops_answering_is_not_called_connected() -> None:
    """Health must not say UP for as long as the client's own timeouts last."""
    async with world() as w:
        await advance(3.0)
        assert (await w.system.snapshot("consumer", timeout_s=1.0)).value.connected

        w.memory.refuse()
        await advance(3.0)

        assert not (await w.system.snapshot("consumer", timeout_s=1.0)).value.connected
        w.memory.mend()
        await advance(3.0)
        assert (await w.system.snapshot("consumer", timeout_s=1.0)).value.connected

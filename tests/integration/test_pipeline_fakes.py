"""The whole pipeline over the fakes, one fault a test: what was accepted is booked once and in order (I1 to I4, I9)."""

from __future__ import annotations

import pytest

from payflow.actors.consumer import ConsumerSettings
from payflow.core.breaker import State
from payflow.core.outbox import Requeue
from payflow.core.payment import Capture
from payflow.errors import (
    BrokerUnavailable,
    LaneUnavailable,
    OutcomeUnknown,
    ProducerBroken,
    StoreBusy,
    StoreOutcomeUnknown,
    StoreUnavailable,
)
from payflow.ports import LogRecord
from tests.support.payment_writes import authorize, submit
from tests.support.pipeline import DEAD_LETTERS, TOPIC, Pipeline, crash, flowing
from tests.support.virtual_loop import advance, settle, virtual


def garbage(key: bytes | None = b"garbage") -> LogRecord:
    return LogRecord(key, b"{not json", (), 0)


@virtual
async def test_accepted_payments_are_published_and_booked() -> None:
    async with flowing() as pipeline:
        for _ in range(20):
            await pipeline.pay(captures=2)

        await pipeline.until_booked()

        await pipeline.check()
        assert 60 == pipeline.published.published_total
        assert 0 == pipeline.consumed.duplicates_total


@virtual
async def test_idle_pipeline_books_without_waiting_for_a_poll() -> None:
    async with flowing() as pipeline:
        await advance(10.5)
        before = pipeline.clock.now()

        await pipeline.pay()
        await pipeline.until(lambda: len(pipeline.ledger.applied) == 1)

        assert pipeline.clock.now() - before <= 0.1


@virtual
async def test_outage_opens_the_breaker_and_the_backlog_drains_in_order() -> None:
    """F34: a minute without a broker, intake goes on; afterwards everything is booked by itself."""
    async with flowing() as pipeline:
        payments = [await pipeline.pay() for _ in range(5)]
        await pipeline.until_booked()
        pipeline.memory.refuse()

        for payment_id in payments * 12:
            await pipeline.submit(Capture(payment_id, 1))
            await advance(1.0)
        assert pipeline.guard.state is State.OPEN
        assert 0 < pipeline.unfinished()
        pipeline.memory.mend()
        await pipeline.until_booked(within_s=60.0)

        assert pipeline.guard.state is State.CLOSED
        await pipeline.check()


@virtual
async def test_open_breaker_makes_no_attempt() -> None:
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.refuse()
        for _ in range(10):
            await pipeline.pay()
        await pipeline.until(lambda: pipeline.guard.state is State.OPEN)
        await settle()
        before = pipeline.memory.appends

        for _ in range(25):
            await pipeline.pay()
            await advance(1.0)

        assert before == pipeline.memory.appends


@virtual
async def test_intake_starts_and_accepts_without_a_broker() -> None:
    """F33."""
    pipeline = Pipeline()
    pipeline.memory.refuse()
    async with flowing(pipeline):
        await pipeline.pay(captures=3)
        await advance(30.0)
        assert {} == pipeline.ledger.applied
        pipeline.memory.mend()

        await pipeline.until_booked()

        await pipeline.check()


@virtual
async def test_unknown_outcome_that_lands_late_is_booked_once() -> None:
    """F36: our deadline passes while the record is inside the client; the copy lands after the row was sent again."""
    async with flowing() as pipeline:
        pipeline.memory.hang()
        await pipeline.pay(captures=2)
        await advance(16.0)
        pipeline.memory.mend()
        await pipeline.until(lambda: len(pipeline.ledger.applied) == 3)

        pipeline.memory.land()
        await advance(5.0)
        await pipeline.until_booked()

        await pipeline.check()
        assert 0 < pipeline.consumed.duplicates_total
        assert 0 < pipeline.published.unknown_total


@virtual
async def test_fenced_producer_is_replaced_and_nothing_is_lost() -> None:
    """F42."""
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.refuse(lambda: ProducerBroken("fenced"))
        await pipeline.pay(captures=3)
        await advance(3.0)

        pipeline.memory.mend()
        await pipeline.until_booked()

        assert 0 < pipeline.published.rebuilt_total
        await pipeline.check()


@virtual
async def test_missing_topic_holds_the_lanes_and_parks_nothing() -> None:
    """F41: a configuration fault is no fault of the rows and says nothing about the broker."""
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.refuse(lambda: LaneUnavailable("not allowed"))
        await pipeline.pay(captures=3)
        await advance(60.0)
        assert "parked" not in pipeline.states()
        assert pipeline.guard.state is State.CLOSED

        pipeline.memory.mend()
        await pipeline.until_booked()

        await pipeline.check()


@virtual
async def test_consumer_crash_in_a_batch_books_everything_once() -> None:
    """F52: the commit went through and its answer was lost; the position is where the next instance goes on."""
    async with flowing() as pipeline:
        for _ in range(10):
            await pipeline.pay(captures=1)
        pipeline.ledger.late_failures.append(StoreOutcomeUnknown("disk"))

        await pipeline.until(lambda: len(pipeline.ledger.applied) == 20)
        await advance(5.0)

        assert pipeline.events.of("actor.crashed")
        await pipeline.check()


@virtual
async def test_outbox_crash_says_unknown_and_the_retry_finds_the_payment() -> None:
    """F16, F23: COMMIT went through, its answer was lost."""
    async with flowing() as pipeline:
        pipeline.store.fail_late.append(StoreOutcomeUnknown("EIO"))
        request = submit(authorize(), key="mine")

        with pytest.raises(OutcomeUnknown):
            await pipeline.service.submit(request)
        again = await pipeline.service.submit(request)
        pipeline.accepted.append(again)  # type: ignore[arg-type]
        await pipeline.until_booked()

        assert again.replayed  # type: ignore[union-attr]
        assert 2 <= pipeline.store.opened
        await pipeline.check()


@virtual
async def test_marks_survive_an_outbox_crash() -> None:
    """The group with the marks is lost before it is written; they are sent again to the next instance."""
    async with flowing() as pipeline:
        await pipeline.pay(captures=2)
        pipeline.store.fail_next += [StoreOutcomeUnknown("EIO")] * 2

        await pipeline.until_booked()

        await pipeline.check()
        assert {"published"} == set(pipeline.states())


@virtual
async def test_broker_that_comes_back_empty_gets_what_was_not_booked() -> None:
    """The embedded broker dies while the ledger is locked: what it held is published again to the new one."""
    async with flowing(embedded=True) as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.ledger.failures.extend([StoreBusy("locked")] * 8)
        for _ in range(10):
            await pipeline.pay(captures=1)
        await pipeline.until(lambda: pipeline.states().count("published") == 21)

        pipeline.process.die()
        await pipeline.until_booked()

        assert 2 == pipeline.process.starts
        await pipeline.check()


@virtual
async def test_embedded_broker_may_die_again_and_again() -> None:
    async with flowing(embedded=True) as pipeline:
        for _ in range(5):
            for _ in range(4):
                await pipeline.pay(captures=1)
            await advance(0.03)
            pipeline.process.die()
            await pipeline.until(lambda: pipeline.process.starts == len(pipeline.events.of("broker.started")))

        await pipeline.until_booked()

        await pipeline.check()


@virtual
async def test_acks_lost_in_a_consumer_crash_do_not_block_the_embedded_broker() -> None:
    """Booked but never acknowledged bytes would count against the broker's memory for ever."""
    async with flowing(embedded=True) as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.system.pause("outbox", max_s=3.0, by="test")
        await pipeline.until(lambda: True)
        await crash(pipeline, "consumer")
        pipeline.store.refuses = lambda write: type(write).__name__ == "MarkBooked"
        pipeline.system.resume("outbox", by="test")
        await pipeline.pay(captures=5)
        await pipeline.until(lambda: len(pipeline.ledger.applied) == 7)

        pipeline.store.refuses = lambda write: False
        await crash(pipeline, "consumer")

        await pipeline.until_booked()
        await pipeline.check()


@virtual
async def test_record_that_is_rejected_for_ever_is_parked_and_other_payments_flow() -> None:
    """F40, F50: later steps of the parked payment wait behind it, also across polls."""
    async with flowing(partitions=1) as pipeline:
        bad = await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.reject(lambda record: b'"version":2' in (record.value or b"") and _of(bad, record))
        await pipeline.submit(Capture(bad, 1))
        await pipeline.submit(Capture(bad, 1))
        good = await pipeline.pay(captures=3)
        await pipeline.until(lambda: sum(e.payment_id == good for e in pipeline.ledger.applied.values()) == 4)
        await advance(10.0)

        assert ["published", "parked", "pending"] == pipeline.states()[:3]
        assert pipeline.guard.state is State.CLOSED
        assert 1 == pipeline.published.parked_total


@virtual
async def test_parked_row_that_an_operator_requeues_is_booked_in_order() -> None:
    async with flowing(partitions=1) as pipeline:
        bad = await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.reject(lambda record: _of(bad, record))
        await pipeline.submit(Capture(bad, 1))
        await pipeline.submit(Capture(bad, 1))
        await pipeline.until(lambda: "parked" in pipeline.states())
        await pipeline.pay(captures=3)
        await advance(5.0)

        pipeline.memory.mend()
        await pipeline.ref("outbox").ask(Requeue((2,)), timeout_s=1.0)
        await pipeline.until_booked()

        await pipeline.check()


@virtual
async def test_poison_goes_to_the_dead_letters_and_the_rest_is_booked() -> None:
    """F56: key, headers, offset and reason go along; the position passes it afterwards."""
    async with flowing(partitions=1) as pipeline:
        await pipeline.memory.append(TOPIC, 0, [garbage()])
        await pipeline.pay(captures=2)

        await pipeline.until_booked()

        (letter,) = pipeline.memory.records(DEAD_LETTERS)
        assert (b"garbage", b"{not json") == (letter.key, letter.value)
        assert ("payflow_source_offset", b"0") in letter.headers
        assert {"undecodable": 1} == pipeline.consumed.dead_lettered_total
        assert {0: 4} == await pipeline.ledger.positions("cluster-1", TOPIC)


@virtual
async def test_position_waits_while_the_dead_letter_cannot_be_written() -> None:
    """F57: nothing is dropped, nothing behind it is passed; it goes on by itself."""
    async with flowing(partitions=1) as pipeline:
        pipeline.memory.refused_topics.add(DEAD_LETTERS)
        await pipeline.memory.append(TOPIC, 0, [garbage()])
        await pipeline.pay(captures=2)
        await advance(60.0)
        assert 0 == (await pipeline.ledger.positions("cluster-1", TOPIC)).get(0, 0)
        assert pipeline.consumed.paused
        assert pipeline.events.of("consumer.dead_letter_failed")

        pipeline.memory.mend()
        await pipeline.until_booked()

        assert 1 == len(pipeline.memory.records(DEAD_LETTERS))
        assert not pipeline.consumed.paused
        await pipeline.check()


@virtual
async def test_crash_while_a_dead_letter_waits_reads_the_poison_again() -> None:
    async with flowing(partitions=1) as pipeline:
        pipeline.memory.refused_topics.add(DEAD_LETTERS)
        await pipeline.memory.append(TOPIC, 0, [garbage()])
        await pipeline.pay(captures=2)
        await advance(5.0)

        await crash(pipeline, "consumer")
        pipeline.memory.mend()
        await pipeline.until(lambda: len(pipeline.memory.records(DEAD_LETTERS)) > 0)
        await pipeline.until_booked()

        assert 1 == len(pipeline.memory.records(DEAD_LETTERS))
        await pipeline.check()


@pytest.mark.parametrize("error", [StoreBusy, StoreUnavailable])
@virtual
async def test_ledger_that_is_down_uses_nothing_up(error: type[Exception]) -> None:
    """F58: no crash, no dead letter, bounded attempts, all booked when it is back."""
    async with flowing() as pipeline:
        pipeline.ledger.failures.extend([error("down")] * 30)
        for _ in range(20):
            await pipeline.pay(captures=1)
        await advance(60.0)
        attempts = pipeline.ledger.books

        await pipeline.until_booked()

        assert attempts <= 20, "retried with backoff"
        assert [] == pipeline.events.of("actor.crashed")
        assert [] == pipeline.memory.records(DEAD_LETTERS)
        await pipeline.check()


@virtual
async def test_lost_position_on_a_real_cluster_stops_that_partition_and_alarms() -> None:
    """F61: never jump silently."""
    async with flowing(partitions=1) as pipeline:
        await pipeline.pay(captures=3)
        await pipeline.until_booked()
        await pipeline.system.stop(grace_s=0)
        memory, ledger, store = pipeline.memory, pipeline.ledger, pipeline.store
        await memory.append(TOPIC, 0, [garbage()] * 4)
        memory.truncate(TOPIC, 0, 6)
    later = Pipeline(partitions=1)
    later.memory, later.ledger, later.store = memory, ledger, store
    async with flowing(later):
        await advance(120.0)

        assert 1 == later.consumed.offset_out_of_range_total
        assert later.events.of("consumer.position_lost")
        assert [] == memory.records(DEAD_LETTERS)
        assert {0: 4} == await ledger.positions("cluster-1", TOPIC)
        assert 4 == later.consumed.lag_records


@virtual
async def test_what_an_embedded_broker_dropped_unread_is_published_again() -> None:
    async with flowing(embedded=True, partitions=1) as pipeline:
        await pipeline.pay(captures=1)
        await pipeline.until_booked()
        pipeline.ledger.failures.extend([StoreBusy("locked")] * 5)
        await pipeline.pay(captures=10)
        await pipeline.until(lambda: pipeline.states().count("published") == 13)
        await advance(0.5)
        pipeline.memory.truncate(TOPIC, 0, 9)

        await crash(pipeline, "consumer")
        await pipeline.until_booked()

        await pipeline.check()


@virtual
async def test_positions_for_partitions_that_are_gone_are_never_skipped() -> None:
    """The topic was made anew with fewer partitions: not connected, said so, nothing booked from elsewhere."""
    async with flowing(partitions=3) as pipeline:
        for _ in range(10):
            await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.partitions = 1
        booked = len(pipeline.ledger.applied)

        await crash(pipeline, "consumer")
        await advance(30.0)

        assert pipeline.events.of("consumer.not_connected")
        assert booked == len(pipeline.ledger.applied)
        assert 1 == len(pipeline.events.of("actor.crashed"))


@virtual
async def test_full_disk_is_said_and_recovers_by_itself() -> None:
    """F18: the probe finds the space again, without a client's help."""
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.store.fail_next += [StoreUnavailable("SQLITE_FULL")] * 4

        with pytest.raises(StoreUnavailable):
            await pipeline.service.submit(submit(authorize()))
        assert not (await pipeline.system.snapshot("outbox", timeout_s=1.0)).value.writable
        await advance(5.0)

        assert (await pipeline.system.snapshot("outbox", timeout_s=1.0)).value.writable
        await pipeline.pay()
        await pipeline.until_booked()
        await pipeline.check()


@virtual
async def test_drain_stores_the_marks_of_what_was_in_flight() -> None:
    """F65: stop at a row boundary; what the broker acknowledged meanwhile is marked."""
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.slow(2.0)
        await pipeline.pay(captures=2)
        await advance(0.5)

        for actor_id in ("outbox", "publisher", "consumer"):
            assert await pipeline.system.drain(actor_id, timeout_s=10.0)
        report = await pipeline.system.stop(drain=True, grace_s=5.0)

        assert ((), ()) == (report.abandoned, report.late)
        sent = len(pipeline.memory.history)
        assert sent == pipeline.states().count("published")


@virtual
async def test_drain_without_a_broker_does_not_wait_for_it() -> None:
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.refuse()
        await pipeline.pay(captures=2)
        await advance(20.0)
        before = pipeline.clock.now()

        for actor_id in ("outbox", "publisher", "consumer"):
            assert await pipeline.system.drain(actor_id, timeout_s=10.0)

        assert pipeline.clock.now() - before < 1.0


@virtual
async def test_publisher_crash_gives_every_permit_back() -> None:
    """A half-open breaker that lost its trials to a crash would never close."""
    async with flowing() as pipeline:
        pipeline.memory.hang()
        await pipeline.pay(captures=3)
        await advance(0.2)
        pipeline.memory.mend()

        await crash(pipeline, "publisher")
        await pipeline.until_booked()

        assert (0, 4) == (pipeline.guard.snapshot().failed_calls, pipeline.guard.snapshot().buffered_calls)
        await pipeline.check()


@virtual
async def test_half_open_probes_are_the_head_of_the_line_and_no_more_than_permitted() -> None:
    """F44."""
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        pipeline.memory.refuse()
        for _ in range(10):
            await pipeline.pay()
        await pipeline.until(lambda: pipeline.guard.state is State.OPEN)
        pipeline.memory.mend()
        pipeline.memory.hang()
        appended: list[int] = []
        original = pipeline.memory.append

        async def append(topic: str, partition: int, records: list[LogRecord]) -> tuple[int, int]:
            appended.append(len(records))
            return await original(topic, partition, records)

        pipeline.memory.append = append  # type: ignore[method-assign, assignment]
        await pipeline.until(lambda: pipeline.guard.state is State.HALF_OPEN)
        await advance(10.0)

        assert 3 == sum(appended)


@virtual
async def test_slow_acks_open_the_breaker() -> None:
    """F35: nothing fails, and yet it is too slow."""
    async with flowing() as pipeline:
        pipeline.memory.slow(6.0)
        for _ in range(10):
            await pipeline.pay()

        await pipeline.until(lambda: pipeline.guard.state is State.OPEN)
        pipeline.memory.mend()
        await pipeline.until_booked()

        await pipeline.check()


@virtual
async def test_locked_ledger_does_not_fill_the_memory_with_records() -> None:
    """I6: while one transaction lasts, only so much is read ahead."""
    settings = ConsumerSettings(topic=TOPIC, dead_letter_topic=DEAD_LETTERS, volatile=False, fetch_records=10)
    async with flowing(consumer=settings) as pipeline:
        pipeline.ledger.delay_s = 30.0
        for _ in range(100):
            await pipeline.pay(captures=3)

        await advance(25.0)

        assert pipeline.ref("consumer").load()[0] <= 10
        pipeline.ledger.delay_s = 0.0
        await pipeline.until_booked()
        await pipeline.check()


@virtual
async def test_broker_unavailable_at_the_source_only_is_survived() -> None:
    async with flowing() as pipeline:
        await pipeline.pay()
        await pipeline.until_booked()
        for error in (BrokerUnavailable("gone"), LaneUnavailable("topic gone")):
            pipeline.memory.refuse(lambda error=error: error)  # type: ignore[misc]
            await advance(5.0)
            pipeline.memory.mend()
            await pipeline.pay()
            await pipeline.until_booked()

        assert [] == pipeline.events.of("actor.crashed")
        await pipeline.check()


def _of(payment_id: bytes, record: LogRecord) -> bool:
    return (record.key or b"").replace(b"-", b"") == payment_id.hex().encode()

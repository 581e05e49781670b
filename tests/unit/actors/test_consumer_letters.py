"""The consumer alone: dead letters, and acknowledgements to the outbox."""

from __future__ import annotations

import asyncio

from payflow.actors.dead_letters import DeadLetterWriter, Poison
from payflow.core.outbox import Unpublish
from payflow.errors import RecordRejected, StoreBusy
from payflow.messages import BrokerMoved
from payflow.ports import LogRecord, Record
from tests.fakes.event_log import EventLogFake, MemoryLog
from tests.support.consumer_bench import GARBAGE, event_record, world
from tests.support.pipeline import DEAD_LETTERS, TOPIC, LoopClock
from tests.support.virtual_loop import advance, virtual


# ------------------------------------------------------------------ dead letters
@virtual
async def test_poison_is_written_with_its_place_and_then_passed() -> None:
    async with world() as w:
        await w.put(event_record(1), GARBAGE, event_record(2))
        await advance(1.0)

        (letter,) = w.memory.records(DEAD_LETTERS)
        assert {"h", "payflow_reason", "payflow_source_topic"} <= {name for name, _ in letter.headers}
        assert {0: 3} == await w.positions()
        assert {"undecodable": 1} == w.counters.dead_lettered_total


@virtual
async def test_position_stays_at_the_poison_until_its_letter_is_acknowledged() -> None:
    async with world() as w:
        w.memory.refused_topics.add(DEAD_LETTERS)
        await w.put(event_record(1), GARBAGE, event_record(2))
        await advance(5.0)
        assert {0: 1} == await w.positions()
        assert 1 == (await w.look()).dead_letters_waiting

        w.memory.mend()
        await advance(10.0)

        assert {0: 3} == await w.positions()


@virtual
async def test_records_that_were_fetched_meanwhile_do_not_pass_the_poison() -> None:
    async with world(fetch_records=1) as w:
        w.memory.refused_topics.add(DEAD_LETTERS)
        w.ledger.delay_s = 0.5
        await w.put(GARBAGE, *(event_record(number) for number in range(1, 6)))
        await advance(10.0)
        assert 0 == (await w.positions()).get(0, 0)

        w.memory.mend()
        await advance(20.0)

        assert {0: 6} == await w.positions()


@virtual
async def test_letter_of_a_source_that_is_gone_is_left_to_its_successor() -> None:
    async with world(bootstrap=None) as w:
        w.system.ref("consumer").tell(BrokerMoved("a:1", "one"))
        w.memory.refused_topics.add(DEAD_LETTERS)
        await w.put(GARBAGE)
        await advance(5.0)
        w.system.ref("consumer").tell(BrokerMoved("b:1", "two"))
        await advance(5.0)
        w.memory.mend()
        await advance(30.0)

        assert 1 == len(w.memory.records(DEAD_LETTERS))
        assert {0: 1} == await w.positions()


@virtual
async def test_locked_ledger_behind_a_dead_letter_is_no_crash() -> None:
    async with world() as w:
        w.memory.refused_topics.add(DEAD_LETTERS)
        await w.put(GARBAGE)
        await advance(1.0)
        w.ledger.failures.extend([StoreBusy("locked")] * 3)
        w.memory.mend()
        await advance(20.0)

        assert {0: 1} == await w.positions()
        assert 1 == len(w.memory.records(DEAD_LETTERS))
        assert [] == w.events.of("actor.crashed")


@virtual
async def test_position_never_goes_back_while_letters_are_written() -> None:
    async with world(fetch_records=2) as w:
        w.ledger.delay_s = 0.2
        for number in range(1, 20):
            await w.put(GARBAGE, event_record(number))
        seen = [0]
        for _ in range(200):
            seen.append((await w.positions()).get(0, 0))
            await advance(0.1)

        assert sorted(seen) == seen
        assert 38 == seen[-1]


@virtual
async def test_letter_that_never_answers_is_tried_again_with_another_producer() -> None:
    async with world(connect_timeout_s=2.0) as w:
        await w.put(GARBAGE)
        w.memory.hang()
        await advance(0.1)
        await advance(3.0)
        w.memory.mend()
        await advance(10.0)

        assert 1 == len(w.memory.records(DEAD_LETTERS))


@virtual
async def test_letter_that_is_too_large_names_the_place_and_size_instead() -> None:
    async with world() as w:
        w.memory.reject(lambda record: record.value is not None)
        await w.memory.append(TOPIC, 0, [LogRecord(None, None, (), 0)])
        w.memory.mend()
        await advance(1.0)
        del w.memory._store[DEAD_LETTERS, 0].records[:]
        await w.put(GARBAGE)
        w.memory.reject(lambda record: record.value is not None)
        await advance(1.0)

        (letter,) = w.memory.records(DEAD_LETTERS)
        assert letter.value is None
        assert ("payflow_source_value_bytes", b"1") in letter.headers


@virtual
async def test_letter_that_is_refused_in_any_form_is_never_dropped() -> None:
    failed: list[Exception] = []
    memory = MemoryLog()
    memory.reject(lambda record: True)
    writer = DeadLetterWriter(
        lambda: EventLogFake(memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS),
        topic=DEAD_LETTERS,
        source_topic=TOPIC,
        timeout_s=1.0,
        clock=LoopClock(),
        delay_s=lambda failures: 1.0,
        failed=lambda poison, error: failed.append(error),
    )
    writing = asyncio.create_task(writer.write(Poison(Record(0, 0, None, b"x", (), 0), "c", "r")))
    await advance(2.5)
    assert {RecordRejected} == {type(error) for error in failed}
    memory.mend()
    await advance(1.0)

    assert writing.done()
    await writer.close()


# ------------------------------------------------------------------ acknowledgements
@virtual
async def test_acks_are_repeated_until_the_outbox_has_stored_them() -> None:
    async with world() as w:
        w.answers["outbox"] = lambda message: StoreBusy("locked")
        await w.put(event_record(1))
        await advance(3.5)
        assert 3 <= len(w.heard["outbox"]) <= 5

        w.answers["outbox"] = lambda message: None
        await advance(1.5)
        stored = len(w.heard["outbox"])
        await advance(10.0)

        assert stored == len(w.heard["outbox"])


@virtual
async def test_drain_waits_for_the_acks_without_spinning() -> None:
    async with world() as w:
        w.system.pause("outbox", max_s=2.0, by="test")
        await w.put(event_record(1))
        await advance(0.5)

        assert await w.system.drain("consumer", timeout_s=5.0)

        assert 1 == len(w.heard["outbox"])


@virtual
async def test_drained_consumer_fetches_nothing() -> None:
    async with world() as w:
        assert await w.system.drain("consumer", timeout_s=5.0)
        await w.put(event_record(1))
        await advance(5.0)

        assert {} == w.ledger.applied


@virtual
async def test_restarted_consumer_of_a_volatile_broker_has_the_unacknowledged_published_again() -> None:
    """Twice: marks that were on their way would make rows published, and never acknowledged, after the first time."""
    async with world(volatile=True) as w:
        w.answers["outbox"] = lambda message: StoreBusy("locked")
        w.crash()
        await advance(2.5)
        w.answers["outbox"] = lambda message: None
        await advance(1.0)
        tries = len(w.heard["outbox"])
        await advance(60.0)

        assert {Unpublish("")} == set(w.heard["outbox"])
        assert tries + 1 == len(w.heard["outbox"])

"""The faults of the fake Kafka, on virtual or real time: what actors' tests build on."""

from __future__ import annotations

import asyncio

import pytest

from payflow.errors import BrokerUnavailable, LaneUnavailable, OffsetOutOfRange, ProducerBroken, RecordRejected
from tests.fakes.event_log import EventLogFake, MemoryLog, RecordSourceFake
from tests.support.kafka_backends import numbers, record

TOPIC, DEAD_LETTERS = "events", "events.dlq"


async def opened(memory: MemoryLog) -> EventLogFake:
    log = EventLogFake(memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS)
    await log.open()
    return log


async def reading(memory: MemoryLog) -> RecordSourceFake:
    source = RecordSourceFake(memory, topic=TOPIC)
    await source.open()
    await source.seek({})
    return source


@pytest.mark.parametrize("error", [BrokerUnavailable, LaneUnavailable, ProducerBroken])
async def test_refused_until_mended(error: type[Exception]) -> None:
    """Nothing is written while it refuses."""
    memory = MemoryLog()
    log = await opened(memory)
    memory.refuse(lambda: error("no"))  # type: ignore[arg-type, return-value]

    with pytest.raises(error):
        await log.append(TOPIC, 0, [record(0)])
    memory.mend()

    assert await log.append(TOPIC, 0, [record(0)]) == (1, 0)


async def test_an_outcome_that_is_unknown_may_land_late() -> None:
    """F36: given up, sent again by another instance, then the first copy arrives."""
    memory = MemoryLog()
    log = await opened(memory)
    memory.hang()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await log.append(TOPIC, 0, [record(0)])
    memory.mend()
    await (await opened(memory)).append(TOPIC, 0, [record(0), record(1)])

    landed = memory.land()

    assert landed == 1
    assert numbers(memory.records(TOPIC)) == [0, 1, 0]


async def test_an_outcome_that_is_unknown_may_be_a_loss() -> None:
    """It never arrived."""
    memory = MemoryLog()
    log = await opened(memory)
    memory.hang()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await log.append(TOPIC, 0, [record(0)])

    assert memory.lose() == 1
    assert memory.land() == 0
    assert memory.records(TOPIC) == []


async def test_who_still_waits_gets_the_late_answer() -> None:
    """F35: slow, within the deadline."""
    memory = MemoryLog()
    log = await opened(memory)
    memory.hang()

    async with asyncio.TaskGroup() as group:
        append = group.create_task(log.append(TOPIC, 0, [record(0)]))
        await asyncio.sleep(0)
        memory.land()

    assert append.result() == (1, 0)


async def test_a_record_that_is_rejected_stands_in_the_way_of_none_before_it() -> None:
    """Prefix first, then the error."""
    memory = MemoryLog()
    log = await opened(memory)
    memory.reject(lambda item: item.key == b"key-1")

    assert await log.append(TOPIC, 0, [record(0), record(1)]) == (1, 0)
    with pytest.raises(RecordRejected):
        await log.append(TOPIC, 0, [record(1)])


async def test_a_broker_that_comes_back_empty_has_another_id() -> None:
    """Clients of the old one hear nothing any more; new ones see an empty log."""
    memory = MemoryLog()
    log = await opened(memory)
    await log.append(TOPIC, 0, [record(0)])
    memory.replace("memory-2")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await log.append(TOPIC, 0, [record(1)])

    assert (await EventLogFake(memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS).open()).log_id == "memory-2"
    assert memory.records(TOPIC) == []


async def test_what_retention_took_is_out_of_range() -> None:
    """F61."""
    memory = MemoryLog()
    log = await opened(memory)
    await log.append(TOPIC, 0, [record(0), record(1), record(2)])
    source = await reading(memory)
    memory.truncate(TOPIC, 0, 2)

    with pytest.raises(OffsetOutOfRange):
        await source.fetch(max_records=1, timeout_s=0)
    await source.seek({})

    assert numbers(await source.fetch(max_records=9, timeout_s=0)) == [2]


async def test_a_missing_topic_is_a_matter_of_configuration() -> None:
    """F41, for both sides."""
    memory = MemoryLog(topics=[TOPIC])

    with pytest.raises(LaneUnavailable):
        await EventLogFake(memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS).open()
    with pytest.raises(LaneUnavailable):
        await RecordSourceFake(memory, topic="other").open()

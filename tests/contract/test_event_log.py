"""`ports.EventLog`: one suite for the fake, the embedded broker and a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from payflow.errors import LaneUnavailable, ProducerBroken, RecordRejected
from payflow.ports import LogRecord
from tests.support.kafka_backends import BACKENDS, Backend, append_all, fetch_count, numbers, open_backend, record

NOT_BYTES = LogRecord(b"key", "text", (), 0)  # type: ignore[arg-type]


@pytest.fixture(params=BACKENDS)
async def kafka(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with open_backend(request.param) as backend:
        yield backend


async def test_two_instances_see_the_same_log(kafka: Backend) -> None:
    """The id names the log, not the connection."""
    first, second = await kafka.event_log().open(), await kafka.event_log().open()

    assert first == second
    assert first.log_id
    assert first.partitions == {"fake": 6, "embedded": 4, "real": 6}[kafka.name]


async def test_reader_and_writer_agree_on_the_log(kafka: Backend) -> None:
    """Positions are stored under the id that the producer reports."""
    written = await kafka.event_log().open()
    read = await kafka.record_source().open()

    assert written == read


async def test_append_returns_how_many_and_the_offset_of_the_first(kafka: Backend) -> None:
    """Offsets count up from zero."""
    log = await kafka.opened_log()

    assert await log.append(kafka.topic, 1, [record(0), record(1), record(2)]) == (3, 0)
    assert await log.append(kafka.topic, 1, [record(3)]) == (1, 3)
    assert await log.append(kafka.topic, 2, [record(4)]) == (1, 0)


@pytest.mark.parametrize(
    "sent",
    [
        LogRecord(b"key", b"value", (("ce_id", b"1"), ("ce_type", b"payment.captured")), 1_764_000_000_123),
        LogRecord(b"key", b"value", (("same", b"1"), ("same", b"2"), ("empty", b"")), 1_764_000_000_000),
        LogRecord(None, b"value", (), 1_764_000_000_000),
        LogRecord(b"key", None, (), 1_764_000_000_000),
        LogRecord(b"", b"", (("name-\u00e4\u4e2d", b"\x00\xff"),), 1_764_000_000_000),
    ],
    ids=["usual", "headers", "no key", "no value", "empty"],
)
async def test_a_record_comes_back_as_it_was_sent(kafka: Backend, sent: LogRecord) -> None:
    """Key, value, headers in their order, time."""
    log = await kafka.opened_log()
    _, offset = await log.append(kafka.topic, 0, [sent])
    source = await kafka.opened_source()

    (got,) = await fetch_count(source, 1)

    assert (0, offset) == (got.partition, got.offset)
    assert (sent.key, sent.value) == (got.key, got.value)
    assert (sent.headers, sent.timestamp_ms) == (got.headers, got.timestamp_ms)


async def test_more_than_a_batch_is_taken_in_prefixes(kafka: Backend) -> None:
    """The caller goes on with what was not taken; nothing is skipped, doubled or turned round."""
    log = await kafka.opened_log()
    records = [record(number, size=1000) for number in range(400)]

    count, first = await log.append(kafka.topic, 0, records)
    offsets = await append_all(log, kafka.topic, 0, records[count:])

    assert first == 0
    assert 1 < count < len(records)
    assert list(range(count, len(records))) == offsets
    assert list(range(len(records))) == numbers(await fetch_count(await kafka.opened_source(), len(records)))


async def test_a_record_larger_than_a_batch_goes_alone(kafka: Backend) -> None:
    """Only what is larger than the limit for a record is refused."""
    log = await kafka.opened_log()

    count, _ = await log.append(kafka.topic, 0, [record(0, size=900_000), record(1)])

    assert count == 1


@pytest.mark.parametrize("bad", [record(0, size=1_100_000), NOT_BYTES], ids=["too large", "not encodable"])
async def test_a_record_that_can_never_be_taken_is_rejected_alone(kafka: Backend, bad: LogRecord) -> None:
    """Those before it are taken, it is named by being first, and those after it go on."""
    log = await kafka.opened_log()

    assert await log.append(kafka.topic, 0, [record(1), record(2), bad, record(3)]) == (2, 0)
    with pytest.raises(RecordRejected):
        await log.append(kafka.topic, 0, [bad, record(3)])
    assert await log.append(kafka.topic, 0, [record(3)]) == (1, 2)


async def test_a_partition_that_does_not_exist_is_a_matter_of_configuration(kafka: Backend) -> None:
    """Neither the record nor the broker is to blame."""
    log = await kafka.opened_log()

    with pytest.raises(LaneUnavailable):
        await log.append(kafka.topic, 99, [record(0)])


async def test_dead_letters_go_to_their_own_topic(kafka: Backend) -> None:
    """The same instance serves both."""
    log = await kafka.opened_log()
    await log.append(kafka.topic, 0, [record(0)])

    assert await log.append(kafka.dead_letter_topic, 0, [record(1)]) == (1, 0)


async def test_appends_to_one_partition_keep_their_order(kafka: Backend) -> None:
    """Also when they overlap: the second waits for the first."""
    log = await kafka.opened_log()

    async with asyncio.TaskGroup() as group:
        appends = [group.create_task(log.append(kafka.topic, 0, [record(number)])) for number in range(20)]

    assert list(range(20)) == [append.result()[1] for append in appends]
    assert list(range(20)) == numbers(await fetch_count(await kafka.opened_source(), 20))


async def test_partitions_are_independent(kafka: Backend) -> None:
    """One append a partition at the same time."""
    log = kafka.event_log()
    info = await log.open()

    async with asyncio.TaskGroup() as group:
        appends = [
            group.create_task(log.append(kafka.topic, number, [record(number)])) for number in range(info.partitions)
        ]

    assert [(1, 0)] * info.partitions == [append.result() for append in appends]


async def test_a_discarded_instance_is_broken(kafka: Backend) -> None:
    """Build another; this one says so at once."""
    log = await kafka.opened_log()
    await log.discard(timeout_s=1.0)

    with pytest.raises(ProducerBroken):
        await log.append(kafka.topic, 0, [record(0)])


async def test_discard_may_come_twice_and_before_open(kafka: Backend) -> None:
    """Whoever cleans up need not know how far things went."""
    log = kafka.event_log()

    await log.discard(timeout_s=1.0)
    await log.discard(timeout_s=1.0)


async def test_a_new_instance_goes_on_where_the_old_one_stopped(kafka: Backend) -> None:
    """What was acknowledged before a discard is in the log."""
    log = await kafka.opened_log()
    await log.append(kafka.topic, 0, [record(0)])
    await log.discard(timeout_s=1.0)

    assert await (await kafka.opened_log()).append(kafka.topic, 0, [record(1)]) == (1, 1)

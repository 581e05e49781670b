"""What only a real cluster does: topics by request, sequence numbers, limits of a topic, committed offsets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from payflow.adapters import _aiokafka
from payflow.adapters.kafka_consumer import KafkaRecordSource
from payflow.errors import BrokerUnavailable, LaneUnavailable, RecordRejected
from payflow.ports import RecordSource
from tests.support.kafka_backends import (
    WAIT_S,
    Backend,
    append_all,
    fetch_count,
    numbers,
    open_backend,
    record,
)

pytestmark = pytest.mark.kafka


@pytest.fixture
async def kafka() -> AsyncIterator[Backend]:
    async with open_backend("real") as backend:
        yield backend


@pytest.fixture
async def admin(kafka: Backend) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    yield admin
    await admin.close()


async def test_missing_topics_are_created_and_present_ones_are_left_alone(
    kafka: Backend, admin: AIOKafkaAdminClient
) -> None:
    """Six partitions unless somebody has decided otherwise."""
    await admin.create_topics([NewTopic(kafka.topic, 3, 1)])

    info = await kafka.event_log().open()
    topics = {topic["topic"]: topic for topic in await admin.describe_topics([kafka.topic, kafka.dead_letter_topic])}

    assert info.partitions == 3
    assert len(topics[kafka.topic]["partitions"]) == 3
    assert len(topics[kafka.dead_letter_topic]["partitions"]) == 6


async def test_a_topic_that_nobody_may_create_is_a_matter_of_configuration(kafka: Backend) -> None:
    """F41: the broker has said that there is no such topic."""
    with pytest.raises(LaneUnavailable):
        await kafka.event_log(create_topics=False, request_timeout_s=1.0).open()
    with pytest.raises(LaneUnavailable):
        await kafka.record_source(request_timeout_s=1.0).open()


async def test_a_topic_that_is_deleted_and_made_again(kafka: Backend, admin: AIOKafkaAdminClient) -> None:
    """F41: the lane is held, and goes on with the same instance when the topic is back."""
    log = kafka.event_log(request_timeout_s=1.0)
    await log.open()
    await log.append(kafka.topic, 0, [record(0)])
    await admin.delete_topics([kafka.topic])

    with pytest.raises(LaneUnavailable):
        await log.append(kafka.topic, 0, [record(1)])
    await admin.create_topics([NewTopic(kafka.topic, 6, 1)])

    assert await log.append(kafka.topic, 0, [record(1)]) == (1, 0)


async def test_a_record_that_only_the_broker_refuses_breaks_nothing(kafka: Backend, admin: AIOKafkaAdminClient) -> None:
    """F40: the topic's limit is below ours. The bad one is found among good ones; the next has the right sequence."""
    limit = {"max.message.bytes": "2000"}
    await admin.create_topics([NewTopic(kafka.topic, 1, 1, topic_configs=limit)])
    log = await kafka.opened_log()
    bad = record(99, size=3000)

    assert await append_all(log, kafka.topic, 0, [record(0), record(1)]) == [0, 1]
    assert await log.append(kafka.topic, 0, [record(2), record(3), record(4), bad, record(5)]) == (2, 2)
    assert await log.append(kafka.topic, 0, [record(4), bad, record(5)]) == (1, 4)
    with pytest.raises(RecordRejected):
        await log.append(kafka.topic, 0, [bad, record(5)])
    assert await log.append(kafka.topic, 0, [record(5)]) == (1, 5)
    assert numbers(await fetch_count(await kafka.opened_source(), 6)) == [0, 1, 2, 3, 4, 5]


async def test_a_batch_that_is_too_large_for_the_topic_is_cut(kafka: Backend, admin: AIOKafkaAdminClient) -> None:
    """Nothing is wrong with any of its records."""
    limit = {"max.message.bytes": "2000"}
    await admin.create_topics([NewTopic(kafka.topic, 1, 1, topic_configs=limit)])
    log = await kafka.opened_log()

    offsets = await append_all(log, kafka.topic, 0, [record(number, size=500) for number in range(20)])

    assert offsets == list(range(20))


async def test_committed_offsets_are_there_for_lag_tools(kafka: Backend, admin: AIOKafkaAdminClient) -> None:
    """Under the group's id; the first may find no coordinator yet."""
    log = await kafka.opened_log()
    await append_all(log, kafka.topic, 0, [record(0), record(1)])
    source = await kafka.opened_source()
    place = TopicPartition(kafka.topic, 0)
    committed = {}

    for _ in range(20):
        await source.commit({0: 2})
        committed = await admin.list_consumer_group_offsets(kafka.group_id, partitions=[place])
        if committed[place].offset == 2:
            break

    assert committed[place].offset == 2


async def test_partitions_that_are_added_are_not_overlooked(kafka: Backend, admin: AIOKafkaAdminClient) -> None:
    """Events in them would never be booked; the caller opens anew."""
    await kafka.opened_log()
    source = await kafka.opened_source()
    await admin.create_partitions({kafka.topic: NewPartitions(8)})
    assert (await kafka.event_log().open()).partitions == 8

    with pytest.raises(BrokerUnavailable, match="grown to 8"):
        await _fetch_with_new_metadata(source)


async def _fetch_with_new_metadata(source: RecordSource) -> None:
    """As after the five minutes that metadata may be old."""
    assert isinstance(source, KafkaRecordSource)
    assert source._consumer is not None
    for _ in range(50):
        await _aiokafka.network_client(source._consumer).force_metadata_update()
        await source.fetch(max_records=10, timeout_s=WAIT_S / 50)

"""Private names of aiokafka that `payflow.adapters._aiokafka` uses. Red after an upgrade: read the new source first."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Iterator

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.sender import Sender

from payflow.adapters import _aiokafka


@pytest.fixture
def loggers() -> Iterator[None]:
    """Levels and filters as they were."""
    names = _aiokafka.LOGGER_NAMES
    before = [(logger := logging.getLogger(name), logger.level, list(logger.filters)) for name in names]
    yield
    for logger, level, filters in before:
        logger.setLevel(level)
        logger.filters = filters


async def test_a_producer_has_the_parts_that_are_severed() -> None:
    """Sender, accumulator and client, each with the names used."""
    producer = AIOKafkaProducer(enable_idempotence=True)

    assert isinstance(producer._sender, Sender)
    assert isinstance(producer._message_accumulator, MessageAccumulator)
    assert isinstance(producer.client, AIOKafkaClient)
    assert producer.client._conns == {}
    assert producer._closed is False
    assert producer._sender.sender_task is None
    await producer.stop()


async def test_a_consumer_has_the_parts_that_are_severed() -> None:
    """Its fetcher and coordinator are made by start()."""
    consumer = AIOKafkaConsumer()

    assert isinstance(consumer._client, AIOKafkaClient)
    assert consumer._closed is False
    assert (consumer._fetcher, consumer._coordinator) == (None, None)
    assert isinstance(Fetcher.error_future, property)
    await consumer.stop()


async def test_a_connection_has_its_writer() -> None:
    """None until it is connected and after it is closed."""
    assert AIOKafkaConnection("localhost", 1)._writer is None


async def test_sequence_numbers_can_be_taken_back() -> None:
    """The transaction manager counts per partition."""
    producer = AIOKafkaProducer(enable_idempotence=True)
    place = TopicPartition("topic", 0)
    producer._txn_manager.increment_sequence_number(place, 5)

    _aiokafka.take_back_sequence(producer, "topic", 0, 2)

    assert producer._txn_manager.sequence_number(place) == 3
    await producer.stop()


@pytest.mark.parametrize(
    "method",
    [
        Sender._sender_routine,
        Sender._send_produce_req,
        MessageAccumulator.close,
        AIOKafkaClient._md_synchronizer,
        Fetcher._fetch_requests_routine,
        Fetcher._proc_fetch_request,
        Fetcher._update_fetch_positions,
    ],
    ids=lambda method: method.__qualname__,
)
def test_what_runs_in_the_background_is_found_by_its_self(method: object) -> None:
    """Tasks of a client are told by `self` of their coroutine."""
    assert inspect.iscoroutinefunction(method)
    assert next(iter(inspect.signature(method).parameters)) == "self"


def test_values_are_never_logged_even_under_a_debug_root(loggers: None, caplog: pytest.LogCaptureFixture) -> None:
    """aiokafka logs key and value of every send at DEBUG."""
    _aiokafka.tame_logging()

    with caplog.at_level(logging.DEBUG):  # the root logger
        logging.getLogger("aiokafka.producer.producer").debug("Sending (key=%s value=%s) to %s", "k", "secret", "t")

    assert caplog.records == []


def test_a_stricter_level_is_left_alone(loggers: None) -> None:
    """Who wants only errors gets only errors."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)

    _aiokafka.tame_logging()

    assert logging.getLogger("aiokafka").level == logging.ERROR


def test_a_message_that_repeats_itself_is_logged_once(loggers: None, caplog: pytest.LogCaptureFixture) -> None:
    """A dead broker would fill the log with forty lines a second; another message still comes through."""
    _aiokafka.tame_logging()
    _aiokafka.tame_logging()
    logger = logging.getLogger("aiokafka")

    for node in range(100):
        logger.error("test: unable to connect to node %s", node)
    logger.error("test: something else")

    assert [entry.getMessage() for entry in caplog.records] == [
        "test: unable to connect to node 0",
        "test: something else",
    ]


async def test_severing_finds_no_task_of_another_client() -> None:
    """Two producers in one loop; only one is ended."""
    one, other = AIOKafkaProducer(), AIOKafkaProducer()
    started = asyncio.Event()

    async def belongs_to(self: object) -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    async with asyncio.TaskGroup() as group:
        task_of_one = group.create_task(belongs_to(one.client))
        task_of_other = group.create_task(belongs_to(other.client))
        await started.wait()

        assert _aiokafka.sever(one) == {task_of_one}

        task_of_other.cancel()
    await other.stop()

"""Both clients of a Kafka that misbehaves, on the embedded broker: killed, frozen, forgetful (F33-F43, F61)."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from payflow.adapters import _aiokafka
from payflow.adapters.embedded_broker import EmbeddedBroker
from payflow.adapters.kafka_consumer import KafkaRecordSource
from payflow.adapters.kafka_producer import KafkaEventLog
from payflow.errors import BrokerUnavailable, OffsetOutOfRange, ProducerBroken
from tests.support.kafka_backends import WAIT_S, append_all, fetch_count, numbers, record
from tests.support.processes import freeze

TOPIC = "payment.events"
GIVEN_UP_S = 0.3  # how long a test waits for an append that cannot come back
STOP_S = 0.5


class Kafka:
    """An embedded broker that a test may hurt, and clients of it."""

    def __init__(self) -> None:
        self.broker = EmbeddedBroker()
        self.bootstrap = ""
        self.broker_id = ""
        self.clients: list[KafkaEventLog | KafkaRecordSource] = []

    async def start(self) -> None:
        self.bootstrap, self.broker_id = await self.broker.start()

    def signal(self, number: signal.Signals) -> None:
        """Send the signal; a process that is frozen is frozen when this returns."""
        pid = self.broker.pid
        assert pid is not None
        if number == signal.SIGSTOP:
            freeze(pid)
        else:
            os.kill(pid, number)

    def log(self) -> KafkaEventLog:
        log = KafkaEventLog(
            self.bootstrap,
            topic=TOPIC,
            dead_letter_topic=f"{TOPIC}.dlq",
            client_id="p",
            log_id=self.broker_id,
            request_timeout_s=1.0,
        )
        self.clients.append(log)
        return log

    def source(self) -> KafkaRecordSource:
        source = KafkaRecordSource(
            self.bootstrap, topic=TOPIC, group_id="g", client_id="c", log_id=self.broker_id, request_timeout_s=1.0
        )
        self.clients.append(source)
        return source

    async def close(self) -> None:
        for client in self.clients:
            if isinstance(client, KafkaEventLog):
                await client.discard(timeout_s=STOP_S)
            else:
                await client.close(timeout_s=STOP_S)
        if self.broker.pid is not None:
            self.signal(signal.SIGCONT)
        await self.broker.stop()


@pytest.fixture
async def kafka() -> AsyncIterator[Kafka]:
    """Running; at the end everything is gone, tasks as well."""
    kafka = Kafka()
    before = asyncio.all_tasks()
    await kafka.start()
    yield kafka
    await kafka.close()
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=1.0)
    assert left == set(), "tasks left behind"


async def given_up(log: KafkaEventLog, number: int = 0) -> None:
    """An append whose deadline passes."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(GIVEN_UP_S):
            await log.append(TOPIC, 0, [record(number)])


@pytest.mark.parametrize("hurt", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_append_hangs_without_a_broker_and_discard_is_bounded(kafka: Kafka, hurt: signal.Signals) -> None:
    """F37: aiokafka's own stop() would wait for ever."""
    log = kafka.log()
    await log.open()
    kafka.signal(hurt)
    await given_up(log)

    async with asyncio.timeout(STOP_S + 0.5):
        await log.discard(timeout_s=STOP_S)

    assert log.abandoned


async def test_who_waits_for_an_append_hears_of_the_discard(kafka: Kafka) -> None:
    """No silent waiting when somebody else gave the instance up."""
    log = kafka.log()
    await log.open()
    kafka.signal(signal.SIGKILL)

    async with asyncio.TaskGroup() as group:
        append = group.create_task(_error_of_append(log))
        await asyncio.sleep(0)
        await log.discard(timeout_s=STOP_S)

    assert isinstance(append.result(), ProducerBroken)


async def test_a_discard_that_is_cancelled_leaves_nothing(kafka: Kafka) -> None:
    """The budget of a shutdown ran out."""
    log = kafka.log()
    await log.open()
    kafka.signal(signal.SIGKILL)
    await given_up(log)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await log.discard(timeout_s=30.0)


async def test_what_is_discarded_is_not_sent_when_the_broker_comes_back(kafka: Kafka) -> None:
    """F36: of an append that was given up at most what had reached the socket lands; the copy sent again does."""
    log = kafka.log()
    await log.open()
    await log.append(TOPIC, 0, [record(0)])
    kafka.signal(signal.SIGSTOP)
    await given_up(log, 1)
    await log.discard(timeout_s=STOP_S)
    kafka.signal(signal.SIGCONT)

    again = kafka.log()
    await again.open()
    await append_all(again, TOPIC, 0, [record(1), record(2)])
    source = kafka.source()
    await source.open()
    await source.seek({})
    written = numbers(await fetch_count(source, (await source.bounds())[0][1]))

    assert written in ([0, 1, 2], [0, 1, 1, 2])


async def test_a_slow_append_is_delivered_once_the_broker_goes_on(kafka: Kafka) -> None:
    """F35: frozen for less than the deadline is slow, not lost."""
    log = kafka.log()
    await log.open()
    kafka.signal(signal.SIGSTOP)

    async with asyncio.TaskGroup() as group:
        append = group.create_task(log.append(TOPIC, 0, [record(0)]))
        done, _ = await asyncio.wait({append}, timeout=GIVEN_UP_S)
        kafka.signal(signal.SIGCONT)

    assert done == set()
    assert append.result() == (1, 0)


async def test_a_sender_task_that_is_gone_is_noticed(kafka: Kafka) -> None:
    """F38: cancelled from outside, aiokafka leaves every future waiting."""
    log = kafka.log()
    await log.open()
    kafka.signal(signal.SIGSTOP)

    async with asyncio.TaskGroup() as group:
        append = group.create_task(_error_of_append(log))
        await asyncio.sleep(0)
        assert log._producer is not None
        _aiokafka.sender_task(log._producer).cancel()
        _aiokafka.sender_task(log._producer).cancel()
        kafka.signal(signal.SIGCONT)

    assert isinstance(append.result(), ProducerBroken)


async def _error_of_append(log: KafkaEventLog) -> Exception | None:
    try:
        await log.append(TOPIC, 1, [record(0)])
    except (ProducerBroken, BrokerUnavailable) as error:
        return error
    return None


@pytest.mark.parametrize("make", [Kafka.log, Kafka.source], ids=["log", "source"])
async def test_nobody_listens(kafka: Kafka, make: object) -> None:
    """F33: the caller tries again later."""
    await kafka.broker.stop()

    with pytest.raises(BrokerUnavailable):
        await make(kafka).open()  # type: ignore[operator]


@pytest.mark.parametrize("make", [Kafka.log, Kafka.source], ids=["log", "source"])
async def test_somebody_listens_but_never_answers(kafka: Kafka, make: object) -> None:
    """F44: the request timeout ends it."""
    kafka.signal(signal.SIGSTOP)

    with pytest.raises(BrokerUnavailable):
        await make(kafka).open()  # type: ignore[operator]


@pytest.mark.parametrize("make", [Kafka.log, Kafka.source], ids=["log", "source"])
async def test_a_cancelled_open_leaves_nothing(kafka: Kafka, make: object) -> None:
    """The fixture looks for tasks, the interpreter for sockets."""
    kafka.signal(signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await make(kafka).open()  # type: ignore[operator]


async def test_a_consumer_of_a_dead_broker_is_quiet_and_lag_tells(kafka: Kafka) -> None:
    """Fetch waits, commit gives up, bounds says so, close is bounded."""
    source = kafka.source()
    await source.open()
    await source.seek({})
    kafka.signal(signal.SIGKILL)

    assert await source.fetch(max_records=10, timeout_s=0.1) == []
    await source.commit({0: 1})
    with pytest.raises(BrokerUnavailable):
        await source.bounds()
    async with asyncio.timeout(STOP_S + 0.5):
        await source.close(timeout_s=STOP_S)


async def test_a_fetch_task_that_is_gone_is_noticed(kafka: Kafka) -> None:
    """getmany would return nothing for ever."""
    source = kafka.source()
    await source.open()
    await source.seek({})
    assert source._consumer is not None
    _aiokafka.fetch_task(source._consumer).cancel()

    with pytest.raises(BrokerUnavailable):
        await source.fetch(max_records=10, timeout_s=WAIT_S / 50)


async def test_offsets_that_the_embedded_broker_dropped_are_out_of_range(kafka: Kafka) -> None:
    """F61: it keeps 5 MiB of a partition; a reader behind that hears of it and may start at what is left."""
    log = kafka.log()
    await log.open()
    batch = [record(number, size=100_000) for number in range(70)]
    await append_all(log, TOPIC, 0, batch)
    source = kafka.source()
    await source.open()
    await source.seek({0: 0})

    with pytest.raises(OffsetOutOfRange) as caught:
        await source.fetch(max_records=10, timeout_s=WAIT_S)
    await source.seek({})
    oldest, *_ = await source.fetch(max_records=10, timeout_s=WAIT_S)

    assert (caught.value.partition, caught.value.offset) == (0, 0)
    assert 0 < oldest.offset < 70
    assert numbers([oldest]) == [oldest.offset]


async def test_auto_commit_is_never_on(kafka: Kafka) -> None:
    """F53: the position belongs to the booking; a client that commits by itself would lose what is not booked."""
    source = kafka.source()
    await source.open()

    assert source._consumer is not None
    assert source._consumer._enable_auto_commit is False
    assert source._consumer._group_id is None
    assert source._consumer._auto_offset_reset == "none"

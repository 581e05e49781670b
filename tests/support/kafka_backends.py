"""The three Kafkas that the contract suites run against: in memory, embedded, and a real cluster when one is named."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from payflow.adapters.embedded_broker import EmbeddedBroker
from payflow.adapters.kafka_consumer import KafkaRecordSource
from payflow.adapters.kafka_producer import KafkaEventLog
from payflow.ports import EventLog, LogRecord, Record, RecordSource
from tests.fakes.event_log import EventLogFake, MemoryLog, RecordSourceFake

BACKENDS = ("fake", "embedded", pytest.param("real", marks=pytest.mark.kafka))
REQUEST_TIMEOUT_S = 5.0
# Generous, because it is only waited for when a test is about to fail.
WAIT_S = 10.0


def real_bootstrap() -> str:
    """Address of the real cluster; skips the test without one."""
    bootstrap = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "embedded")
    if bootstrap == "embedded":
        pytest.skip("KAFKA_BOOTSTRAP_SERVERS names no cluster")
    return bootstrap


def record(number: int, *, size: int = 100) -> LogRecord:
    """A record that tells its number."""
    value = str(number).encode().ljust(size, b".")
    return LogRecord(b"key-%d" % number, value, (("ce_id", str(number).encode()),), 1_764_000_000_000 + number)


def numbers(records: list[Record]) -> list[int]:
    """The numbers that `record` put in."""
    return [int((item.value or b"").rstrip(b".")) for item in records]


class Backend:
    """One Kafka for one test, with a topic of its own. What it hands out is closed at the end."""

    def __init__(self, name: str, stack: AsyncExitStack) -> None:
        self.name = name
        self.topic = f"payment.events.{uuid.uuid4().hex[:8]}"
        self.dead_letter_topic = f"{self.topic}.dlq"
        self.group_id = f"group-{self.topic}"
        self.memory: MemoryLog | None = None
        self.bootstrap = ""
        self.log_id: str | None = None
        self._stack = stack

    def event_log(self, *, create_topics: bool = True, request_timeout_s: float = REQUEST_TIMEOUT_S) -> EventLog:
        """An EventLog, not open."""
        log: EventLog
        if self.memory is not None:
            log = EventLogFake(self.memory, topic=self.topic, dead_letter_topic=self.dead_letter_topic)
        else:
            log = KafkaEventLog(
                self.bootstrap,
                topic=self.topic,
                dead_letter_topic=self.dead_letter_topic,
                client_id="test-producer",
                create_topics=create_topics,
                request_timeout_s=request_timeout_s,
                log_id=self.log_id,
            )
        self._stack.push_async_callback(log.discard, timeout_s=1.0)
        return log

    def record_source(self, *, request_timeout_s: float = REQUEST_TIMEOUT_S) -> RecordSource:
        """A RecordSource, not open."""
        source: RecordSource
        if self.memory is not None:
            source = RecordSourceFake(self.memory, topic=self.topic)
        else:
            source = KafkaRecordSource(
                self.bootstrap,
                topic=self.topic,
                group_id=self.group_id,
                client_id="test-consumer",
                request_timeout_s=request_timeout_s,
                log_id=self.log_id,
            )
        self._stack.push_async_callback(source.close, timeout_s=1.0)
        return source

    async def opened_log(self) -> EventLog:
        """An open EventLog; the topic exists from now on."""
        log = self.event_log()
        await log.open()
        return log

    async def opened_source(self, positions: dict[int, int] | None = None) -> RecordSource:
        """A RecordSource that reads from `positions`."""
        source = self.record_source()
        await source.open()
        await source.seek(positions or {})
        return source


@asynccontextmanager
async def open_backend(name: str) -> AsyncIterator[Backend]:
    """A Backend by its name in BACKENDS."""
    async with AsyncExitStack() as stack:
        backend = Backend(name, stack)
        if name == "fake":
            backend.memory = MemoryLog()
        elif name == "embedded":
            broker = EmbeddedBroker()
            stack.push_async_callback(broker.stop)
            backend.bootstrap, backend.log_id = await broker.start()
        else:
            backend.bootstrap = real_bootstrap()
            stack.push_async_callback(_delete_topics, backend)
        yield backend


async def _delete_topics(backend: Backend) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=backend.bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([backend.topic, backend.dead_letter_topic])
    finally:
        await admin.close()


async def append_all(log: EventLog, topic: str, partition: int, records: list[LogRecord]) -> list[int]:
    """Append to the last record; returns their offsets."""
    offsets: list[int] = []
    while len(offsets) < len(records):
        count, first = await log.append(topic, partition, records[len(offsets) :])
        offsets += range(first, first + count)
    return offsets


async def fetch_count(source: RecordSource, count: int) -> list[Record]:
    """Fetch until `count` records are there or a fetch comes back empty."""
    fetched: list[Record] = []
    while len(fetched) < count:
        records = await source.fetch(max_records=count - len(fetched), timeout_s=WAIT_S)
        if not records:
            break
        fetched += records
    return fetched

"""A Kafka that fits into a list: EventLogFake and RecordSourceFake share one MemoryLog, which can be told to misbehave.

Verified fakes: they pass the contract suites that the real adapters pass. No task, no real time: what waits, waits on a
future or on the loop's clock, so a virtual-time loop drives it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from payflow.errors import (
    BrokerUnavailable,
    LaneUnavailable,
    OffsetOutOfRange,
    PayflowError,
    ProducerBroken,
    RecordRejected,
)
from payflow.ports import LogInfo, LogRecord, Record

MAX_RECORD_BYTES = 1024 * 1024
MAX_BATCH_BYTES = 128 * 1024


def record_bytes(record: LogRecord) -> int:
    """Size of a record, near enough."""
    headers = sum(len(name) + len(value) + 4 for name, value in record.headers)
    return 20 + len(record.key or b"") + len(record.value or b"") + headers


@dataclass
class _Partition:
    start: int = 0
    records: list[LogRecord] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.records)


@dataclass
class _Held:
    """An append that was sent but not answered."""

    topic: str
    partition: int
    records: list[LogRecord]
    answer: asyncio.Future[int]


class MemoryLog:
    """The broker. Faults are set on it and last until they are taken back; `mend` takes back all of them."""

    def __init__(self, log_id: str = "memory-1", *, partitions: int = 6, topics: Sequence[str] | None = None) -> None:
        self.log_id = log_id
        self.partitions = partitions
        self.topics = None if topics is None else set(topics)  # None: every topic exists, as on the embedded broker
        self.appends = 0  # attempts, also those that failed
        self.committed: dict[int, int] = {}
        self._store: defaultdict[tuple[str, int], _Partition] = defaultdict(_Partition)
        self.history: list[LogRecord] = []  # everything that was ever written, in order, over all brokers
        self._held: list[_Held] = []
        self._changed = asyncio.Event()
        self.mend()

    # ------------------------------------------------------------------ faults
    def mend(self) -> None:
        """Answer everything from now on. What hangs, goes on hanging: see `land`."""
        self.refusal: Callable[[], PayflowError] | None = None  # raised by every call
        self.hanging = False  # appends are kept unanswered; fetches find nothing
        self.delay_s = 0.0  # before an append is answered
        self.rejects: Callable[[LogRecord], bool] = lambda _: False
        self.refused_topics: set[str] = set()  # appends to these are refused, the rest goes on
        self.refused_partitions: set[int] = set()

    def refuse(self, error: Callable[[], PayflowError] = lambda: BrokerUnavailable("refused")) -> None:
        """Fail every call with a new error; LaneUnavailable and ProducerBroken play their parts here, too."""
        self.refusal = error

    def hang(self) -> None:
        """Keep appends unanswered: the outcome is unknown to who gives up."""
        self.hanging = True

    def slow(self, delay_s: float) -> None:
        """Answer every append `delay_s` later."""
        self.delay_s = delay_s

    def reject(self, rejects: Callable[[LogRecord], bool]) -> None:
        """Refuse these records for ever."""
        self.rejects = rejects

    def land(self) -> int:
        """Write what hangs, late, and answer who still waits; returns the number of appends that landed."""
        held, self._held = self._held, []
        for append in held:
            offset = self._write(append.topic, append.partition, append.records)
            if not append.answer.done():
                append.answer.set_result(offset)
        return len(held)

    def lose(self) -> int:
        """Forget what hangs; who waits, waits on."""
        lost, self._held = len(self._held), []
        return lost

    def replace(self, log_id: str) -> None:
        """Come back empty under another id, as the embedded broker does."""
        self.log_id = log_id
        self._store.clear()
        self._held.clear()
        self.committed.clear()
        self._notify()

    def truncate(self, topic: str, partition: int, start: int) -> None:
        """Retention: drop what lies before offset `start`."""
        place = self._store[topic, partition]
        assert place.start <= start <= place.end
        del place.records[: start - place.start]
        place.start = start

    # ------------------------------------------------------------------ for tests
    def records(self, topic: str, partition: int | None = None) -> list[Record]:
        """What lies in the topic, in order per partition."""
        chosen = range(self.partitions) if partition is None else (partition,)
        return [record for number in chosen for record in self._read(topic, number, self._store[topic, number].start)]

    # ------------------------------------------------------------------ for the fakes
    def check(self) -> None:
        if self.refusal is not None:
            raise self.refusal()

    def check_for_reading(self) -> None:
        """A reader knows no broken producer."""
        if self.refusal is not None and not isinstance(error := self.refusal(), ProducerBroken):
            raise error

    def partition_count(self, topic: str) -> int:
        if self.topics is not None and topic not in self.topics:
            raise LaneUnavailable(f"topic {topic} does not exist")
        return self.partitions

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        self.appends += 1
        self.check()
        if topic in self.refused_topics or partition in self.refused_partitions:
            raise BrokerUnavailable(f"no leader for {topic}/{partition}")
        if partition not in range(self.partition_count(topic)):
            raise LaneUnavailable(f"topic {topic} has no partition {partition}")
        taken = self._longest_prefix(records)
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
            self.check()
        if self.hanging:
            answer = asyncio.get_running_loop().create_future()
            self._held.append(_Held(topic, partition, taken, answer))
            return len(taken), await answer
        return len(taken), self._write(topic, partition, taken)

    async def changed(self, timeout_s: float) -> bool:
        """Wait until something is written; False after the timeout."""
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        place = self._store[topic, partition]
        if not place.start <= offset <= place.end:
            raise OffsetOutOfRange(partition, offset)
        return [] if self.hanging else self._read(topic, partition, offset, limit)

    def start_of(self, topic: str, partition: int) -> int:
        return self._store[topic, partition].start

    def bounds_of(self, topic: str, partition: int) -> tuple[int, int]:
        place = self._store[topic, partition]
        return place.start, place.end

    def _longest_prefix(self, records: Sequence[LogRecord]) -> list[LogRecord]:
        taken: list[LogRecord] = []
        total_bytes = 0
        for record in records:
            total_bytes += record_bytes(record)
            if taken and total_bytes > MAX_BATCH_BYTES:
                break
            if self.rejects(record) or not _encodable(record) or record_bytes(record) > MAX_RECORD_BYTES:
                if not taken:
                    raise RecordRejected("refused")
                break
            taken.append(record)
        return taken

    def _write(self, topic: str, partition: int, records: Sequence[LogRecord]) -> int:
        place = self._store[topic, partition]
        offset = place.end
        place.records.extend(records)
        self.history.extend(records)
        self._notify()
        return offset

    def _read(self, topic: str, partition: int, offset: int, limit: int | None = None) -> list[Record]:
        place = self._store[topic, partition]
        first = offset - place.start
        last = len(place.records) if limit is None else first + limit
        return [
            Record(partition, place.start + index, record.key, record.value, record.headers, record.timestamp_ms)
            for index, record in enumerate(place.records[first:last], start=first)
        ]

    def _notify(self) -> None:
        self._changed.set()


def _encodable(record: LogRecord) -> bool:
    parts = [part for part in (record.key, record.value) if part is not None]
    return all(isinstance(part, bytes) for part in parts) and all(isinstance(name, str) for name, _ in record.headers)


class EventLogFake:
    """An EventLog over a MemoryLog. Good until it raised ProducerBroken or was discarded, as the port says."""

    def __init__(self, log: MemoryLog, *, topic: str, dead_letter_topic: str) -> None:
        self._log = log
        self._topics = (topic, dead_letter_topic)
        self._open = False
        self._log_id = ""
        self.discarded = False

    async def open(self) -> LogInfo:
        self._log.check()
        counts = [self._log.partition_count(topic) for topic in self._topics]
        self._open = True
        self._log_id = self._log.log_id
        return LogInfo(self._log.log_id, counts[0])

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        assert records
        if not self._open:
            raise ProducerBroken("the producer is not open")
        if self._log_id != self._log.log_id:  # the broker that this instance was connected to is gone
            await asyncio.get_running_loop().create_future()
        return await self._log.append(topic, partition, records)

    async def discard(self, *, timeout_s: float) -> None:
        self._open = False
        self.discarded = True


class RecordSourceFake:
    """A RecordSource over a MemoryLog."""

    def __init__(self, log: MemoryLog, *, topic: str) -> None:
        self._log = log
        self._topic = topic
        self._count = 0
        self._log_id = ""
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()
        self.closed = False

    async def open(self) -> LogInfo:
        self._log.check_for_reading()
        self._count = self._log.partition_count(self._topic)
        self._log_id = self._log.log_id
        return LogInfo(self._log.log_id, self._count)

    async def seek(self, positions: Mapping[int, int]) -> None:
        self._log.check_for_reading()
        if not set(positions) <= set(range(self._count)):
            raise LaneUnavailable(f"topic {self._topic} has {self._count} partitions")
        beginnings = {partition: self._log.start_of(self._topic, partition) for partition in range(self._count)}
        self._positions = beginnings | dict(positions)

    async def fetch(self, *, max_records: int, timeout_s: float) -> list[Record]:
        assert self._positions, "seek comes first"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            self._log.check_for_reading()
            if not self._gone and (records := self._take(max_records)):
                return records
            left_s = deadline - loop.time()
            if left_s <= 0 or not await self._log.changed(left_s):
                return []

    @property
    def _gone(self) -> bool:
        """The broker that this instance was connected to is another one now, at another address."""
        return self._log_id != self._log.log_id

    def _take(self, max_records: int) -> list[Record]:
        taken: list[Record] = []
        for partition, offset in self._positions.items():
            if partition in self._paused or len(taken) == max_records:
                continue
            try:
                records = self._log.read(self._topic, partition, offset, max_records - len(taken))
            except OffsetOutOfRange:
                if taken:
                    return taken  # the error comes out of the next fetch
                raise
            if records:
                self._positions[partition] = records[-1].offset + 1
                taken += records
        return taken

    def pause(self, partitions: Sequence[int]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused.difference_update(partitions)

    async def commit(self, positions: Mapping[int, int]) -> None:
        if self._log.refusal is None and not self._log.hanging and not self._gone:
            self._log.committed.update(positions)

    async def bounds(self) -> Mapping[int, tuple[int, int]]:
        self._log.check_for_reading()
        if self._gone:
            raise BrokerUnavailable("the broker is gone")
        return {partition: self._log.bounds_of(self._topic, partition) for partition in range(self._count)}

    async def close(self, *, timeout_s: float) -> None:
        self.closed = True

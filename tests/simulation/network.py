"""Kafka as the product meets it over a network that refuses, delays, hangs, repeats, and delivers what it had lost.

`Wire` is the broker (the verified `MemoryLog`) with fates drawn for each append. `LogPort` and `SourcePort` are one
life's clients. An append that was given up may still lie in a socket: then it lands later, in the broker it was sent to
and in no other. A producer that broke, or whose append was given up, is good for nothing any more, as the port says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING

from payflow.errors import BrokerUnavailable, LaneUnavailable, PayflowError, ProducerBroken, RecordRejected
from payflow.ports import LogInfo, LogRecord, Record
from tests.fakes.event_log import EventLogFake, MemoryLog, RecordSourceFake
from tests.support.pipeline import TOPIC

if TYPE_CHECKING:
    from tests.simulation.life import Life, Outside

LATE_AT_MOST_S = 25.0
OWN_SOURCE = ("ce_source", b"/payflow")


def _short(key: bytes | None) -> str:
    return (key or b"-")[-6:].decode()


class Wire(MemoryLog):
    """The broker. `seen` hears of every record that is written for the first time as itself, not as a copy."""

    def __init__(self, outside: Outside, *, partitions: int, seen: Callable[[LogRecord], None]) -> None:
        super().__init__("cluster-1", partitions=partitions)
        self._outside = outside
        self._seen = seen
        self.parked: set[bytes | None] = set()  # keys of which a record was refused for ever

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        weather, draw = self._outside.weather, self._outside.draw
        slow_s = weather.amount("append_slow_s") * draw()
        fails = weather.happens("append_refused", draw) or partition in weather.down(self.partitions)
        error: type[PayflowError] | None
        error = (BrokerUnavailable, LaneUnavailable, ProducerBroken)[int(3 * draw() ** 2)] if fails else None
        error = RecordRejected if topic == TOPIC and weather.happens("record_rejected", draw) else error
        hangs, lost = weather.happens("append_hangs", draw), weather.happens("answer_lost", draw)
        try:
            await asyncio.sleep(0.002 + 0.01 * draw() + slow_s)
            if hangs:
                self._outside.note("log.hangs", partition=partition, records=len(records))
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self._in_socket(topic, partition, records)
            raise
        if error is not None:
            self._outside.note("log.refused", partition=partition, error=error.__name__)
            if error is RecordRejected:
                self.parked.add(records[0].key)
            raise error("the weather")
        taken = await super().append(topic, partition, records)
        await asyncio.sleep(0.002 + 0.01 * draw() + slow_s)
        if lost:
            self._outside.note("log.answer_lost", partition=partition, records=taken[0])
            raise (BrokerUnavailable if draw() < 0.5 else ProducerBroken)("the answer was lost")
        return taken

    def _in_socket(self, topic: str, partition: int, records: Sequence[LogRecord]) -> None:
        """The sender is gone; the network decides what becomes of it."""
        draw = self._outside.draw
        if draw() < 0.6:
            delay_s = LATE_AT_MOST_S * draw() ** 3
            args = (self.log_id, topic, partition, list(records))
            asyncio.get_running_loop().call_later(delay_s, self._land_late, *args, context=Context())

    def _land_late(self, log_id: str, topic: str, partition: int, records: list[LogRecord]) -> None:
        if log_id == self.log_id:
            self._outside.note("log.landed_late", partition=partition, records=len(records))
            self._write(topic, partition, records)

    def _write(self, topic: str, partition: int, records: Sequence[LogRecord]) -> int:
        weather, outside = self._outside.weather, self._outside
        outside.note("log.written", topic=topic, partition=partition, keys=[_short(r.key) for r in records])
        if topic == TOPIC:
            for record in records:
                self._seen(record)
            if weather.happens("copies", outside.draw):  # a mirror that repeats, in another order and another place
                copies = sorted(records, key=lambda _: outside.draw())
                elsewhere = int(outside.draw() * self.partitions)
                if elsewhere == partition:
                    offset = super()._write(topic, partition, records)
                    super()._write(topic, elsewhere, copies)
                    return offset
                super()._write(topic, elsewhere, copies)
        return super()._write(topic, partition, records)

    def write_foreign(self, partition: int) -> None:
        """Somebody else writes something that no consumer of ours can read."""
        record = LogRecord(b"?", b"{not ours", (("ce_type", b"?"),), 0)
        super()._write(TOPIC, partition, [record])

    def replace(self, log_id: str) -> None:
        self._outside.note("log.replaced", log_id=log_id)
        super().replace(log_id)


class LogPort:
    """`ports.EventLog` for one life."""

    def __init__(self, life: Life, actor_id: str, log: EventLogFake) -> None:
        self._life = life
        self._actor_id = actor_id
        self._log = log
        self._broken = False

    async def open(self) -> LogInfo:
        await self._life.step(self._actor_id, "log.open")
        await self._life.wait("connect_slow_s")
        if self._life.happens("connect_refused"):
            raise BrokerUnavailable("refused")
        return await self._log.open()

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        await self._life.step(self._actor_id, "log.append")
        if self._broken:
            raise ProducerBroken("it broke before and was used again")
        try:
            return await self._log.append(topic, partition, records)
        except (ProducerBroken, asyncio.CancelledError):
            self._broken = True
            raise

    async def discard(self, *, timeout_s: float) -> None:
        await self._log.discard(timeout_s=timeout_s)


class SourcePort:
    """`ports.RecordSource` for one life."""

    def __init__(self, life: Life, source: RecordSourceFake) -> None:
        self._life = life
        self._source = source
        self._last: list[Record] = []

    async def open(self) -> LogInfo:
        await self._reach("open")
        return await self._source.open()

    async def seek(self, positions: Mapping[int, int]) -> None:
        await self._reach("seek")
        self._last = []
        await self._source.seek(positions)

    async def fetch(self, *, max_records: int, timeout_s: float) -> list[Record]:
        await self._reach("fetch")
        records = self._between_partitions(await self._source.fetch(max_records=max_records, timeout_s=timeout_s))
        again = self._last if records and self._life.happens("redelivered") else []
        self._last = records
        if records:
            self._life.note("source.fetched", records=len(records), again=len(again))
        return [*again, *records]

    def _between_partitions(self, records: list[Record]) -> list[Record]:
        """Order holds within a partition; which partition comes first is anybody's guess."""
        places: dict[int, float] = {}
        for record in records:
            places.setdefault(record.partition, self._life.draw())
        return sorted(records, key=lambda record: places[record.partition])

    async def _reach(self, what: str) -> None:
        await self._life.step("consumer", f"source.{what}")
        if self._life.happens("fetch_refused"):
            raise BrokerUnavailable("no answer")

    async def bounds(self) -> Mapping[int, tuple[int, int]]:
        await self._reach("bounds")
        return await self._source.bounds()

    async def commit(self, positions: Mapping[int, int]) -> None:
        await self._source.commit(positions)

    def pause(self, partitions: Sequence[int]) -> None:
        self._source.pause(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self._source.resume(partitions)

    async def close(self, *, timeout_s: float) -> None:
        await self._source.close(timeout_s=timeout_s)



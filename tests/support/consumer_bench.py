"""One consumer, with an outbox that answers as the test says, a ledger in memory, and a broker that is a list.

Its sources insist on their order of life: whoever uses a closed one, or leaves one open at the end, has a bug.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from payflow import wire
from payflow.actor import ExitReason
from payflow.actors.consumer import Consumer, ConsumerCounters, ConsumerSettings, ConsumerSnapshot
from payflow.core.outbox import Event, MarkBooked
from payflow.core.payment import EventType, Payment, Status
from payflow.mailbox import Overflow
from payflow.ports import LogInfo, LogRecord, Record
from payflow.supervisor import Batch
from tests.fakes.event_log import EventLogFake, MemoryLog, RecordSourceFake
from tests.fakes.ledger_memory import LedgerMemory
from tests.support.actor_bench import World
from tests.support.pipeline import DEAD_LETTERS, TOPIC, LoopClock
from tests.support.virtual_loop import settle

GARBAGE = LogRecord(b"k", b"{", (("h", b"1"),), 0)


def event_record(number: int, *, version: int = 1, at_s: float = 0.0) -> LogRecord:
    """A step of payment `number`: authorized, then captures."""
    payment_id, event_id = number.to_bytes(16, "big"), (number * 1000 + version).to_bytes(16, "big")
    status = Status.AUTHORIZED if version == 1 else Status.PARTIALLY_CAPTURED
    payment = Payment(payment_id, "shop", None, 1000, "EUR", status, version - 1, 0, None, {}, 0, 0, version)
    kind = EventType.AUTHORIZED if version == 1 else EventType.CAPTURED
    event = Event(event_id, kind, 0, 1000 if version == 1 else 1, payment, None)
    headers = wire.event_headers(
        event_id=event_id, event_type=kind, at_us=0, payment_id=payment_id, traceparent=None
    )
    stamp_ms = LoopClock().wall_us() // 1000 + round(at_s * 1000)
    return LogRecord(wire.id_text(payment_id).encode(), wire.encode_event(event), headers, stamp_ms)


class WatchedSource(RecordSourceFake):
    """May take its time to open; notes opens and closes."""

    def __init__(self, world: ConsumerWorld) -> None:
        super().__init__(world.memory, topic=TOPIC)
        self._world = world
        self.is_open = False

    async def open(self) -> LogInfo:
        if self._world.open_s:
            await asyncio.sleep(self._world.open_s)
        info = await super().open()
        self.is_open = True
        return info

    async def seek(self, positions: Any) -> None:
        assert self.is_open, "seek on a closed source"
        await super().seek(positions)

    async def fetch(self, *, max_records: int, timeout_s: float) -> list[Record]:
        assert self.is_open, "fetch on a closed source"
        return await super().fetch(max_records=max_records, timeout_s=timeout_s)

    async def commit(self, positions: Any) -> None:
        assert self.is_open, "commit on a closed source"
        await super().commit(positions)

    async def close(self, *, timeout_s: float) -> None:
        self.is_open = False
        await super().close(timeout_s=timeout_s)


class ConsumerWorld(World):
    def __init__(self, *, partitions: int, volatile: bool, bootstrap: str | None, **settings: Any) -> None:
        super().__init__()
        self.memory = MemoryLog("cluster-1", partitions=partitions)
        self.ledger = LedgerMemory()
        self.counters = ConsumerCounters()
        self.sources: list[WatchedSource] = []
        self.open_s = 0.0
        self._bootstrap = bootstrap
        self._settings = ConsumerSettings(
            topic=TOPIC, dead_letter_topic=DEAD_LETTERS, volatile=volatile, **settings
        )
        self.partner("outbox", capacity=1000)
        self.partner("broker")
        self.actor("consumer", self._consumer, capacity=256, overflow=Overflow.BLOCK, batch=Batch(16))

    def _consumer(self, system: Any) -> Consumer:
        return Consumer(
            ledger=self.ledger,
            open_source=self._open_source,
            open_dead_letters=lambda bootstrap, broker_id: EventLogFake(
                self.memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS
            ),
            bootstrap=self._bootstrap,
            outbox=system.ref("outbox"),
            broker=system.ref("broker"),
            clock=LoopClock(),
            draw=lambda: 0.5,
            settings=self._settings,
            counters=self.counters,
        )

    def _open_source(self, bootstrap: str, broker_id: str | None) -> WatchedSource:
        self.sources.append(WatchedSource(self))
        return self.sources[-1]

    async def put(self, *records: LogRecord, partition: int = 0) -> None:
        await self.memory.append(TOPIC, partition, records)

    async def positions(self) -> dict[int, int]:
        return dict(await self.ledger.positions(self.memory.log_id, TOPIC))

    async def look(self) -> ConsumerSnapshot:
        value = (await self.system.snapshot("consumer", timeout_s=1.0)).value
        assert isinstance(value, ConsumerSnapshot)
        return value

    def crash(self) -> None:
        instance = self.system._slots["consumer"].instance
        assert instance is not None
        instance.end_now(ExitReason.CRASHED, RuntimeError("crash"))

    def acked(self) -> set[bytes]:
        writes = [write for write in self.heard["outbox"] if isinstance(write, MarkBooked)]
        return {event_id for write in writes for event_id in write.event_ids}


@asynccontextmanager
async def world(
    *, partitions: int = 1, volatile: bool = False, bootstrap: str | None = "kafka:9092", **settings: Any
) -> AsyncIterator[ConsumerWorld]:
    made = ConsumerWorld(partitions=partitions, volatile=volatile, bootstrap=bootstrap, **settings)
    async with made.running():
        await settle()
        yield made
    assert not any(source.is_open for source in made.sources), "a source was left open"

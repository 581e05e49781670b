"""One publisher with a real outbox behind it, no consumer, the broker a list; every producer keeps a diary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from payflow.actors.outbox import Outbox, OutboxSettings
from payflow.actors.publisher import Publisher, PublisherCounters, PublisherSettings, PublisherSnapshot
from payflow.core.breaker import Breaker, BreakerConfig
from payflow.core.payment import Capture
from payflow.guard import Guard
from payflow.mailbox import Overflow
from payflow.ports import LogInfo, LogRecord
from payflow.supervisor import Batch, ChildSpec, System
from tests.fakes.event_log import EventLogFake, MemoryLog
from tests.fakes.outbox_memory import OutboxMemory
from tests.support.actors import Events, supervisor
from tests.support.payment_writes import CountingIds, accepted, authorize, submit
from tests.support.pipeline import DEAD_LETTERS, TOPIC, LoopClock
from tests.support.virtual_loop import settle


class WatchedLog(EventLogFake):
    """Notes when it is opened, used and discarded; a discard may take a while."""

    def __init__(self, bench: Bench, number: int) -> None:
        super().__init__(bench.memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS)
        self._bench = bench
        self._number = number

    def _say(self, what: str) -> None:
        self._bench.diary.append(f"{what} {self._number}")

    async def open(self) -> LogInfo:
        self._say("open")
        return await super().open()

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        self._say("append")
        self._bench.groups.append((partition, [record.key or b"" for record in records]))
        return await super().append(topic, partition, records)

    async def discard(self, *, timeout_s: float) -> None:
        if self._bench.discard_s:
            await asyncio.sleep(self._bench.discard_s)
        await super().discard(timeout_s=timeout_s)
        self._say("discarded")


@dataclass
class Bench:
    """The world around one publisher."""

    settings: PublisherSettings
    bootstrap: str | None
    partitions: int
    breaker: BreakerConfig
    clock: LoopClock = field(default_factory=LoopClock)
    counters: PublisherCounters = field(default_factory=PublisherCounters)
    events: Events = field(default_factory=Events)
    diary: list[str] = field(default_factory=list)
    groups: list[tuple[int, list[bytes]]] = field(default_factory=list)
    discard_s: float = 0.0

    def __post_init__(self) -> None:
        self.store = OutboxMemory(ids=CountingIds())
        self.memory = MemoryLog("cluster-1", partitions=self.partitions)
        self.guard = Guard(Breaker("kafka-publisher", self.breaker, now=0.0), self.clock)
        outbox = ChildSpec("outbox", self._outbox, capacity=2048, overflow=Overflow.REJECT, batch=Batch(512))
        publisher = ChildSpec("publisher", self._publisher, capacity=256, overflow=Overflow.COALESCE, lossy=True)
        spec = supervisor(outbox, publisher, max_restarts=100)
        self.system = System(spec, emit=self.events, draw=lambda: 0.5)
        self.outbox, self.publisher = self.system.ref("outbox"), self.system.ref("publisher")
        self._opened = 0

    def _outbox(self) -> Outbox:
        settings = OutboxSettings(idempotency_retention_s=1e6, published_retention_s=1e6, probe_interval_s=1.0)
        return Outbox(self.store, publisher=self.publisher, broker=None, clock=self.clock, settings=settings)

    def _publisher(self) -> Publisher:
        return Publisher(
            reader=self.store,
            outbox=self.outbox,
            guard=self.guard,
            open_log=self._open_log,
            bootstrap=self.bootstrap,
            clock=self.clock,
            draw=lambda: 0.5,
            settings=self.settings,
            counters=self.counters,
        )

    def _open_log(self, bootstrap: str, broker_id: str | None) -> WatchedLog:
        self._opened += 1
        return WatchedLog(self, self._opened)

    async def pay(self, payments: int = 1, *, captures: int = 0) -> list[bytes]:
        ids = []
        for _ in range(payments):
            ids.append(accepted(await self.outbox.ask(submit(authorize()), timeout_s=5.0)).payment_id)
            for _ in range(captures):
                await self.outbox.ask(submit(Capture(ids[-1], 1)), timeout_s=5.0)
        return ids

    def states(self) -> list[str]:
        return [row.state.name.lower() for row in self.store._data.rows.values()]

    async def look(self) -> PublisherSnapshot:
        view = await self.system.snapshot("publisher", timeout_s=1.0)
        assert isinstance(view.value, PublisherSnapshot)
        return view.value


@asynccontextmanager
async def publishing(
    *,
    bootstrap: str | None = "kafka:9092",
    partitions: int = 1,
    breaker: BreakerConfig | None = None,
    before: Callable[[Bench], None] = lambda bench: None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    bench = Bench(PublisherSettings(topic=TOPIC, **settings), bootstrap, partitions, breaker or BreakerConfig())
    before(bench)
    await bench.system.start()
    await settle()
    try:
        yield bench
    finally:
        await bench.system.stop(grace_s=0)
        bench.guard.close()

"""The pipeline's real actors over the fakes, in a real System, on virtual time.

`Pipeline` holds the outside world (payments database, ledger, broker), which outlives the actors' crashes, and says at
the end whether the promises held. Times are virtual seconds, so an outage of a minute costs nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from payflow.actor import ActorRef, ExitReason
from payflow.actors.broker import Broker
from payflow.actors.consumer import Consumer, ConsumerCounters, ConsumerSettings
from payflow.actors.intake import Intake, IntakeService, IntakeSettings
from payflow.actors.outbox import Outbox, OutboxSettings
from payflow.actors.publisher import Publisher, PublisherCounters, PublisherSettings
from payflow.core.breaker import Breaker, BreakerConfig
from payflow.core.outbox import Accepted
from payflow.core.payment import Capture
from payflow.errors import DependencyUnavailable
from payflow.guard import Guard
from payflow.mailbox import Overflow
from payflow.supervisor import Batch, ChildSpec, System
from tests.fakes.event_log import EventLogFake, MemoryLog, RecordSourceFake
from tests.fakes.ledger_memory import LedgerMemory
from tests.fakes.outbox_memory import OutboxMemory
from tests.support.actors import Events, supervisor
from tests.support.payment_writes import AT_US, CountingIds, accepted, authorize, submit
from tests.support.virtual_loop import settle

TOPIC, DEAD_LETTERS = "payment.events", "payment.events.dlq"
BOOTSTRAP = "broker:9092"
# A condition that has not come true after this long never will: the longest wait in the pipeline is the breaker's 30 s.
PATIENCE_S = 600.0
LOOK_EVERY_S = 0.05


class LoopClock:
    """The running loop's time, and a wall clock in step with it."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_us(self) -> int:
        return AT_US + round(self.now() * 1e6)


class FrontFake:
    """An HTTP front that nobody calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def start(self) -> int:
        self.calls.append("start")
        return 8080

    async def unbind(self) -> None:
        self.calls.append("unbind")

    async def requests_done(self) -> None:
        self.calls.append("requests_done")

    async def stop(self) -> None:
        self.calls.append("stop")


class BrokerProcessFake:
    """An embedded broker whose child is a MemoryLog: each start is a new, empty one. `die` ends the child."""

    def __init__(self, memory: MemoryLog) -> None:
        self.memory = memory
        self.starts = 0
        self.missing: DependencyUnavailable | None = None
        self._ended: asyncio.Future[int] | None = None

    def check(self) -> None:
        if self.missing is not None:
            raise self.missing

    async def start(self) -> tuple[str, str]:
        self.starts += 1
        self.memory.replace(f"embedded-{self.starts}")
        self._ended = asyncio.get_running_loop().create_future()
        return f"127.0.0.1:{self.starts}", self.memory.log_id

    async def wait(self) -> int:
        assert self._ended is not None
        return await self._ended

    def die(self, status: int = 137) -> None:
        assert self._ended is not None
        self._ended.set_result(status)

    async def stop(self) -> None:
        self._ended = None


class Pipeline:
    """See the head of the module. `embedded` puts a broker actor in front, as `serve` without Kafka does."""

    def __init__(
        self,
        *,
        partitions: int = 3,
        embedded: bool = False,
        breaker: BreakerConfig | None = None,
        publisher: PublisherSettings | None = None,
        consumer: ConsumerSettings | None = None,
        draw: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self.clock = LoopClock()
        self.events = Events()
        self.store = OutboxMemory(ids=CountingIds())
        self.ledger = LedgerMemory()
        self.memory = MemoryLog("cluster-1", partitions=partitions)
        self.process = BrokerProcessFake(self.memory)
        self.front = FrontFake()
        self.guard = Guard(Breaker("kafka-publisher", breaker or BreakerConfig(), now=self.clock.now()), self.clock)
        self.published = PublisherCounters()
        self.consumed = ConsumerCounters()
        self.logs: list[EventLogFake] = []
        self.accepted: list[Accepted] = []
        self._embedded = embedded
        self._draw = draw
        self._publisher_settings = publisher or PublisherSettings(topic=TOPIC)
        self._consumer_settings = consumer or ConsumerSettings(
            topic=TOPIC, dead_letter_topic=DEAD_LETTERS, volatile=embedded
        )
        self._keys = itertools.count(1)
        self.system = System(self._tree(), emit=self.events, draw=draw)
        self.service = IntakeService(self.ref("intake"), reader=self.store, ledger=self.ledger, timeout_s=5.0)

    def ref(self, actor_id: str) -> ActorRef:
        return self.system.ref(actor_id)

    # ------------------------------------------------------------------ the tree
    def _tree(self) -> Any:
        children = [
            ChildSpec("outbox", self._outbox, capacity=2048, overflow=Overflow.REJECT, batch=Batch(512)),
            ChildSpec("publisher", self._publisher, capacity=256, overflow=Overflow.COALESCE, lossy=True),
            ChildSpec("consumer", self._consumer, capacity=256, overflow=Overflow.BLOCK, batch=Batch(16)),
            ChildSpec("intake", self._intake, capacity=1024, overflow=Overflow.REJECT),
        ]
        if self._embedded:
            children.insert(0, ChildSpec("broker", self._broker, capacity=4, overflow=Overflow.REJECT))
        return supervisor(*children, max_restarts=1000, within_s=1.0)

    def _broker(self) -> Broker:
        return Broker(self.process, listeners=(self.ref("outbox"), self.ref("consumer")))

    def _outbox(self) -> Outbox:
        return Outbox(
            self.store,
            publisher=self.ref("publisher"),
            broker=self.ref("broker") if self._embedded else None,
            clock=self.clock,
            settings=OutboxSettings(
                idempotency_retention_s=72 * 3600.0, published_retention_s=14 * 86400.0, probe_interval_s=1.0
            ),
        )

    def _publisher(self) -> Publisher:
        return Publisher(
            reader=self.store,
            outbox=self.ref("outbox"),
            guard=self.guard,
            open_log=self._event_log,
            bootstrap=None if self._embedded else BOOTSTRAP,
            clock=self.clock,
            draw=self._draw,
            settings=self._publisher_settings,
            counters=self.published,
        )

    def _consumer(self) -> Consumer:
        return Consumer(
            ledger=self.ledger,
            open_source=lambda bootstrap, broker_id: RecordSourceFake(self.memory, topic=TOPIC),
            open_dead_letters=self._event_log,
            bootstrap=None if self._embedded else BOOTSTRAP,
            outbox=self.ref("outbox"),
            broker=self.ref("broker") if self._embedded else None,
            clock=self.clock,
            draw=self._draw,
            settings=self._consumer_settings,
            counters=self.consumed,
        )

    def _intake(self) -> Intake:
        return Intake(
            self.front,
            readers=(),
            outbox=self.ref("outbox"),
            settings=IntakeSettings(shed_after_s=1.0),
            on_bound=lambda port: None,
        )

    def _event_log(self, bootstrap: str, broker_id: str | None) -> EventLogFake:
        log = EventLogFake(self.memory, topic=TOPIC, dead_letter_topic=DEAD_LETTERS)
        self.logs.append(log)
        return log

    # ------------------------------------------------------------------ what a client does
    async def pay(self, *, captures: int = 0, amount: int = 1000) -> bytes:
        """A payment and its captures, each accepted; the payment's id."""
        payment_id = await self.submit(authorize(amount))
        for _ in range(captures):
            await self.submit(Capture(payment_id, 1))
        return payment_id

    async def submit(self, command: Any) -> bytes:
        """One accepted command, remembered for the final account; the payment's id."""
        outcome = accepted(await self.service.submit(submit(command, key=f"key-{next(self._keys)}")))
        self.accepted.append(outcome)
        return outcome.payment_id

    # ------------------------------------------------------------------ waiting
    async def until(self, holds: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
        """Let virtual time pass until it holds."""
        deadline = self.clock.now() + within_s
        await settle()
        while not holds():
            assert self.clock.now() < deadline, f"it never came true: {self.events.all[-12:]}"
            await asyncio.sleep(LOOK_EVERY_S)

    async def until_booked(self, *, within_s: float = PATIENCE_S) -> None:
        """Every accepted step is in the ledger and the outbox knows it."""
        await self.until(lambda: len(self.ledger.applied) >= len(self.accepted), within_s=within_s)
        await self.until(lambda: self.unfinished() == 0, within_s=within_s)

    def unfinished(self) -> int:
        """Rows that are not both published and known to be booked."""
        rows = self.store._data.rows.values()
        return sum(row.published_at_us is None or row.booked_at_us is None for row in rows)

    # ------------------------------------------------------------------ the promises
    def states(self) -> list[str]:
        """State of every row, in sequence."""
        return [row.state.name.lower() for row in self.store._data.rows.values()]

    async def check(self) -> None:
        """I1 to I4: everything accepted is booked, nothing else is, once, and in order."""
        steps = sorted((a.payment_id, a.version) for a in self.accepted)
        booked = sorted((event.payment_id, event.version) for event in self.ledger.applied.values())
        assert steps == booked
        for balance in await self.ledger.audit():
            assert balance.imbalance == 0
        self.check_order()

    def check_order(self) -> None:
        """No event of a payment is in the log for the first time after its successor, whatever brokers it went to."""
        newest: dict[str, int] = {}
        for record in self.memory.history:
            if ("ce_source", b"/payflow") not in record.headers or record.value is None:
                continue
            body = msgspec.json.decode(record.value)
            payment, version = body["payment_id"], body["version"]
            assert version <= newest.get(payment, 0) + 1, f"{payment} {version} after {newest.get(payment, 0)}"
            newest[payment] = max(newest.get(payment, 0), version)


@asynccontextmanager
async def flowing(pipeline: Pipeline | None = None, **options: Any) -> AsyncIterator[Pipeline]:
    """A started pipeline for the length of a test."""
    pipeline = pipeline or Pipeline(**options)
    await pipeline.system.start()
    try:
        yield pipeline
    finally:
        await pipeline.system.stop(grace_s=0)
        pipeline.guard.close()


def seeded(seed: int) -> Callable[[], float]:
    """Draws that a failing example can repeat."""
    return random.Random(seed).random


async def crash(pipeline: Pipeline, actor_id: str) -> None:
    """Let the running instance of an actor crash now, whatever it does; return when the next one runs."""
    slot = pipeline.system._slots[actor_id]
    number = slot.number
    assert slot.instance is not None
    slot.instance.end_now(ExitReason.CRASHED, RuntimeError("crash"))
    await pipeline.until(lambda: slot.number > number and slot.state.value == "running")

"""One life of the process: the product's actors and their supervisors over ports that end with it.

`Outside` is what no crash of ours can take away: the committed data, the broker, the weather, the history. `Life` is a
`Pipeline` (tests/support) with the tree, the limits and the backoffs of `app.py`. `kill` is SIGKILL: from that moment
no port does anything for this life; its tasks are then swept away, whatever they still want to do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from payflow.actor import ExitReason
from payflow.actors.consumer import Consumer
from payflow.actors.intake import IntakeService
from payflow.actors.outbox import Outbox
from payflow.actors.publisher import Publisher, PublisherSettings
from payflow.core.breaker import BreakerConfig
from payflow.core.restart import Strategy
from payflow.mailbox import Overflow
from payflow.supervisor import Batch, ChildSpec, SupervisorSpec
from tests.fakes.event_log import EventLogFake, RecordSourceFake
from tests.fakes.ledger_memory import LedgerMemory
from tests.fakes.outbox_memory import OutboxMemory
from tests.simulation import network, stores
from tests.simulation.bugs import Bug
from tests.simulation.history import History
from tests.simulation.loop import LIFE, SimLoop
from tests.simulation.weather import Weather
from tests.support.payment_writes import AT_US
from tests.support.pipeline import DEAD_LETTERS, TOPIC, BrokerProcessFake, FrontFake, Pipeline

# As in tests/property: an outage's length is the weather's business, so the breaker looks again soon.
QUICK = BreakerConfig(wait_duration_in_open_state_s=2.0, max_wait_duration_in_half_open_state_s=5.0)
SWEEPS = 20
STEP_S = 0.004


class SeededIds:
    """In order, and from the seed."""

    def __init__(self, draw: random.Random) -> None:
        self._number = 0
        self._draw = draw

    def new(self) -> bytes:
        self._number += 1
        return self._number.to_bytes(6, "big") + b"\x70\x00" + self._draw.randbytes(8)


class Outside:
    """See the head of the module. Each use of chance has a stream of its own, so that faults do not move payments."""

    def __init__(self, seed: int, bug: Bug, seen: Callable[[Any], None], passed: Callable[..., None]) -> None:
        self.loop = asyncio.get_running_loop()
        assert isinstance(self.loop, SimLoop)
        self.seed = seed
        self.passed = passed
        self.bug = bug
        shape = self.stream("shape")
        self.draw = self.stream("chance").random
        self.history = History(self.loop.time)
        self.note = self.history.note
        self.weather = Weather()
        self.embedded = shape.random() < 0.4
        self.small_mailboxes = shape.random() < 0.3
        self.unbooked_limit_bytes = 4096 if self.embedded and shape.random() < 0.5 else None
        self.page_rows = shape.choice((3, 20, 1000))
        self.clock_offset_us = 0
        self.store = OutboxMemory(ids=SeededIds(self.stream("ids")))
        self.ledger = LedgerMemory()
        self.wire = network.Wire(self, partitions=shape.randrange(1, 5), seen=seen)
        self.process = BrokerProcessFake(self.wire)

    def stream(self, name: str) -> random.Random:
        """Chance for one purpose. Seeded by text: the same under every hash seed."""
        return random.Random(f"{self.seed}/{name}")


class SimClock:
    """The loop's time, and a wall clock that jumps."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside
        self.now = outside.loop.time

    def wall_us(self) -> int:
        return AT_US + round(self.now() * 1e6) + self._outside.clock_offset_us


class Front(FrontFake):
    """Where clients come in; bound while the intake lives."""

    def __init__(self) -> None:
        super().__init__()
        self.bound = False
        self.requests = 0
        self._quiet = asyncio.Event()

    async def start(self) -> int:
        self.bound = True
        return 8080

    async def unbind(self) -> None:
        self.bound = False

    async def requests_done(self) -> None:
        while self.requests:
            self._quiet.clear()
            await self._quiet.wait()

    def done(self) -> None:
        self.requests -= 1
        self._quiet.set()

    async def stop(self) -> None:
        self.bound = False


class _Emitted(list):  # type: ignore[type-arg]
    """The list behind `Events`: what a living process says goes into the history, and nowhere else."""

    def __init__(self, life: Life) -> None:
        super().__init__()
        self._life = life

    def append(self, said: tuple[str, dict[str, Any]]) -> None:
        if self._life.alive:
            self._life.outside.note(said[0], **said[1])


class Life(Pipeline):
    """See the head of the module. Make it with `begin`."""

    def __init__(self, outside: Outside, number: int, crash: Callable[[str], None], kill: Callable[[], None]) -> None:
        self.outside = outside
        self.number = number
        self.alive = True
        self.writers: dict[str, object] = {}
        self.draw = outside.draw
        self.note = outside.note
        self._crash, self._kill = crash, kill
        settings = PublisherSettings(
            topic=TOPIC, page_rows=outside.page_rows, unbooked_limit_bytes=outside.unbooked_limit_bytes
        )
        super().__init__(embedded=outside.embedded, breaker=QUICK, publisher=settings, draw=outside.draw)
        self.ended: asyncio.Future[str] = outside.loop.create_future()
        self.events.all = _Emitted(self)
        self.clock = SimClock(outside)  # type: ignore[assignment]
        self.store, self.ledger, self.memory, self.process = (
            outside.store, outside.ledger, outside.wire, outside.process,
        )  # fmt: skip
        self.front = Front()
        self.service = IntakeService(self.ref("intake"), reader=self.store, ledger=self.ledger, timeout_s=5.0)

    # ------------------------------------------------------------------ for the ports
    async def step(self, actor_id: str, where: str) -> None:
        """Every call over a port passes here: it takes time, and it may be the last thing that actor does."""
        if not self.alive:
            await self.outside.loop.create_future()
        if self.outside.weather.happens("crashes", self.draw):
            self._crash(actor_id)
        if self.outside.weather.happens("kills", self.draw):
            self._kill()
        if self.outside.weather.happens("stuck", self.draw):
            await self._stuck(actor_id, where)
        await asyncio.sleep(STEP_S * self.draw())

    async def _stuck(self, actor_id: str, where: str) -> None:
        """A call that does not return for long; some do not even obey a cancellation, as a thread does not."""
        stubborn = self.draw() < 0.4
        self.note("port.stuck", actor=actor_id, where=where, stubborn=stubborn)
        try:
            await asyncio.sleep(45 * self.draw())
        except asyncio.CancelledError:
            if stubborn and self.alive:
                await asyncio.sleep(12 * self.draw())
            raise

    def happens(self, name: str) -> bool:
        return self.outside.weather.happens(name, self.draw)

    async def wait(self, name: str) -> None:
        """As slow as it is now."""
        await asyncio.sleep(STEP_S * self.draw() + self.outside.weather.amount(name) * self.draw())

    # ------------------------------------------------------------------ the tree, as in app.py
    def _tree(self) -> SupervisorSpec:
        small = self.outside.small_mailboxes
        children = [
            ChildSpec(
                "outbox",
                self._outbox,
                capacity=24 if small else 2048,
                overflow=Overflow.REJECT,
                batch=Batch(6 if small else 512),
                handler_timeout_s=30.0,
            ),
            ChildSpec(
                "publisher",
                self._publisher,
                capacity=16 if small else 256,
                overflow=Overflow.COALESCE,
                lossy=True,
                handler_timeout_s=10.0,
            ),
            ChildSpec(
                "consumer",
                self._consumer,
                capacity=2 if small else 256,
                overflow=Overflow.BLOCK,
                batch=Batch(2 if small else 16),
                handler_timeout_s=30.0,
            ),
            ChildSpec(
                "intake", self._intake, capacity=4 if small else 1024, overflow=Overflow.REJECT, handler_timeout_s=5.0
            ),
        ]
        if self._embedded:
            children.insert(0, ChildSpec("broker", self._broker, capacity=4, overflow=Overflow.REJECT))
        pipeline = SupervisorSpec("pipeline", Strategy.ONE_FOR_ONE, tuple(children))
        return SupervisorSpec("root", Strategy.ONE_FOR_ONE, (pipeline,), max_restarts=3, within_s=300.0)

    def _outbox(self) -> Outbox:
        actor = super()._outbox()
        actor._store = stores.StorePort(self)
        return self.outside.bug.plant(actor)

    def _publisher(self) -> Publisher:
        actor = super()._publisher()
        actor._reader = stores.ReaderPort(self)  # type: ignore[assignment]
        return self.outside.bug.plant(actor)

    def _consumer(self) -> Consumer:
        actor = super()._consumer()
        actor._ledger = self.outside.bug.ledger(stores.LedgerPort(self))
        actor._open_source = lambda bootstrap, broker_id: network.SourcePort(
            self, RecordSourceFake(self.outside.wire, topic=TOPIC)
        )
        return self.outside.bug.plant(actor)

    def _event_log(self, bootstrap: str, broker_id: str | None) -> network.LogPort:  # type: ignore[override]
        log = EventLogFake(self.outside.wire, topic=TOPIC, dead_letter_topic=DEAD_LETTERS)
        return network.LogPort(self, "publisher", log)

    # ------------------------------------------------------------------ life and death
    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this process."""
        context = copy_context()
        context.run(LIFE.set, self)
        return self.outside.loop.create_task(work, context=context)

    async def shut_down(self) -> None:
        """SIGTERM: the phases of `app.py`."""
        self.note("process.terminated")
        self.system.end_restarts()
        await self.front.unbind()
        await self.system.drain("intake", timeout_s=8.0, close=True)
        for actor_id in ("outbox", "publisher", "consumer"):
            await self.system.drain(actor_id, timeout_s=10.0)
        await self.system.stop(drain=True, grace_s=5.0)
        if not self.ended.done():
            self.ended.set_result("terminated")

    def crash(self, actor_id: str) -> None:
        """The running instance of an actor crashes where it stands."""
        instance = self.system._slots[actor_id].instance
        if self.alive and instance is not None:
            self.note("fault.crash", actor=actor_id, instance=instance.number)
            instance.end_now(ExitReason.CRASHED, RuntimeError("crash"))

    async def kill(self) -> None:
        """Nothing of it does anything from now on; return when its tasks are gone."""
        self.alive = False
        self.front.bound = False
        loop = self.outside.loop
        for _ in range(SWEEPS):
            loop.cancel_timers(self)
            tasks = loop.tasks_of(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.001)
        assert not loop.tasks_of(self), "tasks that survive their process"
        with suppress(asyncio.InvalidStateError):
            self.ended.set_result("killed")
        if self.outside.embedded:  # its child ends with it
            self.outside.wire.replace("none")

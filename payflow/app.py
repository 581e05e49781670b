"""Composition root of the payments process: the only file that knows every part. It decides nothing; it connects.

Tree (ARCHITECTURE.md has the reasons):
    root (one_for_one, 3 / 300 s)
    ├── telemetry-group (own supervisor): gauges
    ├── management
    └── pipeline (one_for_one, 5 / 60 s): broker?, outbox, publisher, consumer, intake
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from payflow import __version__
from payflow.actors.broker import Broker
from payflow.actors.consumer import Consumer, ConsumerCounters, ConsumerSettings
from payflow.actors.gauges import GaugeReader, Gauges
from payflow.actors.intake import Intake, IntakeService, IntakeSettings
from payflow.actors.management import Management
from payflow.actors.outbox import Outbox, OutboxSettings
from payflow.actors.publisher import Publisher, PublisherCounters, PublisherSettings
from payflow.adapters.embedded_broker import EmbeddedBroker
from payflow.adapters.http_api import ApiServer, HttpLimits
from payflow.adapters.http_management import Access, ManagementServer
from payflow.adapters.kafka_consumer import KafkaRecordSource
from payflow.adapters.kafka_producer import KafkaEventLog
from payflow.adapters.sqlite_ledger import SqliteLedger, SqliteLedgerReader
from payflow.adapters.sqlite_outbox import SqliteOutboxReader, SqliteOutboxStore
from payflow.adapters.system import SystemClock, UuidIds
from payflow.config import Settings
from payflow.core.breaker import BreakerEvent, State, status_body
from payflow.core.restart import Strategy
from payflow.errors import DependencyUnavailable, StartFailed
from payflow.figures import Figures
from payflow.guard import BreakerRegistry
from payflow.health import AppHealth
from payflow.inspector import Inspector
from payflow.mailbox import Overflow
from payflow.metrics import DurationTable, Metrics, RequestTable, server_stats
from payflow.shutdown import DEADLINES_S, Phase, ProcessControl, run, settle_memory
from payflow.supervisor import Batch, ChildSpec, SupervisorSpec, System
from payflow.telemetry import Telemetry
from payflow.watchdog import Watch
from payflow.wire import id_text

EMBEDDED: Final = "embedded"
BREAKER: Final = "kafka-publisher"
BREAKER_EVENTS: Final = {
    State.OPEN: "breaker.opened",
    State.HALF_OPEN: "breaker.half_opened",
    State.CLOSED: "breaker.closed",
}
# What a memory-only broker may hold published and not booked: it keeps the newest 5 MiB of a partition.
UNBOOKED_LIMIT_BYTES: Final = 1 << 20
LOG_FLUSH_S: Final = 1.0


class App:
    """One payments process. Made inside the running loop."""

    def __init__(self, settings: Settings, control: ProcessControl, *, telemetry: Telemetry) -> None:
        self._settings = settings
        self._control = control
        self._emit = telemetry.emit
        self._clock = SystemClock()
        self._ingest = "ingest" in settings.roles
        self._consume = "consumer" in settings.roles
        self._embedded = settings.kafka.bootstrap_servers == EMBEDDED
        self._payments_path = settings.storage.data_dir / "payments.db"
        self._ledger_path = settings.storage.data_dir / "ledger.db"
        self._publisher_counters = PublisherCounters()
        self._consumer_counters = ConsumerCounters()
        self._requests = RequestTable()
        self._publishes = DurationTable()
        self._publisher_counters.observe = lambda outcome, seconds: self._publishes.observe((outcome,), seconds)
        self._gauges = Gauges()
        self._breakers = BreakerRegistry({BREAKER: settings.breaker[BREAKER].to_core()}, self._clock)
        for guard in self._breakers:
            guard.on_transition(self._breaker_moved)
        self._payments = self._payments_reader() if self._ingest else None
        self._ledger = self._ledger_reader() if self._consume else None
        self.ports: dict[str, int] = {}
        self.system = System(self._tree(), emit=self._emit, draw=random.random)
        self._health = AppHealth(
            self.system, ingest=self._ingest, consume=self._consume, gauges=self._gauges, breakers=self._breakers
        )
        self._figures = Figures(
            self.system,
            breakers=self._breakers,
            gauges=self._gauges,
            publisher=self._publisher_counters if self._ingest else None,
            consumer=self._consumer_counters if self._consume else None,
            requests=self._requests,
            publishes=self._publishes,
            watchdog=control.watchdog,
            log=telemetry.writer,
            clock=self._clock,
        )

    # ------------------------------------------------------------------ life
    async def main(self) -> None:
        """Start, say so, and wait for the end of the tree."""
        metrics = Metrics(self._figures)
        self._plan_shutdown()
        try:
            if self._settings.heartbeat.server_url:
                self._emit("heartbeat.not_built", server_url=self._settings.heartbeat.server_url)
            make_data_dir(self._settings.storage.data_dir)
            # Collect what the imports left while no port is open: in `up` it would hold the first requests for 90 ms.
            settle_memory()
            await self._start()
            self._control.up()
            self._emit(
                "process.ready", **self.ports, roles=list(self._settings.roles), pid=os.getpid(), version=__version__
            )
            raise await self.system.escalated
        finally:
            metrics.close()
            await self.system.stop(grace_s=0)

    async def _start(self) -> None:
        """Start the tree. What is missing outside is said in its own sentence: nobody has to read a chain of causes."""
        try:
            await self.system.start()
        except StartFailed as failed:
            cause: BaseException | None = failed
            while cause is not None:
                if isinstance(cause, DependencyUnavailable):
                    raise DependencyUnavailable(str(cause)) from None
                cause = cause.__cause__
            raise

    def _plan_shutdown(self) -> None:
        """Who does what in which phase.

        The intake's drain unbinds and waits for its answers; marks reach the outbox until it stops.
        """
        add = self._control.shutdown.add
        graces = self._settings.shutdown

        async def announce() -> None:
            self._health.draining = True
            self.system.end_restarts()

        async def drain() -> None:
            for actor_id in ("outbox", "publisher", "consumer"):
                if actor_id in self._actor_ids:
                    await self.system.drain(actor_id, timeout_s=graces.drain_s)

        add("announce", "readiness", announce)
        add("unbind", "intake", lambda: self._front.unbind())  # noqa: PLW0108 - a restarted intake has another front
        add(
            "requests_done", "intake", lambda: self.system.drain("intake", timeout_s=graces.requests_done_s, close=True)
        )
        add("drain", "pipeline", drain)
        add("stop", "tree", lambda: self.system.stop(drain=True, grace_s=graces.stop_s))

    # ------------------------------------------------------------------ the tree
    def _tree(self) -> SupervisorSpec:
        children = (
            [
                ChildSpec(
                    "outbox",
                    self._outbox,
                    capacity=2048,
                    overflow=Overflow.REJECT,
                    batch=Batch(512),
                    handler_timeout_s=30.0,
                ),
                ChildSpec(
                    "publisher",
                    self._publisher,
                    capacity=256,
                    overflow=Overflow.COALESCE,
                    lossy=True,
                    handler_timeout_s=10.0,
                ),
            ]
            if self._ingest
            else []
        )
        if self._embedded:
            children.insert(0, ChildSpec("broker", self._broker, capacity=4, overflow=Overflow.REJECT))
        if self._consume:
            children.append(
                ChildSpec(
                    "consumer",
                    self._consumer,
                    capacity=256,
                    overflow=Overflow.BLOCK,
                    batch=Batch(16),
                    handler_timeout_s=30.0,
                )
            )
        children.append(
            ChildSpec("intake", self._intake, capacity=1024, overflow=Overflow.REJECT, handler_timeout_s=5.0)
        )
        self._actor_ids = frozenset(child.id for child in children)
        gauges = ChildSpec("gauges", self._gauge_reader, capacity=4, overflow=Overflow.DROP_NEWEST, lossy=True)
        return SupervisorSpec(
            "root",
            Strategy.ONE_FOR_ONE,
            (
                SupervisorSpec("telemetry", Strategy.ONE_FOR_ONE, (gauges,)),
                ChildSpec("management", self._management, capacity=16, overflow=Overflow.DROP_NEWEST, lossy=True),
                SupervisorSpec("pipeline", Strategy.ONE_FOR_ONE, tuple(children)),
            ),
            max_restarts=3,
            within_s=300.0,
        )

    def _broker(self) -> Broker:
        return Broker(EmbeddedBroker(), listeners=(self.system.ref("outbox"), self.system.ref("consumer")))

    def _outbox(self) -> Outbox:
        storage = self._settings.storage
        store = SqliteOutboxStore(
            self._payments_path,
            ids=UuidIds(),
            busy_timeout_s=storage.busy_timeout_s,
            checkpoint_pages=storage.checkpoint_pages,
        )
        settings = OutboxSettings(
            idempotency_retention_s=storage.idempotency_retention_s,
            published_retention_s=storage.published_retention_s,
            probe_interval_s=storage.probe_interval_s,
        )
        return Outbox(
            store,
            publisher=self.system.ref("publisher"),
            broker=self.system.ref("broker") if self._embedded else None,
            clock=self._clock,
            settings=settings,
        )

    def _publisher(self) -> Publisher:
        kafka = self._settings.kafka
        guard = self._breakers.get(BREAKER)
        assert guard is not None
        settings = PublisherSettings(
            topic=kafka.topic,
            pace_s=kafka.publish_pace_s,
            delivery_timeout_s=kafka.delivery_timeout_s,
            window_rows=kafka.window_rows,
            window_bytes=kafka.window_size_bytes,
            unbooked_limit_bytes=UNBOOKED_LIMIT_BYTES if self._embedded else None,
        )
        return Publisher(
            reader=self._payments_reader(),
            outbox=self.system.ref("outbox"),
            guard=guard,
            open_log=self._event_log,
            bootstrap=None if self._embedded else kafka.bootstrap_servers,
            clock=self._clock,
            draw=random.random,
            settings=settings,
            counters=self._publisher_counters,
        )

    def _consumer(self) -> Consumer:
        kafka, storage = self._settings.kafka, self._settings.storage
        settings = ConsumerSettings(
            topic=kafka.topic,
            dead_letter_topic=kafka.dead_letter_topic,
            volatile=self._embedded,
            pace_s=kafka.fetch_pace_s,
            audit_interval_s=self._settings.ledger.audit_interval_s,
        )
        return Consumer(
            ledger=SqliteLedger(
                self._ledger_path, busy_timeout_s=storage.busy_timeout_s, checkpoint_pages=storage.checkpoint_pages
            ),
            open_source=self._record_source,
            open_dead_letters=self._event_log,
            bootstrap=None if self._embedded else kafka.bootstrap_servers,
            outbox=self.system.ref("outbox") if self._ingest else None,
            broker=self.system.ref("broker") if self._embedded else None,
            clock=self._clock,
            draw=random.random,
            settings=settings,
            counters=self._consumer_counters,
        )

    def _intake(self) -> Intake:
        http = self._settings.http
        service = IntakeService(
            self.system.ref("intake"), reader=self._payments, ledger=self._ledger, timeout_s=http.request_timeout_s
        )
        limits = HttpLimits(
            body_bytes=http.body_limit_bytes,
            body_read_timeout_s=http.body_read_timeout_s,
            header_timeout_s=http.header_timeout_s,
            keep_alive_s=http.keep_alive_s,
            max_connections=http.max_connections,
            backlog=http.backlog,
            request_timeout_s=http.request_timeout_s,
        )
        self._front = ApiServer(
            service,
            health=self._health,
            roles=frozenset(self._settings.roles),
            host=http.host,
            port=self.ports.get("http_port", http.port),
            limits=limits,
            metrics=server_stats,
            breakers=self._breaker_bodies,
            observe=self._requests.observe,
            refused=self._requests.refuse,
            new_request_id=_request_id,
            info=self._info(),
            emit=self._emit,
        )
        return Intake(
            self._front,
            readers=tuple(reader for reader in (self._payments, self._ledger) if reader is not None),
            outbox=self.system.ref("outbox") if self._ingest else None,
            settings=IntakeSettings(shed_after_s=http.shed_after_s),
            on_bound=partial(self.ports.__setitem__, "http_port"),
        )

    def _management(self) -> Management:
        management = self._settings.management
        inspector = Inspector(
            self.system,
            watchdog=self._control.watchdog,
            payments=self._payments,
            ledger=self._ledger,
            clock=self._clock,
        )
        front = ManagementServer(
            inspector,
            health=self._health,
            host=management.host,
            port=self.ports.get("management_port", management.port),
            access=Access(management.allow_actions, management.tokens),
            metrics=server_stats,
            breakers=self._breaker_bodies,
            info=self._info(),
            new_request_id=_request_id,
            emit=self._emit,
        )
        return Management(
            front,
            system=self.system,
            outbox=self.system.ref("outbox") if self._ingest else None,
            clock=self._clock,
            on_bound=partial(self.ports.__setitem__, "management_port"),
        )

    def _gauge_reader(self) -> GaugeReader:
        return GaugeReader(
            self._gauges,
            outbox=self._payments_reader() if self._ingest else None,
            ledger=self._ledger_reader() if self._consume else None,
            data_dir=self._settings.storage.data_dir,
        )

    # ------------------------------------------------------------------ adapters
    def _payments_reader(self) -> SqliteOutboxReader:
        return SqliteOutboxReader(self._payments_path, busy_timeout_s=self._settings.storage.busy_timeout_s)

    def _ledger_reader(self) -> SqliteLedgerReader:
        return SqliteLedgerReader(self._ledger_path, busy_timeout_s=self._settings.storage.busy_timeout_s)

    def _event_log(self, bootstrap: str, broker_id: str | None) -> KafkaEventLog:
        kafka = self._settings.kafka
        return KafkaEventLog(
            bootstrap,
            topic=kafka.topic,
            dead_letter_topic=kafka.dead_letter_topic,
            partitions=kafka.partitions,
            replication_factor=kafka.replication_factor,
            request_timeout_s=kafka.request_timeout_s,
            client_id=kafka.client_id,
            create_topics=broker_id is None,
            log_id=broker_id,
        )

    def _record_source(self, bootstrap: str, broker_id: str | None) -> KafkaRecordSource:
        kafka = self._settings.kafka
        return KafkaRecordSource(
            bootstrap,
            topic=kafka.topic,
            group_id=kafka.consumer_group,
            request_timeout_s=kafka.request_timeout_s,
            client_id=kafka.client_id,
            log_id=broker_id,
        )

    def _breaker_bodies(self) -> Mapping[str, Mapping[str, object]]:
        return {guard.name: status_body(guard.snapshot()) for guard in self._breakers}

    def _breaker_moved(self, event: BreakerEvent) -> None:
        """An outage is told in the log by its breaker: when it opened, why, and when it closed again."""
        self._emit(
            BREAKER_EVENTS.get(event.to_state, "breaker.moved"),
            name=event.name,
            from_state=str(event.from_state),
            to_state=str(event.to_state),
            cause=str(event.cause),
            failure_rate=event.failure_rate,
            slow_call_rate=event.slow_call_rate,
        )

    def _info(self) -> Mapping[str, object]:
        return {
            "app": "payflow",
            "version": __version__,
            "roles": list(self._settings.roles),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "kafka": self._settings.kafka.bootstrap_servers,
            "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        }


def _request_id() -> str:
    return id_text(UuidIds().new())


def make_data_dir(path: Path) -> None:
    """The directory of the databases; only the owner may look into it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = "there is a file in its place" if isinstance(error, FileExistsError) else error.strerror
        raise DependencyUnavailable(f"data directory {path} cannot be made: {reason}") from error


def serve(settings: Settings) -> int:
    """Run the payments process until it is told to end; the exit code (docs/runbook.md lists them)."""
    telemetry = Telemetry(log_format=settings.log.format, level=settings.log.level)
    try:
        phases = tuple(Phase(name, getattr(settings.shutdown, f"{name}_s")) for name in DEADLINES_S)
        watch = Watch(settings.telemetry.loop_check_interval_s, settings.telemetry.loop_lag_threshold_s)
        return run(_main(settings, telemetry), emit=telemetry.emit, phases=phases, watch=watch)
    finally:
        telemetry.close(timeout_s=LOG_FLUSH_S)


def _main(settings: Settings, telemetry: Telemetry) -> Callable[[ProcessControl], Awaitable[None]]:
    async def main(control: ProcessControl) -> None:
        await App(settings, control, telemetry=telemetry).main()

    return main

"""Health of the payments process, read from what the actors last published. No I/O, no waiting.

Ready means: this role can do its work now. Kafka down does not make ingest unready: that is what the outbox is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from payflow.actors.consumer import ConsumerSnapshot
from payflow.actors.gauges import Gauges
from payflow.actors.outbox import OutboxSnapshot
from payflow.actors.publisher import PublisherSnapshot
from payflow.guard import BreakerRegistry
from payflow.inspection import Node
from payflow.supervisor import ActorState, System

# A draining or paused actor is not ready; one that backs off after a crash is not either.
_READY: Final = frozenset({ActorState.RUNNING})
LOW_DISK_BYTES: Final = 100 << 20


class AppHealth:
    """`ports.Health`. `draining` is set once, when the shutdown begins."""

    def __init__(
        self, system: System, *, ingest: bool, consume: bool, gauges: Gauges, breakers: BreakerRegistry
    ) -> None:
        self._system = system
        self._ingest = ingest
        self._consume = consume
        self._gauges = gauges
        self._breakers = breakers
        self.draining = False

    def ready(self) -> tuple[bool, Mapping[str, str]]:
        """Whether every part this role needs can work, and each part's word."""
        needed = ["intake"] + (["outbox"] if self._ingest else []) + (["consumer"] if self._consume else [])
        nodes = self._nodes()
        parts = {actor_id: nodes[actor_id].state.value for actor_id in needed}
        good = all(nodes[actor_id].state in _READY and not nodes[actor_id].stuck for actor_id in needed)
        if self._ingest:
            parts["database"] = "writable" if self._writable() else "not writable"
            good = good and self._writable()
        if self._consume and not self._ingest:
            parts["kafka"] = "reading" if self._reading() else "not reading"
            good = good and self._reading()
        if self.draining:
            parts["process"] = "draining"
        return good and not self.draining, parts

    def components(self) -> Mapping[str, object]:
        """In Spring's words. Only the database takes the whole process DOWN."""
        nodes = self._nodes()
        database = "UP" if self._databases_up(nodes) else "DOWN"
        breakers = {guard.name: {"status": "UP", "details": {"state": guard.state.value}} for guard in self._breakers}
        free = self._gauges.free_bytes
        return {
            "status": database,
            "components": {
                "circuitBreakers": {"status": "UP", "details": breakers},
                "db": {"status": database, "details": dict(self._gauges.failed)},
                "kafka": {"status": "UP" if self._kafka_up() else "DOWN", "details": self._kafka_details()},
                "registry": {"status": "UNKNOWN", "details": {"reason": "no registry is configured"}},
                "diskSpace": {
                    "status": "UNKNOWN" if free is None else "UP" if free >= LOW_DISK_BYTES else "DOWN",
                    "details": {"free": free, "threshold": LOW_DISK_BYTES},
                },
            },
        }

    def _nodes(self) -> dict[str, Node]:
        return {node.id: node for node in self._system.tree().walk()}

    def _writable(self) -> bool:
        snapshot = self._system.published("outbox")
        return isinstance(snapshot, OutboxSnapshot) and snapshot.writable

    def _databases_up(self, nodes: Mapping[str, Node]) -> bool:
        owners = (["outbox"] if self._ingest else []) + (["consumer"] if self._consume else [])
        alive = all(nodes[owner].state not in {ActorState.FAILED, ActorState.BACKING_OFF} for owner in owners)
        return alive and (not self._ingest or self._writable())

    def _reading(self) -> bool:
        snapshot = self._system.published("consumer")
        return isinstance(snapshot, ConsumerSnapshot) and snapshot.connected

    def _publishing(self) -> bool:
        snapshot = self._system.published("publisher")
        return isinstance(snapshot, PublisherSnapshot) and snapshot.connected

    def _kafka_up(self) -> bool:
        return (not self._ingest or self._publishing()) and (not self._consume or self._reading())

    def _kafka_details(self) -> Mapping[str, object]:
        details: dict[str, object] = {}
        if self._ingest:
            details["publisher"] = "connected" if self._publishing() else "not connected"
        if self._consume:
            details["consumer"] = "connected" if self._reading() else "not connected"
        return details

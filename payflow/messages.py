"""Every message between actors that is not a write of `payflow.core.outbox`.

Messages with a `coalesce_key` may replace an older one of that key in a coalescing mailbox: only the newest matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from payflow.ports import Record


@dataclass(frozen=True, slots=True)
class Wake:
    """There may be something to publish. A hint only: the rows and the slow poll are the guarantee."""

    debug_fields: ClassVar[frozenset[str]] = frozenset()
    coalesce_key: ClassVar[str] = "wake"


@dataclass(frozen=True, slots=True)
class Poll:
    """The slow poll that finds what a lost wake-up left behind."""

    debug_fields: ClassVar[frozenset[str]] = frozenset()
    coalesce_key: ClassVar[str] = "poll"


@dataclass(frozen=True, slots=True)
class Rewind:
    """Rows that were published, parked or held are pending again: read from the first pending row."""

    debug_fields: ClassVar[frozenset[str]] = frozenset()
    coalesce_key: ClassVar[str] = "rewind"


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Build the Kafka client anew. `attempt` counts failures in a row."""

    attempt: int
    debug_fields: ClassVar[frozenset[str]] = frozenset({"attempt"})
    coalesce_key: ClassVar[str] = "reconnect"


@dataclass(frozen=True, slots=True)
class BrokerMoved:
    """The embedded broker is a new one: other address, other id, empty."""

    bootstrap: str
    broker_id: str
    debug_fields: ClassVar[frozenset[str]] = frozenset({"bootstrap", "broker_id"})
    coalesce_key: ClassVar[str] = "broker_moved"


@dataclass(frozen=True, slots=True)
class WhereIsKafka:
    """A client of the embedded broker has started anew and knows no address: answered with BrokerMoved."""

    debug_fields: ClassVar[frozenset[str]] = frozenset()
    coalesce_key: ClassVar[str] = "where_is_kafka"


@dataclass(frozen=True, slots=True)
class Fetched:
    """Records of one fetch, in order per partition. `generation` tells a late one from a source that was replaced."""

    generation: int
    records: Sequence[Record]
    debug_fields: ClassVar[frozenset[str]] = frozenset({"generation"})


@dataclass(frozen=True, slots=True)
class PositionLost:
    """The stored position of a partition no longer exists in the log."""

    generation: int
    partition: int
    offset: int
    debug_fields: ClassVar[frozenset[str]] = frozenset({"generation", "partition", "offset"})


@dataclass(frozen=True, slots=True)
class Tick:
    """A periodic duty is due; `duty` names it."""

    duty: str
    debug_fields: ClassVar[frozenset[str]] = frozenset({"duty"})

    @property
    def coalesce_key(self) -> str:
        """One pending tick a duty is enough."""
        return f"tick:{self.duty}"

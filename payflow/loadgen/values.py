"""Words that the parts of the load generator share: its configuration, an answer, the port to the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from payflow.core.arrivals import Arrival, Mix

# What became of a request that got no answer with a status.
UNREACHABLE: Final = "unreachable"
TIMEOUT: Final = "timeout"
BROKEN: Final = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """One run, as it was asked for."""

    url: str
    rate: float
    duration_s: float
    arrival: Arrival = Arrival.CONSTANT
    mix: Mix = field(default_factory=Mix)
    duplicates: float = 0.0
    connections: int = 64
    waiting: int = 10_000
    seed: int = 0
    timeout_s: float = 10.0
    books_timeout_s: float = 120.0
    management: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is 0 and `failure` says why where no answer came."""

    status: int
    body: bytes = b""
    replayed: bool = False
    failure: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the target said that it is done."""
        return 200 <= self.status < 300

    def label(self) -> str:
        """Name under which it is counted."""
        return str(self.status) if self.status else self.failure


class Target(Protocol):
    """The API under load. No method raises for what the target or the network does."""

    async def post(self, path: str, body: bytes, key: str) -> Answer:
        """One write."""
        ...

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Answer:
        """One read."""
        ...

    async def management(self, path: str) -> Answer:
        """One read from the management port; a failure where none was named."""
        ...


class Histogram(Protocol):
    """Latencies in seconds, with percentiles."""

    def record(self, seconds: float) -> None:
        """Count one."""
        ...

    def summary(self) -> dict[str, float]:
        """Milliseconds: p50, p90, p99, p99.9, max, mean, and the count."""
        ...

    def encoded(self) -> str:
        """The whole histogram, for tools that read HdrHistogram V2."""
        ...


Report = dict[str, Any]

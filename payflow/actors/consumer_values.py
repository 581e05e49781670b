"""What the consumer is set up with, counts and shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from payflow.core.backoff import Backoff


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """Times in seconds. `volatile` says that the broker keeps its log in memory only (embedded)."""

    topic: str
    dead_letter_topic: str
    volatile: bool
    pace_s: float = 0.05
    fetch_timeout_s: float = 1.0
    fetch_records: int = 500
    connect_timeout_s: float = 15.0
    audit_interval_s: float = 60.0
    backoff: Backoff = field(default_factory=partial(Backoff, initial_s=0.25, factor=2.0, cap_s=10.0))


@dataclass(slots=True)
class ConsumerCounters:
    """Monotonic counts and last readings, read by metrics; they outlive the actor's instances."""

    entries_total: int = 0
    booked_total: int = 0
    duplicates_total: int = 0
    out_of_order_total: int = 0
    dead_lettered_total: dict[str, int] = field(default_factory=dict)
    offset_out_of_range_total: int = 0
    rebuilt_total: int = 0
    lag_records: int = 0
    lag_seconds: float = 0.0
    imbalance: dict[str, int] = field(default_factory=dict)
    paused: bool = False


@dataclass(frozen=True, slots=True)
class ConsumerSnapshot:
    """What the debug page shows."""

    connected: bool
    source_id: str | None
    positions: dict[int, int]
    waiting_records: int
    dead_letters_waiting: int
    stopped_partitions: tuple[int, ...]
    last_error: str | None

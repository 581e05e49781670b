"""The numbers of one mailbox: what is counted while it works, and the frozen picture that `Mailbox.stats()` hands out.

Counters are plain integers and two small histograms, read when somebody asks: a labelled Prometheus call per message
costs 1146 ns, an integer 19 ns (docs/performance.md).

Balance, true after every step and held by a property test:
    accepted == processed + dropped (all reasons) + depth + in_flight
`rejected` and `coalesced` stand outside: such a message never entered the queue on its own.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

# Upper bounds in seconds, Prometheus style (`le`). A message waits microseconds at rest and seconds in an outage.
BUCKET_BOUNDS_S: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class DropReason(StrEnum):
    """Why an accepted message was not processed."""

    OVERFLOW = "overflow"
    EXPIRED = "expired"
    ABANDONED = "abandoned"
    CLOSED = "closed"
    POISON = "poison"


@dataclass(frozen=True, slots=True)
class HistogramView:
    """Counts per bucket; the last count is everything above the last bound."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float

    def at_most(self, bound_s: float) -> int:
        """Return how many observations were no longer than one of the bounds."""
        return sum(self.counts[: self.bounds_s.index(bound_s) + 1])


class Histogram:
    """Seconds sorted into fixed buckets."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKET_BOUNDS_S) + 1)
        self.sum_s = 0.0

    # A mailbox observes twice per message and writes these two lines out in place: a call costs as much as they do.
    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(BUCKET_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def view(self) -> HistogramView:
        """Return a frozen copy."""
        return HistogramView(BUCKET_BOUNDS_S, tuple(self.counts), self.sum_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxStats:
    """One mailbox at one moment. Totals only grow; the rest are gauges."""

    capacity: int
    depth: int
    high_water: int
    oldest_age_s: float
    blocked_senders: int
    in_flight: int
    accepted_total: int
    processed_total: int
    rejected_total: int
    coalesced_total: int
    dropped_total: dict[DropReason, int]
    late_replies_total: int
    blocked_seconds_total: float
    wait_seconds: HistogramView
    handle_seconds: HistogramView

"""How far the consumer is behind, in records and in seconds. A part of the consumer."""

from __future__ import annotations

from typing import Final

from payflow.actors.consumer_values import ConsumerCounters
from payflow.ports import Clock

# The end of the log moves and our position does not: the client lost its way (aiokafka issue 703), build another.
STALLED_AFTER_S: Final = 60.0
ASK_EVERY_S: Final = 2.0
ASK_TIMEOUT_S: Final = 5.0
# The client never asks `bootstrap_servers` again by itself: brokers that all moved are found by a new client only.
LOST_AFTER_FAILURES: Final = 3


class Lag:
    """Keeps the two figures in the counters."""

    def __init__(self, counters: ConsumerCounters, clock: Clock) -> None:
        self._counters = counters
        self._clock = clock
        self._progress_at = self._caught_up_at = clock.now()
        self._booked_timestamp_ms = 0

    @property
    def stalled(self) -> bool:
        """Whether records wait and nothing has been booked for too long."""
        return self._counters.lag_records > 0 and self._clock.now() - self._progress_at > STALLED_AFTER_S

    def connected(self) -> None:
        """A new source; where nothing was known to wait, nothing has waited until now."""
        self._progress_at = self._clock.now()
        if not self._counters.lag_records:
            self._caught_up_at = self._progress_at

    def booked(self, timestamp_ms: int | None) -> None:
        """A transaction went through; the timestamp of its last record, if there was one."""
        self._progress_at = self._clock.now()
        if timestamp_ms is not None:
            self._booked_timestamp_ms = timestamp_ms

    def read(self, records: int) -> None:
        """So many records wait now."""
        if not records:
            self._progress_at = self._caught_up_at = self._clock.now()
        self._counters.lag_records = records
        self.grow()

    def grow(self) -> None:
        """The oldest unbooked record is younger than the last booked one, and than the last time none was left."""
        since_booked_s = self._clock.wall_us() / 1e6 - self._booked_timestamp_ms / 1e3
        since_caught_up_s = self._clock.now() - self._caught_up_at
        waiting = self._counters.lag_records > 0
        self._counters.lag_seconds = max(0.0, min(since_booked_s, since_caught_up_s)) if waiting else 0.0

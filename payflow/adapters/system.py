"""Time and identifiers from the real world. The only file that reads a clock or draws an id."""

from __future__ import annotations

import asyncio
import time

from uuid_utils import uuid7


class SystemClock:
    """Clock of the running loop. Under uvloop `now` ticks in milliseconds; measure latency with perf_counter."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def now(self) -> float:
        """Monotonic seconds: the running loop's own time."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop.time()

    def wall_us(self) -> int:
        """Wall clock in microseconds UTC. May step backwards; nothing that waits may use it."""
        return time.time_ns() // 1000


class UuidIds:
    """UUIDv7 ids, ordered within the process: the generator counts up inside a millisecond."""

    def new(self) -> bytes:
        """A UUIDv7, 16 bytes."""
        return uuid7().bytes

"""Requests that are being answered, oldest first, with one timer for all their deadlines.

A timer for each request costs more than the request's own bookkeeping; here the timer is set once a deadline's length,
however many requests pass. Needs requests that enter in the order of their deadlines, so all have the same time.
"""

from __future__ import annotations

import asyncio
from typing import Any


class InFlight:
    """`enter` and `leave` enclose a request; a task that is over its time is cancelled and is then `expired`."""

    def __init__(self, timeout_s: float) -> None:
        assert timeout_s > 0
        self._timeout_s = timeout_s
        self._deadlines: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._deadlines)

    def enter(self) -> asyncio.Task[Any]:
        """The current task, which has begun a request."""
        task = asyncio.current_task()
        assert task is not None
        if not self._deadlines:
            self._idle.clear()
        loop = task.get_loop()
        self._deadlines[task] = deadline = loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = loop.call_at(deadline, self._expire)
        return task

    def leave(self, task: asyncio.Task[Any]) -> None:
        del self._deadlines[task]
        if self._expired:
            self._expired.discard(task)
        if not self._deadlines:
            self._idle.set()

    def is_expired(self, task: asyncio.Task[Any]) -> bool:
        """Whether its cancellation came from here."""
        return task in self._expired

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """Cancel what is over its deadline, and come back when the oldest that is left will be."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        for task, deadline in self._deadlines.items():
            if deadline > now:
                self._timer = loop.call_at(deadline, self._expire)
                return
            if task not in self._expired:
                self._expired.add(task)
                task.cancel()

"""The open loop: each request is due at its time, whatever became of those before it.

One task paces, a fixed number of workers send. What finds all workers busy waits in a bounded queue, and its waiting is
part of its latency; what finds the queue full is counted as not started.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

from payflow.loadgen.tally import Tally
from payflow.loadgen.traffic import Traffic
from payflow.loadgen.values import Target

# After so many arrivals without a wait (the generator is behind) the answers get their turn.
YIELD_AFTER: Final = 32


class OpenLoop:
    """One run; `stop` ends it early, and what was sent still gets its answer."""

    def __init__(
        self, target: Target, traffic: Traffic, tally: Tally, *, schedule: Iterator[float], workers: int, waiting: int
    ) -> None:
        assert workers > 0
        assert waiting > 0
        self.stopped = False
        self.started_at = 0.0
        self._target = target
        self._traffic = traffic
        self._tally = tally
        self._schedule = schedule
        self._workers = workers
        self._due: asyncio.Queue[float | None] = asyncio.Queue(waiting)
        self._pacer: asyncio.Task[None] | None = None

    async def run(self) -> float:
        """Send everything and wait for the answers; seconds from the first start to the last answer."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())
            self.started_at = time.perf_counter()
            if not self.stopped:
                self._pacer = group.create_task(self._pace())
                await asyncio.wait({self._pacer})
            if self.stopped:
                self._give_up_waiting()
            for _ in range(self._workers):
                await self._due.put(None)
        return time.perf_counter() - self.started_at

    def stop(self) -> None:
        """No more requests."""
        self.stopped = True
        if self._pacer is not None:
            self._pacer.cancel()

    async def _pace(self) -> None:
        without_wait = 0
        for offset_s in self._schedule:
            while (wait_s := self.started_at + offset_s - time.perf_counter()) > 0:
                without_wait = 0
                await asyncio.sleep(wait_s)
            self._tally.intend(offset_s)
            try:
                self._due.put_nowait(offset_s)
            except asyncio.QueueFull:
                self._tally.refuse(offset_s)
            without_wait += 1
            if without_wait % YIELD_AFTER == 0:
                await asyncio.sleep(0)

    def _give_up_waiting(self) -> None:
        while not self._due.empty():
            offset_s = self._due.get_nowait()
            assert offset_s is not None
            self._tally.refuse(offset_s)

    async def _work(self) -> None:
        while (offset_s := await self._due.get()) is not None:
            request = self._traffic.next()
            intended_at = self.started_at + offset_s
            lag_s = time.perf_counter() - intended_at
            self._tally.start(lag_s, request.kind)
            answer = await self._target.post(request.path, request.body, request.key)
            latency_s = time.perf_counter() - intended_at
            self._tally.answer(offset_s, lag_s, latency_s, request, answer)
            self._traffic.answered(request, answer)

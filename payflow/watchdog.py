"""A daemon thread that sees a blocked event loop while it is blocked, and names the line that blocks it.

It is also the last resort of shutdown: a process that outlives its armed deadline is ended from here.
Single handlers that take too long while the loop is healthy are the supervision's business (`slot`), not this one's.
Limit: a C call that holds the GIL holds this thread too; against that only the container's SIGKILL helps.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import math
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import _exit as end_process
from sys import _current_frames as current_frames
from typing import Final, Protocol

# What thread and tick cost cannot be measured: 1.007 M against 0.905 M msg/s is noise (docs/performance.md).
INTERVAL_S: Final = 0.05
BLOCKED_AFTER_S: Final = 0.25
SECOND_SAMPLE_AFTER_S: Final = 1.0
STOP_TIMEOUT_S: Final = 1.0
EXIT_BUDGET_EXCEEDED: Final = 71
_LAGS_KEPT: Final = 1200  # one minute of ticks
_FRAMES_KEPT: Final = 40
_STDERR: Final = 2


class Emit(Protocol):
    """Where events go. By contract it may be called from any thread."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Block:
    """One time the loop stood still; `stack` is the newest sample, innermost frame last, without values."""

    started_at: float
    file: str
    line: int
    stack: tuple[str, ...]
    samples: int
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class LoopFigures:
    """How late the loop's timers were in the last minute, and what the collector cost since the start."""

    lag_p50_s: float
    lag_p99_s: float
    lag_max_s: float
    samples: int
    gc_total_s: float
    gc_collections: int
    blocks_total: int
    last_block: Block | None


@dataclass(frozen=True, slots=True)
class Watch:
    """How often the heartbeat is looked at, and how old it may be. Seconds."""

    interval_s: float = INTERVAL_S
    blocked_after_s: float = BLOCKED_AFTER_S


class LoopWatchdog:
    """Watch one event loop from a thread of its own.

    The loop's side and the thread's side share plain attributes, each with one writer: the loop writes heartbeats and
    figures, the thread writes blocks and emits both of their events. No locks: a signal handler calls `arm`, and a
    lock held by the code it interrupted would never be released.
    """

    def __init__(
        self,
        emit: Emit,
        *,
        watch: Watch = Watch(),
        clock: Callable[[], float] = time.monotonic,
        end: Callable[[int], None] = end_process,
    ) -> None:
        self._emit = emit
        self._watch = watch
        self._clock = clock
        self._end = end
        self._beat = clock()
        self._lags: deque[float] = deque(maxlen=_LAGS_KEPT)
        self._gc_started: float | None = None
        self._gc_total_s = 0.0
        self._gc_collections = 0
        self._gc_at_beat_s = 0.0
        self._watching = True
        self._block: Block | None = None
        self._gc_before_block_s = 0.0
        self._blocks_total = 0
        self._deadline = math.inf
        self._exit_code = EXIT_BUDGET_EXCEEDED
        self._loop_thread_id = threading.get_ident()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="payflow-watchdog", daemon=True)

    # -------------------------------------------------------------- the loop's side
    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch; called once, from the loop's own thread."""
        self._loop_thread_id = threading.get_ident()
        self._beat = self._clock()
        self._tick(loop, self._beat)
        gc.callbacks.append(self.on_gc)
        self._thread.start()

    def stop_watching(self) -> None:
        """End the watch of the loop; an armed deadline stays armed."""
        assert self._timer is not None
        self._timer.cancel()
        gc.callbacks.remove(self.on_gc)
        self.beat()
        self._watching = False

    def stop(self) -> None:
        """Disarm and end the thread, which reports a block that has just ended first."""
        self._stopped.set()
        self._thread.join(timeout=STOP_TIMEOUT_S)

    def arm(self, deadline: float, *, exit_code: int = EXIT_BUDGET_EXCEEDED) -> None:
        """End the process at `deadline` (monotonic) unless `stop` comes first; later calls can only shorten it.

        Safe in a signal handler.
        """
        self._exit_code = exit_code
        self._deadline = min(self._deadline, deadline)

    def beat(self) -> None:
        """Note that the loop turns."""
        now = self._clock()
        self._gc_at_beat_s = self._gc_s(now)
        self._beat = now

    def on_gc(self, phase: str, _info: dict[str, int]) -> None:
        """Collector's callback (gc.callbacks): a pause of the collector is named, not blamed on a handler."""
        if phase == "start":
            self._gc_started = self._clock()
        elif self._gc_started is not None:
            self._gc_total_s += self._clock() - self._gc_started
            self._gc_collections += 1
            self._gc_started = None

    def figures(self) -> LoopFigures:
        """Figures for the debug page and the metric; sorts a minute of samples, so not for the hot path."""
        lags = sorted(self._lags) or [0.0]
        return LoopFigures(
            lag_p50_s=lags[len(lags) // 2],
            lag_p99_s=lags[len(lags) * 99 // 100],
            lag_max_s=lags[-1],
            samples=len(self._lags),
            gc_total_s=self._gc_total_s,
            gc_collections=self._gc_collections,
            blocks_total=self._blocks_total,
            last_block=self._block,
        )

    def _tick(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self.beat()
        self._lags.append(max(0.0, self._beat - due))
        self._timer = loop.call_later(
            self._watch.interval_s, self._tick, loop, self._beat + self._watch.interval_s
        )

    # -------------------------------------------------------------- the thread's side
    def _run(self) -> None:
        while not self._stopped.wait(self._watch.interval_s):
            self.check()
        self._look(self._clock())

    def check(self) -> None:
        """Look once: is the deadline over, does the loop stand still?"""
        now = self._clock()
        if now >= self._deadline:
            self._give_up(now)
        else:
            self._look(now)

    def _look(self, now: float) -> None:
        block, beat = self._block, self._beat
        if block is None or block.duration_s is not None:
            if self._watching and now - beat > self._watch.blocked_after_s:
                self._blocks_total += 1
                self._gc_before_block_s = self._gc_at_beat_s
                self._blocked(beat, now, samples=1)
        elif beat != block.started_at:
            self._unblocked(block, beat, now)
        elif block.samples == 1 and now - beat > SECOND_SAMPLE_AFTER_S:
            self._blocked(beat, now, samples=2)

    def _blocked(self, started_at: float, now: float, *, samples: int) -> None:
        frames = _frames_of(self._loop_thread_id)
        file, line = frames[-1].filename, frames[-1].lineno or 0
        stack = tuple(f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
        self._block = Block(started_at, file, line, stack, samples)
        gc_s = self._gc_s(now) - self._gc_before_block_s
        self._tell("loop.blocked", blocked_s=now - started_at, file=file, line=line, stack=stack, gc_s=gc_s)

    def _unblocked(self, block: Block, beat: float, now: float) -> None:
        # The heartbeat seen here is the first or the second after the block: up to 0.1 s too long, never too short.
        duration_s = beat - block.started_at
        self._block = replace(block, duration_s=duration_s)
        gc_s = self._gc_s(now) - self._gc_before_block_s
        self._tell("loop.unblocked", duration_s=duration_s, file=block.file, line=block.line, gc_s=gc_s)

    def _tell(self, event: str, **fields: object) -> None:
        # A broken log must not cost the process its last resort, and there is no better place left to say so.
        with contextlib.suppress(Exception):
            self._emit(event, **fields)

    def _gc_s(self, now: float) -> float:
        """Seconds of collection so far, the one that runs just now included."""
        started = self._gc_started
        return self._gc_total_s + (now - started if started is not None else 0.0)

    def _give_up(self, now: float) -> None:
        # Straight to the descriptors: sys.stderr has a lock that the blocked thread may hold.
        text = f"payflow: shutdown budget exceeded by {now - self._deadline:.3f} s; exit code {self._exit_code}\n"
        with contextlib.suppress(OSError):
            os.write(_STDERR, text.encode())
            faulthandler.dump_traceback(_STDERR, all_threads=True)
        self._end(self._exit_code)


def _frames_of(thread_id: int) -> Sequence[traceback.FrameSummary]:
    """Return the frames of a running thread, innermost last; there is always one, for the thread is running."""
    walk = traceback.walk_stack(current_frames()[thread_id])
    frames = traceback.StackSummary.extract(walk, limit=_FRAMES_KEPT, lookup_lines=False)
    return frames[::-1]

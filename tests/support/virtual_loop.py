"""An asyncio loop whose clock jumps to the next timer as soon as nothing else can run.

An hour passes in a millisecond, and always the same way. When nothing can run and no timer is set, the test has
deadlocked: that is an error here, not a hang.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

# Real seconds to wait for a thread or a socket when no timer is set. Nothing that lives on virtual time needs it.
DEADLOCK_AFTER_S = 2.0
SETTLED_AFTER_TICKS = 50


class Deadlock(RuntimeError):
    """Every task waits for something that nobody will do."""


class _JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never waits for a timer: it moves the clock of its loop there."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(DEADLOCK_AFTER_S if timeout is None else 0)
        if not events and timeout is None:
            raise Deadlock(f"nothing can run: {[task.get_name() for task in asyncio.all_tasks(self.loop)]}")
        if not events and timeout:
            self.loop.virtual_now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the head of the module."""

    def __init__(self) -> None:
        self.virtual_now = 0.0
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """Return the virtual time in seconds; it begins at 0."""
        return self.virtual_now


Test = Callable[..., Coroutine[Any, Any, None]]


def virtual(test: Test) -> Callable[..., None]:
    """Run an async test on virtual time."""
    return _on(VirtualLoop, test)


def real(test: Test) -> Callable[..., None]:
    """Run an async test on the real clock (`clock: real` in the cases)."""
    return _on(asyncio.SelectorEventLoop, test)


def _on(loop_factory: Callable[[], asyncio.AbstractEventLoop], test: Test) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=loop_factory, debug=False) as runner:
            runner.run(test(*args, **kwargs))

    return run


async def ticks(count: int) -> None:
    """Let the loop run `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def settle() -> None:
    """Let everything run that can run without time passing."""
    await ticks(SETTLED_AFTER_TICKS)


async def advance(seconds: float) -> None:
    """Let virtual time pass, then let everything settle that became due."""
    await asyncio.sleep(seconds)
    await settle()

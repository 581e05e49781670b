"""A virtual loop that runs the same way twice: tasks and futures hash by number, not by address.

asyncio and the product keep tasks in sets. The order of a set of tasks is that of their addresses, which differ between
two runs in one process; numbered, it is that of their making. Every task knows the life (one run of the simulated
process) in whose context it was made, so that a kill can end exactly those.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from contextvars import Context, ContextVar
from typing import Any

from tests.support.virtual_loop import Deadlock, VirtualLoop

LIFE: ContextVar[object | None] = ContextVar("life", default=None)


class SimFuture(asyncio.Future):  # type: ignore[type-arg]
    """A future with a number."""

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        self.number = number
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.number


class SimTask(asyncio.Task):  # type: ignore[type-arg]
    """A task with a number and the life it belongs to."""

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self.number = number
        context: Context | None = options.get("context")
        self.life = LIFE.get() if context is None else context.get(LIFE)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class SimLoop(VirtualLoop):
    """See the head of the module. Nothing comes from outside, so the selector is not asked: time jumps at once."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        super().__init__()
        self._selector.select = self._jump  # type: ignore[attr-defined]
        self.set_task_factory(self._make_task)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> SimTask:
        return SimTask(next(self._numbers), coro, loop=loop, **options)

    def _jump(self, timeout: float | None = None) -> list[object]:
        if timeout is None:
            raise Deadlock(f"nothing can run: {sorted(task.get_name() for task in asyncio.all_tasks(self))}")
        self.virtual_now += timeout
        return []

    def create_future(self) -> SimFuture:
        return SimFuture(next(self._numbers), self)

    def tasks_of(self, life: object) -> list[SimTask]:
        """The unfinished tasks of one life, oldest first."""
        tasks = [task for task in asyncio.all_tasks(self) if isinstance(task, SimTask) and task.life is life]
        return sorted(tasks, key=lambda task: task.number)

    def cancel_timers(self, life: object) -> None:
        """What a process has set on its clock ends with it."""
        for handle in list(self._scheduled):  # type: ignore[attr-defined]
            if handle._context is not None and handle._context.get(LIFE) is life:
                handle.cancel()

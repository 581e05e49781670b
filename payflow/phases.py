"""The phases of a shutdown: once, in order, each with its deadline.

Knows nothing of signals and processes (`shutdown` does). The tasks of a phase run in parallel. A task that is late is
left behind, not cancelled, and the next phase starts; it is abandoned work only if it still runs when the last phase
is over. No phase is ever skipped, not even by somebody in a hurry.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol, runtime_checkable

from payflow.watchdog import EXIT_BUDGET_EXCEEDED, Emit

Task = Callable[[], Awaitable[object]]

DEADLINES_S: Final = {"announce": 5, "unbind": 2, "requests_done": 8, "drain": 10, "stop": 5, "close": 3, "flush": 1}
# After the last phase: what is one step from its end is not abandoned work, even when somebody is in a hurry.
LAST_CHANCE_S: Final = 0.25
EXIT_CLEAN: Final = 0


@runtime_checkable
class Leftovers(Protocol):
    """Result of a phase task that ended in time but had to give up on something, such as a supervisor's stop."""

    @property
    def abandoned(self) -> Sequence[str]:
        """Names of what was given up."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of the shutdown; its tasks run in parallel and share the deadline."""

    name: str
    deadline_s: float
    tasks: Mapping[str, Task] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PhaseReport:
    """What came of a phase: `left` were late, `failed` raised."""

    name: str
    duration_s: float
    left: tuple[str, ...]
    failed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a shutdown; `abandoned` names each piece of work that was not finished."""

    reason: str
    duration_s: float
    phases: tuple[PhaseReport, ...]
    abandoned: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 when everything was finished, however late; 71 when something was given up."""
        return EXIT_BUDGET_EXCEEDED if self.abandoned else EXIT_CLEAN


DEFAULT_PHASES: Final = tuple(Phase(name, float(deadline_s)) for name, deadline_s in DEADLINES_S.items())


class Shutdown:
    """Run the phases once, after `begin`. Belongs to one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, emit: Emit, phases: tuple[Phase, ...] = DEFAULT_PHASES) -> None:
        self._loop = loop
        self._emit = emit
        self._phases = {phase.name: phase for phase in phases}
        self._reason: str | None = None
        self._begun = asyncio.Event()
        self._hurry = asyncio.Event()
        self._grace: asyncio.Timeout | None = None
        self._started: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._leftovers: list[str] = []
        self._failed: list[str] = []

    @property
    def reason(self) -> str | None:
        """Why the process ends; None while it lives."""
        return self._reason

    def add(self, phase_name: str, task_name: str, task: Task) -> None:
        """Have `task` called in that phase; possible until the phase starts."""
        phase = self._phases[phase_name]
        assert phase_name not in self._started, f"phase {phase_name} has started"
        assert task_name not in phase.tasks, f"{phase_name}/{task_name} is there already"
        self._phases[phase_name] = replace(phase, tasks={**phase.tasks, task_name: task})

    def begin(self, reason: str) -> None:
        """Begin to shut down; called again, cut all remaining graces to zero. Safe in threads and signal handlers."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left that could be shut down
            self._loop.call_soon_threadsafe(self._begin, reason)

    async def begun(self) -> str:
        """Wait for the begin, return its reason."""
        await self._begun.wait()
        assert self._reason is not None
        return self._reason

    async def linger(self, wait_s: float) -> None:
        """Wait for the outside to take notice, which is no work: over at once when somebody is in a hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._hurry.wait()

    async def run(self) -> Report:
        """Wait for the begin, then run the phases. Called once."""
        reason = await self.begun()
        started_at = self._loop.time()
        async with asyncio.TaskGroup() as group:
            reports = tuple([await self._run_phase(self._phases[name], group) for name in self._phases])
            if late := [task for task in self._running.values() if not task.done()]:
                await asyncio.wait(late, timeout=LAST_CHANCE_S)
            abandoned = tuple(name for name, task in self._running.items() if not task.done()) + tuple(self._leftovers)
            report = Report(reason, self._loop.time() - started_at, reports, abandoned)
            self._emit("shutdown.completed", reason=reason, duration_s=report.duration_s, abandoned=list(abandoned))
            # The group waits for them without a limit; in a process the watchdog is armed and is the limit.
            for task in self._running.values():
                task.cancel()
        return report

    def _begin(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            self._emit("shutdown.begun", reason=reason)
            self._begun.set()
            return
        self._hurry.set()
        self._emit("shutdown.hurried", reason=reason)
        if self._grace is not None and not self._grace.expired():
            self._grace.reschedule(self._loop.time())

    async def _run_phase(self, phase: Phase, group: asyncio.TaskGroup) -> PhaseReport:
        self._started.add(phase.name)
        started_at = self._loop.time()
        tasks = {
            name: group.create_task(self._attempt(f"{phase.name}/{name}", task), name=f"shutdown/{phase.name}/{name}")
            for name, task in phase.tasks.items()
        }
        self._running.update({f"{phase.name}/{name}": task for name, task in tasks.items()})
        if tasks:
            await self._wait(tasks.values(), 0 if self._hurry.is_set() else phase.deadline_s)

        left = tuple(name for name, task in tasks.items() if not task.done())
        failed = tuple(name for name in tasks if f"{phase.name}/{name}" in self._failed)
        report = PhaseReport(phase.name, self._loop.time() - started_at, left, failed)
        if left:
            self._emit("shutdown.phase_timeout", phase=phase.name, left=list(left))
        self._emit(
            "shutdown.phase_ended",
            phase=phase.name,
            duration_s=report.duration_s,
            left=list(left),
            failed=list(failed),
        )
        return report

    async def _wait(self, tasks: Iterable[asyncio.Task[None]], deadline_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s) as self._grace:
                await asyncio.wait(tasks)
        self._grace = None

    async def _attempt(self, name: str, task: Task) -> None:
        """Run one task of a phase. Whatever it raises must not take its siblings and the phases to come with it."""
        current = asyncio.current_task()
        assert current is not None
        try:
            result = await task()
        except asyncio.CancelledError:
            if current.cancelling():
                raise  # given up by us, at the end
            self._note_failure(name, "cancelled from inside")
        except Exception as error:  # noqa: BLE001 - the boundary between the phases and code we do not know
            self._note_failure(name, f"{type(error).__name__}: {error}")
        else:
            if isinstance(result, Leftovers):
                self._leftovers.extend(f"{name}/{abandoned}" for abandoned in result.abandoned)

    def _note_failure(self, name: str, error: str) -> None:
        self._failed.append(name)
        self._emit("shutdown.task_failed", task=name, error=error)

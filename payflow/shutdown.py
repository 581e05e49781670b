"""How the process lives and ends: `run` is its entry, signals begin the shutdown, the end becomes an exit code.

Signals come through `signal.signal`, not through the loop: a handler of the loop is not heard while the loop is
blocked (2.7 s in our probe), this one arms the watchdog at once (docs/performance.md). From that moment the process
ends within its budget, whatever the loop does.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import signal
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Final

from payflow.errors import DependencyUnavailable, PayflowError, RestartIntensityExceeded, StartFailed
from payflow.phases import DEADLINES_S, DEFAULT_PHASES, EXIT_CLEAN, Leftovers, Phase, PhaseReport, Report, Shutdown
from payflow.watchdog import EXIT_BUDGET_EXCEEDED, Emit, LoopWatchdog, Watch

__all__ = [
    "BUDGET_S",
    "DEADLINES_S",
    "DEFAULT_PHASES",
    "EXIT_BUDGET_EXCEEDED",
    "EXIT_BUG",
    "EXIT_CLEAN",
    "EXIT_DEPENDENCY",
    "EXIT_INTERRUPTED",
    "Leftovers",
    "Main",
    "Phase",
    "PhaseReport",
    "ProcessControl",
    "Report",
    "Shutdown",
    "exit_code_of",
    "run",
    "settle_memory",
]

EXIT_DEPENDENCY: Final = 69
EXIT_BUG: Final = 70
EXIT_INTERRUPTED: Final = 130

# After the last phase, or after a second signal, all that is left is to unwind: not worth more waiting than this.
LEAVE_S: Final = 2.0
# compose.yaml must grant more than this 36 s: its own default of 10 s would kill us in requests_done.
BUDGET_S: Final = sum(DEADLINES_S.values()) + LEAVE_S
# Young objects here are messages that die by reference count. At the default of 700 the collector took 5 % of a loaded
# process (docs/performance.md); cycles are rare and still found.
GC_THRESHOLDS: Final = (20_000, 20, 20)
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class ProcessControl:
    """What `main(control)` has of its process. The contract:

    - Before it starts anything, main adds its tasks to the phases: `control.shutdown.add("drain", "pipeline", drain)`.
    - Main starts its supervisor, calls `control.up()`, then waits for the supervisor's end. It returns when the tree
      was stopped, and lets RestartIntensityExceeded and StartFailed through.
    - A signal before `up()` cancels main, which unwinds what it has started; the phases do not run. After `up()` the
      phases run while main goes on waiting; a main that still waits when they are over is cancelled.
    - A main that ends by itself after `up()` has the phases run as well, so that logs and metrics are flushed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        emit: Emit,
        budget_s: float,
        phases: tuple[Phase, ...] = DEFAULT_PHASES,
        watch: Watch = Watch(),  # noqa: B008 - frozen
    ) -> None:
        self.shutdown = Shutdown(loop, emit, phases)
        self.watchdog = LoopWatchdog(emit, watch=watch)
        self._loop = loop
        self._budget_s = budget_s
        self._is_up = False
        self._is_ending = False
        self._root: asyncio.Task[None] | None = None
        self._report: Report | None = None
        self._failure: BaseException | None = None

    def up(self) -> None:
        """Tell that everything has started. From here a signal runs the phases."""
        assert not self._is_up
        self._is_up = True
        settle_memory()

    def begin(self, reason: str) -> None:
        """Begin to end the process; a second call hurries. Safe in threads and in signal handlers."""
        # No lock and no log before the watchdog is armed: this may have interrupted the code that holds them.
        self.watchdog.arm(time.monotonic() + (LEAVE_S if self._is_ending else self._budget_s))
        self._is_ending = True
        self.shutdown.begin(reason)

    def on_signal(self, signum: int, _frame: FrameType | None) -> None:
        """Handle SIGINT and SIGTERM."""
        self.begin(signal.Signals(signum).name)

    def live(self, main: Main, runner: asyncio.Runner) -> None:
        """Run the loop until main and the phases are over."""
        coroutine = self._live(main)
        while True:
            try:
                return runner.run(coroutine)
            except (KeyboardInterrupt, SystemExit) as error:
                # Raised by a handler, it has passed through the loop and left it. The tasks are all still there, so
                # the loop goes on for an orderly end. Each round costs one task its life, and the budget is running.
                self._fail(error)
                coroutine = self._rejoin()

    def result(self) -> int:
        """Exit code of what happened."""
        if self._failure is not None:
            return exit_code_of(self._failure)
        return self._report.exit_code if self._report is not None else EXIT_CLEAN

    def last_words(self) -> dict[str, object]:
        """Fields of the last event: what ended, and why."""
        words: dict[str, object] = {"exit_code": self.result(), "reason": self.shutdown.reason}
        failure = self._failure
        if failure is None:
            return words
        words |= {"error_type": type(failure).__name__, "error": str(failure), "cause": _root_cause(failure)}
        if isinstance(failure, RestartIntensityExceeded):
            words |= {"child": failure.child, "causes": list(failure.causes)}
        elif isinstance(failure, StartFailed):
            words |= {"child": failure.child}
        elif not isinstance(failure, PayflowError):
            words |= {"traceback": "".join(traceback.format_exception(failure))}
        return words

    async def _live(self, main: Main) -> None:
        self._root = asyncio.current_task()
        self.watchdog.start(self._loop)
        try:
            async with asyncio.TaskGroup() as group:
                life = group.create_task(self._main(main), name="main")
                group.create_task(self._end(life), name="shutdown")
        finally:
            self.watchdog.stop_watching()

    async def _main(self, main: Main) -> None:
        try:
            await main(self)
        except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - becomes the exit code
            self._fail(error)
        finally:
            if not self._is_ending:
                self.begin("main ended")

    async def _end(self, life: asyncio.Task[None]) -> None:
        await self.shutdown.begun()
        if self._is_up:
            self._report = await self.shutdown.run()
            self.watchdog.arm(time.monotonic() + LEAVE_S)
        life.cancel()

    async def _rejoin(self) -> None:
        assert self._root is not None
        await asyncio.wait({self._root})

    def _fail(self, error: BaseException) -> None:
        """Keep the first failure; those that follow are its consequences."""
        if self._failure is None:
            self._failure = error
        if not self._is_ending:
            self.begin(type(error).__name__)


Main = Callable[[ProcessControl], Awaitable[None]]


def run(
    main: Main,
    *,
    emit: Emit,
    budget_s: float | None = None,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    phases: tuple[Phase, ...] = DEFAULT_PHASES,
    use_uvloop: bool | None = None,
) -> int:
    """Run `main` as this process and return its exit code; see `ProcessControl` for what main has to do.

    Call it once, from the main thread, and leave with the code. SIGINT and SIGTERM are ignored from then on, for the
    code is decided. `budget_s` is by default what the phases may take together and the time to unwind. When a thread
    that the interpreter would wait for is left, the watchdog stays armed.
    """
    assert threading.current_thread() is threading.main_thread()
    try:
        with asyncio.Runner(loop_factory=_loop_factory(use_uvloop)) as runner:
            control = ProcessControl(
                runner.get_loop(),
                emit=emit,
                budget_s=sum(phase.deadline_s for phase in phases) + LEAVE_S if budget_s is None else budget_s,
                phases=phases,
                watch=watch,
            )
            for signum in _SIGNALS:
                signal.signal(signum, control.on_signal)
            control.live(main, runner)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    if not _threads_left():
        control.watchdog.stop()
    emit("process.ended", **control.last_words())
    return control.result()


def exit_code_of(failure: BaseException) -> int:
    """69 when something outside was not there at the start, 130 for an interrupt, else 70: a bug or an escalation."""
    if isinstance(failure, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_DEPENDENCY if _is_missing_dependency(failure) else EXIT_BUG


def settle_memory() -> None:
    """Collect once, then exempt everything that is alive from collection: it will live as long as the process.

    A full collection over 100 k live envelopes takes 22 ms, after the freeze 0 (docs/performance.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _is_missing_dependency(error: BaseException | None) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_is_missing_dependency(inner) for inner in error.exceptions)
    if isinstance(error, StartFailed):  # a supervisor in a supervisor: one StartFailed causes the other
        return _is_missing_dependency(error.__cause__)
    return isinstance(error, DependencyUnavailable)


def _root_cause(error: BaseException) -> str:
    seen = {id(error)}  # whoever raises an error from itself, or from its own effect, must not hold the end up
    while error.__cause__ is not None and id(error.__cause__) not in seen:
        error = error.__cause__
        seen.add(id(error))
    return f"{type(error).__name__}: {error}"


def _loop_factory(use_uvloop: bool | None) -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop is an extra: taken where it is installed, an error only where it was asked for by name."""
    if use_uvloop is None:
        use_uvloop = importlib.util.find_spec("uvloop") is not None
    if not use_uvloop:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


def _threads_left() -> bool:
    """Whether the interpreter would wait for a thread at its exit, such as that of a database not closed in time."""
    return any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate())

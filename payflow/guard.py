"""The breaker's asyncio shell: asks and tells the pure core, keeps its one timer, wakes who listens.

All of it runs on the loop's thread, with no await between a question and its answer. The loop calls listeners
soon after the change, never inside the caller: one that raises reaches the loop's exception handler only.

`async with guard:` and `@guard` measure from the permit to the end of the block. An Exception is a failure. A
cancellation, like every other BaseException, gives the permit back: nothing is known about the call. So a deadline
belongs inside the block (`asyncio.timeout` raises TimeoutError there, a failure); outside, it is a cancellation.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final, ParamSpec, Protocol, TypeVar

from payflow.core.breaker import (
    Breaker,
    BreakerConfig,
    BreakerEvent,
    BreakerSnapshot,
    Cause,
    Outcome,
    OutcomeKind,
    Permit,
    Rejected,
    State,
)
from payflow.errors import CallNotPermitted

# A loop may call a timer a little early (uvloop counts whole milliseconds); wait at least this long before another try.
SHORTEST_TIMER_S: Final = 0.001

_SUCCESS: Final = OutcomeKind.SUCCESS
_FAILURE: Final = OutcomeKind.FAILURE

_Blocks = tuple[Permit, Any] | None
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Clock(Protocol):
    """Monotonic seconds, in step with the loop's timers."""

    def now(self) -> float: ...


class Timer(Protocol):
    """What call_later returns."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """The two methods needed of an event loop."""

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...


class Guard:
    """One breaker on the running loop."""

    def __init__(self, breaker: Breaker, clock: Clock, *, loop: Loop | None = None) -> None:
        self._breaker: Final = breaker
        self._now: Final = clock.now
        self._loop: Final = loop
        self._epoch = breaker.epoch
        self._timer: Timer | None = None
        self._on_transition: Final[list[Callable[[BreakerEvent], object]]] = []
        self._on_admission: Final[list[Callable[[], object]]] = []
        # The open blocks of this task, innermost first. A variable a guard is sound: guards outlive their users.
        self._blocks: Final[ContextVar[_Blocks]] = ContextVar(f"blocks of {breaker.name}", default=None)

    @property
    def name(self) -> str:
        return self._breaker.name

    @property
    def state(self) -> State:
        return self._breaker.state

    def acquire(self) -> Permit:
        """Take the permit for one call, to be recorded or released; raises CallNotPermitted."""
        answer = self._breaker.acquire(self._now())
        if self._breaker.epoch != self._epoch:
            self._follow()
        if isinstance(answer, Rejected):
            raise CallNotPermitted(self._breaker.name, answer.state, answer.retry_after_s)
        return answer

    def acquire_many(self, wanted: int) -> list[Permit]:
        """Take up to `wanted` permits, as many as there are. A group that is cut counts as one refused call."""
        assert wanted >= 1
        permits: list[Permit] = []
        now = self._now()
        while len(permits) < wanted and isinstance(answer := self._breaker.acquire(now), Permit):
            permits.append(answer)
        if self._breaker.epoch != self._epoch:
            self._follow()
        return permits

    def record(self, permit: Permit, outcome: Outcome) -> None:
        """Tell how the permitted call ended."""
        self._breaker.record(permit, outcome, self._now())
        if self._breaker.epoch != self._epoch:
            self._follow()
        elif outcome.kind is OutcomeKind.IGNORED:
            self._permit_came_back()

    def release(self, permit: Permit) -> None:
        """Give the permit back: the call was not made, or cancelled."""
        self._breaker.release(permit)
        self._permit_came_back()

    def admits_at(self, now: float) -> float | None:
        """When a call may be made: `now`, later, or None while trials in flight decide (then wait for on_admission)."""
        return self._breaker.admits_at(now)

    def transition(self, to: State, *, cause: Cause = Cause.OPERATOR) -> None:
        """Move by hand; raises IllegalTransition."""
        self._breaker.transition(to, self._now(), cause=cause)
        self._follow()

    def snapshot(self) -> BreakerSnapshot:
        return self._breaker.snapshot(self._now())

    def on_transition(self, listener: Callable[[BreakerEvent], object]) -> Callable[[], None]:
        """Call `listener` after each state change; the answer ends that."""
        return _subscribe(self._on_transition, listener)

    def on_admission(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call `listener` when calls may be admitted again; it must ask, others may be faster. The answer ends that."""
        return _subscribe(self._on_admission, listener)

    def close(self) -> None:
        """Stop the timer; the next state change starts it again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def __aenter__(self) -> Permit:
        permit = self.acquire()
        self._blocks.set((permit, self._blocks.get()))
        return permit

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        block = self._blocks.get()
        assert block is not None, "the block is left in another context than it was entered in"
        permit, outer = block
        self._blocks.set(outer)
        if exc_type is None:
            self._end(permit, _SUCCESS)
        elif issubclass(exc_type, Exception):
            self._end(permit, _FAILURE)
        else:
            self.release(permit)

    def __call__(self, function: Callable[_P, Awaitable[_T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
        """Guard every call of `function`."""

        @functools.wraps(function)
        async def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            permit = self.acquire()
            try:
                result = await function(*args, **kwargs)
            except Exception:
                self._end(permit, _FAILURE)
                raise
            except BaseException:
                self.release(permit)
                raise
            self._end(permit, _SUCCESS)
            return result

        return guarded

    def _end(self, permit: Permit, kind: OutcomeKind) -> None:
        now = self._now()
        self._breaker.record(permit, Outcome(kind, now - permit.admitted_at), now)
        if self._breaker.epoch != self._epoch:
            self._follow()

    def _permit_came_back(self) -> None:
        if self._breaker.state is State.HALF_OPEN:
            self._call_soon(self._on_admission)

    def _follow(self) -> None:
        """The state has changed: set the timer of the new one and tell the listeners."""
        assert self._epoch < self._breaker.epoch
        self._epoch = self._breaker.epoch
        self._arm()
        for event in self._breaker.take_events():
            self._call_soon(self._on_transition, event)
        if self._breaker.state is not State.OPEN:
            self._call_soon(self._on_admission)

    def _arm(self) -> None:
        self.close()
        now, due = self._now(), self._breaker.next_due()
        if due is None and self._breaker.state is State.OPEN:
            due = self._breaker.admits_at(now)  # only a call ends this wait, so somebody must be told to make one
        if due is not None:
            loop = self._loop or asyncio.get_running_loop()
            self._timer = loop.call_later(max(due - now, SHORTEST_TIMER_S), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        now = self._now()
        self._breaker.tick(now)
        if self._breaker.epoch != self._epoch:
            self._follow()
        elif self._breaker.next_due() is None and self._breaker.admits_at(now) == now:
            self._call_soon(self._on_admission)
        else:
            self._arm()

    def _call_soon(self, listeners: list[Callable[..., object]], *args: object) -> None:
        if listeners:
            loop = self._loop or asyncio.get_running_loop()
            for listener in listeners:
                loop.call_soon(listener, *args)


class BreakerRegistry:
    """The process's breakers by name. Made by app.py, outlives the actors; an unknown name never makes a breaker."""

    def __init__(self, configs: Mapping[str, BreakerConfig], clock: Clock, *, loop: Loop | None = None) -> None:
        now = clock.now()
        self._guards: Final[dict[str, Guard]] = {}
        for name, config in sorted(configs.items()):
            self._guards[name] = Guard(Breaker(name, config, now=now), clock, loop=loop)

    def get(self, name: str) -> Guard | None:
        return self._guards.get(name)

    def __iter__(self) -> Iterator[Guard]:
        return iter(self._guards.values())

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(self._guards)

    def close(self) -> None:
        """Stop all timers, at the end of the process."""
        for guard in self._guards.values():
            guard.close()


_Listener = TypeVar("_Listener")


def _subscribe(listeners: list[_Listener], listener: _Listener) -> Callable[[], None]:
    listeners.append(listener)

    def unsubscribe() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return unsubscribe

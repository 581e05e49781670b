"""Circuit breaker: decides whether a call may be made, from the outcomes of the calls before it.

Pure: `now` (monotonic seconds) is an argument; nothing is awaited, logged or called back. guard.py drives it.
1. A permit belongs to the window (generation) that admitted it. An outcome that comes after that window is gone adds to
   the totals and moves nothing: a call that hung since before the outage cannot judge a later HALF_OPEN round.
2. A HALF_OPEN round has K permits. An outcome uses one up; release and an ignored outcome give it back, never beyond K.
3. State changes in `_enter` only, along TRANSITIONS; each raises the epoch and ends the old state's deadline.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

from payflow.core.breaker_values import (
    EVENTS_KEPT,
    BreakerConfig,
    BreakerEvent,
    BreakerSnapshot,
    Cause,
    EventKind,
    IllegalTransition,
    Outcome,
    OutcomeKind,
    Permit,
    Rejected,
    State,
    status_body,
)
from payflow.core.window import CountWindow

__all__ = [
    "EVENTS_KEPT",
    "TRANSITIONS",
    "Breaker",
    "BreakerConfig",
    "BreakerEvent",
    "BreakerSnapshot",
    "Cause",
    "EventKind",
    "IllegalTransition",
    "Outcome",
    "OutcomeKind",
    "Permit",
    "Rejected",
    "State",
    "status_body",
]


# A pair onto itself restarts it (window, wait, round) and is no event. CLOSED to HALF_OPEN is illegal, as upstream.
TRANSITIONS: Final[Mapping[tuple[State, State], frozenset[Cause]]] = {
    (State.CLOSED, State.CLOSED): frozenset({Cause.OPERATOR}),
    (State.CLOSED, State.OPEN): frozenset({Cause.AUTO, Cause.OPERATOR}),
    (State.OPEN, State.CLOSED): frozenset({Cause.OPERATOR}),
    (State.OPEN, State.OPEN): frozenset({Cause.OPERATOR}),
    (State.OPEN, State.HALF_OPEN): frozenset({Cause.AUTO, Cause.TIMER, Cause.OPERATOR}),
    (State.HALF_OPEN, State.CLOSED): frozenset({Cause.AUTO, Cause.OPERATOR}),
    (State.HALF_OPEN, State.OPEN): frozenset({Cause.AUTO, Cause.TIMER, Cause.OPERATOR}),
    (State.HALF_OPEN, State.HALF_OPEN): frozenset({Cause.OPERATOR}),
}
# Where a state goes when its deadline passes, and when a window with enough calls is (or is not) over a limit.
_ON_DEADLINE: Final = {State.OPEN: State.HALF_OPEN, State.HALF_OPEN: State.OPEN}
_ON_VERDICT: Final = {
    (State.CLOSED, True): State.OPEN,
    (State.HALF_OPEN, True): State.OPEN,
    (State.HALF_OPEN, False): State.CLOSED,
}

# On the path of every call, where a global is cheaper than an enum attribute.
_CLOSED: Final = State.CLOSED
_OPEN: Final = State.OPEN
_HALF_OPEN: Final = State.HALF_OPEN
_SUCCESS: Final = OutcomeKind.SUCCESS
_IGNORED: Final = OutcomeKind.IGNORED


class Breaker:
    """CLOSED, OPEN, HALF_OPEN over a count window. `state` and `epoch` are for reading."""

    def __init__(self, name: str, config: BreakerConfig, *, now: float = 0.0) -> None:
        self.name: Final = name
        self.config: Final = config
        self.state = State.CLOSED
        self.epoch = 0
        self._generation = 0
        self._entered_at = now
        self._admits_at = now
        self._due: float | None = None
        self._permits_left = 0
        self._slow_s: Final = config.slow_call_duration_threshold_s
        self._events: Final[deque[BreakerEvent]] = deque(maxlen=EVENTS_KEPT)
        self._events_dropped = self._not_permitted_total = self._late_total = self._released_total = 0
        self._successes = self._failures = self._ignored = 0
        self._successes_s = self._failures_s = self._ignored_s = 0.0
        self._transitions: Final[Counter[tuple[State, State, Cause]]] = Counter()
        self._state_s: Final = dict.fromkeys(State, 0.0)
        self._open_window()

    def acquire(self, now: float) -> Permit | Rejected:
        """Ask for one call. In OPEN, after the wait, this is what begins HALF_OPEN where no timer did."""
        if self.state is _CLOSED:
            return Permit(self._generation, now)
        self.tick(now)
        if self.state is _OPEN and now >= self._admits_at:
            self._enter(_HALF_OPEN, now, Cause.AUTO)
        if self.state is _HALF_OPEN and self._permits_left:
            self._permits_left -= 1
            return Permit(self._generation, now)
        self._not_permitted += 1
        self._not_permitted_total += 1
        admits_at = self.admits_at(now)
        return Rejected(None if admits_at is None else admits_at - now, self.state)

    def record(self, permit: Permit, outcome: Outcome, now: float) -> None:
        """Count how the call ended in the window that admitted it, and judge that window if it is the current one."""
        kind, duration_s = outcome.kind, outcome.duration_s
        assert not permit.settled
        assert duration_s >= 0
        permit.settled = True
        if self.state is not _CLOSED:
            self.tick(now)  # a deadline that has passed wins over an outcome that comes after it
        if kind is _IGNORED:
            self._ignored += 1
            self._ignored_s += duration_s
            self._give_back(permit)
            return
        failed = kind is not _SUCCESS
        if failed:
            self._failures += 1
            self._failures_s += duration_s
        else:
            self._successes += 1
            self._successes_s += duration_s
        if permit.generation != self._generation:
            self._late_total += 1
            return
        window = self._window
        slow = duration_s > self._slow_s
        window.record(failed=failed, slow=slow)
        # A fast success lifts no rate: it can only matter as the call that reaches the minimum.
        if failed or slow or window.total == window.minimum:
            self._judge(now)

    def release(self, permit: Permit) -> None:
        """Give a permit back without an outcome: the call was cancelled, so nothing is known."""
        assert not permit.settled
        permit.settled = True
        self._released_total += 1
        self._give_back(permit)

    def transition(self, to: State, now: float, *, cause: Cause = Cause.OPERATOR) -> None:
        """Move by hand; onto itself restarts the state. Raises IllegalTransition where TRANSITIONS has no such move."""
        if cause not in TRANSITIONS.get((self.state, to), ()):
            raise IllegalTransition(self.name, self.state, to, cause)
        self._enter(to, now, cause)

    def next_due(self) -> float | None:
        """When `tick` has something to do; None while nothing is timed."""
        return self._due

    def tick(self, now: float) -> None:
        """Move on if the state's deadline has passed; calling it early or often does nothing."""
        if self._due is not None and now >= self._due:
            self._enter(_ON_DEADLINE[self.state], now, Cause.TIMER)

    def admits_at(self, now: float) -> float | None:
        """When a call may be made: now, later, or None where the trials in flight decide."""
        if self.state is _OPEN:
            return max(now, self._admits_at)
        return now if self.state is _CLOSED or self._permits_left else None

    def take_events(self) -> list[BreakerEvent]:
        """What happened since the last call, oldest first; at most EVENTS_KEPT."""
        events = list(self._events)
        self._events.clear()
        return events

    def snapshot(self, now: float) -> BreakerSnapshot:
        """Everything there is to see; changes nothing, not even a state whose wait is over."""
        window, admits_at = self._window, self.admits_at(now)
        calls = (self._successes, self._failures, self._ignored)
        durations_s = (self._successes_s, self._failures_s, self._ignored_s)
        return BreakerSnapshot(
            name=self.name,
            state=self.state,
            epoch=self.epoch,
            failure_rate=window.failure_rate,
            slow_call_rate=window.slow_call_rate,
            buffered_calls=window.total,
            failed_calls=window.failed,
            slow_calls=window.slow,
            slow_failed_calls=window.slow_failed,
            not_permitted_calls=self._not_permitted,
            not_permitted_total=self._not_permitted_total,
            calls_total=dict(zip(OutcomeKind, calls, strict=True)),
            calls_duration_s_total=dict(zip(OutcomeKind, durations_s, strict=True)),
            late_outcomes_total=self._late_total,
            released_total=self._released_total,
            events_dropped_total=self._events_dropped,
            transitions_total=dict(self._transitions),
            state_s_total={**self._state_s, self.state: self._state_s[self.state] + now - self._entered_at},
            retry_after_s=None if admits_at is None else admits_at - now,
        )

    def _judge(self, now: float) -> None:
        window, config = self._window, self.config
        if window.total < window.minimum:
            return
        too_many_failed = window.failure_rate >= config.failure_rate_threshold
        too_many_slow = window.slow_call_rate >= config.slow_call_rate_threshold
        to = _ON_VERDICT.get((self.state, too_many_failed or too_many_slow))
        if to is not None:
            self._enter(to, now, Cause.AUTO)

    def _give_back(self, permit: Permit) -> None:
        if self.state is _HALF_OPEN and permit.generation == self._generation:
            self._permits_left = min(self._permits_left + 1, self.config.permitted_number_of_calls_in_half_open_state)

    def _enter(self, to: State, now: float, cause: Cause) -> None:
        origin = self.state
        assert cause in TRANSITIONS[origin, to]
        assert now >= self._entered_at
        self._state_s[origin] += now - self._entered_at
        self.state, self._entered_at = to, now
        self.epoch += 1
        if origin is not to:
            self._announce(origin, now, cause)
        config = self.config
        self._due, self._permits_left = None, 0
        if to is _OPEN:
            # The window stays: calls admitted before the change go on filling it, as evidence to look at.
            self._admits_at = now + config.wait_duration_in_open_state_s
            if config.automatic_transition_from_open_to_half_open_enabled:
                self._due = self._admits_at
            else:  # without the timer the wait is strict, as upstream
                self._admits_at = math.nextafter(self._admits_at, math.inf)
            return
        self._generation += 1
        self._open_window()
        if to is _HALF_OPEN:
            self._permits_left = config.permitted_number_of_calls_in_half_open_state
            if config.max_wait_duration_in_half_open_state_s:
                self._due = now + config.max_wait_duration_in_half_open_state_s

    def _open_window(self) -> None:
        trial = self.state is _HALF_OPEN
        config = self.config
        size = config.permitted_number_of_calls_in_half_open_state if trial else config.sliding_window_size
        self._window = CountWindow(size, config.minimum_number_of_calls)
        self._not_permitted = 0

    def _announce(self, origin: State, now: float, cause: Cause) -> None:
        self._transitions[origin, self.state, cause] += 1
        self._events_dropped += len(self._events) == EVENTS_KEPT
        window = self._window
        event = BreakerEvent(
            kind=EventKind.STATE_TRANSITION,
            name=self.name,
            now=now,
            epoch=self.epoch,
            from_state=origin,
            to_state=self.state,
            cause=cause,
            failure_rate=window.failure_rate,
            slow_call_rate=window.slow_call_rate,
        )
        self._events.append(event)

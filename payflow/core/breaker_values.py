"""The breaker's vocabulary: states, configuration, permits, outcomes and reports. Values only; breaker.py decides.

Import these from `payflow.core.breaker`, which is the one door.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from payflow.errors import PayflowError

# A shell takes events after each transition; the bound only matters to a core driven without one. Drops are counted.
EVENTS_KEPT: Final = 64


class State(StrEnum):
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"


class Cause(StrEnum):
    """Why the state changed: an outcome or a call (auto), a deadline (timer), a person (operator)."""

    AUTO = "auto"
    TIMER = "timer"
    OPERATOR = "operator"


class OutcomeKind(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"


class EventKind(StrEnum):
    STATE_TRANSITION = "STATE_TRANSITION"


_Rule = tuple[str, Callable[[float], bool]]
_PERCENT: Final[_Rule] = ("above 0 and at most 100", lambda value: 0 < value <= 100)
_COUNT: Final[_Rule] = ("a whole number, at least 1", lambda value: isinstance(value, int) and value >= 1)
_RULES: Final[Mapping[str, _Rule]] = {
    "failure_rate_threshold": _PERCENT,
    "slow_call_rate_threshold": _PERCENT,
    "slow_call_duration_threshold_s": ("above 0 and finite", lambda value: 0 < value < math.inf),
    "sliding_window_size": _COUNT,
    "minimum_number_of_calls": _COUNT,
    "wait_duration_in_open_state_s": ("at least 0.001 and finite", lambda value: 0.001 <= value < math.inf),
    "permitted_number_of_calls_in_half_open_state": _COUNT,
    "max_wait_duration_in_half_open_state_s": (
        "0, or at least 0.001 and finite",
        lambda value: value == 0 or 0.001 <= value < math.inf,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """In Resilience4j's words. A rate trips at >=, slow means strictly longer, a longest HALF_OPEN of 0 is no limit."""

    failure_rate_threshold: float = 50.0
    slow_call_rate_threshold: float = 50.0
    slow_call_duration_threshold_s: float = 5.0
    sliding_window_size: int = 20
    minimum_number_of_calls: int = 5
    wait_duration_in_open_state_s: float = 30.0
    permitted_number_of_calls_in_half_open_state: int = 3
    automatic_transition_from_open_to_half_open_enabled: bool = True
    max_wait_duration_in_half_open_state_s: float = 60.0

    def __post_init__(self) -> None:
        problems = []
        for key, (wanted, holds) in _RULES.items():
            value = getattr(self, key)
            if not holds(value):
                problems.append(f"{key} must be {wanted}, not {value!r}")
        if problems:
            raise ValueError("; ".join(problems))


# Not frozen, like Permit: one is made for every call, and freezing costs three times the rest of its making.
@dataclass(slots=True)
class Outcome:
    """How a call ended and how long it took."""

    kind: OutcomeKind
    duration_s: float


@dataclass(slots=True, eq=False)
class Permit:
    """Leave to make one call; recorded or released exactly once."""

    generation: int
    admitted_at: float
    settled: bool = False


@dataclass(slots=True)
class Rejected:
    """No call now. `retry_after_s` is None where the trials in flight decide, not the clock."""

    retry_after_s: float | None
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerEvent:
    """What happened, with the rates that were its reason (of the window before the change)."""

    kind: EventKind
    name: str
    now: float
    epoch: int
    from_state: State
    to_state: State
    cause: Cause
    failure_rate: float
    slow_call_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSnapshot:
    """Names in `_calls` count the current window, those in `_total` the whole life of the breaker; rates may be -1."""

    name: str
    state: State
    epoch: int
    failure_rate: float
    slow_call_rate: float
    buffered_calls: int
    failed_calls: int
    slow_calls: int
    slow_failed_calls: int
    not_permitted_calls: int
    not_permitted_total: int
    calls_total: Mapping[OutcomeKind, int]
    calls_duration_s_total: Mapping[OutcomeKind, float]
    late_outcomes_total: int
    released_total: int
    events_dropped_total: int
    transitions_total: Mapping[tuple[State, State, Cause], int]
    state_s_total: Mapping[State, float]
    retry_after_s: float | None


class IllegalTransition(PayflowError):
    """The table has no such move for this cause; nothing was changed."""

    def __init__(self, name: str, origin: State, to: State, cause: Cause) -> None:
        super().__init__(f"CircuitBreaker '{name}' cannot go from {origin} to {to} (cause {cause})")
        self.name = name
        self.origin = origin
        self.to = to
        self.cause = cause


def status_body(snapshot: BreakerSnapshot) -> dict[str, str | int]:
    """What `GET /circuit-breaker/{name}` answers, in this order; `-1.00%` is a rate with too few calls."""
    return {
        "state": snapshot.state.value,
        "numberOfSuccessfulCalls": snapshot.buffered_calls - snapshot.failed_calls,
        "numberOfFailedCalls": snapshot.failed_calls,
        "numberOfSlowCalls": snapshot.slow_calls,
        "numberOfSlowSuccessfulCalls": snapshot.slow_calls - snapshot.slow_failed_calls,
        "numberOfSlowFailedCalls": snapshot.slow_failed_calls,
        "numberOfBufferedCalls": snapshot.buffered_calls,
        "numberOfNotPermittedCalls": snapshot.not_permitted_calls,
        "failureRate": f"{snapshot.failure_rate:.2f}%",
        "slowCallRate": f"{snapshot.slow_call_rate:.2f}%",
    }

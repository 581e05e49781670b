"""What a supervisor does when a child comes down: restart (whom, after how long), leave it, or give up.

Pure: `now` and `draw` are arguments, the answer is a value that the supervisor obeys. The words are Erlang/OTP's.

Invariants:
- The limit is a sliding window over the time of each restart, shared by all children. Only time empties it: health
  resets a child's delay, never the window. A crash every 59 s for ever is no storm under 3 per 60 s.
- A temporary child is never started again, not even for a sibling's sake; it leaves the policy for good.
- Backoff and limit can meet: a pair whose delays alone outlast the window is refused at construction.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from payflow.core.backoff import Backoff

NORMAL: Final = "normal"
SHUTDOWN: Final = "shutdown"
CRASHED: Final = "crashed"
KILLED: Final = "killed"
STUCK: Final = "stuck"
EXIT_REASONS: Final = frozenset({NORMAL, SHUTDOWN, CRASHED, KILLED, STUCK})
_CAUSES_KEPT: Final = 10


class RestartType(StrEnum):
    """After which exits a child comes back."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"
    TEMPORARY = "temporary"


class Strategy(StrEnum):
    """Which siblings share the restart of a child."""

    ONE_FOR_ONE = "one_for_one"
    ONE_FOR_ALL = "one_for_all"
    REST_FOR_ONE = "rest_for_one"


_RESTARTING_REASONS: Final = {
    RestartType.PERMANENT: EXIT_REASONS,
    RestartType.TRANSIENT: frozenset({CRASHED, KILLED, STUCK}),
    RestartType.TEMPORARY: frozenset[str](),
}


@dataclass(frozen=True, slots=True)
class ChildRule:
    """What the policy knows of a child; the order of the rules is the order of start."""

    id: str
    restart: RestartType
    backoff: Backoff


@dataclass(frozen=True, slots=True)
class Restart:
    """Stop `stop` in this order, wait `delay_s`, start `group` in this order.

    `stop` never names the child that came down, and may name children that do not run just now.
    `removed` are the temporary children of `stop`: they go for good.
    """

    group: tuple[str, ...]
    stop: tuple[str, ...]
    delay_s: float
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the child down; `removed` names it when it was temporary and has left the tree for good."""

    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Escalate:
    """Give up: `child` brought the `count` restarts within `within_s` over the limit; `causes` are newest last."""

    child: str
    count: int
    within_s: float
    causes: tuple[str, ...]


Decision = Restart | Stop | Escalate


@dataclass(slots=True)
class _Health:
    """The delay a child has earned: its attempt number, and since when it has been running."""

    attempt: int = 0
    started_at: float | None = None

    def settle(self, now: float, reset_after_s: float) -> None:
        """The run ends here. A long enough one earns the first delay again."""
        if self.started_at is not None and now - self.started_at >= reset_after_s:
            self.attempt = 0
        self.started_at = None


class RestartPolicy:
    """Strategy, restart types, sliding window and backoff of one supervisor."""

    def __init__(
        self,
        strategy: Strategy,
        *,
        max_restarts: int,
        within_s: float,
        children: Sequence[ChildRule],
    ) -> None:
        if found := problems(max_restarts=max_restarts, within_s=within_s, children=children):
            raise ValueError("; ".join(found))
        self._strategy = strategy
        self._max_restarts = max_restarts
        self._within_s = within_s
        self._rules = {rule.id: rule for rule in children}
        self._health = {rule.id: _Health() for rule in children}
        # Bounded: one more than the limit escalates, so the deque never has to hold more than that.
        self._window: deque[tuple[float, str]] = deque(maxlen=max_restarts + 1)

    def on_started(self, child_id: str, now: float) -> None:
        """Tell that the child reported ready; its health is counted from here."""
        self._health[child_id].started_at = now

    def on_exit(self, child_id: str, *, reason: str, cause: str, now: float, draw: float) -> Decision:
        """Decide about a child that came down; a failed start is an exit with reason `crashed`."""
        assert reason in EXIT_REASONS, reason
        rule = self._rules[child_id]
        self._health[child_id].settle(now, rule.backoff.reset_after_s)
        if rule.restart is RestartType.TEMPORARY:
            self._forget((child_id,))
            return Stop(removed=(child_id,))
        if reason not in _RESTARTING_REASONS[rule.restart]:
            return Stop()

        self._expire(now)
        self._window.append((now, cause))
        if len(self._window) > self._max_restarts:
            causes = tuple(text for _, text in self._window)[-_CAUSES_KEPT:]
            return Escalate(child_id, len(self._window), self._within_s, causes)
        return self._restart(rule, now, draw)

    def restarts_in_window(self, now: float) -> int:
        """Count the restarts that still weigh, for the debug page ("restarts 1/5")."""
        self._expire(now)
        return len(self._window)

    def _restart(self, rule: ChildRule, now: float, draw: float) -> Restart:
        affected = self._affected(rule.id)
        siblings = tuple(reversed([child_id for child_id in affected if child_id != rule.id]))
        for child_id in siblings:
            self._health[child_id].settle(now, self._rules[child_id].backoff.reset_after_s)
        removed = tuple(child for child in siblings if self._rules[child].restart is RestartType.TEMPORARY)
        self._forget(removed)

        health = self._health[rule.id]
        delay_s = rule.backoff.delay_s(health.attempt, draw)
        health.attempt += 1
        group = tuple(child_id for child_id in affected if child_id in self._rules)
        return Restart(group, siblings, delay_s, removed)

    def _affected(self, child_id: str) -> tuple[str, ...]:
        """Everybody who shares the fate of this child, itself included, in the order of start."""
        if self._strategy is Strategy.ONE_FOR_ONE:
            return (child_id,)
        ids = tuple(self._rules)
        return ids if self._strategy is Strategy.ONE_FOR_ALL else ids[ids.index(child_id) :]

    def _expire(self, now: float) -> None:
        while self._window and now - self._window[0][0] > self._within_s:
            self._window.popleft()

    def _forget(self, child_ids: Iterable[str]) -> None:
        for child_id in child_ids:
            del self._rules[child_id]
            del self._health[child_id]


def problems(*, max_restarts: int, within_s: float, children: Sequence[ChildRule]) -> list[str]:
    """Everything that is wrong with the limits of a supervisor; the policy refuses what is listed here."""
    found = []
    if max_restarts < 0:
        found.append(f"max_restarts must not be negative, is {max_restarts}")
    if not (0 < within_s < math.inf):
        found.append(f"within_s must be finite and positive, is {within_s!r}")
    ids = [rule.id for rule in children]
    found += [f"child id {child_id!r} is used twice" for child_id in sorted({i for i in ids if ids.count(i) > 1})]
    if not found:  # the check below means nothing while the numbers themselves are wrong
        found += [text for rule in children if (text := _never_meets(rule, max_restarts, within_s))]
    return found


def _never_meets(rule: ChildRule, max_restarts: int, within_s: float) -> str | None:
    """Backoff against limit: when the delays alone outlast the window, a broken child flaps for ever, unreported."""
    longest_s = rule.backoff.longest_total_s(max_restarts)
    if rule.restart is RestartType.TEMPORARY or longest_s < within_s:
        return None
    return (
        f"child {rule.id!r}: its {max_restarts} backoff delays last up to {longest_s:g} s together, so {max_restarts} "
        f"restarts may never fall within {within_s:g} s; lower cap_s or raise within_s"
    )

"""RestartPolicy against a naive model that keeps the whole history and counts from the start each time.

The programs are short and the times coarse on purpose: crashes fall on the same instant, exactly on the window's edge
and far apart about equally often, which is where a sliding window goes wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from payflow.core.backoff import Backoff
from payflow.core.restart import ChildRule, Decision, Escalate, Restart, RestartPolicy, RestartType, Stop, Strategy

IDS = ("a", "b", "c", "d")
WITHIN_S = 10.0
BACKOFF = Backoff(initial_s=0.25, factor=2, cap_s=1, reset_after_s=5)
ABNORMAL = {"crashed", "killed", "stuck"}


@dataclass(frozen=True)
class Step:
    """One event of a program: `reason` None is a start, else an exit."""

    child: str
    wait_s: float
    reason: str | None
    draw: float


@dataclass
class Model:
    """The rules of the contract, written down without any cleverness."""

    strategy: Strategy
    max_restarts: int
    types: dict[str, RestartType]
    restarts: list[tuple[float, str]] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    running_since: dict[str, float] = field(default_factory=dict)

    def exit(self, child: str, step: Step, now: float, cause: str) -> Decision:
        self.end_of_run(child, now)
        if self.types[child] is RestartType.TEMPORARY:
            del self.types[child]
            return Stop((child,))
        if self.types[child] is RestartType.TRANSIENT and step.reason not in ABNORMAL:
            return Stop()
        self.restarts.append((now, cause))
        recent = [text for at, text in self.restarts if now - at <= WITHIN_S]
        if len(recent) > self.max_restarts:
            return Escalate(child, len(recent), WITHIN_S, tuple(recent[-10:]))
        order = list(self.types)
        first = {Strategy.ONE_FOR_ALL: 0}.get(self.strategy, order.index(child))
        fate = [child] if self.strategy is Strategy.ONE_FOR_ONE else order[first:]
        stop = [sibling for sibling in reversed(fate) if sibling != child]
        for sibling in stop:
            self.end_of_run(sibling, now)
        removed = [sibling for sibling in stop if self.types[sibling] is RestartType.TEMPORARY]
        for sibling in removed:
            del self.types[sibling]
        attempt = self.attempts.get(child, 0)
        self.attempts[child] = attempt + 1
        delay_s = step.draw * min(1, 0.25 * 2**attempt)
        return Restart(tuple(c for c in fate if c not in removed), tuple(stop), delay_s, tuple(removed))

    def end_of_run(self, child: str, now: float) -> None:
        since = self.running_since.pop(child, now)
        if now - since >= BACKOFF.reset_after_s:
            self.attempts[child] = 0


steps = st.builds(
    Step,
    child=st.sampled_from(IDS),
    wait_s=st.sampled_from([0.0, 0.5, 2.5, 5.0, 10.0, 10.5]),
    reason=st.sampled_from([None, "normal", "shutdown", "crashed", "killed", "stuck"]),
    draw=st.sampled_from([0.0, 0.5, 1.0]),
)


@given(
    strategy=st.sampled_from(Strategy),
    max_restarts=st.integers(0, 9),
    types=st.fixed_dictionaries({child: st.sampled_from(RestartType) for child in IDS}),
    program=st.lists(steps, max_size=40),
)
def test_every_decision_is_the_one_of_the_model(
    strategy: Strategy, max_restarts: int, types: dict[str, RestartType], program: list[Step]
) -> None:
    rules = [ChildRule(child, types[child], BACKOFF) for child in IDS]
    policy = RestartPolicy(strategy, max_restarts=max_restarts, within_s=WITHIN_S, children=rules)
    model = Model(strategy, max_restarts, {child: types[child] for child in IDS})
    now = 0.0

    for number, step in enumerate(program):
        now += step.wait_s
        if step.child not in model.types:
            continue
        if step.reason is None:
            policy.on_started(step.child, now)
            model.running_since[step.child] = now
            continue
        cause = f"cause {number}"

        decision = policy.on_exit(step.child, reason=step.reason, cause=cause, now=now, draw=step.draw)

        assert decision == model.exit(step.child, step, now, cause)
        if isinstance(decision, Escalate):
            return
        assert policy.restarts_in_window(now) <= max_restarts
        if isinstance(decision, Restart):
            assert step.child in decision.group
            assert step.child not in decision.stop
            assert not set(decision.group) & set(decision.removed)
            assert 0 <= decision.delay_s <= BACKOFF.cap_s

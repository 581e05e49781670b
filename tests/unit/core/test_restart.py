"""RestartPolicy: whom to restart, after how long, and when to give up. Times are seconds from the start of the test."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from payflow.core.backoff import Backoff
from payflow.core.restart import ChildRule, Decision, Escalate, Restart, RestartPolicy, RestartType, Stop, Strategy

STEADY = Backoff(initial_s=0.1, factor=2, cap_s=5, jitter=False)
REASONS = ("normal", "shutdown", "crashed", "killed", "stuck")


def children(*ids: str, backoff: Backoff = STEADY, **types: str) -> list[ChildRule]:
    """Rules in this order; permanent unless a keyword with the child's id says otherwise."""
    return [ChildRule(child_id, RestartType(types.get(child_id, "permanent")), backoff) for child_id in ids]


def policy(
    rules: Sequence[ChildRule] | None = None,
    *,
    strategy: Strategy = Strategy.ONE_FOR_ONE,
    max_restarts: int = 3,
    within_s: float = 60,
) -> RestartPolicy:
    rules = children("a", "b", "c") if rules is None else rules
    return RestartPolicy(strategy, max_restarts=max_restarts, within_s=within_s, children=rules)


def crash(
    subject: RestartPolicy, now: float, child_id: str = "b", *, cause: str = "boom", draw: float = 1.0
) -> Decision:
    return subject.on_exit(child_id, reason="crashed", cause=cause, now=now, draw=draw)


# ------------------------------------------------------------------ intensity
def test_sv_12_the_limit_is_a_sliding_window_over_timestamps() -> None:
    subject = policy()

    decisions = [crash(subject, now) for now in (0, 10, 20, 65)]

    assert [type(decision) for decision in decisions] == [Restart] * 4


def test_a_restart_exactly_as_old_as_the_window_still_counts() -> None:
    """Only what is older than `within_s` is dropped, as in Erlang/OTP."""
    subject = policy(max_restarts=1)
    crash(subject, 0)

    assert isinstance(crash(subject, 60), Escalate)


def test_sv_13_slow_crashes_for_ever_are_not_a_storm() -> None:
    subject = policy()

    decisions = [crash(subject, 59.0 * n) for n in range(10)]

    assert [type(decision) for decision in decisions] == [Restart] * 10


def test_sv_14_one_more_than_the_limit_escalates() -> None:
    subject = policy()
    for n in range(3):
        crash(subject, n, cause=f"boom {n}")

    decision = crash(subject, 10, cause="boom 3")

    assert decision == Escalate("b", 4, 60, ("boom 0", "boom 1", "boom 2", "boom 3"))


def test_the_limit_is_shared_by_all_children() -> None:
    subject = policy(max_restarts=1)
    crash(subject, 0, "a")

    assert isinstance(crash(subject, 1, "c"), Escalate)


def test_an_escalation_names_the_last_ten_causes() -> None:
    subject = policy(max_restarts=12, within_s=120)
    decisions = [crash(subject, n, cause=f"boom {n}") for n in range(13)]

    assert decisions[-1] == Escalate("b", 13, 120, tuple(f"boom {n}" for n in range(3, 13)))


def test_no_restarts_allowed_means_that_the_first_crash_escalates() -> None:
    assert crash(policy(max_restarts=0), 0) == Escalate("b", 1, 60, ("boom",))


def test_restarts_in_window_forgets_with_time() -> None:
    subject = policy()
    crash(subject, 0)
    crash(subject, 30)

    assert [subject.restarts_in_window(now) for now in (30, 61, 91)] == [2, 1, 0]


def test_sv_21_limits_multiply_down_the_tree() -> None:
    """A child that always crashes, under 5 per 60 s, under a root of 3 per 300 s: 24 starts, then the process ends."""
    leaf, trunk = children("child"), children("pipeline")
    root = policy(trunk, max_restarts=3, within_s=300)
    now, starts, root_decision = 0.0, 0, None

    while not isinstance(root_decision, Escalate):
        inner = policy(leaf, max_restarts=5, within_s=60)
        decision = None
        while not isinstance(decision, Escalate):
            starts += 1
            inner.on_started("child", now)
            decision = crash(inner, now, "child")
            now += decision.delay_s if isinstance(decision, Restart) else 0
        root_decision = crash(root, now, "pipeline")
        now += root_decision.delay_s if isinstance(root_decision, Restart) else 0

    assert starts == (5 + 1) * (3 + 1)


# ------------------------------------------------------------------ backoff
def test_sv_15_delays_of_crashes_in_a_row_grow_to_the_cap() -> None:
    subject = policy(max_restarts=8, within_s=120)

    decisions = [crash(subject, n) for n in range(8)]

    delays = [decision.delay_s for decision in decisions if isinstance(decision, Restart)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])


def test_the_draw_reaches_the_delay() -> None:
    subject = policy(children("b", backoff=Backoff(initial_s=1, cap_s=5)))

    assert crash(subject, 0, draw=0.25) == Restart(("b",), (), 0.25)


def test_each_child_has_its_own_delay() -> None:
    subject = policy()
    crash(subject, 0, "a")
    crash(subject, 1, "a")

    assert crash(subject, 2, "b") == Restart(("b",), (), 0.1)


def test_sv_16_a_healthy_stretch_resets_the_delay_but_not_the_window() -> None:
    backoff = Backoff(initial_s=0.1, factor=2, cap_s=5, jitter=False, reset_after_s=30)
    subject = policy(children("b", backoff=backoff), max_restarts=3)
    crash(subject, 0)
    crash(subject, 1)
    subject.on_started("b", 1.2)

    decision = crash(subject, 32.2)

    assert decision == Restart(("b",), (), 0.1)
    assert subject.restarts_in_window(32.2) == 3


def test_time_without_a_start_is_no_health() -> None:
    """A start that fails again after a long wait is not a child that ran well for that long."""
    subject = policy()
    subject.on_started("b", 0)
    crash(subject, 1)

    decision = crash(subject, 100)

    assert decision == Restart(("b",), (), 0.2)


def test_a_sibling_stopped_for_the_group_takes_its_health_with_it() -> None:
    """`a` ran well for 70 s and is stopped for the sake of `b`: its next crash is a first one again."""
    subject = policy(children("a", "b"), strategy=Strategy.ONE_FOR_ALL, max_restarts=5)
    subject.on_started("a", 0)
    crash(subject, 1, "a")
    subject.on_started("a", 2)
    crash(subject, 72, "b")

    decision = crash(subject, 73, "a")

    assert decision == Restart(("a", "b"), ("b",), 0.1)


def test_sv_17_backoff_and_intensity_must_be_able_to_meet() -> None:
    rules = children("b", backoff=Backoff(initial_s=1, factor=2, cap_s=30))

    with pytest.raises(ValueError, match="its 10 backoff delays last up to 181 s together") as caught:
        policy(rules, max_restarts=10, within_s=30)

    assert "'b'" in str(caught.value)


def test_sv_17_delays_that_sum_to_exactly_the_window_are_refused() -> None:
    rules = children("b", backoff=Backoff(initial_s=10, factor=1, cap_s=10))

    with pytest.raises(ValueError, match="30 s"):
        policy(rules, max_restarts=3, within_s=30)
    policy(rules, max_restarts=3, within_s=30.1)


def test_a_temporary_child_has_no_delays_that_could_be_too_long() -> None:
    policy(children("t", backoff=Backoff(initial_s=30, cap_s=30), t="temporary"), max_restarts=10, within_s=30)


def test_the_defaults_of_leaf_and_root_supervisors_can_meet() -> None:
    rules = children("a", backoff=Backoff())

    policy(rules, max_restarts=5, within_s=60)
    policy(rules, max_restarts=3, within_s=300)


def test_all_problems_of_a_policy_are_in_one_error() -> None:
    with pytest.raises(ValueError) as caught:
        policy(children("a", "a", "b", "b"), max_restarts=-1, within_s=0)

    texts = ("max_restarts", "within_s", "'a' is used twice", "'b' is used twice")
    assert all(text in str(caught.value) for text in texts)


# ------------------------------------------------------------------ restart types
@pytest.mark.parametrize("reason", REASONS)
def test_permanent_comes_back_whatever_the_reason(reason: str) -> None:
    decision = policy().on_exit("b", reason=reason, cause="", now=0, draw=1)

    assert decision == Restart(("b",), (), 0.1)


@pytest.mark.parametrize("reason", REASONS)
def test_transient_comes_back_only_after_an_abnormal_end(reason: str) -> None:
    subject = policy(children("b", b="transient"))

    decision = subject.on_exit("b", reason=reason, cause="", now=0, draw=1)

    expected = Stop() if reason in {"normal", "shutdown"} else Restart(("b",), (), 0.1)
    assert decision == expected


def test_a_normal_end_of_a_transient_child_does_not_weigh() -> None:
    subject = policy(children("b", b="transient"))

    subject.on_exit("b", reason="normal", cause="", now=0, draw=1)

    assert subject.restarts_in_window(0) == 0


@pytest.mark.parametrize("reason", REASONS)
def test_temporary_never_comes_back_and_leaves_the_policy(reason: str) -> None:
    subject = policy(children("a", "t", t="temporary"), strategy=Strategy.ONE_FOR_ALL)

    decision = subject.on_exit("t", reason=reason, cause="", now=0, draw=1)

    assert decision == Stop(removed=("t",))
    assert subject.restarts_in_window(0) == 0
    assert crash(subject, 1, "a") == Restart(("a",), (), 0.1)


def test_a_reason_nobody_knows_is_a_bug_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="bored"):
        policy().on_exit("b", reason="bored", cause="", now=0, draw=1)


# ------------------------------------------------------------------ strategies
def test_one_for_one_touches_only_the_dead_child() -> None:
    assert crash(policy(), 0) == Restart(("b",), (), 0.1)


def test_one_for_all_stops_in_reverse_and_starts_in_order_and_counts_once() -> None:
    subject = policy(strategy=Strategy.ONE_FOR_ALL)

    decision = crash(subject, 0)

    assert decision == Restart(("a", "b", "c"), ("c", "a"), 0.1)
    assert subject.restarts_in_window(0) == 1


def test_rest_for_one_takes_the_younger_ones() -> None:
    subject = policy(strategy=Strategy.REST_FOR_ONE)

    assert crash(subject, 0) == Restart(("b", "c"), ("c",), 0.1)


def test_rest_for_one_leaves_the_elders_of_the_youngest_alone() -> None:
    subject = policy(strategy=Strategy.REST_FOR_ONE)

    assert crash(subject, 0, "c") == Restart(("c",), (), 0.1)


def test_temporary_siblings_are_stopped_for_good() -> None:
    rules = children("a", "t", "b", "u", t="temporary", u="temporary")
    subject = policy(rules, strategy=Strategy.ONE_FOR_ALL)

    decision = crash(subject, 0, "a")

    assert decision == Restart(("a", "b"), ("u", "b", "t"), 0.1, removed=("u", "t"))
    assert crash(subject, 1, "b") == Restart(("a", "b"), ("a",), 0.1)


def test_rest_for_one_spares_an_elder_temporary() -> None:
    rules = children("t", "b", "u", t="temporary", u="temporary")
    subject = policy(rules, strategy=Strategy.REST_FOR_ONE)

    assert crash(subject, 0) == Restart(("b",), ("u",), 0.1, removed=("u",))

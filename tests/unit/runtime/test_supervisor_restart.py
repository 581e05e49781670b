"""Supervisor: strategies, policies, backoff, escalation as the tree lives them (SV-04 to SV-10, SV-18, SV-19)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from payflow.actor import ExitReason
from payflow.core.backoff import Backoff
from payflow.core.restart import RestartType, Strategy
from payflow.errors import DeadlineExceeded, MailboxClosed, MailboxFull, RestartIntensityExceeded
from payflow.supervisor import ActorState, System
from tests.support.actors import AT_ONCE, Events, Scripted, Starter, child, running, supervisor
from tests.support.virtual_loop import advance, settle, ticks, virtual


def instances(system: System) -> dict[str, int]:
    return {node.id: node.instance for node in system.tree().walk() if node.kind == "actor"}


def states(system: System) -> dict[str, ActorState]:
    return {node.id: node.state for node in system.tree().walk()}


@virtual
async def test_sv_04_one_for_one_touches_only_the_dead_child() -> None:
    """The siblings keep their instances."""
    async with running(child("a"), child("b"), child("c")) as system:
        system.ref("b").tell("crash")
        await advance(1)

        assert {"a": 1, "b": 2, "c": 1} == instances(system)
        assert 1 == system.tree().restarts_in_window


@virtual
async def test_sv_05_one_for_all_restarts_everybody_in_order() -> None:
    """Stopped in reverse, started in order, counted once."""
    events = Events()
    children = child("a"), child("b"), child("c")
    async with running(*children, strategy=Strategy.ONE_FOR_ALL, events=events) as system:
        system.ref("b").tell("crash")
        await advance(1)

        assert ["crash b", "stop c", "stop a", "start a", "start b", "start c"] == events.lives()[3:]
        assert {"a": 2, "b": 2, "c": 2} == instances(system)
        assert 1 == system.tree().restarts_in_window


@virtual
async def test_sv_06_rest_for_one_restarts_the_dead_child_and_the_younger_ones() -> None:
    """The older one keeps its instance."""
    events = Events()
    children = child("a"), child("b"), child("c")
    async with running(*children, strategy=Strategy.REST_FOR_ONE, events=events) as system:
        system.ref("b").tell("crash")
        await advance(1)

        assert ["crash b", "stop c", "start b", "start c"] == events.lives()[3:]
        assert {"a": 1, "b": 2, "c": 2} == instances(system)


@virtual
async def test_sv_07_a_second_crash_during_a_group_restart_is_absorbed() -> None:
    """a crashes while c is being stopped because of b."""
    events = Events()

    class SlowGoodbye(Scripted):
        async def on_stop(self, reason: ExitReason) -> None:
            await asyncio.sleep(1)

    children = child("a"), child("b"), child("c", SlowGoodbye)
    async with running(*children, strategy=Strategy.ONE_FOR_ALL, events=events) as system:
        system.ref("b").tell("crash")
        await settle()
        system.ref("a").tell("crash")
        await advance(5)

        assert {"a": 2, "b": 2, "c": 2} == instances(system)
        assert 1 == system.tree().restarts_in_window
        assert ["crash b", "crash a", "stop c", "start a", "start b", "start c"] == events.lives()[3:]


@virtual
async def test_sv_08_permanent_comes_back_after_a_normal_return_too() -> None:
    """It counts toward the intensity."""
    async with running(child("a")) as system:
        system.ref("a").tell("stop")
        await advance(1)

        assert {"a": 2} == instances(system)
        assert 1 == system.tree().restarts_in_window


@virtual
async def test_sv_09_transient_comes_back_only_after_an_abnormal_end() -> None:
    """normal: no. crashed: yes. shutdown: no, that is the stop of the whole system."""
    events = Events()
    children = (child(name, restart=RestartType.TRANSIENT) for name in ("normal", "crashed"))
    async with running(*children, events=events) as system:
        system.ref("normal").tell("stop")
        system.ref("crashed").tell("crash")
        await advance(1)

        assert {"normal": 1, "crashed": 2} == instances(system)
        assert ActorState.STOPPED is states(system)["normal"]
        with pytest.raises(MailboxClosed):
            system.ref("normal").tell("nobody is here any more")
        await system.stop()
        assert {"normal": 1, "crashed": 2} == instances(system)


@virtual
async def test_sv_10_temporary_never_comes_back_not_even_for_a_siblings_sake() -> None:
    """It stays on the page for its grave time, then it is gone from the tree."""
    children = child("a"), child("t", restart=RestartType.TEMPORARY)
    async with running(*children, strategy=Strategy.ONE_FOR_ALL) as system:
        system.ref("a").tell("crash")
        await advance(1)
        assert {"a": 2, "t": 1} == instances(system)
        assert ("shutdown", ActorState.STOPPED) == (system.tree().children[1].exit_reason, states(system)["t"])

        await advance(61)

        assert {"a": 2} == instances(system)


@virtual
async def test_sv_18_senders_can_queue_while_a_child_backs_off() -> None:
    """The mailbox stays open and bounded; what expired meanwhile is skipped."""
    diary: list[Any] = []
    patient = Backoff(initial_s=2, cap_s=2, jitter=False)
    async with running(child("a", lambda: Scripted(diary=diary), capacity=4), backoff=patient) as system:
        ref = system.ref("a")
        ref.tell("crash")
        await settle()
        assert ActorState.BACKING_OFF is states(system)["a"]
        for number in (1, 2, 3):
            ref.tell(number)
        asker = asyncio.create_task(ref.ask("expires", timeout_s=1))
        await ticks(2)
        with pytest.raises(MailboxFull):
            ref.tell(5)
        await advance(2)

        assert [ExitReason.CRASHED, 1, 2, 3] == diary
        assert isinstance(asker.exception(), DeadlineExceeded)


@virtual
async def test_sv_19_stop_during_backoff_is_immediate() -> None:
    """No further start; the timer is gone."""
    patient = Backoff(initial_s=30, cap_s=30, jitter=False)
    async with running(child("a"), backoff=patient, max_restarts=1) as system:
        system.ref("a").tell("crash")
        await settle()
        assert 30 == system.tree().children[0].next_start_in_s

        await system.stop()
        assert 0 == asyncio.get_running_loop().time()
        await advance(100)

        assert {} == instances(system)  # stopped for longer than the grave time
        assert None is system.root.children["a"].next_start_at
        assert 1 == system.root.children["a"].number


@virtual
async def test_a_backoff_of_one_child_does_not_hold_up_another() -> None:
    """Waiting is a timer, not a sleep in the supervisor."""
    patient = Backoff(initial_s=10, cap_s=10, jitter=False)
    children = child("slow", backoff=patient), child("quick", backoff=AT_ONCE)
    async with running(*children) as system:
        system.ref("slow").tell("crash")
        await settle()
        system.ref("quick").tell("crash")
        await settle()

        assert {"slow": 1, "quick": 2} == instances(system)
        await advance(10)
        assert {"slow": 2, "quick": 2} == instances(system)


@virtual
async def test_a_failed_start_of_a_restart_is_another_crash_and_is_tried_again() -> None:
    """F70: only the very first start is not retried."""
    fail_times = iter([False, True, True, False])

    async def maybe(_actor: Starter, _stack: AsyncExitStack) -> None:
        if next(fail_times):
            raise OSError("not yet")

    async with running(child("a", lambda: Starter(maybe))) as system:
        system.ref("a").tell("crash")
        await advance(1)

        assert {"a": 4} == instances(system)
        assert 3 == system.tree().restarts_in_window


@virtual
async def test_a_failed_start_in_a_group_starts_the_rest_of_the_group_later() -> None:
    """Nobody is forgotten between two attempts."""
    fail_times = iter([False, True, False])

    async def maybe(_actor: Starter, _stack: AsyncExitStack) -> None:
        if next(fail_times):
            raise OSError("not yet")

    children = child("a"), child("b", lambda: Starter(maybe)), child("c")
    async with running(*children, strategy=Strategy.ONE_FOR_ALL) as system:
        system.ref("c").tell("crash")
        await advance(1)

        assert [ActorState.RUNNING] * 4 == list(states(system).values())
        assert {"a": 3, "b": 3, "c": 2} == instances(system)


@virtual
async def test_escalation_at_the_root_ends_everything_and_names_the_causes() -> None:
    """The siblings are stopped in reverse; the process entry finds the error in `escalated`."""
    events = Events()
    children = child("a"), child("b"), child("c")
    async with running(*children, max_restarts=2, events=events) as system:
        for _ in range(3):
            system.ref("b").tell("crash")
        error = await system.escalated

        assert isinstance(error, RestartIntensityExceeded)
        assert ("b", 3, 60) == (error.child, error.count, error.within_s)
        assert ("RuntimeError: crash",) * 3 == error.causes
        assert ["stop c", "stop a"] == events.lives()[-2:]
        assert ActorState.FAILED is system.tree().state
        with pytest.raises(MailboxClosed):
            system.ref("a").tell("x")


@virtual
async def test_an_inner_escalation_is_one_crash_for_the_outer_supervisor() -> None:
    """The inner tree starts afresh, with a fresh window; mailboxes and references survive."""
    diary: list[Any] = []
    inner = supervisor(child("x"), child("y", lambda: Scripted(diary=diary)), id="inner", max_restarts=1)
    async with running(inner, child("z")) as system:
        system.pause("y", max_s=1, by="test")
        system.ref("y").tell("kept")
        for _ in range(2):
            system.ref("x").tell("crash")
        await advance(2)

        node = system.tree().children[0]
        assert (1, 0, 1) == (system.tree().restarts_in_window, node.restarts_in_window, node.restarts_total)
        assert "RestartIntensityExceeded" in str(node.last_error)
        assert {"x": 3, "y": 2, "z": 1} == instances(system)
        assert "kept" in diary
        assert not system.escalated.done()


@virtual
async def test_a_second_abandoned_run_of_a_child_is_an_escalation() -> None:
    """One that ignores cancellation is bad luck, two are a leak."""
    let_go = asyncio.Event()

    async def ignore(_actor: Scripted, _message: Any) -> None:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    spec = child("a", lambda: Scripted(ignore), handler_timeout_s=1, stuck_action="restart", shutdown_timeout_s=1)
    async with running(spec) as system:
        system.ref("a").tell("first")
        await advance(5)
        assert {"a": 2} == instances(system)

        system.ref("a").tell("second")
        error = await system.escalated

        assert isinstance(error, RestartIntensityExceeded)
        assert "abandoned" == error.causes[0]
        report = await system.stop()
        assert ("a",) == report.abandoned
        let_go.set()
        await settle()


@virtual
async def test_a_restart_by_hand_replaces_the_instance_and_counts_as_no_crash() -> None:
    """Also in the middle of a backoff, which it ends."""
    events = Events()
    patient = Backoff(initial_s=10, cap_s=10, jitter=False)
    async with running(child("a"), backoff=patient, events=events) as system:
        await system.restart("a", "ops: new configuration")
        assert ({"a": 2}, 0) == (instances(system), system.tree().restarts_in_window)

        system.ref("a").tell("crash")
        await settle()
        await system.restart("a", "ops: do not wait")
        assert ({"a": 3}, 0) == (instances(system), asyncio.get_running_loop().time())

        await advance(20)
        assert {"a": 3} == instances(system)
    assert ["ops: new configuration", "ops: do not wait"] == [
        event["reason"] for event in events.of("actor.restart_requested")
    ]

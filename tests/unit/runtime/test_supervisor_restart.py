"""Supervisor: strategies, policies, backoff, escalation as the tree lives them (SV-04 to SV-10, SV-18, SV-19)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from payflow.actor import ExitReason
from payflow.core.backoff import Backoff
from payflow.core.restart import RestartType, Strategy
from payflow.errors import (
    ActorStopped,
    DeadlineExceeded,
    MailboxClosed,
    MailboxFull,
    RestartIntensityExceeded,
    StartFailed,
)
from payflow.supervisor import ActorState, System
from tests.support.actors import AT_ONCE, Events, Scripted, Starter, child, make_system, running, supervisor
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

        assert instances(system) == {"a": 1, "b": 2, "c": 1}
        assert system.tree().restarts_in_window == 1


@virtual
async def test_sv_05_one_for_all_restarts_everybody_in_order() -> None:
    """Stopped in reverse, started in order, counted once."""
    events = Events()
    children = child("a"), child("b"), child("c")
    async with running(*children, strategy=Strategy.ONE_FOR_ALL, events=events) as system:
        system.ref("b").tell("crash")
        await advance(1)

        assert events.lives()[3:] == ["crash b", "stop c", "stop a", "start a", "start b", "start c"]
        assert instances(system) == {"a": 2, "b": 2, "c": 2}
        assert system.tree().restarts_in_window == 1


@virtual
async def test_sv_06_rest_for_one_restarts_the_dead_child_and_the_younger_ones() -> None:
    """The older one keeps its instance."""
    events = Events()
    children = child("a"), child("b"), child("c")
    async with running(*children, strategy=Strategy.REST_FOR_ONE, events=events) as system:
        system.ref("b").tell("crash")
        await advance(1)

        assert events.lives()[3:] == ["crash b", "stop c", "start b", "start c"]
        assert instances(system) == {"a": 1, "b": 2, "c": 2}


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

        assert instances(system) == {"a": 2, "b": 2, "c": 2}
        assert system.tree().restarts_in_window == 1
        assert events.lives()[3:] == ["crash b", "crash a", "stop c", "start a", "start b", "start c"]


@virtual
async def test_sv_08_permanent_comes_back_after_a_normal_return_too() -> None:
    """It counts toward the intensity."""
    async with running(child("a")) as system:
        system.ref("a").tell("stop")
        await advance(1)

        assert instances(system) == {"a": 2}
        assert system.tree().restarts_in_window == 1


@virtual
async def test_sv_09_transient_comes_back_only_after_an_abnormal_end() -> None:
    """normal: no. crashed: yes. shutdown: no, that is the stop of the whole system."""
    events = Events()
    children = (child(name, restart=RestartType.TRANSIENT) for name in ("normal", "crashed"))
    async with running(*children, events=events) as system:
        system.ref("normal").tell("stop")
        system.ref("crashed").tell("crash")
        await advance(1)

        assert instances(system) == {"normal": 1, "crashed": 2}
        assert ActorState.STOPPED is states(system)["normal"]
        with pytest.raises(MailboxClosed):
            system.ref("normal").tell("nobody is here any more")
        await system.stop()
        assert instances(system) == {"normal": 1, "crashed": 2}


@virtual
async def test_sv_10_temporary_never_comes_back_not_even_for_a_siblings_sake() -> None:
    """It stays on the page for its grave time, then it is gone from the tree."""
    children = child("a"), child("t", restart=RestartType.TEMPORARY)
    async with running(*children, strategy=Strategy.ONE_FOR_ALL) as system:
        system.ref("a").tell("crash")
        await advance(1)
        assert instances(system) == {"a": 2, "t": 1}
        assert (system.tree().children[1].exit_reason, states(system)["t"]) == ("shutdown", ActorState.STOPPED)

        await advance(61)

        assert instances(system) == {"a": 2}


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

        assert diary == [ExitReason.CRASHED, 1, 2, 3]
        assert isinstance(asker.exception(), DeadlineExceeded)


@virtual
async def test_sv_19_stop_during_backoff_is_immediate() -> None:
    """No further start; the timer is gone."""
    patient = Backoff(initial_s=30, cap_s=30, jitter=False)
    async with running(child("a"), backoff=patient, max_restarts=1) as system:
        system.ref("a").tell("crash")
        await settle()
        assert system.tree().children[0].next_start_in_s == 30

        await system.stop()
        assert asyncio.get_running_loop().time() == 0
        await advance(100)

        assert instances(system) == {}  # stopped for longer than the grave time
        assert None is system.root.children["a"].next_start_at
        assert system.root.children["a"].number == 1


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

        assert instances(system) == {"slow": 1, "quick": 2}
        await advance(10)
        assert instances(system) == {"slow": 2, "quick": 2}


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

        assert instances(system) == {"a": 4}
        assert system.tree().restarts_in_window == 3


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

        assert list(states(system).values()) == [ActorState.RUNNING] * 4
        assert instances(system) == {"a": 3, "b": 3, "c": 2}


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
        assert (error.child, error.count, error.within_s) == ("b", 3, 60)
        assert error.causes == ("RuntimeError: crash",) * 3
        assert events.lives()[-2:] == ["stop c", "stop a"]
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
        assert (system.tree().restarts_in_window, node.restarts_in_window, node.restarts_total) == (1, 0, 1)
        assert "RestartIntensityExceeded" in str(node.last_error)
        assert instances(system) == {"x": 3, "y": 2, "z": 1}
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
        assert instances(system) == {"a": 2}

        system.ref("a").tell("second")
        error = await system.escalated

        assert isinstance(error, RestartIntensityExceeded)
        assert error.causes[0] == "abandoned"
        report = await system.stop()
        assert report.abandoned == ("a",)
        let_go.set()
        await settle()


@virtual
async def test_a_restart_by_hand_replaces_the_instance_and_counts_as_no_crash() -> None:
    """Also in the middle of a backoff, which it ends."""
    events = Events()
    patient = Backoff(initial_s=10, cap_s=10, jitter=False)
    async with running(child("a"), backoff=patient, events=events) as system:
        await system.restart("a", "ops: new configuration")
        assert (instances(system), system.tree().restarts_in_window) == ({"a": 2}, 0)

        system.ref("a").tell("crash")
        await settle()
        await system.restart("a", "ops: do not wait")
        assert (instances(system), asyncio.get_running_loop().time()) == ({"a": 3}, 0)

        await advance(20)
        assert instances(system) == {"a": 3}
    assert [event["reason"] for event in events.of("actor.restart_requested")] == [
        "ops: new configuration",
        "ops: do not wait",
    ]


@virtual
async def test_an_actor_deep_in_the_tree_is_found_for_a_restart_by_hand() -> None:
    """Its own supervisor does it."""
    inner = supervisor(child("x"), child("y"), id="inner")
    async with running(child("z"), inner) as system:
        await system.restart("y", "ops")

        assert instances(system) == {"z": 1, "x": 1, "y": 2}


@virtual
async def test_a_child_that_ended_for_good_is_not_restarted_by_hand() -> None:
    """Its mailbox is closed; a new instance would serve nobody."""
    async with running(child("a", restart=RestartType.TRANSIENT)) as system:
        system.ref("a").tell("stop")
        await settle()

        with pytest.raises(ActorStopped, match="for good"):
            await system.restart("a", "ops")
        with pytest.raises(ActorStopped, match="closed"):
            system.pause("a", max_s=1, by="ops")


@virtual
async def test_a_restart_by_hand_that_meets_a_stop_is_told_so() -> None:
    """Nobody is left waiting for a restart that will not come."""

    async def slow(_actor: Scripted, _message: Any) -> None:
        await asyncio.sleep(5)

    async with running(child("a", lambda: Scripted(slow)), child("b")) as system:
        system.ref("a").tell("x")
        await settle()
        requests = [asyncio.create_task(system.restart(name, "ops")) for name in ("a", "b")]
        await asyncio.sleep(1)
        await system.stop(grace_s=0)
        await ticks(2)

        assert [type(request.exception()) for request in requests] == [ActorStopped, ActorStopped]


@virtual
async def test_a_bug_in_the_supervisor_itself_is_no_silent_death() -> None:
    """A policy that fails brings the whole tree down instead of leaving children unwatched."""

    class Broken(Backoff):
        def delay_s(self, attempt: int, draw: float) -> float:
            raise ArithmeticError("bug")

    async with running(child("a", backoff=Broken(initial_s=0))) as system:
        system.ref("a").tell("crash")
        error = await system.escalated

        assert isinstance(error, ArithmeticError)
        assert system.tree().state is ActorState.FAILED


@virtual
async def test_a_start_that_swallows_its_cancellation_is_still_a_failed_start() -> None:
    """It returns late and as if nothing had happened; nobody takes it for ready."""
    events = Events()

    async def deaf(_actor: Starter, _stack: AsyncExitStack) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)

    async with running(child("a"), events=events) as other:
        assert other.tree().children[0].state is ActorState.RUNNING
    system = make_system(supervisor(child("b", lambda: Starter(deaf), start_timeout_s=2)), events)

    with pytest.raises(StartFailed, match="start timeout"):
        await system.start()

    assert "start b" not in events.lives()


@virtual
async def test_an_abandoned_run_that_comes_back_still_closes_what_it_opened() -> None:
    """Its owned tasks are cancelled at once, the rest when its code returns; the new run is not disturbed."""
    let_go, diary = asyncio.Event(), []

    class Deaf(Scripted):
        async def on_start(self, stack: AsyncExitStack) -> None:
            stack.callback(diary.append, f"closed {self.ctx.instance}")
            self.ctx.spawn(asyncio.sleep(1000), name="poll")

        async def handle(self, message: Any) -> Any:
            while message == "x" and not let_go.is_set():
                with suppress(asyncio.CancelledError):
                    await let_go.wait()
            return message

    spec = child("a", Deaf, handler_timeout_s=1, stuck_action="restart", shutdown_timeout_s=1)
    async with running(spec) as system:
        system.ref("a").tell("x")
        await advance(5)
        polls = [task for task in asyncio.all_tasks() if task.get_name() == "actor:a:poll"]
        assert (instances(system), len(polls), diary) == ({"a": 2}, 1, [])

        let_go.set()
        await settle()

        assert diary == ["closed 1"]
        assert await system.ref("a").ask("y", timeout_s=1) == "y"
        stats = system.ref("a").stats()
        assert (stats.accepted_total, stats.processed_total, stats.in_flight) == (2, 1, 0)


@virtual
async def test_what_comes_down_after_the_end_began_stays_down() -> None:
    """A fresh start during the shutdown would bind ports again and undo the drain."""
    async with running(child("a"), child("b")) as system:
        system.end_restarts()
        system.ref("b").tell("crash")
        await advance(10)

        assert {"a": 1, "b": 1} == instances(system)
        assert ActorState.FAILED is states(system)["b"]


@virtual
async def test_restart_by_hand_ends_a_pause() -> None:
    """A fresh run that still stands still is not what was asked for."""
    async with running(child("a")) as system:
        system.pause("a", max_s=60, by="ops")

        await system.restart("a", "stuck")

        assert ActorState.RUNNING is states(system)["a"]

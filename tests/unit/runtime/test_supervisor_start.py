"""Supervisor: start, stop, shutdown while starting (SV-01 to SV-03, SV-22, SV-34)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from payflow.actor import ExitReason
from payflow.errors import ActorStopped, MailboxClosed, StartFailed
from payflow.mailbox import Overflow
from payflow.supervisor import ActorState, Batch, ChildSpec, StopReport, SupervisorSpec
from tests.support.actors import Events, Scripted, Starter, child, make_system, running, supervisor
from tests.support.virtual_loop import advance, settle, ticks, virtual


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_sv_01_children_start_in_order_and_stop_in_reverse() -> None:
    """b begins only after a reported ready."""
    events = Events()
    begun: list[tuple[str, float]] = []

    async def slow(actor: Starter, _stack: AsyncExitStack) -> None:
        begun.append((actor.ctx.id, now()))
        await asyncio.sleep(1)

    system = make_system(supervisor(*(child(name, lambda: Starter(slow)) for name in "abc")), events)
    await system.start()
    await system.stop()

    assert events.lives() == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
    assert begun == [("a", 0), ("b", 1), ("c", 2)]


@virtual
async def test_sv_02_a_failed_first_start_stops_what_was_started_and_fails_the_supervisor() -> None:
    """No restart is tried: who cannot start at all is told, not retried."""
    events = Events()

    async def fail(_actor: Starter, _stack: AsyncExitStack) -> None:
        raise OSError("no database")

    system = make_system(supervisor(child("a"), child("b", lambda: Starter(fail)), child("c")), events)

    with pytest.raises(StartFailed) as caught:
        await system.start()

    assert caught.value.child == "b"
    assert isinstance(caught.value.__cause__, OSError)
    assert events.lives() == ["start a", "stop a"]
    assert [n.state for n in system.tree().children] == [ActorState.STOPPED, ActorState.FAILED, ActorState.NEW]
    (failed,) = events.of("actor.start_failed")
    assert "in fail" in str(failed["traceback"])
    await system.stop()


@virtual
async def test_sv_03_start_timeout_counts_as_a_failed_start() -> None:
    """The start task is cancelled."""
    cancelled: list[bool] = []

    async def hang(_actor: Starter, _stack: AsyncExitStack) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    system = make_system(supervisor(child("b", lambda: Starter(hang), start_timeout_s=2)))

    with pytest.raises(StartFailed) as caught:
        await system.start()

    assert (caught.value.child, caught.value.reason) == ("b", "start timeout 2.0 s")
    assert cancelled == [True]
    assert now() == 2


@virtual
async def test_sv_22_a_child_that_ignores_cancellation_does_not_hold_the_others() -> None:
    """One second after the cancellation it is left behind, with the place where it stands."""
    events, let_go = Events(), asyncio.Event()

    async def ignore(_actor: Scripted, _message: Any) -> None:
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()

    children = child("a"), child("b"), child("c", lambda: Scripted(ignore), shutdown_timeout_s=1)
    async with running(*children, events=events) as system:
        system.ref("c").tell("x")
        await settle()
        report = await system.stop(grace_s=0)

        assert now() == 1
        assert (report.abandoned, report.late) == (("c",), ("c",))
        assert events.lives()[3:] == ["stop c", "stop b", "stop a"]
        (abandoned,) = events.of("actor.abandoned")
        assert "ignore" in str(abandoned["stack"][-1])
        assert system.tree().children[2].abandoned_total == 1
        assert [letter.reason for letter in system.dead_letters()] == ["closed"]
        let_go.set()
        await settle()


@virtual
async def test_sv_34_a_stop_while_starting_cancels_the_start() -> None:
    """b's start is cancelled, a is stopped, c never starts, and `start` says that it was told to stop."""
    events, begun = Events(), asyncio.Event()

    async def hang(_actor: Starter, _stack: AsyncExitStack) -> None:
        begun.set()
        await asyncio.sleep(1000)

    system = make_system(supervisor(child("a"), child("b", lambda: Starter(hang)), child("c")), events)
    starting = asyncio.create_task(system.start())
    await begun.wait()

    report = await system.stop()

    with pytest.raises(ActorStopped):
        await starting
    assert (report.abandoned, report.late) == ((), ())
    assert events.lives() == ["start a", "stop a"]
    assert now() == 0


@virtual
async def test_a_cancelled_start_leaves_nothing_running() -> None:
    """Whoever waits for `start` may be cancelled like anybody else."""
    events = Events()

    async def hang(_actor: Starter, _stack: AsyncExitStack) -> None:
        await asyncio.sleep(1000)

    system = make_system(supervisor(child("a"), child("b", lambda: Starter(hang))), events)
    starting = asyncio.create_task(system.start())
    await settle()

    starting.cancel()
    await asyncio.wait([starting])

    assert starting.cancelled()
    assert events.lives() == ["start a", "stop a"]
    assert {asyncio.current_task()} == asyncio.all_tasks()


@virtual
async def test_after_a_stop_senders_are_refused_and_a_second_stop_is_quiet() -> None:
    """What was still queued is a dead letter."""
    async with running(child("a")) as system:
        system.pause("a", max_s=60, by="test")
        asker = asyncio.create_task(system.ref("a").ask("x", timeout_s=60))
        await ticks(2)
        await system.stop()
        await ticks(2)

        assert isinstance(asker.exception(), ActorStopped)
        with pytest.raises(MailboxClosed):
            system.ref("a").tell("late")
        assert await system.stop() == StopReport(abandoned=(), late=())
        with pytest.raises(ActorStopped):
            await system.restart("a", "too late")


@virtual
async def test_drain_is_acknowledged_and_may_close() -> None:
    """A call, not a cast; a paused actor is resumed for it; the deadline is kept."""
    diary: list[Any] = []

    async def slow(actor: Scripted, message: int) -> None:
        await asyncio.sleep(1)
        actor.diary.append(message)

    async with running(child("a", lambda: Scripted(slow, diary))) as system:
        system.pause("a", max_s=60, by="ops")
        for number in range(3):
            system.ref("a").tell(number)

        assert not await system.drain("a", timeout_s=1.5)
        assert await system.drain("a", timeout_s=5, close=True)
        assert diary == [0, 1, 2]
        assert ActorState.DRAINING is system.tree().children[0].state
        with pytest.raises(MailboxClosed):
            system.ref("a").tell("late")
    assert await system.drain("a", timeout_s=1)


@virtual
async def test_a_drain_survives_a_crash_of_the_actor() -> None:
    """The next instance goes on with it."""
    diary: list[Any] = []
    async with running(child("a", lambda: Scripted(diary=diary))) as system:
        for message in ("one", "crash", "two"):
            system.ref("a").tell(message)

        assert await system.drain("a", timeout_s=5)
        assert [entry for entry in diary if entry in ("one", "two")] == ["one", "two"]


@virtual
async def test_messages_that_arrive_during_a_drain_do_not_delay_it_for_ever() -> None:
    """It covers what was accepted before it."""

    async def feed_itself(actor: Scripted, message: int) -> None:
        actor.ctx.ref.tell(message + 1)
        await asyncio.sleep(1)

    async with running(child("a", lambda: Scripted(feed_itself))) as system:
        system.ref("a").tell(0)
        await settle()

        assert await system.drain("a", timeout_s=10)


def test_a_spec_reports_all_its_problems_in_one_error() -> None:
    """Validated at construction."""
    with pytest.raises(ValueError, match="capacity") as caught:
        ChildSpec(
            "",
            Scripted,
            capacity=0,
            overflow=Overflow.DROP_OLDEST,
            batch=Batch(2),
            start_timeout_s=0,
            drain_timeout_s=-1,
            stuck_action="explode",  # type: ignore[arg-type]
        )

    for word in ("id", "lossy", "batch", "start_timeout_s", "drain_timeout_s", "stuck_action"):
        assert word in str(caught.value)
    with pytest.raises(ValueError, match="batch"):
        Batch(0)
    with pytest.raises(ValueError, match="'a' is used twice"):
        supervisor(child("a"), SupervisorSpec("inner", supervisor().strategy, (child("a"),)))


@virtual
async def test_a_stop_in_the_middle_of_a_message_waits_no_longer_than_its_grace() -> None:
    """Then the handler is cancelled and its asker told."""

    async def slow(_actor: Scripted, _message: Any) -> None:
        await asyncio.sleep(1000)

    async with running(child("a", lambda: Scripted(slow), drain_timeout_s=3)) as system:
        asker = asyncio.create_task(system.ref("a").ask("x", timeout_s=2000))
        await settle()
        report = await system.stop()
        await advance(0)

        assert isinstance(asker.exception(), ActorStopped)
    assert report.late == ("a",)
    assert now() == 3


@virtual
async def test_a_goodbye_that_ignores_its_time_limit_is_abandoned() -> None:
    """Tasks, on_stop and closing have the limit each; after the three of them nobody waits any more."""
    let_go = asyncio.Event()

    class Clinging(Scripted):
        async def on_stop(self, reason: ExitReason) -> None:
            while not let_go.is_set():
                with suppress(asyncio.CancelledError):
                    await let_go.wait()

    async with running(child("a"), child("b", Clinging, shutdown_timeout_s=2)) as system:
        report = await system.stop()

        assert report == StopReport(abandoned=("b",), late=())
        assert now() == 6
        assert system.stack("b") != ()
        let_go.set()
        await settle()
        assert system.stack("b") == ()


@virtual
async def test_a_stop_that_finds_the_system_lane_full_still_ends_the_actor() -> None:
    """The command cannot be delivered, so the run is cut off."""

    async def slow(_actor: Scripted, _message: Any) -> None:
        await asyncio.sleep(1000)

    async with running(child("a", lambda: Scripted(slow))) as system:
        system.ref("a").tell("x")
        await settle()
        for _ in range(1024):
            system.root.children["a"].mailbox.tell_system("x")  # type: ignore[union-attr]
        await system.stop()

        assert now() == 0
        assert system.tree().children[0].exit_reason == "crashed"


@virtual
async def test_a_drain_that_meets_a_stop_is_not_acknowledged() -> None:
    """It ends with the actor, not at its own time limit."""

    async def slow(_actor: Scripted, _message: Any) -> None:
        await asyncio.sleep(1000)

    async with running(child("a", lambda: Scripted(slow))) as system:
        system.ref("a").tell("x")
        draining = asyncio.create_task(system.drain("a", timeout_s=500))
        await settle()
        await system.stop(grace_s=0)

        assert not await draining
        assert now() == 0


@virtual
async def test_two_drains_at_once_are_acknowledged_together() -> None:
    """The later one moves the target."""
    diary: list[Any] = []

    async def slow(actor: Scripted, message: int) -> None:
        await asyncio.sleep(1)
        actor.diary.append(message)

    async with running(child("a", lambda: Scripted(slow, diary))) as system:
        system.ref("a").tell(1)
        first = asyncio.create_task(system.drain("a", timeout_s=10))
        await settle()
        system.ref("a").tell(2)

        assert await system.drain("a", timeout_s=10)
        assert await first
        assert diary == [1, 2]

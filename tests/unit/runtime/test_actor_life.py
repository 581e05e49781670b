"""Actor: start, stop, drain, crash (LC-01 to LC-11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from payflow.actor import ExitReason
from payflow.core.restart import RestartType, Strategy
from payflow.errors import StartFailed
from payflow.supervisor import ActorState
from tests.support.actors import Events, Scripted, Starter, child, factories, make_system, running, supervisor
from tests.support.virtual_loop import advance, settle, virtual


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_lc_01_no_message_is_handled_before_on_start_returned() -> None:
    """A message may be sent before the start; the mailbox belongs to the place, not to the object."""
    diary: list[Any] = []

    async def slow_start(actor: Starter, _stack: AsyncExitStack) -> None:
        await asyncio.sleep(0.2)
        actor.diary.append("started")

    system = make_system(supervisor(child("a", lambda: Starter(slow_start, diary))))
    system.ref("a").tell("message")
    starting = asyncio.create_task(system.start())
    await settle()
    states = [system.tree().children[0].state]
    await advance(0.3)
    states.append(system.tree().children[0].state)

    assert diary == ["started", "message"]
    assert states == [ActorState.STARTING, ActorState.RUNNING]
    await starting
    await system.stop()


@virtual
async def test_lc_02_on_start_that_fails_closes_what_it_opened_and_calls_no_on_stop() -> None:
    """In reverse order; the error carries the cause."""
    diary: list[Any] = []

    @asynccontextmanager
    async def resource(name: str) -> AsyncIterator[None]:
        diary.append(f"open {name}")
        try:
            yield
        finally:
            diary.append(f"close {name}")

    async def failing(_actor: Starter, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(resource("first"))
        await stack.enter_async_context(resource("second"))
        raise OSError("no such port")

    system = make_system(supervisor(child("a", lambda: Starter(failing, diary))))

    with pytest.raises(StartFailed) as caught:
        await system.start()

    assert diary == ["open first", "open second", "close second", "close first"]
    assert isinstance(caught.value.__cause__, OSError)
    await system.stop()


@pytest.mark.parametrize("reason", [ExitReason.NORMAL, ExitReason.SHUTDOWN, ExitReason.CRASHED, ExitReason.STUCK])
@virtual
async def test_lc_03_on_stop_runs_once_whatever_the_reason(reason: ExitReason) -> None:
    """With the right reason."""
    diary: list[Any] = []

    async def hang(_actor: Scripted, _message: Any) -> None:
        await asyncio.sleep(1000)

    handler = hang if reason is ExitReason.STUCK else None
    spec = child(
        "a",
        lambda: Scripted(handler, diary),
        restart=RestartType.TEMPORARY,
        handler_timeout_s=5,
        stuck_action="restart",
    )
    async with running(spec) as system:
        if reason is not ExitReason.SHUTDOWN:
            message = {"normal": "stop", "crashed": "crash", "stuck": "hang"}[reason]
            system.ref("a").tell(message)
        await advance(10)

    assert [reason] == diary


@virtual
async def test_on_stop_and_closing_have_their_own_time_limit() -> None:
    """A goodbye that hangs or fails is reported and does not keep the rest from running."""
    events, diary = Events(), []

    class Clinging(Scripted):
        async def on_start(self, stack: AsyncExitStack) -> None:
            stack.callback(diary.append, "closed")

        async def on_stop(self, reason: ExitReason) -> None:
            await asyncio.sleep(1000)

    async with running(child("a", Clinging, shutdown_timeout_s=2), events=events) as system:
        report = await system.stop()

    assert now() == 2
    assert [event["step"] for event in events.of("actor.cleanup_failed")] == ["on_stop"]
    assert diary == ["closed"]
    assert (report.late, report.abandoned) == ((), ())


@virtual
async def test_lc_04_a_handler_is_not_interrupted_by_a_graceful_stop() -> None:
    """It finishes, its reply is delivered, then the actor stops."""
    events = Events()

    async def slow(_actor: Scripted, message: str) -> str:
        await asyncio.sleep(2)
        return message

    async with running(child("a", lambda: Scripted(slow)), events=events) as system:
        asker = asyncio.create_task(system.ref("a").ask("x", timeout_s=10))
        await asyncio.sleep(1)
        report = await system.stop()

        assert await asker == "x"
    assert now() == 2
    assert report.late == ()
    assert [event["reason"] for event in events.of("actor.stopped")] == ["shutdown"]


@virtual
async def test_lc_05_drain_handles_what_was_accepted_before_the_stop() -> None:
    """Nothing in dead letters, and on_drain ran after the last message."""
    events, diary = Events(), []

    class Draining(Scripted):
        async def on_drain(self) -> None:
            self.diary.append("drained")

    async with running(child("a", lambda: Draining(diary=diary)), events=events) as system:
        for number in (1, 2, 3):
            system.ref("a").tell(number)
        await system.stop(drain=True, grace_s=5)

        assert diary == [1, 2, 3, "drained", ExitReason.SHUTDOWN]
        assert system.dead_letters() == ()
    assert [event["reason"] for event in events.of("actor.stopped")] == ["shutdown"]


@virtual
async def test_lc_06_a_drain_that_runs_out_of_time_becomes_an_abort_with_a_list_of_what_was_left() -> None:
    """Three handled, the fourth cut off, six never begun."""
    events, diary = Events(), []

    async def second_each(actor: Scripted, message: int) -> None:
        await asyncio.sleep(1)
        actor.diary.append(message)

    async with running(child("a", lambda: Scripted(second_each, diary)), events=events) as system:
        for number in range(10):
            system.ref("a").tell(number)
        report = await system.stop(drain=True, grace_s=3.5)

        assert diary == [0, 1, 2, ExitReason.KILLED]
        assert [letter.reason for letter in system.dead_letters()] == ["closed"] * 7
        assert list(range(4, 11)) == [letter.seq for letter in system.dead_letters()]
    assert [event["left"] for event in events.of("actor.drain_timeout")] == [7]
    assert [event["reason"] for event in events.of("actor.stopped")] == ["killed"]
    assert report.late == ("a",)
    assert now() == 3.5


@virtual
async def test_lc_07_the_rest_of_the_mailbox_survives_a_restart_the_poison_message_does_not() -> None:
    """One dead letter with the last line of the traceback."""
    diary: list[Any] = []
    async with running(child("a", lambda: Scripted(diary=diary))) as system:
        for message in ("ok1", "crash", "ok2"):
            system.ref("a").tell(message)
        await advance(1)

        assert diary == ["ok1", ExitReason.CRASHED, "ok2"]
        assert [(d.reason, d.detail) for d in system.dead_letters()] == [("poison", "RuntimeError: crash")]
        assert system.tree().children[0].restarts_total == 1


@virtual
async def test_lc_08_a_fresh_instance_starts_with_fresh_state() -> None:
    """The factory is called again; nothing of the old object is reachable from the new one."""
    made: list[Counter] = []

    class Counter(Scripted):
        def __init__(self) -> None:
            super().__init__()
            self.n = 0
            made.append(self)

        async def handle(self, message: Any) -> int:
            self.n += 1
            if self.n == 3 and len(made) == 1:
                raise RuntimeError("third")
            return self.n

    async with running(child("a", Counter)) as system:
        for _ in range(3):
            system.ref("a").tell("count")
        await advance(1)

        answers = [await system.ref("a").ask("count", timeout_s=1) for _ in range(2)]

        assert answers == [1, 2]
        assert len(made) == 2
        assert made[0].ctx.work is not made[1].ctx.work
        assert (made[0].ctx.instance, made[1].ctx.instance) == (1, 2)


class Oddity(BaseException):
    """Neither an Exception nor one of Python's own ways to end."""


@pytest.mark.parametrize("error", [RuntimeError, Oddity])
@virtual
async def test_lc_09_base_exceptions_are_crashes(error: type[BaseException]) -> None:
    """KeyboardInterrupt and SystemExit stop the system instead: the next test."""

    async def fail(_actor: Scripted, _message: Any) -> None:
        raise error("boom")

    async with running(child("a", lambda: Scripted(fail))) as system:
        system.ref("a").tell("x")
        await advance(1)

        assert system.tree().children[0].instance == 2
        assert not system.escalated.done()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@virtual
async def test_an_interrupt_inside_a_handler_asks_for_a_coordinated_shutdown(error: type[BaseException]) -> None:
    """The process entry turns KeyboardInterrupt into 130. The loop is not torn down under the other actors."""

    async def fail(_actor: Scripted, _message: Any) -> None:
        raise error

    async with running(child("a", lambda: Scripted(fail)), child("b")) as system:
        system.ref("a").tell("x")
        await advance(1)

        assert error is type(await system.escalated)
        assert ActorState.RUNNING is system.tree().children[1].state
        assert ActorState.FAILED is system.tree().children[0].state


@virtual
async def test_lc_10_a_cancelled_error_raised_by_the_handlers_own_code_is_a_crash_not_a_stop() -> None:
    """The actor does not vanish silently."""
    events = Events()

    async def await_cancelled(_actor: Scripted, _message: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async with running(child("a", lambda: Scripted(await_cancelled)), events=events) as system:
        system.ref("a").tell("x")
        await advance(1)

        assert [event["reason"] for event in events.of("actor.crashed")] == ["crashed"]
        assert system.tree().children[0].instance == 2


@virtual
async def test_lc_11_a_stop_meant_for_the_old_instance_does_not_stop_the_new_one() -> None:
    """b crashes in the tick in which the group restart has put a stop into its system lane: the stop stays unread."""
    group_restart = asyncio.Event()

    class Signalling(Events):
        def __call__(self, event: str, **fields: Any) -> None:
            super().__call__(event, **fields)
            if event == "actor.restarting":  # the supervisor tells b to stop in this very step
                group_restart.set()

    async def crash_then(_actor: Scripted, message: str) -> None:
        await group_restart.wait()
        raise RuntimeError(message)

    events = Signalling()
    children = child("a"), child("b", lambda: Scripted(crash_then))
    async with running(*children, strategy=Strategy.ONE_FOR_ALL, events=events) as system:
        system.ref("b").tell("x")
        await settle()
        system.ref("a").tell("crash")
        await advance(1)

        assert events.lives() == ["start a", "start b", "crash a", "crash b", "start a", "start b"]
        assert [node.instance for node in system.tree().children] == [2, 2]
        assert [node.state for node in system.tree().children] == [ActorState.RUNNING] * 2


@virtual
async def test_a_cancellation_from_outside_ends_the_run_and_is_not_swallowed() -> None:
    """Whoever cancels the task of an actor sees it end; the supervisor starts the next one."""
    async with running(child("a")) as system:
        task = next(task for task in asyncio.all_tasks() if task.get_name() == "actor:a#1")

        task.cancel()
        await advance(1)

        assert task.cancelled()
        assert (system.tree().children[0].instance, system.tree().children[0].exit_reason) == (2, "killed")


@virtual
async def test_a_handler_that_swallows_its_cancellation_and_returns_ends_before_the_next_message() -> None:
    """The kill also travels as a command."""
    diary: list[Any] = []

    async def stubborn(actor: Scripted, message: int) -> None:
        actor.diary.append(message)
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)

    async with running(child("a", lambda: Scripted(stubborn, diary))) as system:
        system.ref("a").tell(1)
        system.ref("a").tell(2)
        await settle()
        report = await system.stop(grace_s=0)

    assert diary == [1, ExitReason.KILLED]
    assert (report.abandoned, report.late) == ((), ("a",))


@virtual
async def test_a_factory_that_fails_is_a_failed_start() -> None:
    """There is no object yet, so there is nothing to say goodbye to."""
    system = make_system(supervisor(child("a", factories())))

    with pytest.raises(StartFailed, match="a did not start"):
        await system.start()
    assert {asyncio.current_task()} == asyncio.all_tasks()

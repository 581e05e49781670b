"""Actor: what the context offers; owned tasks and timers (LC-12)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from payflow.actor import Actor, ExitReason
from payflow.core.restart import RestartType
from payflow.errors import ActorCrashed, MailboxFull
from payflow.mailbox import Overflow
from payflow.supervisor import Batch
from tests.support.actors import Events, Scripted, Starter, child, running
from tests.support.virtual_loop import advance, settle, virtual


def tasks_of(actor_id: str) -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith(f"actor:{actor_id}:")]


class Polling(Scripted):
    """Owns a poll task that ends as it is told."""

    def __init__(self, poll_s: float, diary: list[Any]) -> None:
        super().__init__(diary=diary)
        self.poll_s = poll_s

    async def on_start(self, stack: Any) -> None:
        self.ctx.spawn(self.poll(), name="poll")

    async def poll(self) -> None:
        try:
            await asyncio.sleep(self.poll_s)
            raise OSError("connection lost")
        finally:
            self.diary.append("poll ended")


@virtual
async def test_lc_12_the_failure_of_a_background_task_is_the_crash_of_its_actor() -> None:
    """With the task's exception as the cause."""
    events, diary = Events(), []
    actors = iter([Polling(1, diary), Polling(1000, diary)])
    async with running(child("a", lambda: next(actors)), events=events) as system:
        await advance(1)

        assert [event["error"] for event in events.of("actor.crashed")] == ["OSError: connection lost"]
        assert diary == ["poll ended", ExitReason.CRASHED]
        assert system.tree().children[0].instance == 2


@pytest.mark.parametrize("end", ["stop", "crash"])
@virtual
async def test_background_tasks_are_cancelled_and_awaited_when_their_actor_ends(end: str) -> None:
    """Before the goodbye, so nothing of the old run touches the next one."""
    diary: list[Any] = []
    spec = child("a", lambda: Polling(1000, diary), restart=RestartType.TEMPORARY)
    async with running(spec) as system:
        assert tasks_of("a") == ["actor:a:poll"]

        system.ref("a").tell(end)
        await settle()

        assert tasks_of("a") == []
        assert diary[0] == "poll ended"


@virtual
async def test_a_background_task_that_ignores_cancellation_is_reported() -> None:
    """It cannot hold the next start."""
    events, let_go = Events(), asyncio.Event()

    async def ignore() -> None:
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def spawn(actor: Starter, _stack: Any) -> None:
        actor.ctx.spawn(ignore(), name="deaf")

    async with running(child("a", lambda: Starter(spawn), shutdown_timeout_s=1), events=events) as system:
        await system.stop()

    assert [event["tasks"] for event in events.of("actor.task_abandoned")] == [("actor:a:deaf",)]
    let_go.set()
    await settle()


@virtual
async def test_tell_later_arrives_later_and_is_cancelled_at_stop() -> None:
    """A timer of an old run does not reach the next one."""
    diary: list[Any] = []

    async def handle(actor: Scripted, message: str) -> None:
        actor.diary.append(message)
        if message == "begin":
            actor.ctx.tell_later(1, "tick")
            actor.ctx.tell_later(100, "never")

    async with running(child("a", lambda: Scripted(handle, diary))) as system:
        system.ref("a").tell("begin")
        await advance(2)
        system.ref("a").tell("crash")
        await advance(200)

    assert diary == ["begin", "tick", ExitReason.CRASHED, ExitReason.SHUTDOWN]


@virtual
async def test_a_timer_that_finds_the_mailbox_full_says_so() -> None:
    """There is nobody else who could hear it."""
    events, busy = Events(), asyncio.Event()

    async def handle(actor: Scripted, message: str) -> None:
        actor.ctx.tell_later(1, "tick")
        await busy.wait()

    spec = child("a", lambda: Scripted(handle), capacity=1)
    async with running(spec, events=events) as system:
        system.ref("a").tell("begin")
        await settle()
        system.ref("a").tell("fills the mailbox")
        await advance(2)

        assert [event["message_type"] for event in events.of("actor.timer_refused")] == ["str"]


class Router(Actor):
    """Hands everything on."""

    def __init__(self, target: Any) -> None:
        self.target = target

    async def handle(self, message: Any) -> str:
        try:
            self.ctx.forward(self.target(), message)
        except MailboxFull:
            return "busy"
        return "ignored"


@virtual
async def test_forward_hands_reply_deadline_and_trace_to_another_actor() -> None:
    """The return value of the one who handed it on is ignored; after a refusal it counts."""

    async def answer(actor: Scripted, message: str) -> tuple[str, str | None, bool]:
        envelope = actor.ctx.envelope
        assert envelope is not None
        return message, actor.ctx.trace_id, envelope.deadline is not None

    systems: list[Any] = []
    router = child("router", lambda: Router(lambda: systems[0].ref("worker")))
    worker = child("worker", lambda: Scripted(answer), capacity=1, overflow=Overflow.REJECT)
    async with running(worker, router) as system:
        systems.append(system)

        assert await system.ref("router").ask("m", timeout_s=1, trace_id="trace") == ("m", "trace", True)

        system.pause("worker", max_s=60, by="test")
        system.ref("worker").tell("fills the mailbox")
        assert await system.ref("router").ask("m", timeout_s=1) == "busy"


@virtual
async def test_fail_answers_with_an_error_that_is_no_crash() -> None:
    """The caller gets this very error and the actor goes on."""

    async def refuse(actor: Scripted, message: str) -> None:
        assert actor.ctx.envelope is not None
        actor.ctx.fail(actor.ctx.envelope, ValueError(message))

    async with running(child("a", lambda: Scripted(refuse))) as system:
        with pytest.raises(ValueError, match="no"):
            await system.ref("a").ask("no", timeout_s=1)

        assert system.tree().children[0].instance == 1
        assert system.ref("a").stats().processed_total == 1


@virtual
async def test_an_actor_without_handlers_crashes_on_the_first_message() -> None:
    """A spec with a batch needs handle_batch, one without needs handle."""
    async with running(child("a", Actor), child("b", Actor, batch=Batch(2))) as system:
        for name in ("a", "b"):
            with pytest.raises(ActorCrashed) as caught:
                await system.ref(name).ask("x", timeout_s=1)
            assert isinstance(caught.value.__cause__, NotImplementedError)
        assert (await system.snapshot("a", 1)).value is None


@virtual
async def test_send_through_a_reference_waits_for_room() -> None:
    """In the order of arrival, like everywhere."""
    diary: list[Any] = []
    async with running(child("a", lambda: Scripted(diary=diary), capacity=1)) as system:
        for number in range(5):
            await system.ref("a").send(number)
        assert await system.drain("a", timeout_s=1)

        assert diary == [0, 1, 2, 3, 4]


@virtual
async def test_emit_names_the_actor() -> None:
    """Events of an actor carry its id."""
    events = Events()

    async def report(actor: Scripted, message: str) -> None:
        actor.ctx.emit("payment.accepted", number=message)

    async with running(child("a", lambda: Scripted(report)), events=events) as system:
        await system.ref("a").ask("7", timeout_s=1)

    assert events.of("payment.accepted") == [{"actor": "a", "number": "7"}]


@virtual
async def test_what_was_started_detached_asks_on_nobodys_behalf() -> None:
    """A server started by an actor may ask that actor: its callbacks are not the actor's handler."""

    async def handle(actor: Scripted, message: str) -> str:
        if message == "serve":
            with actor.ctx.detached():
                asyncio.get_running_loop().call_later(1, serve, actor)
        return message

    answers: list[asyncio.Task[str]] = []

    def serve(actor: Scripted) -> None:
        answers.append(asyncio.create_task(actor.ctx.ref.ask("hello", timeout_s=1)))

    async with running(child("a", lambda: Scripted(handle))) as system:
        await system.ref("a").ask("serve", timeout_s=1)
        await advance(2)

        assert await answers[0] == "hello"
        assert repr(system.ref("a")) == "ActorRef('a')"

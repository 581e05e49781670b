"""Mailbox and actor: ask, deadlines, deadlocks (MB-18 to MB-26)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from payflow.actor import ActorRef
from payflow.errors import ActorCrashed, DeadlineExceeded, DeadlockError
from payflow.mailbox import DropReason, Mailbox, Overflow
from tests.support.actors import Events, Scripted, child, running
from tests.support.virtual_loop import advance, settle, ticks, virtual


def now() -> float:
    return asyncio.get_running_loop().time()


async def sleeper(actor: Scripted, message: Any) -> Any:
    """Handle a message that names its own duration."""
    name, duration_s = message
    actor.diary.append(name)
    await asyncio.sleep(duration_s)
    return name


@virtual
async def test_mb_18_ask_returns_the_handlers_reply() -> None:
    """The value that handle returns is the answer."""

    async def increment(_actor: Scripted, message: int) -> int:
        return message + 1

    async with running(child("a", lambda: Scripted(increment))) as system:
        assert await system.ref("a").ask(41, timeout_s=1) == 42


@virtual
async def test_mb_19_ask_has_no_default_timeout() -> None:
    """Every wait has a deadline."""
    with pytest.raises(TypeError):
        Mailbox(1, overflow=Overflow.BLOCK).ask(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        ActorRef("a", Mailbox(1, overflow=Overflow.BLOCK)).ask(1)  # type: ignore[call-arg]


@virtual
async def test_mb_20_one_deadline_covers_enqueue_queueing_and_handling() -> None:
    """0.4 s for room, 0.4 s in the queue, and the handler does not get its own 0.4 s."""
    async with running(child("a", lambda: Scripted(sleeper), capacity=1)) as system:
        ref = system.ref("a")
        ref.tell(("first", 0.4))
        await settle()
        ref.tell(("slow", 0.4))
        with pytest.raises(DeadlineExceeded) as caught:
            await ref.ask(("x", 0.4), timeout_s=1.0)

        assert now() == 1.0
        assert caught.value.stage == "handle"


@virtual
async def test_an_ask_that_never_finds_room_ends_at_its_deadline() -> None:
    """Stage enqueue: it was never accepted."""
    mailbox = Mailbox(1, overflow=Overflow.BLOCK)
    mailbox.tell(1)

    with pytest.raises(DeadlineExceeded) as caught:
        await mailbox.ask(2, timeout_s=0.5)

    assert (caught.value.stage, now()) == ("enqueue", 0.5)


@virtual
async def test_mb_21_an_expired_message_is_skipped_not_handled() -> None:
    """The caller knows at its deadline, the queue skips when it gets there."""
    diary: list[Any] = []
    async with running(child("a", lambda: Scripted(sleeper, diary))) as system:
        ref = system.ref("a")
        ref.tell(("busy", 1.0))
        await settle()

        with pytest.raises(DeadlineExceeded) as caught:
            await ref.ask(("x", 0), timeout_s=0.5)
        failed_at = now()
        await advance(0.6)

        assert (caught.value.stage, failed_at) == ("queue", 0.5)
        assert diary == ["busy"]
        assert ref.stats().dropped_total[DropReason.EXPIRED] == 1
        assert system.dead_letters()[0].reason == "expired"


@virtual
async def test_mb_22_a_late_reply_is_thrown_away_quietly() -> None:
    """Counted, never an InvalidStateError."""
    async with running(child("a", lambda: Scripted(sleeper))) as system:
        with pytest.raises(DeadlineExceeded):
            await system.ref("a").ask(("x", 0.8), timeout_s=0.5)
        failed_at = now()
        await advance(0.5)

        assert failed_at == 0.5
        assert system.ref("a").stats().late_replies_total == 1
        assert system.ref("a").stats().processed_total == 1


@virtual
async def test_mb_23_a_cancelled_caller_abandons_its_message() -> None:
    """Nobody works for a caller who has gone."""
    diary: list[Any] = []
    async with running(child("a", lambda: Scripted(sleeper, diary))) as system:
        ref = system.ref("a")
        ref.tell(("busy", 1.0))
        caller = asyncio.create_task(ref.ask(("x", 0), timeout_s=5))
        await settle()

        caller.cancel()
        await ticks(2)
        assert caller.cancelled()
        await advance(2)

        assert diary == ["busy"]
        assert ref.stats().dropped_total[DropReason.ABANDONED] == 1


@virtual
async def test_mb_24_a_handler_error_reaches_the_caller_with_its_cause() -> None:
    """At once, not at the timeout; the supervisor sees a crash."""
    events = Events()

    async def fail(_actor: Scripted, _message: Any) -> None:
        raise ValueError("bad amount")

    async with running(child("a", lambda: Scripted(fail)), events=events) as system:
        with pytest.raises(ActorCrashed) as caught:
            await system.ref("a").ask(1, timeout_s=30)
        await settle()

        assert now() == 0
        assert isinstance(caught.value.__cause__, ValueError)
        assert [(event["reason"], event["error"]) for event in events.of("actor.crashed")] == [
            ("crashed", "ValueError: bad amount")
        ]


@virtual
async def test_mb_25_an_actor_that_asks_itself_is_refused() -> None:
    """Nothing is enqueued, and it keeps running."""

    async def ask_self(actor: Scripted, message: str) -> str:
        if message == "ping":
            return "pong"
        try:
            await actor.ctx.ref.ask("ping", timeout_s=5)
        except DeadlockError as error:
            return str(error)
        return "no error"

    async with running(child("A", lambda: Scripted(ask_self))) as system:
        ref = system.ref("A")

        assert await ref.ask("trigger", timeout_s=1) == "A -> A"
        assert ref.stats().accepted_total == 1
        assert await ref.ask("ping", timeout_s=1) == "pong"


@virtual
async def test_mb_26_a_cycle_of_asks_is_reported_with_its_path() -> None:
    """The second ask fails inside B; both go on and no ask is left open."""
    refs: dict[str, ActorRef] = {}

    async def in_a(_actor: Scripted, message: str) -> Any:
        return await refs["B"].ask("question", timeout_s=5) if message == "trigger" else message

    async def in_b(_actor: Scripted, message: str) -> Any:
        if message != "question":
            return message
        try:
            return await refs["A"].ask("back", timeout_s=5)
        except DeadlockError as error:
            return error.path

    async with running(child("A", lambda: Scripted(in_a)), child("B", lambda: Scripted(in_b))) as system:
        refs |= {"A": system.ref("A"), "B": system.ref("B")}

        assert await refs["A"].ask("trigger", timeout_s=1) == ("A", "B", "A")
        assert now() == 0
        assert [await ref.ask("hello", timeout_s=1) for ref in refs.values()] == ["hello", "hello"]
        assert [ref.stats().in_flight for ref in refs.values()] == [0, 0]


@virtual
async def test_who_handed_a_message_on_may_be_asked_by_who_got_it() -> None:
    """`forward` waits for nothing, so an ask in the other direction is no deadlock."""
    refs: dict[str, ActorRef] = {}

    async def in_a(actor: Scripted, message: str) -> Any:
        if message != "job":
            return f"answer to {message}"
        actor.ctx.forward(refs["B"], message)
        return "ignored"

    async def in_b(_actor: Scripted, _message: str) -> Any:
        return await refs["A"].ask("detail", timeout_s=1)

    async with running(child("A", lambda: Scripted(in_a)), child("B", lambda: Scripted(in_b))) as system:
        refs |= {"A": system.ref("A"), "B": system.ref("B")}

        assert await refs["A"].ask("job", timeout_s=1) == "answer to detail"

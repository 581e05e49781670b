"""What the debug page sees: tree, mailbox content, state, stack, pause (DB-01, DB-02, DB-04 to DB-06)."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, ClassVar

from payflow.core.backoff import Backoff
from payflow.core.restart import RestartType, Strategy
from payflow.inspection import DEAD_LETTERS_KEPT, Node, SnapshotView, render_text
from payflow.mailbox import Overflow
from payflow.supervisor import ActorState, System
from tests.support.actors import Events, Scripted, child, running, supervisor
from tests.support.virtual_loop import advance, settle, virtual

PATIENT = Backoff(initial_s=2, cap_s=2, jitter=False)


def find(system: System, node_id: str) -> Node:
    return next(node for node in system.tree().walk() if node.id == node_id)


@virtual
async def test_db_01_the_tree_shows_what_is_running_now() -> None:
    """A child that backs off says when it starts; an ended one stays visible with its reason for its grave time."""
    pipeline = supervisor(child("outbox"), child("publisher"), child("consumer"), id="pipeline", backoff=PATIENT)
    registry = child("registry", restart=RestartType.TEMPORARY)
    async with running(child("intake"), pipeline, registry) as system:
        system.ref("registry").tell("stop")
        await asyncio.sleep(10)
        system.ref("publisher").tell("crash")
        await asyncio.sleep(0.5)

        tree = system.tree()
        ids = [node.id for node in tree.walk()]
        publisher, ended = find(system, "publisher"), find(system, "registry")

        assert ids == ["root", "intake", "pipeline", "outbox", "publisher", "consumer", "registry"]
        assert (publisher.state, publisher.next_start_in_s, publisher.since_s) == (ActorState.BACKING_OFF, 1.5, 0.5)
        assert (publisher.last_error, publisher.last_error_age_s) == ("RuntimeError: crash", 0.5)
        assert (ended.state, ended.exit_reason) == (ActorState.STOPPED, "normal")
        assert (tree.kind, tree.strategy, tree.since_s) == ("supervisor", "one_for_one", 10.5)
        assert all(node.mailbox is not None for node in tree.walk() if node.kind == "actor")

        await advance(60)
        assert "registry" not in [node.id for node in system.tree().walk()]


@dataclass(frozen=True)
class PaymentRequested:
    """A message with something to hide."""

    card_token: str
    amount: int
    payment_id: str
    debug_fields: ClassVar[frozenset[str]] = frozenset({"payment_id"})


@dataclass(frozen=True)
class Unlisted:
    """A message that lists nothing."""

    secret: str


@virtual
async def test_db_02_a_peek_shows_envelopes_not_secrets() -> None:
    """Deny by default."""
    async with running(child("a")) as system:
        system.pause("a", max_s=60, by="test")
        asker = asyncio.create_task(
            system.ref("a").ask(PaymentRequested("tok_4242", 977, "p-1"), timeout_s=30, trace_id="t-1")
        )
        await settle()
        system.ref("a").tell(Unlisted("hunter2"))
        system.ref("a").tell(1)
        await asyncio.sleep(2)

        views = system.peek("a", 2)

        first, second = views
        assert (
            first.message_type,
            first.seq,
            first.age_s,
            first.deadline_in_s,
            first.trace_id,
        ) == ("PaymentRequested", 1, 2.0, 28.0, "t-1")
        assert first.fields == {"payment_id": "p-1"}
        assert (second.message_type, second.fields, second.deadline_in_s) == ("Unlisted", {}, None)
        for secret in ("tok_4242", "977", "hunter2"):
            assert secret not in repr(views)
        asker.cancel()


@virtual
async def test_db_04_pause_and_resume_by_hand() -> None:
    """Both leave an event with the caller's name; a pause ends by itself at its maximum."""
    events, diary = Events(), []
    async with running(child("consumer", lambda: Scripted(diary=diary)), events=events) as system:
        system.pause("consumer", max_s=60, by="alice")
        for number in range(10):
            system.ref("consumer").tell(number)
        await advance(5)
        assert diary == []
        node = find(system, "consumer")
        assert (node.state, node.paused_by, node.resumes_in_s) == (ActorState.PAUSED, "alice", 55)

        system.resume("consumer", "bob")
        await settle()
        assert list(range(10)) == diary

        system.pause("consumer", max_s=60, by="alice")
        system.ref("consumer").tell("later")
        await advance(61)
        assert diary[-1] == "later"
        system.resume("consumer", "bob")

    assert [event["by"] for event in events.of("actor.paused")] == ["alice", "alice"]
    assert [event["by"] for event in events.of("actor.resumed")] == ["bob", "timeout"]


class PublishBatch:
    """A message that takes its time."""


@dataclass(frozen=True)
class Count:
    """A snapshot."""

    handled: int


class Counting(Scripted):
    """Publishes how much it has handled."""

    def __init__(self) -> None:
        super().__init__()
        self.handled = 0

    async def handle(self, message: Any) -> None:
        if isinstance(message, PublishBatch):
            await asyncio.sleep(10)
        self.handled += 1

    def snapshot(self) -> Count:
        return Count(self.handled)


@virtual
async def test_db_05_state_is_asked_through_the_system_lane_with_a_deadline() -> None:
    """Fresh from an idle actor, the last published one from a busy one, and still there after its end."""
    async with running(child("a", Counting)) as system:
        assert SnapshotView(Count(0), 0.0) == await system.snapshot("a", 0.5)
        system.ref("a").tell("one")
        await asyncio.sleep(1)
        system.ref("a").tell(PublishBatch())
        await asyncio.sleep(3.7)

        view = await system.snapshot("a", 0.5)

        assert Count(1) == view.value
        assert view.busy == "busy in PublishBatch for 4.2 s"
        assert view.stale_s is not None
        assert 4.1 < view.stale_s < 5.3

        await system.stop(grace_s=0)
        after = await system.snapshot("a", 0.5)
        assert (Count(1), "stopped") == (after.value, after.busy)


@types.coroutine
def old_style() -> Generator[Any, None, None]:
    """A coroutine as it was before async def."""
    yield from asyncio.sleep(1000).__await__()


@virtual
async def test_the_stack_follows_generators_too() -> None:
    """Libraries still have them."""

    async def handle(_actor: Scripted, _message: Any) -> None:
        await old_style()

    async with running(child("a", lambda: Scripted(handle))) as system:
        system.ref("a").tell("x")
        await settle()

        assert system.stack("a")[-1].function == "old_style"


@virtual
async def test_load_and_published_are_cheap_looks() -> None:
    """Depth, capacity and age without the histograms; the last published snapshot without waiting."""
    async with running(child("a", Counting)) as system:
        await settle()
        assert system.published("a") == Count(0)
        system.pause("a", max_s=60, by="test")
        system.ref("a").tell(1)
        await asyncio.sleep(2)

        assert system.ref("a").load() == (1, 64, 2)


class Breaker:
    """Stands between."""

    async def call(self, producer: Producer) -> None:
        await producer.send()


class Producer:
    """Waits."""

    async def send(self) -> None:
        await asyncio.sleep(1000)


class Publishing(Scripted):
    """Handles through two layers."""

    async def handle(self, message: Any) -> None:
        secret = "tok_4242"
        await Breaker().call(Producer())
        del secret


@virtual
async def test_db_06_the_stack_of_a_waiting_handler_is_the_coroutine_chain() -> None:
    """Own frames only, innermost last, no variables."""
    async with running(child("a", Publishing)) as system:
        assert all(frame.function.startswith("Mailbox.") for frame in system.stack("a"))  # waits for mail
        system.ref("a").tell("x")
        await settle()

        stack = system.stack("a")

        assert [frame.function for frame in stack] == ["Publishing.handle", "Breaker.call", "Producer.send"]
        assert all(frame.file.endswith("test_inspection.py") and frame.line for frame in stack)
        assert "tok_4242" not in repr(stack)


@virtual
async def test_dead_letters_are_a_ring_without_payloads() -> None:
    """The newest five hundred."""
    spec = child("a", capacity=1, overflow=Overflow.DROP_OLDEST, lossy=True)
    async with running(spec) as system:
        system.pause("a", max_s=60, by="test")
        for number in range(DEAD_LETTERS_KEPT + 11):
            system.ref("a").tell(Unlisted(f"secret {number}"), trace_id=f"t{number}")

        letters = system.dead_letters()

        assert len(letters) == DEAD_LETTERS_KEPT
        assert (
            letters[-1].actor,
            letters[-1].message_type,
            letters[-1].reason,
            letters[-1].trace_id,
        ) == ("a", "Unlisted", "overflow", "t509")
        assert "secret" not in repr(letters)


@virtual
async def test_the_text_view_draws_the_tree_with_depth_bars() -> None:
    """One line per node; what an operator asks first stands at its end."""

    async def work(_actor: Scripted, _message: Any) -> None:
        await asyncio.sleep(1000)

    async def fail(_actor: Scripted, message: Any) -> None:
        raise ValueError(message)

    pipeline = supervisor(
        child("outbox", capacity=16),
        child("publisher", lambda: Scripted(fail), capacity=8),
        child("consumer"),
        child("intake", lambda: Scripted(work), handler_timeout_s=30),
        id="pipeline",
        strategy=Strategy.ONE_FOR_ONE,
        backoff=PATIENT,
    )
    async with running(pipeline, child("ended", restart=RestartType.TEMPORARY)) as system:
        await asyncio.sleep(8000)
        system.ref("ended").tell("stop")
        system.ref("publisher").tell("x")
        system.pause("consumer", max_s=60, by="ops")
        system.ref("intake").tell("x")
        await settle()
        system.pause("outbox", max_s=60, by="ops")
        for number in range(3):
            system.ref("outbox").tell(number)
            system.ref("publisher").tell(number)
        await asyncio.sleep(1.3)

        early = render_text(system.tree())
        await asyncio.sleep(31)
        late = render_text(system.tree())

    assert early.splitlines() == [
        "root            one_for_one   running   up 2h13m     restarts 0/5 (last: ended normal 1s ago)",
        "├─ pipeline     one_for_one   running   up 2h13m     restarts 1/5 (last: publisher ValueError: x 1s ago)",
        "│  ├─ outbox                  paused    mbox █▌       3/16       age 1.3s  paused by ops (auto-resume 59s)",
        (
            "│  ├─ publisher               BACKING   mbox ███      3/8        age 1.3s"
            "  start in 0.7s (last: ValueError: x 1s ago)"
        ),
        "│  ├─ consumer                paused    mbox          0/64       age 0.0s  paused by ops (auto-resume 59s)",
        "│  └─ intake                  running   mbox          0/64       age 0.0s  busy in str 1.3s",
        "└─ ended                      stopped   mbox          0/64       age 0.0s  ended normal",
    ]
    assert "STUCK in str 32.3s" in late

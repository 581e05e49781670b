"""Mailbox and actor loop: batches and fairness (MB-32 to MB-37)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest

from payflow.actor import Actor, ActorRef
from payflow.envelope import Envelope
from payflow.errors import ActorCrashed, DeadlockError, MailboxClosed
from payflow.mailbox import DropReason, Mailbox, Overflow
from payflow.supervisor import Batch
from tests.support.actors import Scripted, child, running
from tests.support.virtual_loop import advance, real, settle, ticks, virtual


def payloads(batch: Sequence[Envelope]) -> list[Any]:
    return [envelope.payload for envelope in batch]


def filled(*messages: Any, capacity: int = 100) -> Mailbox:
    mailbox = Mailbox(capacity, overflow=Overflow.BLOCK)
    for message in messages:
        mailbox.tell(message)
    return mailbox


@virtual
async def test_mb_32_a_batch_takes_what_is_there_and_does_not_wait_to_be_full() -> None:
    """Parked senders get the room."""
    mailbox = filled(1, 2, 3, capacity=3)
    senders = [asyncio.create_task(mailbox.send(number)) for number in (4, 5, 6)]
    await settle()

    batch = await mailbox.receive_batch(3, 0)

    assert payloads(batch) == [1, 2, 3]
    assert (mailbox.stats().blocked_senders, mailbox.stats().depth) == (0, 3)
    for sender in senders:
        await sender


@virtual
async def test_mb_33_linger_closes_on_size_or_on_time_whichever_is_first() -> None:
    """The time counts from the first message."""
    mailbox = filled()
    receiver = asyncio.create_task(mailbox.receive_batch(3, 0.2))
    await settle()
    mailbox.tell(1)
    await asyncio.sleep(0.1)
    mailbox.tell(2)

    batch = await receiver
    closed_at = asyncio.get_running_loop().time()

    assert payloads(batch) == [1, 2]
    assert closed_at == 0.2
    by_size = asyncio.create_task(mailbox.receive_batch(2, 60))
    await settle()
    mailbox.tell(3)
    await settle()
    mailbox.tell(4)
    await settle()
    assert by_size.done()


@virtual
async def test_mb_34_a_system_message_cuts_a_lingering_batch_short() -> None:
    """The batch is handed out at once, the command comes next."""
    mailbox = filled(1, 2)
    receiver = asyncio.create_task(mailbox.receive_batch(100, 5))
    await settle()

    mailbox.tell_system("drain")
    batch = await receiver
    _, command = await mailbox.receive()

    assert payloads(batch) == [1, 2]
    assert command.payload == "drain"
    assert asyncio.get_running_loop().time() == 0


@virtual
async def test_a_command_that_waits_already_comes_before_a_batch() -> None:
    """The empty batch tells the receiver to look at the system lane."""
    mailbox = filled(1)
    mailbox.tell_system("drain")

    assert await mailbox.receive_batch(10, 0) == []


@virtual
async def test_mb_35_cancelling_a_lingering_batch_puts_it_back() -> None:
    """It never took anything: order and age are untouched. A batch larger than the mailbox is a mistake."""
    mailbox = filled(1)
    await asyncio.sleep(1)
    mailbox.tell(2)
    receiver = asyncio.create_task(mailbox.receive_batch(100, 50))
    await settle()

    receiver.cancel()
    await ticks(2)
    envelopes = [(await mailbox.receive())[1] for _ in range(2)]

    assert [(envelope.payload, envelope.enqueued_at) for envelope in envelopes] == [(1, 0), (2, 1)]
    with pytest.raises(AssertionError):
        await mailbox.receive_batch(101, 0)


@virtual
async def test_a_batch_leaves_out_what_expired_and_waits_for_something_worth_handling() -> None:
    """Expired messages alone make no batch; close ends the wait."""
    mailbox = filled()
    await mailbox.send(1, deadline=1)
    await asyncio.sleep(2)
    receiver = asyncio.create_task(mailbox.receive_batch(10, 0))
    await settle()
    assert not receiver.done()
    assert mailbox.stats().dropped_total[DropReason.EXPIRED] == 1

    mailbox.close("shutdown")

    with pytest.raises(MailboxClosed):
        await receiver


@virtual
async def test_a_paused_mailbox_hands_out_no_batch() -> None:
    """Resume does."""
    mailbox = filled(1)
    mailbox.pause()
    receiver = asyncio.create_task(mailbox.receive_batch(10, 0))
    await advance(5)
    assert not receiver.done()

    mailbox.resume()

    assert payloads(await receiver) == [1]


class Grouper(Actor):
    """Answers every other envelope itself; a batch with "crash" in it crashes after that."""

    def __init__(self, groups: list[list[Any]]) -> None:
        self.groups = groups

    async def handle_batch(self, batch: Sequence[Envelope]) -> None:
        self.groups.append(payloads(batch))
        for envelope in batch[::2]:
            self.ctx.reply(envelope, envelope.payload * 2)
        if "crash" in payloads(batch):
            raise RuntimeError("crash")


@virtual
async def test_an_actor_with_a_batch_spec_gets_batches_and_answers_in_them() -> None:
    """Answered ones get their value, the rest get None; all count as processed when the batch returns."""
    groups: list[list[Any]] = []
    spec = child("a", lambda: Grouper(groups), batch=Batch(max_items=4))
    async with running(spec) as system:
        ref = system.ref("a")
        asks = [asyncio.create_task(ref.ask(number, timeout_s=1)) for number in range(6)]
        await settle()

        assert [await ask for ask in asks] == [0, None, 4, None, 8, None]
        assert groups == [[0, 1, 2, 3], [4, 5]]
        assert ref.stats().processed_total == 6
        assert await system.drain("a", timeout_s=1)


@virtual
async def test_a_crash_in_a_batch_poisons_only_what_was_not_answered() -> None:
    """Answered early means processed."""
    async with running(child("a", lambda: Grouper([]), batch=Batch(max_items=4))) as system:
        ref = system.ref("a")
        asks = [asyncio.create_task(ref.ask(message, timeout_s=1)) for message in ("fine", "crash")]
        await settle()

        assert await asks[0] == "finefine"
        with pytest.raises(ActorCrashed):
            await asks[1]
        assert [letter.reason for letter in system.dead_letters()] == ["poison"]
        assert (ref.stats().processed_total, ref.stats().dropped_total[DropReason.POISON]) == (1, 1)


@virtual
async def test_a_batch_handler_that_asks_one_of_its_askers_is_refused() -> None:
    """Everybody whose message is in the batch is waiting."""
    refs: list[ActorRef] = []

    class Asking(Actor):
        async def handle_batch(self, batch: Sequence[Envelope]) -> None:
            try:
                await refs[0].ask("back", timeout_s=5)
            except DeadlockError as error:
                self.ctx.reply(batch[0], error.path)
                self.ctx.reply(batch[0], "the first answer counts")

    async def front(_actor: Scripted, _message: Any) -> Any:
        return await refs[1].ask("question", timeout_s=5)

    children = child("front", lambda: Scripted(front)), child("batching", Asking, batch=Batch(8))
    async with running(*children) as system:
        refs += [system.ref("front"), system.ref("batching")]

        assert await refs[0].ask("go", timeout_s=1) == ("front", "batching", "front")


@virtual
async def test_batches_leave_the_loop_its_turns_and_end_with_the_actor() -> None:
    """The budget counts messages, not batches; a stop is obeyed between two of them."""
    sizes: list[int] = []
    turns: list[int] = []

    class Sizes(Actor):
        async def handle_batch(self, batch: Sequence[Envelope]) -> None:
            sizes.append(len(batch))
            if len(sizes) == 6:
                self.ctx.stop()

    async with running(child("a", Sizes, capacity=1000, batch=Batch(32)), max_restarts=0) as system:
        for number in range(500):
            system.ref("a").tell(number)
        while len(sizes) < 6:
            turns.append(len(sizes))
            await asyncio.sleep(0)
        await settle()

        assert sizes == [32] * 6
        assert max(after - before for before, after in pairwise(turns)) <= 2


@virtual
async def test_an_abandoned_batch_is_settled_once() -> None:
    """What it does after that touches nothing."""
    let_go = asyncio.Event()

    class Deaf(Actor):
        async def handle_batch(self, batch: Sequence[Envelope]) -> None:
            while not let_go.is_set():
                with suppress(asyncio.CancelledError):
                    await let_go.wait()

    spec = child("a", Deaf, batch=Batch(8), handler_timeout_s=1, stuck_action="restart", shutdown_timeout_s=1)
    async with running(spec) as system:
        asks = [asyncio.create_task(system.ref("a").ask(number, timeout_s=60)) for number in range(3)]
        await advance(5)
        let_go.set()
        await settle()

        assert [type(ask.exception()) for ask in asks] == [ActorCrashed] * 3
        stats = system.ref("a").stats()
        assert (stats.accepted_total, stats.processed_total, stats.in_flight) == (3, 0, 0)
        assert stats.dropped_total[DropReason.POISON] == 3


async def turns_of(actor: Scripted, handled: list[int]) -> list[int]:
    """Count the messages handled between two turns of a probe while a backlog is worked off."""
    steps = []
    seen = 0
    while len(handled) < actor.diary[0]:
        await asyncio.sleep(0)
        steps.append(len(handled) - seen)
        seen = len(handled)
    return steps


async def probe(messages: int, burn_s: float) -> list[int]:
    handled: list[int] = []

    async def burn(_actor: Scripted, message: int) -> None:
        ends_at = time.perf_counter() + burn_s
        while time.perf_counter() < ends_at:
            pass
        handled.append(message)

    actor = Scripted(burn, diary=[messages])
    async with running(child("a", lambda: actor, capacity=messages)) as system:
        system.pause("a", max_s=60, by="test")
        for number in range(messages):
            system.ref("a").tell(number)
        system.resume("a", by="test")
        return await turns_of(actor, handled)


@real
async def test_mb_36_a_busy_actor_may_not_freeze_the_loop() -> None:
    """Never more than 64 messages between two turns of the probe; 10,000 show it as well as the 50,000 of the case."""
    steps = await probe(messages=10_000, burn_s=20e-6)

    assert max(steps) <= 64


@real
async def test_mb_37_the_yield_budget_counts_time_as_well_as_messages() -> None:
    """A handler of 5 ms leaves a turn to others after every message."""
    steps = await probe(messages=10, burn_s=0.005)

    assert max(steps) == 1

"""Mailbox and actor loop: batches and fairness (MB-32 to MB-37)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from payflow.actor import Actor
from payflow.envelope import Envelope
from payflow.errors import ActorCrashed, MailboxClosed
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

    assert [1, 2, 3] == payloads(batch)
    assert (0, 3) == (mailbox.stats().blocked_senders, mailbox.stats().depth)
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

    assert [1, 2] == payloads(batch)
    assert 0.2 == closed_at
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

    assert [1, 2] == payloads(batch)
    assert "drain" == command.payload
    assert 0 == asyncio.get_running_loop().time()


@virtual
async def test_a_command_that_waits_already_comes_before_a_batch() -> None:
    """The empty batch tells the receiver to look at the system lane."""
    mailbox = filled(1)
    mailbox.tell_system("drain")

    assert [] == await mailbox.receive_batch(10, 0)


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

    assert [(1, 0), (2, 1)] == [(envelope.payload, envelope.enqueued_at) for envelope in envelopes]
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
    assert 1 == mailbox.stats().dropped_total[DropReason.EXPIRED]

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

    assert [1] == payloads(await receiver)


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

        assert [0, None, 4, None, 8, None] == [await ask for ask in asks]
        assert [[0, 1, 2, 3], [4, 5]] == groups
        assert 6 == ref.stats().processed_total
        assert await system.drain("a", timeout_s=1)


@virtual
async def test_a_crash_in_a_batch_poisons_only_what_was_not_answered() -> None:
    """Answered early means processed."""
    async with running(child("a", lambda: Grouper([]), batch=Batch(max_items=4))) as system:
        ref = system.ref("a")
        asks = [asyncio.create_task(ref.ask(message, timeout_s=1)) for message in ("fine", "crash")]
        await settle()

        assert "finefine" == await asks[0]
        with pytest.raises(ActorCrashed):
            await asks[1]
        assert ["poison"] == [letter.reason for letter in system.dead_letters()]
        assert (1, 1) == (ref.stats().processed_total, ref.stats().dropped_total[DropReason.POISON])


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

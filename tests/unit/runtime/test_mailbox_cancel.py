"""Mailbox: cancellation loses nothing and leaves nothing behind (MB-27 to MB-31)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from payflow.mailbox import DropReason, Mailbox, Overflow
from tests.support.actors import Scripted, child, running
from tests.support.virtual_loop import real, settle, ticks, virtual


async def take(mailbox: Mailbox) -> Any:
    _, envelope = await mailbox.receive()
    mailbox.done(envelope)
    return envelope.payload


def full_of_one() -> Mailbox:
    mailbox = Mailbox(1, overflow=Overflow.BLOCK)
    mailbox.tell(1)
    return mailbox


@virtual
async def test_mb_27_cancelling_a_blocked_sender_never_delivers_its_message() -> None:
    """Parked and cancelled: it has never been there."""
    mailbox = full_of_one()
    sender = asyncio.create_task(mailbox.send(2))
    await settle()

    sender.cancel()
    first = await take(mailbox)
    await ticks(3)
    mailbox.tell(3)

    assert [first, await take(mailbox)] == [1, 3]
    assert sender.cancelled()
    assert (mailbox.stats().blocked_senders, mailbox.stats().dropped_total[DropReason.ABANDONED]) == (0, 0)


@virtual
async def test_mb_28_cancel_lands_in_the_tick_in_which_room_was_made() -> None:
    """Accepted and then taken back: the place goes to the next sender, who is never stuck."""
    mailbox = full_of_one()
    first, second = asyncio.create_task(mailbox.send(2)), asyncio.create_task(mailbox.send(3))
    await settle()

    received = await take(mailbox)
    first.cancel()
    await ticks(3)

    assert [received, await take(mailbox)] == [1, 3]
    await second
    assert first.cancelled()
    assert mailbox.stats().dropped_total[DropReason.ABANDONED] == 1


@virtual
async def test_a_send_that_was_already_taken_counts_as_done() -> None:
    """The cancellation is still raised, but the message is in the receiver's hand."""
    mailbox = full_of_one()
    sender = asyncio.create_task(mailbox.send(2))
    await settle()

    received = [await take(mailbox), await take(mailbox)]
    sender.cancel()
    await ticks(2)

    assert received == [1, 2]
    assert sender.cancelled()
    assert mailbox.stats().processed_total == 2


@virtual
async def test_mb_29_cancelling_a_receiver_loses_nothing() -> None:
    """The wake-up carried no message."""
    mailbox = Mailbox(4, overflow=Overflow.BLOCK)
    receiver = asyncio.create_task(mailbox.receive())
    await settle()

    mailbox.tell(1)
    receiver.cancel()
    await ticks(2)

    assert receiver.cancelled()
    assert await take(mailbox) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@real
async def test_mb_30_receive_with_a_timeout_cannot_swallow_a_cancellation(count: int) -> None:
    """On 3.11 wait_for returned the item and dropped the cancel for 0, 1 and 2 ticks."""
    mailbox = Mailbox(4, overflow=Overflow.BLOCK)
    handled: list[Any] = []

    async def actor() -> None:
        while True:
            async with asyncio.timeout(10):
                handled.append(await take(mailbox))

    task = asyncio.create_task(actor())
    await ticks(3)

    mailbox.tell(1)
    await ticks(count)
    accepted = task.cancel()
    await asyncio.wait([task], timeout=5)

    assert accepted
    assert task.cancelled()
    assert len(handled) + mailbox.stats().depth == 1


@virtual
async def test_mb_31_waiting_for_message_or_stop_never_loses_the_message() -> None:
    """Both in one tick: the stop wins, the message is still there for a dead letter."""
    diary: list[Any] = []
    async with running(child("a", lambda: Scripted(diary=diary))) as system:
        await settle()
        system.ref("a").tell(1)
        await system.stop()

        stats = system.ref("a").stats()
        assert stats.accepted_total == 1
        assert diary.count(1) + len(system.dead_letters()) == 1

"""Mailbox: closing and numbers (MB-38 to MB-49; MB-44 is tests/property/test_mailbox_balance.py)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from payflow.envelope import Envelope
from payflow.errors import ActorStopped, MailboxClosed, MailboxFull
from payflow.mailbox import DropReason, Lane, Mailbox, MailboxState, Overflow
from tests.support.virtual_loop import advance, settle, ticks, virtual


def filled(*messages: Any, capacity: int = 8, **options: Any) -> Mailbox:
    options.setdefault("overflow", Overflow.BLOCK)
    mailbox = Mailbox(capacity, **options)
    for message in messages:
        mailbox.tell(message)
    return mailbox


async def take(mailbox: Mailbox) -> Any:
    _, envelope = await mailbox.receive()
    mailbox.done(envelope)
    return envelope.payload


@virtual
async def test_mb_38_close_refuses_new_and_delivers_old() -> None:
    """closing until the last one is out, then closed."""
    mailbox = filled(1, 2)
    mailbox.close("shutdown")
    states = [mailbox.state]

    with pytest.raises(MailboxClosed) as refused:
        mailbox.tell(3)
    received = [await take(mailbox), await take(mailbox)]
    with pytest.raises(MailboxClosed):
        await mailbox.receive()
    states.append(mailbox.state)

    assert refused.value.reason == "shutdown"
    assert received == [1, 2]
    assert states == [MailboxState.CLOSING, MailboxState.CLOSED]
    with pytest.raises(MailboxClosed):
        mailbox.tell_system("anything")
    with pytest.raises(MailboxClosed):
        await mailbox.send(4)


@virtual
async def test_mb_39_close_wakes_every_waiter_not_one() -> None:
    """All senders and the receiver, in the next tick."""
    full, empty = filled(1, capacity=1), filled()
    waiters: list[asyncio.Task[Any]] = [asyncio.create_task(full.send(number)) for number in range(5)]
    waiters.append(asyncio.create_task(empty.receive()))
    await settle()

    full.close("shutdown")
    empty.close("shutdown")
    await ticks(2)

    assert [MailboxClosed] * 6 == [type(waiter.exception()) for waiter in waiters]
    assert (full.stats().blocked_senders, full.stats().rejected_total) == (0, 5)


@virtual
async def test_mb_40_close_is_idempotent_and_keeps_the_first_reason() -> None:
    """Who closes first has said why."""
    mailbox = filled()
    mailbox.close("shutdown")
    mailbox.close("crashed")

    with pytest.raises(MailboxClosed) as caught:
        mailbox.tell(1)

    assert caught.value.reason == "shutdown"


@virtual
async def test_mb_41_abort_hands_every_leftover_to_dead_letters_and_fails_their_asks() -> None:
    """In order, with reason closed, and nobody waits out a timeout."""
    dead: list[tuple[Any, DropReason]] = []

    def sink(_actor: str, envelope: Envelope, reason: DropReason, _detail: str) -> None:
        dead.append((envelope.payload, reason))

    mailbox = filled(1, dead_letters=sink)
    asker = asyncio.create_task(mailbox.ask(2, timeout_s=60))
    await settle()

    mailbox.abort("crashed")
    await ticks(2)

    assert isinstance(asker.exception(), ActorStopped)
    assert dead == [(1, DropReason.CLOSED), (2, DropReason.CLOSED)]
    assert mailbox.stats().depth == 0
    assert MailboxState.CLOSED is mailbox.state


@virtual
async def test_mb_42_system_messages_still_pass_while_closing() -> None:
    """Inspection works during a drain."""
    mailbox = filled(1)
    mailbox.close("draining")
    mailbox.tell_system("get_state")

    lane, envelope = await mailbox.receive()

    assert (lane, envelope.payload) == (Lane.SYSTEM, "get_state")
    assert await take(mailbox) == 1


@virtual
async def test_mb_43_join_waits_for_handled_not_for_taken() -> None:
    """And gives up at its time limit."""
    mailbox = filled(1)
    assert await filled().join(timeout_s=1)

    async def handle() -> None:
        _, envelope = await mailbox.receive()
        await asyncio.sleep(0.5)
        mailbox.done(envelope)

    handler = asyncio.create_task(handle())
    too_short = await mailbox.join(timeout_s=0.2)
    joined = await mailbox.join(timeout_s=1.0)

    assert (too_short, joined) == (False, True)
    assert asyncio.get_running_loop().time() == 0.5
    await handler


@virtual
async def test_join_counts_a_dropped_message_as_settled() -> None:
    """An expired message is over as well."""
    mailbox = filled()
    await mailbox.send(1, deadline=1)
    joiner = asyncio.create_task(mailbox.join(timeout_s=10))
    await advance(2)

    assert mailbox.take() is None
    assert await joiner


@virtual
async def test_mb_45_depth_is_exact_under_refused_and_dropped_messages() -> None:
    """Refused messages never counted as depth."""
    mailbox = filled(capacity=1, overflow=Overflow.REJECT)
    refused = 0
    for number in range(100):
        try:
            mailbox.tell(number)
        except MailboxFull:
            refused += 1

    assert (mailbox.stats().depth, mailbox.stats().rejected_total, refused) == (1, 99, 99)


@virtual
async def test_mb_46_oldest_age_is_the_heads_age_and_zero_when_empty() -> None:
    """It does not jump while something waits."""
    mailbox = filled(1)
    await asyncio.sleep(3)
    mailbox.tell(2)
    await asyncio.sleep(2)

    ages = [mailbox.stats().oldest_age_s]
    await take(mailbox)
    ages.append(mailbox.stats().oldest_age_s)
    await take(mailbox)
    await asyncio.sleep(1)
    ages.append(mailbox.stats().oldest_age_s)

    assert ages == [5.0, 2.0, 0.0]


@virtual
async def test_mb_47_wait_time_is_enqueue_to_take_measured_once_per_message() -> None:
    """One observation in each decade; handling time is counted apart."""
    mailbox = filled()
    for wait_s in (0.0003, 0.003, 0.03):
        mailbox.tell(wait_s)
        await asyncio.sleep(wait_s)
        _, envelope = await mailbox.receive()
        await asyncio.sleep(0.2)
        mailbox.done(envelope)

    waits, handles = mailbox.stats().wait_seconds, mailbox.stats().handle_seconds

    assert [waits.at_most(bound_s) for bound_s in (0.001, 0.01, 0.1)] == [1, 2, 3]
    assert pytest.approx(0.0333, abs=1e-6) == waits.sum_s
    assert (handles.at_most(0.1), handles.at_most(0.5)) == (0, 3)


@virtual
async def test_mb_49_reading_stats_changes_nothing() -> None:
    """A thousand looks, the same picture."""
    mailbox = filled(1, 2)
    before = mailbox.stats()

    for _ in range(1000):
        mailbox.stats()
        mailbox.peek(10)

    assert before == mailbox.stats()
    assert [await take(mailbox), await take(mailbox)] == [1, 2]

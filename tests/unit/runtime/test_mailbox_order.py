"""Mailbox: order, bounds, overflow policies, lanes (MB-01 to MB-17)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from payflow.envelope import Envelope
from payflow.errors import DeadlineExceeded, MailboxFull
from payflow.mailbox import DropReason, Lane, Mailbox, MailboxState, Overflow
from payflow.supervisor import ChildSpec
from tests.support.actors import Events, Scripted, child, running
from tests.support.virtual_loop import advance, settle, ticks, virtual


def holding(*messages: Any, capacity: int, overflow: Overflow = Overflow.BLOCK, **options: Any) -> Mailbox:
    """Return a mailbox with some messages in it."""
    mailbox = Mailbox(capacity, overflow=overflow, **options)
    for message in messages:
        mailbox.tell(message)
    return mailbox


async def take(mailbox: Mailbox, count: int = 1) -> list[Any]:
    """Receive and settle a number of messages."""
    payloads = []
    for _ in range(count):
        _, envelope = await mailbox.receive()
        if not envelope.system:
            mailbox.done(envelope)
        payloads.append(envelope.payload)
    return payloads


@virtual
async def test_mb_01_one_sender_first_in_first_out() -> None:
    """Order, strictly increasing seq, non-decreasing enqueued_at."""
    mailbox = Mailbox(8, overflow=Overflow.BLOCK)
    for number in (1, 2, 3):
        await mailbox.send(number)

    envelopes = [(await mailbox.receive())[1] for _ in range(3)]

    assert [envelope.payload for envelope in envelopes] == [1, 2, 3]
    assert [envelope.seq for envelope in envelopes] == [1, 2, 3]
    stamps = [envelope.enqueued_at for envelope in envelopes]
    assert sorted(stamps) == stamps


@virtual
async def test_mb_02_a_late_sender_may_not_overtake_a_blocked_one() -> None:
    """Room goes to the parked message before a newcomer of the same tick sees it."""
    mailbox = holding(1, 2, capacity=2)
    parked = asyncio.create_task(mailbox.send(3))
    await ticks(2)

    first = [mailbox.take(), mailbox.take()]
    mailbox.tell(4)
    rest = [mailbox.take(), mailbox.take()]

    assert [envelope.payload for envelope in first + rest if envelope] == [1, 2, 3, 4]
    await parked


@virtual
async def test_mb_03_blocked_senders_are_admitted_in_arrival_order() -> None:
    """Each receive lets exactly one of them in."""
    mailbox = holding(0, capacity=1)
    senders = [asyncio.create_task(mailbox.send(name)) for name in "ABC"]
    await settle()
    received, blocked = [], []

    for _ in range(4):
        received += await take(mailbox)
        blocked.append(mailbox.stats().blocked_senders)

    assert received == [0, "A", "B", "C"]
    assert blocked == [2, 1, 0, 0]
    for sender in senders:
        await sender


@virtual
async def test_mb_04_depth_never_exceeds_capacity_for_user_messages() -> None:
    """Sixteen senders of a hundred each; every sender's own order is kept."""
    mailbox = Mailbox(4, overflow=Overflow.BLOCK)

    async def sender(name: int) -> None:
        for number in range(100):
            await mailbox.send((name, number))

    async with asyncio.TaskGroup() as group:
        for name in range(16):
            group.create_task(sender(name))
        received = await take(mailbox, 1600)

    assert mailbox.stats().high_water <= 4
    assert mailbox.stats().processed_total == 1600
    for name in range(16):
        assert list(range(100)) == [number for who, number in received if who == name]


@virtual
async def test_mb_05_capacity_must_be_a_positive_integer_overflow_must_be_named() -> None:
    """No unbounded mode, no default policy."""
    for capacity in (0, -1):
        with pytest.raises(ValueError, match="capacity"):
            Mailbox(capacity, overflow=Overflow.BLOCK)
    with pytest.raises(TypeError):
        Mailbox(8)  # type: ignore[call-arg]


@virtual
async def test_mb_06_tell_is_synchronous_and_never_waits() -> None:
    """A full mailbox answers in the same tick, with the fields a sender needs."""
    mailbox = holding(1, capacity=1, actor_id="outbox")
    await asyncio.sleep(0.5)

    with pytest.raises(MailboxFull) as caught:
        mailbox.tell(2)

    error = caught.value
    assert (error.actor_id, error.capacity, error.depth, error.oldest_age_s) == ("outbox", 1, 1, 0.5)
    assert [envelope.payload for envelope in mailbox.peek(10)] == [1]
    assert mailbox.stats().rejected_total == 1


@virtual
async def test_mb_07_block_waits_for_room_and_then_delivers() -> None:
    """The time a sender stood parked is counted."""
    mailbox = holding(1, capacity=1)
    sender = asyncio.create_task(mailbox.send(2))
    await asyncio.sleep(0.1)
    before = mailbox.stats().blocked_senders

    first = await take(mailbox)
    await ticks(1)
    second = await take(mailbox)

    assert None is await sender
    assert first + second == [1, 2]
    assert (before, mailbox.stats().blocked_senders) == (1, 0)
    assert mailbox.stats().blocked_seconds_total > 0


@virtual
async def test_mb_08_block_with_a_deadline_gives_up_and_leaves_no_trace() -> None:
    """It was never accepted, so nothing was dropped; it was rejected."""
    mailbox = holding(1, capacity=1)
    sender = asyncio.create_task(mailbox.send(2, deadline=0.5))

    await advance(0.6)
    received = await take(mailbox)
    await ticks(2)

    with pytest.raises(DeadlineExceeded) as caught:
        await sender
    stats = mailbox.stats()
    assert caught.value.stage == "enqueue"
    assert received == [1]
    assert (stats.depth, stats.dropped_total[DropReason.EXPIRED], stats.rejected_total) == (0, 0, 1)


@virtual
async def test_mb_09_reject_raises_for_send_as_well_as_tell() -> None:
    """Without any suspension: the coroutine ends in its first step."""
    mailbox = holding(1, capacity=1, overflow=Overflow.REJECT)

    with pytest.raises(MailboxFull):
        mailbox.send(2).send(None)


@virtual
async def test_mb_10_drop_oldest_keeps_the_newest_and_reports_the_victim() -> None:
    """The victim is a dead letter, and whoever asked with it hears MailboxFull at once."""
    dead: list[tuple[int, DropReason]] = []

    def sink(_actor: str, envelope: Envelope, reason: DropReason, _detail: str) -> None:
        dead.append((envelope.seq, reason))

    mailbox = Mailbox(2, overflow=Overflow.DROP_OLDEST, dead_letters=sink)
    asker = asyncio.create_task(mailbox.ask(1, timeout_s=60))
    await ticks(1)
    mailbox.tell(2)

    mailbox.tell(3)
    await ticks(2)

    with pytest.raises(MailboxFull):
        await asker
    assert asyncio.get_running_loop().time() == 0
    assert await take(mailbox, 2) == [2, 3]
    assert mailbox.stats().dropped_total[DropReason.OVERFLOW] == 1
    assert dead == [(1, DropReason.OVERFLOW)]


@virtual
async def test_mb_11_drop_newest_refuses_silently_to_the_sender_loudly_in_metrics() -> None:
    """A tell hears False; an ask, which would wait for ever, hears MailboxFull."""
    mailbox = holding(1, capacity=1, overflow=Overflow.DROP_NEWEST)

    accepted = mailbox.tell(2)
    await mailbox.send(3)

    with pytest.raises(MailboxFull):
        await mailbox.ask(4, timeout_s=1)
    assert False is accepted
    assert await take(mailbox) == [1]
    assert (mailbox.stats().rejected_total, mailbox.stats().accepted_total) == (3, 1)


@dataclass(frozen=True)
class Beat:
    """A message that says what it may merge with."""

    key: str | None
    n: int

    @property
    def coalesce_key(self) -> str | None:
        return self.key


@virtual
async def test_mb_12_coalesce_keeps_one_message_per_key_in_the_place_of_the_first() -> None:
    """Newest content, first place, first age."""
    mailbox = Mailbox(4, overflow=Overflow.COALESCE)
    mailbox.tell(Beat("a", 1))
    await asyncio.sleep(1)
    mailbox.tell(Beat("b", 1))
    mailbox.tell(Beat("a", 2))
    stats = mailbox.stats()

    envelopes = [(await mailbox.receive())[1] for _ in range(2)]

    assert [Beat("a", 2), Beat("b", 1)] == [envelope.payload for envelope in envelopes]
    assert (stats.coalesced_total, stats.high_water, stats.accepted_total) == (1, 2, 2)
    assert [envelope.enqueued_at for envelope in envelopes] == [0, 1]


@virtual
async def test_a_taken_message_is_merged_into_no_more() -> None:
    """The key leaves with the message; a message without a key and an ask stay apart, and a new key waits for room."""
    mailbox = Mailbox(2, overflow=Overflow.COALESCE)
    mailbox.tell(Beat("a", 1))
    assert [Beat("a", 1)] == await take(mailbox)
    mailbox.tell(Beat("a", 2))
    mailbox.tell(Beat(None, 1))

    waiting = asyncio.create_task(mailbox.send(Beat("b", 1)))
    await mailbox.send(Beat("a", 3))
    with pytest.raises(MailboxFull):
        mailbox.tell(Beat("c", 1))

    assert [Beat("a", 3), Beat(None, 1), Beat("b", 1)] == await take(mailbox, 3)
    await waiting
    asker = asyncio.create_task(mailbox.ask(Beat("a", 4), timeout_s=1))
    await ticks(1)
    mailbox.tell(Beat("a", 5))
    assert [Beat("a", 4), Beat("a", 5)] == await take(mailbox, 2)
    assert None is await asker


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.COALESCE])
def test_mb_13_a_lossy_policy_on_an_actor_that_is_not_declared_lossy_is_a_start_error(overflow: Overflow) -> None:
    """Payments travel through block or reject."""
    with pytest.raises(ValueError, match=r"outbox.*lossy=True"):
        ChildSpec("outbox", Scripted, capacity=8, overflow=overflow)

    assert ChildSpec("beat", Scripted, capacity=8, overflow=overflow, lossy=True).lossy


@virtual
async def test_mb_14_a_system_message_passes_a_full_user_lane() -> None:
    """It does not count against the capacity either."""
    mailbox = holding(1, 2, capacity=2)
    mailbox.tell_system("pause")

    lane, envelope = await mailbox.receive()

    assert (lane, envelope.payload, mailbox.stats().depth) == (Lane.SYSTEM, "pause", 2)
    assert await take(mailbox, 2) == [1, 2]


@virtual
async def test_mb_15_a_paused_mailbox_serves_only_the_system_lane() -> None:
    """The age of what waits goes on growing."""
    mailbox = holding(1, capacity=2)
    mailbox.pause()
    receiver = asyncio.create_task(mailbox.receive())
    await asyncio.sleep(3)
    assert not receiver.done()
    age_s = mailbox.stats().oldest_age_s

    mailbox.tell_system("resume")
    await ticks(1)
    lane, envelope = await receiver
    mailbox.resume()

    assert age_s == 3
    assert (lane, envelope.payload) == (Lane.SYSTEM, "resume")
    assert await take(mailbox) == [1]
    assert MailboxState.OPEN is mailbox.state


@virtual
async def test_mb_16_the_system_lane_has_its_own_hard_cap() -> None:
    """A control plane nobody reads is a bug: the sender is told, the actor is stopped as crashed."""
    events = Events()
    busy = asyncio.Event()

    async def wait(_actor: Scripted, _message: Any) -> None:
        await busy.wait()

    async with running(child("a", lambda: Scripted(wait)), events=events) as system:
        system.ref("a").tell("work")
        await settle()
        mailbox = system.root.parent_of("a").children["a"].mailbox  # type: ignore[union-attr]
        for _ in range(1024):
            mailbox.tell_system("x")

        with pytest.raises(MailboxFull):
            mailbox.tell_system("one too many")
        await settle()

    crash = events.of("actor.crashed")[0]
    assert crash["reason"] == "crashed"
    assert "system_lane_full" in crash["error"]


@virtual
async def test_mb_17_system_messages_keep_order_among_themselves() -> None:
    """And all of them come before the user lane."""
    mailbox = Mailbox(4, overflow=Overflow.BLOCK)
    mailbox.tell_system("a")
    mailbox.tell_system("b")
    mailbox.tell(1)
    mailbox.tell_system("c")

    assert await take(mailbox, 4) == ["a", "b", "c", 1]

"""A bounded mailbox: many senders, one receiver, one event loop, two lanes.

It does not run anything and knows no actor; it orders, bounds and counts. asyncio.Queue is not used because on Python
3.11 a new sender overtakes blocked ones and `wait_for(queue.get())` swallows a cancellation (docs/actors.md).

Invariants:
- A parked sender exists only while the queue is full, so nobody overtakes and no wake-up can be lost (`parking.py`).
- A wake-up carries no message. A message leaves the queue only in `take` and `take_batch`, without an await between
  leaving and being returned, so a cancelled receiver loses nothing.
- accepted == processed + dropped + depth + in_flight, after every step.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any, Final

from payflow.envelope import Clock, Envelope, Lane, MailboxState, Overflow, Reply, running_clock
from payflow.errors import ActorStopped, DeadlineExceeded, MailboxClosed, MailboxFull
from payflow.mailbox_stats import BUCKET_BOUNDS_S, DropReason, MailboxStats, Tally
from payflow.parking import Parking

__all__ = ["Clock", "DropReason", "Envelope", "Lane", "Mailbox", "MailboxState", "MailboxStats", "Overflow"]

# Lifecycle and inspection commands only. A lane this long means that its reader is broken, not that there is load.
SYSTEM_LANE_CAPACITY: Final = 1024

# asyncio fires a timer up to one clock tick early; what it wakes must not wait again for the rest of that tick.
TIMER_EARLY_S: Final = 1e-9

DeadLetterSink = Callable[[str, Envelope, DropReason, str], None]  # actor id, message, reason, detail


class Mailbox:
    """See the head of the module. Another thread sends with `loop.call_soon_threadsafe(mailbox.tell, message)`."""

    def __init__(
        self,
        capacity: int,
        *,
        overflow: Overflow,
        actor_id: str = "mailbox",
        clock: Clock | None = None,
        dead_letters: DeadLetterSink | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity of {actor_id} must be at least 1, is {capacity}")
        self._capacity = capacity
        self._overflow = Overflow(overflow)
        self._actor_id = actor_id
        self._loop = asyncio.get_running_loop()
        self._clock = clock or running_clock()
        self._dead_letters = dead_letters
        self.on_system_overflow: Callable[[], None] | None = None

        self._user: deque[Envelope] = deque()
        self._system: deque[Envelope] = deque()
        self._parking = Parking(actor_id, self._clock)
        self._keys: dict[Hashable, Envelope] = {}  # queued messages that newer ones may merge into
        self._receiver: asyncio.Future[None] | None = None
        self._wanted = 1  # depth at which a waiting receiver is woken
        self._joiners: dict[asyncio.Future[None], int] = {}
        self._state = MailboxState.OPEN
        self._close_reason = ""
        # True while a message only needs room to be accepted: neither closed nor coalescing.
        self._plain = self._overflow is not Overflow.COALESCE

        self._tally = Tally()

    # -------------------------------------------------------------- sending
    def tell(self, message: Any, *, trace_id: str | None = None) -> bool:
        """Put a message in without ever waiting; False when `drop_newest` refused it, MailboxFull for the rest."""
        return self.offer(Envelope(message, None, None, trace_id))

    async def send(self, message: Any, *, deadline: float | None = None, trace_id: str | None = None) -> None:
        """Put a message in; with `block` wait for room in the order of arrival. A cancelled send has no effect."""
        envelope = Envelope(message, deadline, None, trace_id)
        if self._plain and len(self._user) < self._capacity:
            self._admit(envelope)
        elif self._must_wait(envelope):
            await self._parking.wait_turn(envelope)
        else:
            self.offer(envelope)

    async def ask(
        self, message: Any, *, timeout_s: float, trace_id: str | None = None, chain: tuple[str, ...] = ()
    ) -> Any:
        """Send and wait for the answer; one budget covers enqueueing, queueing and handling."""
        deadline = self._clock() + timeout_s
        reply: Reply = self._loop.create_future()
        envelope = Envelope(message, deadline, reply, trace_id, chain)
        if self._must_wait(envelope):
            await self._parking.wait_turn(envelope)
        else:
            self.offer(envelope)
        # A timer on the future, not wait_for: 40-50 % faster, and it cannot swallow a cancellation on 3.11.
        timer = self._loop.call_later(deadline - self._clock(), self._expire, envelope, reply)
        try:
            return await reply  # a cancelled caller cancels `reply`; whoever meets the envelope next sees that
        finally:
            timer.cancel()

    def tell_system(self, command: Any) -> None:
        """Put a lifecycle or inspection command into its own lane; passes pause and closing."""
        if self._state is MailboxState.CLOSED:
            raise MailboxClosed(self._actor_id, self._close_reason)
        if len(self._system) >= SYSTEM_LANE_CAPACITY:
            if self.on_system_overflow is not None:
                self.on_system_overflow()
            raise self._full(self._system, SYSTEM_LANE_CAPACITY)
        envelope = Envelope(command)
        envelope.system = True
        envelope.enqueued_at = self._clock()
        self._system.append(envelope)
        self._wake_receiver()

    def offer(self, envelope: Envelope) -> bool:
        """Accept an envelope or refuse it, now. The one door for everything that does not wait."""
        if self._state is MailboxState.CLOSING or self._state is MailboxState.CLOSED:
            self._tally.rejected += 1
            raise MailboxClosed(self._actor_id, self._close_reason)
        if self._overflow is Overflow.COALESCE and self._merge(envelope):
            return True
        if len(self._user) >= self._capacity and not self._make_room():
            self._tally.rejected += 1
            if self._overflow is Overflow.DROP_NEWEST and envelope.reply is None:
                return False  # silent towards a tell; an ask has to hear it at once
            raise self._full(self._user, self._capacity)
        self._admit(envelope)
        return True

    def _must_wait(self, envelope: Envelope) -> bool:
        """Tell whether this message has to wait its turn: full, open, and a policy that lets senders wait."""
        if len(self._user) < self._capacity or self._state in (MailboxState.CLOSING, MailboxState.CLOSED):
            return False
        if self._overflow is Overflow.COALESCE:
            return envelope.coalesce_key not in self._keys
        return self._overflow is Overflow.BLOCK

    def _admit(self, envelope: Envelope) -> None:
        tally = self._tally
        tally.accepted += 1
        envelope.seq = tally.accepted
        envelope.enqueued_at = self._clock()
        self._user.append(envelope)
        depth = len(self._user)
        if depth > tally.high_water:  # noqa: PLR1730 - max() is a call and costs twice as much, for every message
            tally.high_water = depth
        if self._receiver is not None and depth >= self._wanted:
            self._wake_receiver()

    def _make_room(self) -> bool:
        if self._overflow is not Overflow.DROP_OLDEST:
            return False
        error = self._full(self._user, self._capacity)
        self._drop(self._user.popleft(), DropReason.OVERFLOW, error)
        return True

    def _merge(self, envelope: Envelope) -> bool:
        """Put the newest content into the queued message of the same key, which keeps its place and its age."""
        key = envelope.coalesce_key
        if key is None:
            return False
        queued = self._keys.get(key)
        if queued is None:
            if len(self._user) < self._capacity:
                self._keys[key] = envelope
            return False
        queued.payload = envelope.payload
        queued.deadline = envelope.deadline
        queued.trace_id = envelope.trace_id
        self._tally.coalesced += 1
        return True

    def _expire(self, envelope: Envelope, reply: Reply) -> None:
        if not reply.done():
            reply.set_exception(DeadlineExceeded(self._actor_id, envelope.stage))

    # -------------------------------------------------------------- receiving
    async def receive(self) -> tuple[Lane, Envelope]:
        """Wait for the next message, system lane first; MailboxClosed once closed and empty."""
        while True:
            envelope = self.take()
            if envelope is not None:
                return (Lane.SYSTEM if envelope.system else Lane.USER), envelope
            self._raise_if_finished()
            await self.wait()

    async def receive_batch(self, max_items: int, linger_s: float) -> list[Envelope]:
        """Wait for up to `max_items`, at most `linger_s` after the first was queued.

        Closed early by a system message and by close; empty when a system message came first. Items stay in the queue
        until the batch closes, so cancelling has nothing to put back.
        """
        if self._system:
            return []
        while True:
            self._raise_if_finished()
            await self.wait_batch(max_items, linger_s)
            batch = self.take_batch(max_items)
            if batch or self._system:
                return batch

    def take(self, now: float | None = None) -> Envelope | None:
        """Take the next message worth handling, system lane first; None when there is none to serve.

        `now` saves a look at the clock to a caller who just had one.
        """
        if self._system:
            return self._system.popleft()
        return self._take_user(self._clock() if now is None else now)

    def _take_user(self, now: float) -> Envelope | None:
        if self._state is MailboxState.PAUSED:
            return None
        while self._user:
            envelope = self._user.popleft()
            if self._parking:
                self._admit_parked()
            if self._keys:
                self._forget_key(envelope)
            if (envelope.abandoned or envelope.deadline is not None) and self._skip(envelope, now):
                continue
            envelope.taken_at = now
            tally = self._tally
            tally.in_flight += 1
            waited_s = now - envelope.enqueued_at
            tally.wait_counts[bisect_left(BUCKET_BOUNDS_S, waited_s)] += 1
            tally.wait_sum_s += waited_s
            return envelope
        return None

    def take_system(self) -> Envelope | None:
        """Take the next system message, without waiting."""
        return self._system.popleft() if self._system else None

    def take_batch(self, max_items: int) -> list[Envelope]:
        """Take up to `max_items` user messages that are worth handling, without waiting."""
        batch: list[Envelope] = []
        now = self._clock()
        while len(batch) < max_items and (envelope := self._take_user(now)) is not None:
            batch.append(envelope)
        return batch

    def _admit_parked(self) -> None:
        while len(self._user) < self._capacity and (envelope := self._parking.next()) is not None:
            self._admit(envelope)

    def _skip(self, envelope: Envelope, now: float) -> bool:
        """Settle a message that nobody waits for any more."""
        if envelope.abandoned or (envelope.reply is not None and envelope.reply.cancelled()):
            reason = DropReason.ABANDONED
        elif envelope.deadline is not None and envelope.deadline <= now:
            reason = DropReason.EXPIRED
        else:
            return False
        self._drop(envelope, reason, DeadlineExceeded(self._actor_id, "queue"))
        return True

    async def wait(self) -> None:
        """Suspend until something may be there to take. Carries nothing, so cancelling it loses nothing."""
        if not self._system and (not self._user or self._state is MailboxState.PAUSED):
            await self._suspend(wanted=1)

    async def wait_batch(self, max_items: int, linger_s: float) -> None:
        """Suspend until a batch is due or something else needs a look: a system message, close, resume."""
        assert 1 <= max_items <= self._capacity, (max_items, self._capacity)
        while not self._system and not self.batch_is_due(max_items, linger_s):
            if self._user and self._state is MailboxState.OPEN:
                due_in_s = self._user[0].enqueued_at + linger_s - self._clock()
                timer = self._loop.call_later(due_in_s, self._wake_receiver)
                try:
                    await self._suspend(wanted=max_items)
                finally:
                    timer.cancel()
            else:
                await self.wait()
                if not self._user:
                    return

    def batch_is_due(self, max_items: int, linger_s: float) -> bool:
        """Tell whether a batch closes now: by size, by time since its first message, or because nothing will come."""
        if not self._user or self._state is MailboxState.PAUSED:
            return False
        if len(self._user) >= max_items or self._state is not MailboxState.OPEN:
            return True
        return self._clock() >= self._user[0].enqueued_at + linger_s - TIMER_EARLY_S

    async def _suspend(self, *, wanted: int) -> None:
        assert self._receiver is None, "a mailbox has one receiver"
        self._receiver = self._loop.create_future()
        self._wanted = wanted
        try:
            await self._receiver
        finally:
            self._receiver = None

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    # -------------------------------------------------------------- settling
    def done(self, envelope: Envelope, reply: Any = None, *, error: BaseException | None = None) -> float:
        """End the in-flight period of a message that was handled, answer its asker, return the time noted."""
        now = self._clock()
        tally = self._tally
        tally.in_flight -= 1
        tally.processed += 1
        handled_s = now - envelope.taken_at
        tally.handle_counts[bisect_left(BUCKET_BOUNDS_S, handled_s)] += 1
        tally.handle_sum_s += handled_s
        if envelope.reply is not None:
            self.answer(envelope, reply, error=error)
        if self._joiners:
            self._wake_joiners()
        return now

    def answer(self, envelope: Envelope, reply: Any = None, *, error: BaseException | None = None) -> None:
        """Resolve the ask behind an envelope, once; a late answer is counted and thrown away."""
        future, envelope.reply = envelope.reply, None
        if future is None:
            return
        if future.done():
            self._tally.late_replies += 1
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(reply)

    def discard(self, envelope: Envelope, reason: DropReason, *, error: BaseException, detail: str = "") -> None:
        """End the in-flight period of a message that was not handled to its end: poison, or cut off by a stop."""
        self._tally.in_flight -= 1
        self._drop(envelope, reason, error, detail)

    def _drop(self, envelope: Envelope, reason: DropReason, error: BaseException, detail: str = "") -> None:
        self._tally.dropped[reason] += 1
        if self._dead_letters is not None:
            self._dead_letters(self._actor_id, envelope, reason, detail)
        future, envelope.reply = envelope.reply, None
        if future is not None and not future.done():
            future.set_exception(error)
        if self._joiners:
            self._wake_joiners()

    def _forget_key(self, envelope: Envelope) -> None:
        key = envelope.coalesce_key
        if self._keys.get(key) is envelope:
            del self._keys[key]

    async def join(self, *, timeout_s: float) -> bool:
        """Wait until everything accepted so far is settled (handled, not just taken); False when time ran out."""
        if self.settled_total >= self._tally.accepted:
            return True
        settled: asyncio.Future[None] = self._loop.create_future()
        self._joiners[settled] = self._tally.accepted
        try:
            await asyncio.wait([settled], timeout=timeout_s)
        finally:
            del self._joiners[settled]
        return settled.done()

    def _wake_joiners(self) -> None:
        settled_total = self.settled_total
        for settled, target in self._joiners.items():
            if target <= settled_total and not settled.done():
                settled.set_result(None)

    # -------------------------------------------------------------- state
    def pause(self) -> None:
        """Serve only the system lane until `resume`; senders notice nothing but a growing queue."""
        if self._state is MailboxState.OPEN:
            self._state = MailboxState.PAUSED

    def resume(self) -> None:
        """Serve both lanes again."""
        if self._state is MailboxState.PAUSED:
            self._state = MailboxState.OPEN
            self._wake_receiver()

    def close(self, reason: str) -> None:
        """Refuse new messages, wake every parked sender and the receiver, go on delivering. The first reason wins."""
        if self._state in (MailboxState.CLOSING, MailboxState.CLOSED):
            return
        self._state = MailboxState.CLOSING
        self._close_reason = reason
        self._plain = False
        self._parking.close(reason)
        self._wake_receiver()

    def abort(self, reason: str) -> None:
        """Close, and turn everything that is queued into dead letters and failed asks."""
        self.close(reason)
        self._keys.clear()
        while self._user:
            envelope = self._user.popleft()
            self._drop(envelope, DropReason.CLOSED, ActorStopped(self._actor_id, self._close_reason))
        self._system.clear()
        self._state = MailboxState.CLOSED

    def _raise_if_finished(self) -> None:
        if self._state is MailboxState.CLOSING and not self._user:
            self._state = MailboxState.CLOSED
        if self._state is MailboxState.CLOSED:
            raise MailboxClosed(self._actor_id, self._close_reason)

    # -------------------------------------------------------------- looking
    @property
    def state(self) -> MailboxState:
        """Return the state; reading it changes nothing."""
        return self._state

    @property
    def accepted_total(self) -> int:
        """Return how many user messages were ever accepted; equals the newest seq."""
        return self._tally.accepted

    @property
    def settled_total(self) -> int:
        """Return how many accepted messages are over: handled or dropped."""
        return self._tally.accepted - len(self._user) - self._tally.in_flight

    def peek(self, limit: int) -> list[Envelope]:
        """Return the first queued user messages for inspection; the caller redacts and changes nothing."""
        return list(islice(self._user, limit))

    def load(self) -> tuple[int, int, float]:
        """Return (depth, capacity, age of the oldest message); `stats` without the price of its histograms."""
        return len(self._user), self._capacity, self._age(self._user)

    def stats(self) -> MailboxStats:
        """Return all numbers as of now."""
        return self._tally.view(
            capacity=self._capacity,
            depth=len(self._user),
            oldest_age_s=self._age(self._user),
            blocked_senders=len(self._parking),
            refused_parked=self._parking.refused_total,
            blocked_s=self._parking.blocked_s,
        )

    def _age(self, lane: deque[Envelope]) -> float:
        return self._clock() - lane[0].enqueued_at if lane else 0.0

    def _full(self, lane: deque[Envelope], capacity: int) -> MailboxFull:
        return MailboxFull(self._actor_id, depth=len(lane), capacity=capacity, oldest_age_s=self._age(lane))

"""A bounded mailbox: many senders, one receiver, one event loop, two lanes.

It does not run anything and knows no actor; it orders, bounds and counts. asyncio.Queue is not used because on Python
3.11 a new sender overtakes blocked ones and `wait_for(queue.get())` swallows a cancellation (docs/actors.md).

Invariants:
- A parked sender exists only while the queue is full: whoever makes room moves the first parked message in at once.
  So nobody overtakes, and no wake-up can be lost.
- A wake-up carries no message. A message leaves the queue only in `take` and in batches cut from it, without an await
  between leaving and being returned, so a cancelled receiver loses nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from enum import StrEnum
from itertools import islice
from typing import Any, Final

from payflow.errors import ActorStopped, DeadlineExceeded, MailboxClosed, MailboxFull
from payflow.mailbox_stats import DropReason, Histogram, HistogramView, MailboxStats

__all__ = ["DropReason", "Envelope", "HistogramView", "Lane", "Mailbox", "MailboxState", "MailboxStats", "Overflow"]

# Lifecycle and inspection commands only. A lane this long means that its reader is broken, not that there is load.
SYSTEM_LANE_CAPACITY: Final = 1024

Clock = Callable[[], float]
DeadLetterSink = Callable[[str, "Envelope", DropReason, str], None]  # actor id, message, reason, detail
Reply = asyncio.Future[Any]


class Overflow(StrEnum):
    """What a full mailbox does. Only `block` and `reject` never lose an accepted message."""

    BLOCK = "block"
    REJECT = "reject"
    DROP_OLDEST = "drop_oldest"
    DROP_NEWEST = "drop_newest"
    COALESCE = "coalesce"


class Lane(StrEnum):
    """The system lane is always served first and does not count against the capacity."""

    SYSTEM = "system"
    USER = "user"


class MailboxState(StrEnum):
    """open <-> paused, then closing -> closed."""

    OPEN = "open"
    PAUSED = "paused"
    CLOSING = "closing"
    CLOSED = "closed"


class Envelope:
    """A message under way. A plain slots class: a frozen dataclass costs 570 ns more for each message (docs/performance.md)."""

    __slots__ = (
        "abandoned",
        "answered",
        "chain",
        "deadline",
        "enqueued_at",
        "key",
        "payload",
        "reply",
        "seq",
        "system",
        "taken_at",
        "trace_id",
    )

    def __init__(
        self,
        payload: Any,
        deadline: float | None = None,
        reply: Reply | None = None,
        trace_id: str | None = None,
        chain: tuple[str, ...] = (),
    ) -> None:
        self.payload = payload
        self.deadline = deadline
        self.reply = reply
        self.trace_id = trace_id
        self.chain = chain  # the actors that wait for the answer, the first asker first
        self.seq = 0  # set on acceptance, from 1; 0 = still parked
        self.enqueued_at = 0.0
        self.taken_at = -1.0  # set when the receiver takes it
        self.system = False
        self.abandoned = False  # the sender took it back after acceptance
        self.answered = False  # replied to or handed on before its handler returned
        self.key: Hashable = None  # registered for coalescing

    @property
    def stage(self) -> str:
        """Where a deadline that passes now has passed."""
        if self.seq == 0:
            return "enqueue"
        return "queue" if self.taken_at < 0 else "handle"


def running_clock() -> Clock:
    """Return the clock of the running loop.

    asyncio's own loops read time.monotonic, so the indirection is left out. uvloop's time() is the start of the
    current iteration: a 2 ms budget inside one iteration would never run out on it. A virtual loop keeps its own time.
    """
    loop = asyncio.get_running_loop()
    real = type(loop).time is asyncio.BaseEventLoop.time or type(loop).__module__.startswith("uvloop")
    return time.monotonic if real else loop.time


def _no_sink(_actor_id: str, _envelope: Envelope, _reason: DropReason, _detail: str) -> None:
    """Dead letters of a mailbox that stands alone go nowhere; they are counted all the same."""


class Mailbox:
    """See the head of the module. A sender in another thread uses `loop.call_soon_threadsafe(mailbox.tell, message)`."""

    __slots__ = (
        "_accepted",
        "_actor_id",
        "_blocked_s",
        "_capacity",
        "_clock",
        "_close_reason",
        "_coalesced",
        "_dead_letters",
        "_dropped",
        "_handle",
        "_high_water",
        "_in_flight",
        "_joiners",
        "_keys",
        "_late_replies",
        "_loop",
        "_overflow",
        "_parked",
        "_processed",
        "_receiver",
        "_rejected",
        "_state",
        "_system",
        "_user",
        "_wait",
        "_wanted",
        "on_system_overflow",
    )

    def __init__(
        self,
        capacity: int,
        *,
        overflow: Overflow,
        actor_id: str = "mailbox",
        clock: Clock | None = None,
        dead_letters: DeadLetterSink = _no_sink,
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
        self._parked: OrderedDict[asyncio.Future[None], Envelope] = OrderedDict()
        self._keys: dict[Hashable, Envelope] = {}
        self._receiver: asyncio.Future[None] | None = None
        self._wanted = 1  # depth at which a waiting receiver is woken
        self._joiners: list[tuple[int, asyncio.Future[None]]] = []
        self._state = MailboxState.OPEN
        self._close_reason = ""

        self._accepted = self._processed = self._rejected = self._coalesced = 0
        self._in_flight = self._high_water = self._late_replies = 0
        self._dropped = dict.fromkeys(DropReason, 0)
        self._blocked_s = 0.0
        self._wait = Histogram()
        self._handle = Histogram()

    # -------------------------------------------------------------- sending
    def tell(self, message: Any, *, trace_id: str | None = None) -> bool:
        """Put a message in without ever waiting; False when `drop_newest` refused it, MailboxFull for the rest."""
        return self.offer(Envelope(message, None, None, trace_id))

    async def send(self, message: Any, *, deadline: float | None = None, trace_id: str | None = None) -> None:
        """Put a message in; with `block` wait for room in the order of arrival. A cancelled send has no effect."""
        envelope = Envelope(message, deadline, None, trace_id)
        if self._must_park(envelope):
            await self._park(envelope)
        else:
            self.offer(envelope)

    async def ask(
        self, message: Any, *, timeout_s: float, trace_id: str | None = None, chain: tuple[str, ...] = ()
    ) -> Any:
        """Send and wait for the answer; one budget covers enqueueing, queueing and handling."""
        deadline = self._clock() + timeout_s
        reply: Reply = self._loop.create_future()
        envelope = Envelope(message, deadline, reply, trace_id, chain)
        if self._must_park(envelope):
            await self._park(envelope)
        elif not self.offer(envelope):
            raise self._full()  # drop_newest is silent towards a tell; an ask must hear it at once
        # A timer on the future, not wait_for: 40-50 % faster, and it cannot swallow a cancellation on 3.11.
        timer = self._loop.call_later(deadline - self._clock(), self._expire_reply, envelope, reply)
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
            raise MailboxFull(
                self._actor_id, depth=len(self._system), capacity=SYSTEM_LANE_CAPACITY, oldest_age_s=self._age(self._system)
            )
        envelope = Envelope(command)
        envelope.system = True
        envelope.enqueued_at = self._clock()
        self._system.append(envelope)
        self._wake_receiver()

    def offer(self, envelope: Envelope) -> bool:
        """Accept an envelope or refuse it, now. The one door for everything that does not wait."""
        if self._state is MailboxState.CLOSING or self._state is MailboxState.CLOSED:
            self._rejected += 1
            raise MailboxClosed(self._actor_id, self._close_reason)
        if self._overflow is Overflow.COALESCE and self._coalesce(envelope):
            return True
        if len(self._user) >= self._capacity and not self._make_room():
            self._rejected += 1
            if self._overflow is Overflow.DROP_NEWEST:
                return False
            raise self._full()
        self._admit(envelope)
        return True

    def _must_park(self, envelope: Envelope) -> bool:
        """Tell whether this message has to wait its turn: full, open, and a policy that lets senders wait."""
        if len(self._user) < self._capacity:
            return False
        if self._state is MailboxState.CLOSING or self._state is MailboxState.CLOSED:
            return False
        if self._overflow is Overflow.COALESCE:
            return self._key_of(envelope) not in self._keys
        return self._overflow is Overflow.BLOCK

    def _admit(self, envelope: Envelope) -> None:
        self._accepted += 1
        envelope.seq = self._accepted
        envelope.enqueued_at = self._clock()
        user = self._user
        user.append(envelope)
        depth = len(user)
        if depth > self._high_water:
            self._high_water = depth
        if self._receiver is not None and depth >= self._wanted:
            self._wake_receiver()

    def _make_room(self) -> bool:
        if self._overflow is not Overflow.DROP_OLDEST:
            return False
        victim = self._user.popleft()
        self._drop(victim, DropReason.OVERFLOW, self._full())
        return True

    def _coalesce(self, envelope: Envelope) -> bool:
        """Merge into the queued message of the same key: newest content, first place, first age."""
        key = self._key_of(envelope)
        if key is None:
            return False
        queued = self._keys.get(key)
        if queued is None:
            if len(self._user) < self._capacity:
                envelope.key = key
                self._keys[key] = envelope
            return False
        queued.payload = envelope.payload
        queued.deadline = envelope.deadline
        queued.trace_id = envelope.trace_id
        self._coalesced += 1
        return True

    @staticmethod
    def _key_of(envelope: Envelope) -> Hashable:
        """Return what the message may merge with; None keeps it apart. An ask has a caller of its own and never merges."""
        if envelope.reply is not None:
            return None
        payload: Any = envelope.payload
        key: Hashable = getattr(payload, "coalesce_key", payload.__class__)
        return key

    async def _park(self, envelope: Envelope) -> None:
        """Wait until the receiver moves the envelope in. Woken with an error by a deadline or by close."""
        now = self._clock()
        turn: asyncio.Future[None] = self._loop.create_future()
        self._parked[turn] = envelope
        timer = None
        if envelope.deadline is not None:
            timer = self._loop.call_later(envelope.deadline - now, self._expire_turn, turn)
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in the tick in which room was made: taken back, unless the receiver already has it.
            if envelope.seq and envelope.taken_at < 0:
                envelope.abandoned = True
            raise
        finally:
            self._parked.pop(turn, None)
            self._blocked_s += self._clock() - now
            if timer is not None:
                timer.cancel()

    def _expire_turn(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            self._rejected += 1
            self._parked.pop(turn, None)
            turn.set_exception(DeadlineExceeded(self._actor_id, "enqueue"))

    def _expire_reply(self, envelope: Envelope, reply: Reply) -> None:
        if not reply.done():
            reply.set_exception(DeadlineExceeded(self._actor_id, envelope.stage))

    def _admit_parked(self) -> None:
        """Give room that was made to whoever waited longest."""
        while self._parked and len(self._user) < self._capacity:
            turn, envelope = self._parked.popitem(last=False)
            if turn.done():  # cancelled, and its task has not run yet
                continue
            self._admit(envelope)
            turn.set_result(None)

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
        assert 1 <= max_items <= self._capacity, (max_items, self._capacity)
        if self._system:
            return []
        while not self._system:
            if self._state is not MailboxState.PAUSED and self._user:
                due_at = self._user[0].enqueued_at + linger_s
                if len(self._user) >= max_items or self._state is MailboxState.CLOSING or self._clock() >= due_at:
                    if batch := self.take_batch(max_items):
                        return batch
                    continue  # everything in it had expired or was taken back
                await self._wait_for_depth(max_items, due_at)
                continue
            self._raise_if_finished()
            await self.wait()
        return self.take_batch(max_items) if self._state is not MailboxState.PAUSED else []

    def take_batch(self, max_items: int) -> list[Envelope]:
        """Take up to `max_items` user messages that are worth handling, without waiting."""
        batch: list[Envelope] = []
        now = self._clock()
        while len(batch) < max_items and self._user:
            envelope = self._pop(now)
            if envelope is not None:
                batch.append(envelope)
        return batch

    def take(self) -> Envelope | None:
        """Take the next message worth handling, without waiting; None when there is none to serve."""
        if self._system:
            return self._system.popleft()
        if self._state is MailboxState.PAUSED:
            return None
        now = self._clock()
        while self._user:
            envelope = self._pop(now)
            if envelope is not None:
                return envelope
        return None

    def _pop(self, now: float) -> Envelope | None:
        """Remove the head; None when it was taken back or expired, which is settled here."""
        envelope = self._user.popleft()
        if self._parked:
            self._admit_parked()
        if envelope.key is not None:
            self._keys.pop(envelope.key, None)
        if envelope.abandoned or envelope.deadline is not None:
            reason = self._reason_to_skip(envelope, now)
            if reason is not None:
                self._drop(envelope, reason, DeadlineExceeded(self._actor_id, "queue"))
                return None
        envelope.taken_at = now
        self._in_flight += 1
        self._wait.observe(now - envelope.enqueued_at)
        return envelope

    @staticmethod
    def _reason_to_skip(envelope: Envelope, now: float) -> DropReason | None:
        if envelope.abandoned or (envelope.reply is not None and envelope.reply.cancelled()):
            return DropReason.ABANDONED
        if envelope.deadline is not None and envelope.deadline <= now:
            return DropReason.EXPIRED
        return None

    async def wait(self) -> None:
        """Suspend until something may be there to take. Carries nothing, so cancelling it loses nothing."""
        assert self._receiver is None, "a mailbox has one receiver"
        if self._system or (self._user and self._state is not MailboxState.PAUSED):
            return
        self._receiver = self._loop.create_future()
        try:
            await self._receiver
        finally:
            self._receiver = None

    async def _wait_for_depth(self, depth: int, until: float) -> None:
        """Suspend until `depth` messages are queued, a system message or close comes, or `until` is reached."""
        assert self._receiver is None, "a mailbox has one receiver"
        self._receiver = self._loop.create_future()
        self._wanted = depth
        timer = self._loop.call_later(until - self._clock(), self._wake_receiver)
        try:
            await self._receiver
        finally:
            timer.cancel()
            self._wanted = 1
            self._receiver = None

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    def done(self, envelope: Envelope, reply: Any = None, *, error: BaseException | None = None) -> None:
        """End the in-flight period of a message that was handled, and answer its asker."""
        self._in_flight -= 1
        self._processed += 1
        self._handle.observe(self._clock() - envelope.taken_at)
        if envelope.reply is not None:
            self.answer(envelope, reply, error=error)
        if self._joiners:
            self._wake_joiners()

    def answer(self, envelope: Envelope, reply: Any = None, *, error: BaseException | None = None) -> None:
        """Resolve the ask behind an envelope; a late answer is counted and thrown away."""
        future, envelope.reply = envelope.reply, None
        if future is None:
            return
        if future.done():
            self._late_replies += 1
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(reply)

    def discard(self, envelope: Envelope, reason: DropReason, *, error: BaseException, detail: str = "") -> None:
        """End the in-flight period of a message that was not handled to its end: poison, or cut off by a stop."""
        self._in_flight -= 1
        self._drop(envelope, reason, error, detail)

    def _drop(self, envelope: Envelope, reason: DropReason, error: BaseException, detail: str = "") -> None:
        if envelope.key is not None:
            self._keys.pop(envelope.key, None)
        self._dropped[reason] += 1
        self._dead_letters(self._actor_id, envelope, reason, detail)
        future, envelope.reply = envelope.reply, None
        if future is not None and not future.done():
            future.set_exception(error)
        if self._joiners:
            self._wake_joiners()

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
        while self._parked:
            turn, _ = self._parked.popitem(last=False)
            if not turn.done():
                self._rejected += 1
                turn.set_exception(MailboxClosed(self._actor_id, reason))
        self._wake_receiver()

    def abort(self, reason: str) -> None:
        """Close, and turn everything that is queued into dead letters and failed asks."""
        self.close(reason)
        while self._user:
            envelope = self._user.popleft()
            self._drop(envelope, DropReason.CLOSED, ActorStopped(self._actor_id, self._close_reason))
        self._state = MailboxState.CLOSED
        self._system.clear()

    def _raise_if_finished(self) -> None:
        if self._state is MailboxState.CLOSING and not self._user:
            self._state = MailboxState.CLOSED
        if self._state is MailboxState.CLOSED:
            raise MailboxClosed(self._actor_id, self._close_reason)

    async def join(self, *, timeout_s: float) -> bool:
        """Wait until everything accepted so far is settled (handled, not just taken); False when time ran out."""
        if self.settled_total >= self._accepted:
            return True
        settled: asyncio.Future[None] = self._loop.create_future()
        entry = (self._accepted, settled)
        self._joiners.append(entry)
        timer = self._loop.call_later(timeout_s, settled.cancel)
        try:
            await asyncio.wait([settled])
        finally:
            timer.cancel()
            if entry in self._joiners:
                self._joiners.remove(entry)
        return not settled.cancelled()

    def _wake_joiners(self) -> None:
        settled_total = self.settled_total
        for target, settled in self._joiners:
            if target <= settled_total and not settled.done():
                settled.set_result(None)

    # -------------------------------------------------------------- looking
    @property
    def state(self) -> MailboxState:
        """Return the state; reading it changes nothing."""
        return self._state

    @property
    def close_reason(self) -> str:
        """Return the reason of the first close, empty while open."""
        return self._close_reason

    @property
    def depth(self) -> int:
        """Return the number of queued user messages."""
        return len(self._user)

    @property
    def accepted_total(self) -> int:
        """Return how many user messages were ever accepted; equals the newest seq."""
        return self._accepted

    @property
    def settled_total(self) -> int:
        """Return how many accepted messages are over: handled or dropped."""
        return self._accepted - len(self._user) - self._in_flight

    def peek(self, limit: int) -> list[Envelope]:
        """Return the first queued user messages for inspection; the caller redacts and changes nothing."""
        return list(islice(self._user, limit))

    def stats(self) -> MailboxStats:
        """Return all numbers as of now."""
        return MailboxStats(
            capacity=self._capacity,
            depth=len(self._user),
            high_water=self._high_water,
            oldest_age_s=self._age(self._user),
            blocked_senders=len(self._parked),
            in_flight=self._in_flight,
            accepted_total=self._accepted,
            processed_total=self._processed,
            rejected_total=self._rejected,
            coalesced_total=self._coalesced,
            dropped_total=dict(self._dropped),
            late_replies_total=self._late_replies,
            blocked_seconds_total=self._blocked_s,
            wait_seconds=self._wait.view(),
            handle_seconds=self._handle.view(),
        )

    def _age(self, lane: deque[Envelope]) -> float:
        return self._clock() - lane[0].enqueued_at if lane else 0.0

    def _full(self) -> MailboxFull:
        return MailboxFull(
            self._actor_id, depth=len(self._user), capacity=self._capacity, oldest_age_s=self._age(self._user)
        )

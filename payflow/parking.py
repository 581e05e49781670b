"""Senders that wait for room, in the order of their arrival.

They are parked only while the queue is full: the mailbox hands over every free place at once, with the message, not
with a wake-up that could be lost or overtaken.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from payflow.envelope import Clock, Envelope
from payflow.errors import DeadlineExceeded, MailboxClosed


class Parking:
    """The parked senders of one mailbox."""

    __slots__ = ("_actor_id", "_clock", "_loop", "_turns", "blocked_s", "refused_total")

    def __init__(self, actor_id: str, clock: Clock) -> None:
        self._actor_id = actor_id
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._turns: OrderedDict[asyncio.Future[None], Envelope] = OrderedDict()
        self.blocked_s = 0.0
        self.refused_total = 0

    def __len__(self) -> int:
        return len(self._turns)

    async def wait_turn(self, envelope: Envelope) -> None:
        """Wait until the envelope was moved into the queue; fails by its deadline or by close."""
        parked_at = self._clock()
        turn: asyncio.Future[None] = self._loop.create_future()
        self._turns[turn] = envelope
        timer = None
        if envelope.deadline is not None:
            timer = self._loop.call_later(envelope.deadline - parked_at, self._expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in the tick in which room was made: taken back, unless the receiver already has it.
            envelope.abandoned = envelope.stage == "queue"
            raise
        finally:
            self._turns.pop(turn, None)
            self.blocked_s += self._clock() - parked_at
            if timer is not None:
                timer.cancel()

    def next(self) -> Envelope | None:
        """Let the first sender go and return its message; None when nobody waits."""
        while self._turns:
            turn, envelope = self._turns.popitem(last=False)
            if not turn.done():  # done here means cancelled, and its task has not run yet
                turn.set_result(None)
                return envelope
        return None

    def close(self, reason: str) -> None:
        """Send everybody away."""
        while self._turns:
            turn, _ = self._turns.popitem(last=False)
            self._refuse(turn, MailboxClosed(self._actor_id, reason))

    def _expire(self, turn: asyncio.Future[None]) -> None:
        self._turns.pop(turn, None)
        self._refuse(turn, DeadlineExceeded(self._actor_id, "enqueue"))

    def _refuse(self, turn: asyncio.Future[None], error: BaseException) -> None:
        if not turn.done():
            self.refused_total += 1
            turn.set_exception(error)

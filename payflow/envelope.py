"""What travels through a mailbox, the words for what a mailbox does with it, and the clock it is stamped with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from enum import StrEnum
from typing import Any

Clock = Callable[[], float]
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
    """A message under way. A plain slots class: a frozen dataclass costs 570 ns more each (docs/performance.md)."""

    __slots__ = (
        "abandoned",
        "answered",
        "chain",
        "deadline",
        "enqueued_at",
        "payload",
        "reply",
        "seq",
        "system",
        "taken_at",
        "trace_id",
    )

    enqueued_at: float  # set on acceptance, like seq; whoever reads it holds an accepted message

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
        self.seq = 0  # counts from 1; 0 = not accepted yet
        self.taken_at = -1.0
        self.system = False
        self.abandoned = False  # the sender took it back after acceptance
        self.answered = False  # replied to or handed on before its handler returned

    @property
    def stage(self) -> str:
        """Where a deadline that passes now has passed."""
        if self.seq == 0:
            return "enqueue"
        return "queue" if self.taken_at < 0 else "handle"

    @property
    def coalesce_key(self) -> Hashable:
        """What the message may merge with; None keeps it apart. An ask has a caller of its own and never merges."""
        if self.reply is not None:
            return None
        payload: Any = self.payload
        key: Hashable = getattr(payload, "coalesce_key", payload.__class__)
        return key


def running_clock() -> Clock:
    """Return the clock of the running loop.

    asyncio's own loops read time.monotonic, so the indirection is left out. uvloop's time() is the start of the
    current iteration: a 2 ms budget inside one iteration would never run out on it. A virtual loop keeps its own time.
    """
    loop = asyncio.get_running_loop()
    real = type(loop).time is asyncio.BaseEventLoop.time or type(loop).__module__.startswith("uvloop")
    return time.monotonic if real else loop.time

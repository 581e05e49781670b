"""MB-44: accepted == processed + dropped + depth + in_flight, after every step of any program.

The search drives one mailbox with every kind of step, in any order: senders that park and are cancelled, deadlines that
pass, batches, pauses, close and abort. After each step (and after the loop has run) the books must balance, the bound
must hold, and at the end nobody may be left waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from payflow.envelope import Envelope
from payflow.errors import ActorError
from payflow.mailbox import DropReason, Mailbox, Overflow
from tests.support.virtual_loop import settle, virtual

STEPS = (
    "tell",
    "send",
    "send with deadline",
    "ask",
    "cancel a sender",
    "take",
    "take a batch",
    "done",
    "fail",
    "pause",
    "resume",
    "let time pass",
    "system message",
    "one tick",
)
PROGRAMS = st.lists(st.sampled_from(STEPS), max_size=40)
ENDS = st.sampled_from(("close", "abort"))


class Message:
    """Merges with the next of its key."""

    def __init__(self, number: int) -> None:
        self.coalesce_key = number % 2


class Program:
    """One mailbox and everybody who uses it."""

    def __init__(self, overflow: Overflow) -> None:
        self.mailbox = Mailbox(3, overflow=overflow)
        self.senders: list[asyncio.Task[Any]] = []
        self.in_hand: list[Envelope] = []
        self.sent = 0
        self.steps: dict[str, Callable[[], Any]] = {
            "tell": lambda: self.mailbox.tell(self.message()),
            "send": lambda: self.spawn(self.mailbox.send(self.message())),
            "send with deadline": lambda: self.spawn(self.mailbox.send(self.message(), deadline=self.now() + 1)),
            "ask": lambda: self.spawn(self.mailbox.ask(self.message(), timeout_s=1)),
            "cancel a sender": lambda: self.senders[self.sent % len(self.senders)].cancel() if self.senders else None,
            "take": lambda: self.keep([self.mailbox.take()]),
            "take a batch": lambda: self.keep(list(self.mailbox.take_batch(2))),
            "done": lambda: self.mailbox.done(self.in_hand.pop(), "reply") if self.in_hand else None,
            "fail": self.fail,
            "pause": self.mailbox.pause,
            "resume": self.mailbox.resume,
            "system message": lambda: self.mailbox.tell_system("command"),
            "close": lambda: self.mailbox.close("end"),
            "abort": lambda: self.mailbox.abort("end"),
        }

    @staticmethod
    def now() -> float:
        return asyncio.get_running_loop().time()

    def message(self) -> Message:
        self.sent += 1
        return Message(self.sent)

    def spawn(self, coro: Any) -> None:
        self.senders.append(asyncio.create_task(coro))

    def keep(self, envelopes: list[Envelope | None]) -> None:
        self.in_hand += [envelope for envelope in envelopes if envelope is not None and not envelope.system]

    def fail(self) -> None:
        if self.in_hand:
            self.mailbox.discard(self.in_hand.pop(), DropReason.POISON, error=RuntimeError("poison"))

    async def step(self, name: str) -> None:
        if name == "let time pass":
            await asyncio.sleep(0.6)
        elif name == "one tick":
            await asyncio.sleep(0)
        else:
            with suppress(ActorError):
                self.steps[name]()
        self.check()

    def check(self) -> None:
        stats = self.mailbox.stats()
        settled = stats.processed_total + sum(stats.dropped_total.values())
        assert stats.accepted_total == settled + stats.depth + stats.in_flight
        assert stats.in_flight == len(self.in_hand)
        assert stats.depth <= stats.capacity
        assert stats.blocked_senders == 0 or stats.depth == stats.capacity
        assert self.mailbox.settled_total == settled

    async def finish(self, end: str) -> None:
        """Close, empty, and see that nobody is left."""
        await self.step("resume")
        await self.step(end)
        await settle()
        while (envelope := self.mailbox.take()) is not None:
            self.keep([envelope])
        while self.in_hand:
            await self.step("done")
        await settle()
        assert self.mailbox.stats().depth == 0
        assert all(sender.done() for sender in self.senders)
        for sender in self.senders:
            if not sender.cancelled():
                assert isinstance(sender.exception(), ActorError | RuntimeError | None)


@settings(max_examples=1000, deadline=None)
@given(overflow=st.sampled_from(Overflow), program=PROGRAMS, end=ENDS)
def test_mb_44_the_counters_balance_at_any_moment(overflow: Overflow, program: list[str], end: str) -> None:
    """A thousand random programs."""

    @virtual
    async def run() -> None:
        mailbox = Program(overflow)
        for name in program:
            await mailbox.step(name)
        await mailbox.finish(end)

    run()

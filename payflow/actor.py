"""What an actor author sees: the Actor to derive from, the reference to send to, the context to work with.

Nothing here decides about life and death; that is `instance.py` (one run) and `supervisor.py` (all of them).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from payflow.envelope import Clock, Envelope
from payflow.errors import DeadlockError, MailboxClosed, MailboxFull
from payflow.mailbox import Mailbox
from payflow.mailbox_stats import MailboxStats

Emit = Callable[..., None]  # event name, then fields by keyword
Failed = Callable[[BaseException], None]


class ExitReason(StrEnum):
    """Why one run of an actor ended."""

    NORMAL = "normal"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"
    KILLED = "killed"
    STUCK = "stuck"


class Actor:
    """One object per run: after a crash the factory makes a new one, so no state outlives its bug.

    An exception that leaves `handle` is a crash. What a caller may expect to go wrong is a return value or
    `self.ctx.fail(...)`.
    """

    ctx: ActorContext

    async def on_start(self, stack: AsyncExitStack) -> None:
        """Open what is needed; whatever is entered on `stack` is closed in reverse order, also when this fails."""

    async def handle(self, message: Any) -> Any:
        """Handle one message; the returned value answers an ask."""
        raise NotImplementedError(f"{type(self).__name__} handles no single messages")

    async def handle_batch(self, batch: Sequence[Envelope]) -> None:
        """Handle messages together; an envelope left unanswered is answered None when this returns."""
        raise NotImplementedError(f"{type(self).__name__} handles no batches")

    async def on_drain(self) -> None:
        """Finish what is still under way; everything queued when the drain began has been handled."""

    async def on_stop(self, reason: ExitReason) -> None:
        """Say goodbye; runs exactly once after a successful start, within the shutdown time limit."""

    def snapshot(self) -> object | None:
        """Return a small frozen dataclass for the debug page; cheap, no await."""
        return None


class Work:
    """What one instance has in hand right now. Attributes, not calls: it changes with every message."""

    __slots__ = ("actor_id", "envelope", "envelopes", "zone_left_at", "zones")

    def __init__(self, actor_id: str) -> None:
        self.actor_id = actor_id
        self.envelope: Envelope | None = None
        self.envelopes: Sequence[Envelope] = ()  # a batch; then `envelope` is its first
        self.zones = 0  # open progress zones
        self.zone_left_at = 0.0

    def since(self) -> float | None:
        """Return since when the watchdog counts; None while nothing is in hand or the handler waits honestly."""
        if self.envelope is None or self.zones:
            return None
        return max(self.envelope.taken_at, self.zone_left_at)

    def chain(self) -> tuple[str, ...]:
        """Return the actors that wait while this one waits, itself last."""
        if self.envelopes:
            waiting = dict.fromkeys(actor_id for envelope in self.envelopes for actor_id in envelope.chain)
            return (*waiting, self.actor_id)
        return (*self.envelope.chain, self.actor_id) if self.envelope else (self.actor_id,)

    def clear(self) -> None:
        """Nothing in hand."""
        self.envelope = None
        self.envelopes = ()


# Set once per run, to an object that always knows the current message: setting a ContextVar per message costs 50 ns.
current_work: ContextVar[Work | None] = ContextVar("current_work", default=None)


class ActorRef:
    """The address of an actor. It outlives crashes and restarts, because the mailbox does."""

    __slots__ = ("_mailbox", "id")

    def __init__(self, actor_id: str, mailbox: Mailbox) -> None:
        self.id = actor_id
        self._mailbox = mailbox

    def tell(self, message: Any, *, trace_id: str | None = None) -> bool:
        """Never wait: accepted, refused with MailboxFull, or False from a mailbox that drops the newest."""
        return self._mailbox.tell(message, trace_id=trace_id)

    def send(
        self, message: Any, *, deadline: float | None = None, trace_id: str | None = None
    ) -> Coroutine[Any, Any, None]:
        """Wait for room where the policy is `block`; `await` it. Plain `def`: one coroutine per message is enough."""
        return self._mailbox.send(message, deadline=deadline, trace_id=trace_id)

    async def ask(self, message: Any, *, timeout_s: float, trace_id: str | None = None) -> Any:
        """Send and wait for the answer; an ask that would wait for itself is a DeadlockError at once."""
        asker = current_work.get()
        chain = asker.chain() if asker is not None else ()
        if self.id in chain:
            raise DeadlockError((*chain[chain.index(self.id) :], self.id))
        return await self._mailbox.ask(message, timeout_s=timeout_s, trace_id=trace_id, chain=chain)

    def offer(self, envelope: Envelope) -> bool:
        """Accept a whole envelope, as `forward` hands it over; never waits."""
        return self._mailbox.offer(envelope)

    def load(self) -> tuple[int, int, float]:
        """Return (depth, capacity, age of the oldest message in seconds): cheap enough to ask for each message."""
        return self._mailbox.load()

    def stats(self) -> MailboxStats:
        """Return the numbers of the mailbox."""
        return self._mailbox.stats()

    def __repr__(self) -> str:
        return f"ActorRef({self.id!r})"


class Belongings:
    """The tasks and timers that one instance started. They end with it."""

    def __init__(self, ref: ActorRef, *, emit: Emit, on_failure: Failed) -> None:
        self._ref = ref
        self._emit = emit
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start an owned task. It is not part of a handler, so it asks on nobody's behalf."""
        context = copy_context()
        context.run(current_work.set, None)
        task = asyncio.get_running_loop().create_task(coro, name=f"actor:{self._ref.id}:{name}", context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    def tell_later(self, delay_s: float, message: Any) -> asyncio.TimerHandle:
        """Tell the actor itself something after a while."""

        def fire() -> None:
            self._timers.discard(timer)
            try:
                self._ref.tell(message)
            except (MailboxFull, MailboxClosed) as error:  # nobody is there to hear it but the log
                self._emit(
                    "actor.timer_refused", actor=self._ref.id, message_type=type(message).__name__, error=str(error)
                )

        timer = asyncio.get_running_loop().call_later(delay_s, fire)
        self._timers.add(timer)
        return timer

    def cancel(self) -> None:
        """Cancel everything, without waiting for it."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in self._tasks:
            task.cancel()

    async def close(self, *, timeout_s: float) -> tuple[str, ...]:
        """Cancel and await everything; return the names of tasks that did not obey in time."""
        self.cancel()
        tasks = list(self._tasks)
        if not tasks:
            return ()
        _, late = await asyncio.wait(tasks, timeout=timeout_s)
        return tuple(sorted(task.get_name() for task in late))


@dataclass(frozen=True, slots=True)
class ActorContext:
    """What an actor may ask of the runtime. Made anew for each instance."""

    ref: ActorRef
    instance: int
    now: Clock
    work: Work
    belongings: Belongings
    mailbox: Mailbox
    emit_event: Emit
    end: Callable[[], None]

    @property
    def id(self) -> str:
        """Return the id of this actor."""
        return self.ref.id

    @property
    def envelope(self) -> Envelope | None:
        """Return the envelope of the message in hand; in a batch the first one."""
        return self.work.envelope

    @property
    def trace_id(self) -> str | None:
        """Return the trace id of the message in hand."""
        return self.work.envelope.trace_id if self.work.envelope else None

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Start an owned task: cancelled and awaited at stop, and its exception is this actor's crash."""
        return self.belongings.spawn(coro, name=name)

    def tell_later(self, delay_s: float, message: Any) -> asyncio.TimerHandle:
        """Tell this actor something later; cancelled at stop."""
        return self.belongings.tell_later(delay_s, message)

    def forward(self, ref: ActorRef, message: Any, *, envelope: Envelope | None = None) -> None:
        """Let `ref` answer instead; reply, deadline, trace and chain go along. On a refusal nothing has moved."""
        source = envelope or self.work.envelope
        assert source is not None, "nothing in hand to forward"
        ref.offer(Envelope(message, source.deadline, source.reply, source.trace_id, source.chain))
        source.reply = None
        source.answered = True

    def reply(self, envelope: Envelope, value: Any) -> None:
        """Answer now, before the handler returns; the first answer counts."""
        envelope.answered = True
        self.mailbox.answer(envelope, value)

    def fail(self, envelope: Envelope, error: BaseException) -> None:
        """Answer with an error that is no crash."""
        envelope.answered = True
        self.mailbox.answer(envelope, error=error)

    def emit(self, event: str, **fields: Any) -> None:
        """Report an event in the name of this actor."""
        self.emit_event(event, actor=self.ref.id, **fields)

    def stop(self) -> None:
        """End this actor with reason normal, after the message in hand."""
        self.end()

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Start something here that will ask actors on behalf of others, such as a server.

        Its callbacks inherit this context; without this they would seem to be asks of this very actor (DeadlockError).
        """
        token = current_work.set(None)
        try:
            yield
        finally:
            current_work.reset(token)

    @contextmanager
    def progress_zone(self) -> Iterator[None]:
        """Mark a long but honest wait: the watchdog does not count it."""
        self.work.zones += 1
        try:
            yield
        finally:
            self.work.zones -= 1
            self.work.zone_left_at = self.now()  # what follows the wait has its full time

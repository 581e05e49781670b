"""One run of one actor: start, serve, leave. The object is used once; the next run gets a new one.

Invariants:
- The message in hand at the end is settled exactly once: done, poison (crash, stuck) or closed (stop, kill).
- A cancellation is never swallowed: one that we asked for ends the run, one from outside ends it and is raised again.
- A handler that ignores cancellation cannot hold its supervisor: the run is detached and reported as abandoned.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

from payflow.actor import Actor, ActorContext, ActorRef, Belongings, Emit, ExitReason, Work, current_work
from payflow.envelope import Clock
from payflow.errors import ActorCrashed, ActorStopped, MailboxClosed, MailboxFull
from payflow.mailbox import Mailbox
from payflow.mailbox_stats import DropReason
from payflow.spec import Batch, ChildSpec

# 64 messages or 2 ms, whichever is first: 5 ms worst loop lag at full speed. Without a yield a backlog of 50,000 froze
# the loop for 1050 ms; a yield per message is 16 to 20 times slower (docs/performance.md).
YIELD_AFTER_MESSAGES: Final = 64
YIELD_AFTER_S: Final = 0.002

# These mean the process, not the actor: the tree is asked to stop instead of restarting one of its leaves.
INTERRUPTS: Final = (KeyboardInterrupt, SystemExit)

# Owned tasks, on_stop and the exit stack have shutdown_timeout_s each; a run that needs more does not obey any more.
LEAVING_STEPS: Final = 3


@dataclass(frozen=True, slots=True)
class StopCommand:
    """End the run of this number. The mailbox outlives runs, so a stale one may be met and is ignored."""

    instance: int
    reason: ExitReason


@dataclass(frozen=True, slots=True)
class LookCommand:
    """Wake up and look at what the home asks for (a drain)."""


@dataclass(frozen=True, slots=True)
class SnapshotCommand:
    """Answer with a fresh snapshot."""

    reply: asyncio.Future[object | None]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a run ended."""

    reason: ExitReason
    cause: BaseException | None


@dataclass(slots=True)
class Drain:
    """A drain under way: acknowledged when everything accepted before `target` is settled and on_drain returned."""

    target: int
    acknowledged: asyncio.Future[None]


@dataclass(slots=True)
class Home:
    """What outlives the runs of one actor."""

    spec: ChildSpec
    ref: ActorRef
    mailbox: Mailbox
    clock: Clock
    emit: Emit
    on_ready: Callable[[Instance], None]
    on_overdue: Callable[[Instance], None]
    on_interrupt: Callable[[BaseException], None]
    drain: Drain | None = None
    snapshot: object | None = None
    snapshot_at: float | None = None


class Instance:
    """See the head of the module."""

    def __init__(self, home: Home, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.home = home
        self.number = number
        self.work = Work(home.ref.id)
        self.ready: asyncio.Future[None] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()  # ended or left behind
        self.exit: Exit | None = None
        self.task: asyncio.Task[None] | None = None  # set by the one who runs us
        self.idle = False
        self.leaving = False
        self.detached = False
        self._loop = loop
        self._actor: Actor | None = None
        self._publishes = False
        self._belongings = Belongings(home.ref, emit=home.emit, on_failure=self._task_failed)
        self._verdict: Exit | None = None
        self._own_cancels = 0
        self._overdue: asyncio.TimerHandle | None = None

    # -------------------------------------------------------------- life
    async def run(self) -> None:
        """Live once. Ends cancelled only when the cancellation came from outside."""
        stack = AsyncExitStack()
        error: BaseException | None = None
        reason = ExitReason.NORMAL
        try:
            reason = await self._live(stack)
        except BaseException as caught:  # noqa: BLE001 - the boundary: whatever leaves an actor becomes an exit
            error = caught
        if self.detached and self.exit is not None:  # came back late: its message is settled, its resources are not
            await self._leave(self.exit, stack)
            return
        ended = self._judge(reason, error)
        self.leaving = True
        self._expect_end(LEAVING_STEPS * self.home.spec.shutdown_timeout_s)
        foreign_cancels = await self._absorb_cancels(error)
        self._settle(ended)
        try:
            await self._leave(ended, stack)
        finally:
            self.exit = ended
        if foreign_cancels:
            raise asyncio.CancelledError

    async def _live(self, stack: AsyncExitStack) -> ExitReason:
        home = self.home
        current_work.set(self.work)
        actor = home.spec.factory()
        actor.ctx = ActorContext(
            ref=home.ref,
            instance=self.number,
            now=home.clock,
            work=self.work,
            belongings=self._belongings,
            mailbox=home.mailbox,
            emit_event=home.emit,
            end=self._end_normally,
        )
        await actor.on_start(stack)
        self._actor = actor
        self._end_if_cut_off()
        self._publishes = type(actor).snapshot is not Actor.snapshot
        self.ready.set_result(None)
        home.on_ready(self)  # now, not when `start` wakes up: the first message may crash before that
        if home.spec.batch is not None:
            return await self._serve_batches(actor, home.spec.batch)
        return await self._serve(actor)

    async def _serve(self, actor: Actor) -> ExitReason:
        mailbox, work, clock, handle = self.home.mailbox, self.work, self.home.clock, actor.handle
        now = clock()
        left, turn_ends_at = YIELD_AFTER_MESSAGES, now + YIELD_AFTER_S
        while True:
            envelope = mailbox.take(now)
            if envelope is None:
                await self._rest(actor)
                now = clock()
                left, turn_ends_at = YIELD_AFTER_MESSAGES, now + YIELD_AFTER_S
                continue
            if envelope.system:
                if (reason := self._obey(actor, envelope.payload)) is not None:
                    return reason
                continue
            work.envelope = envelope
            answer = await handle(envelope.payload)
            if self.detached:  # given up in the meantime: the message is settled, the mailbox is no longer ours
                return ExitReason.KILLED
            work.envelope = None
            now = mailbox.done(envelope, answer)
            left -= 1
            if left == 0 or now >= turn_ends_at:
                await self._breathe(actor)
                now = clock()
                left, turn_ends_at = YIELD_AFTER_MESSAGES, now + YIELD_AFTER_S

    async def _serve_batches(self, actor: Actor, batch: Batch) -> ExitReason:
        mailbox, work, clock = self.home.mailbox, self.work, self.home.clock
        left, turn_ends_at = YIELD_AFTER_MESSAGES, clock() + YIELD_AFTER_S
        while True:
            while (command := mailbox.take_system()) is not None:
                if (reason := self._obey(actor, command.payload)) is not None:
                    return reason
            envelopes = (
                mailbox.take_batch(batch.max_items) if mailbox.batch_is_due(batch.max_items, batch.linger_s) else []
            )
            if not envelopes:
                await self._rest(actor, batch)
                left, turn_ends_at = YIELD_AFTER_MESSAGES, clock() + YIELD_AFTER_S
                continue
            work.envelope, work.envelopes = envelopes[0], envelopes
            await actor.handle_batch(envelopes)
            if self.detached:
                return ExitReason.KILLED
            work.clear()
            for envelope in envelopes:
                now = mailbox.done(envelope)
            left -= len(envelopes)
            if left <= 0 or now >= turn_ends_at:
                await self._breathe(actor)
                left, turn_ends_at = YIELD_AFTER_MESSAGES, clock() + YIELD_AFTER_S

    async def _rest(self, actor: Actor, batch: Batch | None = None) -> None:
        """Nothing to take: publish the state, acknowledge a drain, wait for mail."""
        self._publish(actor)
        if self.home.drain is not None:
            await self._finish_drain(actor)
        self.idle = True
        try:
            if batch is None:
                await self.home.mailbox.wait()
            else:
                await self.home.mailbox.wait_batch(batch.max_items, batch.linger_s)
        finally:
            self.idle = False

    async def _breathe(self, actor: Actor) -> None:
        """Let the rest of the loop have its turn."""
        self._publish(actor)
        if self.home.drain is not None:
            await self._finish_drain(actor)
        await asyncio.sleep(0)

    def _publish(self, actor: Actor) -> None:
        if self._publishes:
            self.home.snapshot = actor.snapshot()
            self.home.snapshot_at = self.home.clock()

    async def _finish_drain(self, actor: Actor) -> None:
        drain = self.home.drain
        if drain is None or self.home.mailbox.settled_total < drain.target:
            return
        await actor.on_drain()
        self._end_if_cut_off()
        if self.home.drain is drain:
            self.home.drain = None
        if not drain.acknowledged.done():
            drain.acknowledged.set_result(None)

    def _obey(self, actor: Actor, command: object) -> ExitReason | None:
        match command:
            case StopCommand(instance=self.number, reason=reason):
                return reason
            case SnapshotCommand(reply=reply) if not reply.done():
                reply.set_result(actor.snapshot())
        return None

    # -------------------------------------------------------------- end
    def end_now(self, reason: ExitReason, cause: BaseException | None = None) -> None:
        """Cut the run off: cancel, and be reported as overdue when that is not obeyed. The first verdict counts."""
        if self.leaving or self._verdict is not None or self.task is None or self.task.done():
            return
        self._verdict = Exit(reason, cause)
        self._own_cancels += 1
        self.task.cancel()
        self._expect_end(self.home.spec.shutdown_timeout_s)
        # A handler may swallow the cancellation and return; then this ends the run instead of the next message.
        with suppress(MailboxFull, MailboxClosed):
            self.home.mailbox.tell_system(StopCommand(self.number, reason))

    def _end_if_cut_off(self) -> None:
        """Go no further when the actor's code swallowed the cancellation that was to end this run."""
        if self._verdict is not None or self.detached:
            raise asyncio.CancelledError

    def detach(self) -> None:
        """Give up on a run that does not obey: settle its message here; whatever it does later touches nothing."""
        self.detached = True
        self.exit = self.exit or self._verdict or Exit(ExitReason.KILLED, None)
        self._belongings.cancel()
        if not self.leaving:
            self._settle(self.exit)

    def finish(self) -> None:
        """Nothing is expected of this run any more."""
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        if not self.over.done():
            self.over.set_result(None)

    def _expect_end(self, within_s: float) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
        self._overdue = self._loop.call_later(within_s, self.home.on_overdue, self)

    def _end_normally(self) -> None:
        self.home.mailbox.tell_system(StopCommand(self.number, ExitReason.NORMAL))

    def _task_failed(self, error: BaseException) -> None:
        self.end_now(ExitReason.CRASHED, error)

    def _judge(self, reason: ExitReason, error: BaseException | None) -> Exit:
        if self._verdict is not None:
            return self._verdict
        if error is None:
            return Exit(reason, None)
        if isinstance(error, INTERRUPTS):
            self.home.on_interrupt(error)
        elif isinstance(error, asyncio.CancelledError) and self._cancelling():
            return Exit(ExitReason.KILLED, None)
        # A CancelledError that nobody sent to this task came out of a foreign future: a crash, not a stop.
        return Exit(ExitReason.CRASHED, error)

    def _cancelling(self) -> int:
        assert self.task is not None
        return self.task.cancelling()

    async def _absorb_cancels(self, error: BaseException | None) -> int:
        """Close the open cancel requests so that cleanup can run; return how many came from outside.

        On 3.11 asyncio.timeout stays silent while a request is open, and a request that was not delivered yet (the
        handler raised something else in the same tick) would hit the first await of the cleanup.
        """
        assert self.task is not None
        requests = self.task.cancelling()
        while self.task.cancelling():
            self.task.uncancel()
        if requests and not isinstance(error, asyncio.CancelledError):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        return requests - self._own_cancels

    def _settle(self, ended: Exit) -> None:
        """Decide about the message in hand."""
        mailbox, actor_id = self.home.mailbox, self.home.ref.id
        in_batch = bool(self.work.envelopes)
        in_hand = self.work.envelopes or ((self.work.envelope,) if self.work.envelope else ())
        self.work.clear()
        poisoned = ended.reason in (ExitReason.CRASHED, ExitReason.STUCK)
        detail = last_line(ended.cause)
        for envelope in in_hand:
            if in_batch and envelope.answered:  # the rest of the batch failed, this one did not
                mailbox.done(envelope)
            elif poisoned:
                crashed = ActorCrashed(actor_id)
                crashed.__cause__ = ended.cause
                mailbox.discard(envelope, DropReason.POISON, error=crashed, detail=detail)
            else:
                mailbox.discard(envelope, DropReason.CLOSED, error=ActorStopped(actor_id, ended.reason), detail=detail)

    async def _leave(self, ended: Exit, stack: AsyncExitStack) -> None:
        late = await self._belongings.close(timeout_s=self.home.spec.shutdown_timeout_s)
        if late:
            self.home.emit("actor.task_abandoned", actor=self.home.ref.id, tasks=late)
        if self._actor is not None:
            await self._bounded("on_stop", self._actor.on_stop(ended.reason))
        if ended.cause is None:
            await self._bounded("close", stack.aclose())
        else:
            await self._bounded("close", stack.__aexit__(type(ended.cause), ended.cause, ended.cause.__traceback__))

    async def _bounded(self, step: str, coro: Coroutine[Any, Any, Any]) -> None:
        try:
            async with asyncio.timeout(self.home.spec.shutdown_timeout_s):
                await coro
        except Exception as error:  # noqa: BLE001 - a failing goodbye must not keep the next step from running
            self.home.emit("actor.cleanup_failed", actor=self.home.ref.id, step=step, error=last_line(error))


def last_line(error: BaseException | None) -> str:
    """Return the last line of the traceback: type and text."""
    return traceback.format_exception_only(error)[-1].strip() if error is not None else ""

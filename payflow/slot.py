"""The place of one actor in the tree: its mailbox and reference, the run that fills it now, and its record.

The slot starts, stops, kills, drains and pauses one run at a time. Whether a run that came down is followed by another
is not its business: it reports to its supervisor and obeys.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from payflow.actor import ActorRef, Emit, ExitReason
from payflow.errors import ActorStopped, MailboxClosed, MailboxFull, PayflowError, StartFailed
from payflow.instance import Drain, Exit, Home, Instance, LookCommand, StopCommand, last_line
from payflow.mailbox import Clock, DeadLetterSink, Mailbox, MailboxState
from payflow.spec import ChildSpec
from payflow.stacks import coroutine_stack


class ActorState(StrEnum):
    """new -> starting -> running <-> paused -> draining -> stopped; running -> backing_off -> starting; failed."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    DRAINING = "draining"
    BACKING_OFF = "backing_off"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class World:
    """What the whole tree shares."""

    emit: Emit
    draw: Callable[[], float]
    clock: Clock
    dead_letters: DeadLetterSink
    spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
    on_interrupt: Callable[[BaseException], None]
    may_restart: Callable[[], bool]


@dataclass(slots=True)
class Stopping:
    """How to stop, and who made trouble. `grace_s` cuts every drain_timeout_s; `drain` empties mailboxes first."""

    drain: bool = False
    grace_s: float | None = None
    late: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Down:
    """A child came down by itself."""

    child: str
    number: int
    reason: ExitReason
    cause: BaseException | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Who paused an actor, and when it goes on by itself."""

    by: str
    since: float
    until: float
    timer: asyncio.TimerHandle


class ActorSlot:
    """See the head of the module."""

    def __init__(self, spec: ChildSpec, world: World, on_down: Callable[[Down], None]) -> None:
        self.id = spec.id
        self.spec = spec
        self.mailbox = Mailbox(
            spec.capacity,
            overflow=spec.overflow,
            actor_id=spec.id,
            clock=world.clock,
            dead_letters=world.dead_letters,
        )
        self.mailbox.on_system_overflow = self._system_lane_full
        self.ref = ActorRef(spec.id, self.mailbox)
        self.instance: Instance | None = None
        self.number = 0
        self.since = world.clock()
        self.restarts_total = 0
        self.stuck_total = 0
        self.abandoned_total = 0
        self.abandoned_tasks: set[asyncio.Task[None]] = set()
        self.last_exit: Exit | None = None
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.next_start_at: float | None = None
        self.pause_info: Pause | None = None
        self._life = ActorState.NEW
        self._stopping = False
        self._reported_stuck: tuple[int, int] | None = None
        self._world = world
        self._on_down = on_down
        self.home = Home(
            spec=spec,
            ref=self.ref,
            mailbox=self.mailbox,
            clock=world.clock,
            emit=world.emit,
            on_ready=self._became_ready,
            on_overdue=self._abandon,
            on_interrupt=world.on_interrupt,
        )

    @property
    def state(self) -> ActorState:
        """Return the state as seen from outside."""
        if self._life is not ActorState.RUNNING:
            return self._life
        if self.mailbox.state is MailboxState.PAUSED:
            return ActorState.PAUSED
        if self.home.drain is not None or self.mailbox.state is MailboxState.CLOSING:
            return ActorState.DRAINING
        return ActorState.RUNNING

    # -------------------------------------------------------------- start
    async def start(self) -> None:
        """Start the next run and return when it reported ready; StartFailed otherwise."""
        self.number += 1
        self.next_start_at = None
        self._enter(ActorState.STARTING)
        instance = Instance(self.home, self.number)
        self.instance = instance
        task = self._world.spawn(instance.run(), f"actor:{self.id}#{self.number}")
        instance.task = task
        task.add_done_callback(lambda _: self._ended(instance))
        try:
            await asyncio.wait(
                {instance.ready, task}, timeout=self.spec.start_timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        except asyncio.CancelledError:
            await self._kill(instance, ExitReason.KILLED)
            raise
        if not instance.ready.done():
            await self._start_failed(instance)

    def _became_ready(self, instance: Instance) -> None:
        self._enter(ActorState.RUNNING)
        self.restarts_total += instance.number > 1
        self._world.emit("actor.started", actor=self.id, instance=instance.number)

    async def _start_failed(self, instance: Instance) -> None:
        timed_out = instance.task is not None and not instance.task.done()
        if timed_out:
            await self._kill(instance, ExitReason.KILLED)
        cause = None if timed_out or instance.exit is None else instance.exit.cause
        reason = f"start timeout {float(self.spec.start_timeout_s)} s" if timed_out else last_line(cause) or "cancelled"
        self._note_error(reason)
        self._enter(ActorState.FAILED)
        self._world.emit(
            "actor.start_failed",
            actor=self.id,
            instance=self.number,
            error=reason,
            # What is missing outside is said in its own sentence; only of a bug one asks where it is.
            traceback="" if cause is None or isinstance(cause, PayflowError) else _lines(cause),
        )
        raise StartFailed(self.id, reason) from cause

    # -------------------------------------------------------------- end
    async def stop(self, stopping: Stopping) -> None:
        """End the run: gracefully while the grace lasts, then by cancellation, then without it."""
        self._stopping = True
        try:
            instance = self.instance
            if instance is not None and not instance.over.done():
                await self._stop_instance(instance, stopping)
        finally:
            self._stopping = False
        if self._life is not ActorState.FAILED:  # a failure stays visible
            self._enter(ActorState.STOPPED)
        if any(not task.done() for task in self.abandoned_tasks):
            stopping.abandoned.append(self.id)

    async def _stop_instance(self, instance: Instance, stopping: Stopping) -> None:
        grace_s = self.spec.drain_timeout_s
        if stopping.grace_s is not None:
            grace_s = min(grace_s, stopping.grace_s)
        ends_at = self._world.clock() + grace_s
        if stopping.drain and not await self.drain(timeout_s=grace_s):
            left = self.mailbox.accepted_total - self.mailbox.settled_total
            self._world.emit("actor.drain_timeout", actor=self.id, left=left)
            stopping.late.append(self.id)
            await self._kill(instance, ExitReason.KILLED)
            return
        try:
            self.mailbox.tell_system(StopCommand(instance.number, ExitReason.SHUTDOWN))
        except (MailboxFull, MailboxClosed):
            await self._kill(instance, ExitReason.KILLED)
            return
        await asyncio.wait({instance.over}, timeout=max(0.0, ends_at - self._world.clock()))
        if not instance.over.done() and not instance.idle and not instance.leaving:
            stopping.late.append(self.id)
            await self._kill(instance, ExitReason.KILLED)
        await asyncio.wait({instance.over})  # ends: an idle run obeys, a leaving one has its own time limit

    async def _kill(self, instance: Instance, reason: ExitReason) -> None:
        """Cancel a run and wait until it is over or given up; both have a time limit inside the instance."""
        instance.end_now(reason)
        if not instance.over.done():
            await asyncio.wait({instance.over})

    def kill_stuck(self) -> None:
        """Cut off a handler that is over its time; the exit comes back to the supervisor like any other."""
        if self.instance is not None:
            self.instance.end_now(ExitReason.STUCK)

    def _abandon(self, instance: Instance) -> None:
        """Leave a run behind that does not obey: asyncio cannot kill a task, so it is counted and shown."""
        assert instance.task is not None
        stack = coroutine_stack(instance.task)
        instance.detach()
        instance.task.cancel()
        self.abandoned_total += 1
        self.abandoned_tasks.add(instance.task)
        instance.task.add_done_callback(self.abandoned_tasks.discard)
        self._world.emit("actor.abandoned", actor=self.id, instance=instance.number, stack=stack)
        self._over(instance)

    def _ended(self, instance: Instance) -> None:
        if not instance.detached:
            self._over(instance)

    def _over(self, instance: Instance) -> None:
        ended = instance.exit or Exit(ExitReason.KILLED, None)  # cancelled before its first step
        self.last_exit = ended
        failed = ended.reason not in (ExitReason.NORMAL, ExitReason.SHUTDOWN)
        if failed:
            self._note_error(last_line(ended.cause) or ended.reason)
        instance.finish()
        if not instance.ready.done():
            return  # `start` is waiting for it and tells
        self._enter(ActorState.FAILED if failed and not self._stopping else ActorState.STOPPED)
        if ended.reason is not ExitReason.CRASHED:
            self._world.emit("actor.stopped", actor=self.id, instance=instance.number, reason=ended.reason)
        else:
            self._world.emit(
                "actor.crashed",
                actor=self.id,
                instance=instance.number,
                reason=ended.reason,
                error=last_line(ended.cause),
                traceback=_lines(ended.cause) if ended.cause is not None else "",
            )
        if not self._stopping:
            self._on_down(Down(self.id, instance.number, ended.reason, ended.cause))

    def retire(self, reason: str) -> None:
        """No further run: what is queued becomes dead letters, senders are refused."""
        self.resume("stop")
        self.next_start_at = None
        self.mailbox.abort(reason)
        if self.home.drain is not None and not self.home.drain.acknowledged.done():
            self.home.drain.acknowledged.cancel()
        self.home.drain = None

    def back_off(self, delay_s: float) -> None:
        """Note that the next run is due after a while."""
        self.next_start_at = self._world.clock() + delay_s
        self._enter(ActorState.BACKING_OFF)

    def _enter(self, state: ActorState) -> None:
        self._life = state
        self.since = self._world.clock()

    def _note_error(self, text: str) -> None:
        self.last_error = text
        self.last_error_at = self._world.clock()

    def _system_lane_full(self) -> None:
        if self.instance is not None:
            self.instance.end_now(ExitReason.CRASHED, ActorStopped(self.id, "system_lane_full"))

    # -------------------------------------------------------------- commands
    async def drain(self, *, timeout_s: float, close: bool = False) -> bool:
        """Have everything handled that was accepted until now; True when the actor acknowledged."""
        if close:
            self.mailbox.close("draining")
        self.resume("drain")
        if self.mailbox.state is MailboxState.CLOSED:
            return True
        if self.home.drain is None:
            self.home.drain = Drain(0, asyncio.get_running_loop().create_future())
        drain = self.home.drain
        drain.target = self.mailbox.accepted_total
        with suppress(MailboxFull):  # a full lane wakes the actor as well
            self.mailbox.tell_system(LookCommand())
        await asyncio.wait({drain.acknowledged}, timeout=timeout_s)
        if drain.acknowledged.done():
            return not drain.acknowledged.cancelled()
        if self.home.drain is drain:
            self.home.drain = None
        return False

    def pause(self, *, max_s: float, by: str) -> None:
        """Handle nothing but the system lane for a while; goes on by itself after `max_s`."""
        self.resume(by)
        if self.mailbox.state is not MailboxState.OPEN:
            raise ActorStopped(self.id, f"its mailbox is {self.mailbox.state}")
        self.mailbox.pause()
        now = self._world.clock()
        timer = asyncio.get_running_loop().call_later(max_s, self.resume, "timeout")
        self.pause_info = Pause(by, now, now + max_s, timer)
        self._world.emit("actor.paused", actor=self.id, by=by, max_s=max_s)

    def resume(self, by: str) -> None:
        """Go on."""
        if self.pause_info is None:
            return
        self.pause_info.timer.cancel()
        self.pause_info = None
        self.mailbox.resume()
        self._world.emit("actor.resumed", actor=self.id, by=by)

    # -------------------------------------------------------------- watchdog
    def busy_s(self) -> float:
        """Return how long the message in hand has been handled; 0 when there is none, or in a progress zone."""
        since = self.instance.work.since() if self.instance is not None else None
        return 0.0 if since is None else self._world.clock() - since

    @property
    def stuck(self) -> bool:
        """Tell whether the handler that was reported stuck is still running."""
        instance = self.instance
        if self._reported_stuck is None or instance is None or instance.work.envelope is None:
            return False
        return self._reported_stuck == (instance.number, instance.work.envelope.seq)

    def check_stuck(self) -> None:
        """Report a handler that is over its time, once, and cut it off where the spec says so."""
        limit_s = self.spec.handler_timeout_s
        elapsed_s = self.busy_s()
        instance = self.instance
        if limit_s is None or instance is None or elapsed_s < limit_s or self.stuck:
            return
        assert instance.task is not None
        envelope = instance.work.envelope
        assert envelope is not None
        self._reported_stuck = (instance.number, envelope.seq)
        self.stuck_total += 1
        self._world.emit(
            "actor.stuck",
            actor=self.id,
            message_type=type(envelope.payload).__name__,
            elapsed_s=elapsed_s,
            stack=coroutine_stack(instance.task),
        )
        if self.spec.stuck_action == "restart":
            self.kill_stuck()


def _lines(error: BaseException) -> str:
    """The traceback as text; it has no local variables."""
    return "".join(traceback.format_exception(error))

"""The System: the supervision tree as the process sees it, and the names that build one.

It owns nothing but the watch over handlers; what happens to children is decided in `supervision.py`. Every task has an
owner: a node owns its event task, a slot its run, an actor what it spawned. They all come from `System._spawn`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

from payflow.actor import ActorRef, Emit, ExitReason
from payflow.core.restart import RestartType, Strategy
from payflow.envelope import Clock, MailboxState, running_clock
from payflow.errors import ActorStopped
from payflow.inspection import (
    DeadLetter,
    DeadLetters,
    EnvelopeView,
    Node,
    SnapshotView,
    peek,
    render_text,
    take_snapshot,
)
from payflow.slot import ActorState, Down, Stopping, World
from payflow.spec import Batch, ChildSpec, SupervisorSpec
from payflow.stacks import Frame, coroutine_stack
from payflow.supervision import RestartRequest, Supervisor

__all__ = [
    "ActorState",
    "Batch",
    "ChildSpec",
    "RestartType",
    "StopReport",
    "Strategy",
    "Supervisor",
    "SupervisorSpec",
    "System",
    "render_text",
]

# A handler over its time is noticed this late at most; the limits it checks are seconds.
WATCH_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class StopReport:
    """What did not end as it should: `late` had to be cancelled, `abandoned` did not even obey that."""

    abandoned: tuple[str, ...]
    late: tuple[str, ...]


class System:
    """The tree as the process sees it. Make it inside the running loop; references work before `start`."""

    def __init__(
        self, root: SupervisorSpec, *, emit: Emit, draw: Callable[[], float], clock: Clock | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock or running_clock()
        self._emit = emit
        self._dead_letters = DeadLetters(self._clock)
        # A result, not an exception: who is interested looks, and nobody is warned about one never retrieved.
        self.escalated: asyncio.Future[BaseException] = self._loop.create_future()
        self._ending = False
        world = World(
            emit=emit,
            draw=draw,
            clock=self._clock,
            dead_letters=self._dead_letters.add,
            spawn=self._spawn,
            on_interrupt=self._escalate,
            may_restart=lambda: not self._ending,
        )
        self.root = Supervisor(root, world, self._root_down)
        self._slots = {slot.id: slot for slot in self.root.slots()}
        self._starting: asyncio.Task[None] | None = None
        self._stopping = False
        self._watch: asyncio.TimerHandle | None = None

    def _spawn(self, coro: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(coro, name=name)

    def ref(self, actor_id: str) -> ActorRef:
        """Return the address of an actor; it is good before the start and across restarts."""
        return self._slots[actor_id].ref

    # -------------------------------------------------------------- life
    async def start(self) -> None:
        """Start everything; StartFailed names the child. ActorStopped when `stop` was called meanwhile."""
        self._starting = self._spawn(self.root.start(), f"start:{self.root.id}")
        try:
            await self._starting
        except asyncio.CancelledError:
            if self._stopping and self._starting.cancelled():
                raise ActorStopped(self.root.id, ExitReason.SHUTDOWN) from None
            raise
        if any(slot.spec.handler_timeout_s is not None for slot in self._slots.values()):
            self._watch = self._loop.call_later(WATCH_EVERY_S, self._check_stuck)

    async def stop(self, *, drain: bool = False, grace_s: float | None = None) -> StopReport:
        """Stop everything in reverse order; never raises for what a child does, but reports it."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait({self._starting})
        stopping = Stopping(drain=drain, grace_s=grace_s)
        await self.root.stop(stopping)
        self.root.retire(ExitReason.SHUTDOWN)
        return StopReport(tuple(stopping.abandoned), tuple(stopping.late))

    def _root_down(self, down: Down) -> None:
        self.root.retire(ExitReason.CRASHED)
        self._escalate(down.cause or ActorStopped(self.root.id, down.reason))

    def _escalate(self, cause: BaseException) -> None:
        if not self.escalated.done():
            self.escalated.set_result(cause)

    def _check_stuck(self) -> None:
        for slot in self._slots.values():
            slot.check_stuck()
        self._watch = self._loop.call_later(WATCH_EVERY_S, self._check_stuck)

    def end_restarts(self) -> None:
        """From now on whatever comes down stays down: the process is ending, and a fresh start would undo its drain."""
        self._ending = True

    # -------------------------------------------------------------- commands
    async def drain(self, actor_id: str, *, timeout_s: float, close: bool = False) -> bool:
        """Have an actor handle all it accepted; True when it acknowledged. `close` also refuses new messages."""
        return await self._slots[actor_id].drain(timeout_s=timeout_s, close=close)

    def pause(self, actor_id: str, *, max_s: float, by: str) -> None:
        """Stop handling for a while; it goes on by itself after `max_s`."""
        self._slots[actor_id].pause(max_s=max_s, by=by)

    def resume(self, actor_id: str, by: str) -> None:
        """Go on handling."""
        self._slots[actor_id].resume(by)

    async def restart(self, actor_id: str, reason: str) -> None:
        """Replace the running instance by a fresh one. An operator's wish does not count as a crash."""
        node = self.root.parent_of(actor_id)
        if node is None or self._stopping or node.state is not ActorState.RUNNING:
            raise ActorStopped(actor_id, "not supervised now")
        slot = self._slots[actor_id]
        if slot.mailbox.state is MailboxState.CLOSED:
            raise ActorStopped(actor_id, "ended for good")
        if slot.state is ActorState.PAUSED:  # a fresh run that still stands still is not what was asked for
            slot.resume("restart")
        self._emit("actor.restart_requested", actor=actor_id, reason=reason)
        done: asyncio.Future[None] = self._loop.create_future()
        node.post(RestartRequest(actor_id, done))
        await done

    # -------------------------------------------------------------- looking
    async def snapshot(self, actor_id: str, timeout_s: float) -> SnapshotView:
        """Ask for a fresh snapshot; answer with the last published one when the actor is busy."""
        return await take_snapshot(self._slots[actor_id], timeout_s=timeout_s, clock=self._clock)

    def published(self, actor_id: str) -> object | None:
        """Return the snapshot that an actor published last, however old; no waiting."""
        return self._slots[actor_id].home.snapshot

    def stack(self, actor_id: str) -> tuple[Frame, ...]:
        """Return where the handler waits: own frames, innermost last, no variables."""
        instance = self._slots[actor_id].instance
        return coroutine_stack(instance.task) if instance is not None and instance.task is not None else ()

    def peek(self, actor_id: str, limit: int) -> tuple[EnvelopeView, ...]:
        """Return the first queued messages, redacted."""
        return peek(self._slots[actor_id].mailbox, limit=limit, now=self._clock())

    def tree(self) -> Node:
        """Return the whole tree as it is now; a metrics collector reads its numbers from here too."""
        return self.root.node()

    def dead_letters(self) -> tuple[DeadLetter, ...]:
        """Return the last dead letters, oldest first."""
        return self._dead_letters.view()

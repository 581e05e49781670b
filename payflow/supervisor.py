"""Supervision: nodes that start, stop and restart their children, and the System on top that the process talks to.

A node decides nothing itself: `core/restart.py` says what a death leads to, the node obeys, one event after the other.
Starts are sequential, as in Erlang/OTP: while one child starts, the death of another waits in the queue. Waiting for a
backoff is a timer, so it holds up nobody.

Invariants:
- Children start in the order of the spec and stop in reverse; each start is acknowledged before the next.
- A Down that names an older run is stale and ignored; so a crash during a group restart is absorbed by it.
- Every task has an owner: a node owns its event loop task, a slot its run, an actor what it spawned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Final

from payflow.actor import ActorRef, Emit, ExitReason
from payflow.core.restart import Escalate, Restart, RestartPolicy, RestartType, Stop, Strategy
from payflow.envelope import Clock, running_clock
from payflow.errors import ActorStopped, RestartIntensityExceeded, StartFailed
from payflow.inspection import (
    DeadLetter,
    DeadLetters,
    EnvelopeView,
    Node,
    SnapshotView,
    actor_node,
    peek,
    render_text,
    take_snapshot,
)
from payflow.instance import INTERRUPTS, last_line
from payflow.slot import ActorSlot, ActorState, Down, Stopping, World
from payflow.spec import Batch, ChildSpec, SupervisorSpec
from payflow.stacks import Frame, coroutine_stack

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
# Ended children stay on the debug page for this long, so that the reason can still be read.
GRAVE_S: Final = 60.0
# One run that ignores cancellation is bad luck, a second one is a leak.
ABANDONED_MAX: Final = 1


@dataclass(frozen=True, slots=True)
class StopReport:
    """What did not end as it should: `late` had to be cancelled, `abandoned` did not even obey that."""

    abandoned: tuple[str, ...]
    late: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _StartDue:
    """A backoff is over."""

    group: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _RestartRequest:
    """An operator wants a fresh run."""

    child: str
    done: asyncio.Future[None]


_Event = Down | _StartDue | _RestartRequest


class Supervisor:
    """One node of the tree."""

    def __init__(self, spec: SupervisorSpec, world: World, on_down: Callable[[Down], None]) -> None:
        self.id = spec.id
        self.spec = spec
        self.number = 0
        self.since = world.clock()
        self.restarts_total = 0
        self.next_start_at: float | None = None
        self.last_error: str | None = None
        self.last_error_at: float | None = None
        self.state = ActorState.NEW
        self.children: dict[str, ActorSlot | Supervisor] = {
            child.id: Supervisor(child, world, self.post)
            if isinstance(child, SupervisorSpec)
            else ActorSlot(child, world, self.post)
            for child in spec.children
        }
        self._world = world
        self._on_down = on_down
        self._policy = self._new_policy()
        self._events: asyncio.Queue[_Event] = asyncio.Queue()  # bounded by the number of children
        self._pending: dict[str, asyncio.TimerHandle] = {}
        self._task: asyncio.Task[None] | None = None

    def _new_policy(self) -> RestartPolicy:
        spec = self.spec
        return RestartPolicy(
            spec.strategy, max_restarts=spec.max_restarts, within_s=spec.within_s, children=spec.rules()
        )

    # -------------------------------------------------------------- start and stop
    async def start(self) -> None:
        """Start all children in order; when one fails or we are cancelled, stop those that run, in reverse."""
        self.number += 1
        self.restarts_total += self.number > 1
        self.next_start_at = None
        self._policy = self._new_policy()
        self._events = asyncio.Queue()
        self._enter(ActorState.STARTING)
        try:
            for child in self.children.values():
                await child.start()
                self._policy.on_started(child.id, self._world.clock())
        except (StartFailed, asyncio.CancelledError):
            await self._stop_children(Stopping())
            self._enter(ActorState.FAILED)
            raise
        self._task = self._world.spawn(self._run(), f"supervisor:{self.id}#{self.number}")
        self._enter(ActorState.RUNNING)

    async def stop(self, stopping: Stopping) -> None:
        """Stop in reverse order. A backoff or a start under way is cut short."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._stop_children(stopping)
        self._enter(ActorState.STOPPED)

    async def _stop_children(self, stopping: Stopping) -> None:
        for timer in self._pending.values():
            timer.cancel()
        self._pending.clear()
        self._refuse_requests()
        for child in reversed(self.children.values()):
            child.next_start_at = None
            if child.state is not ActorState.NEW:
                await child.stop(stopping)

    def _refuse_requests(self) -> None:
        while not self._events.empty():
            event = self._events.get_nowait()
            if isinstance(event, _RestartRequest) and not event.done.done():
                event.done.set_exception(ActorStopped(event.child, "shutdown"))

    def retire(self, reason: str) -> None:
        """No further start below here."""
        for child in self.children.values():
            child.retire(reason)

    def back_off(self, delay_s: float) -> None:
        """Note that the next start is due after a while."""
        self.next_start_at = self._world.clock() + delay_s
        self._enter(ActorState.BACKING_OFF)

    def _enter(self, state: ActorState) -> None:
        self.state = state
        self.since = self._world.clock()

    # -------------------------------------------------------------- events
    def post(self, event: _Event) -> None:
        """Queue an event; events are obeyed in order, one at a time."""
        self._events.put_nowait(event)

    async def _run(self) -> None:
        while self.state is ActorState.RUNNING or self.state is ActorState.STARTING:
            event = await self._events.get()
            match event:
                case Down():
                    await self._child_down(event)
                case _StartDue(group=group):
                    await self._start_group(group)
                case _RestartRequest():
                    await self._restart_on_request(event)

    async def _child_down(self, down: Down) -> None:
        child = self.children[down.child]
        if down.number != child.number or child.state not in (ActorState.FAILED, ActorState.STOPPED):
            return  # an older run, or one that a group restart has already dealt with
        if isinstance(down.cause, INTERRUPTS):
            return  # the process has been told and will stop everything
        cause = last_line(down.cause) or down.reason
        if isinstance(child, ActorSlot) and child.abandoned_total > ABANDONED_MAX:
            await self._escalate(Escalate(child.id, child.abandoned_total, self.spec.within_s, ("abandoned", cause)))
            return
        await self._decide(child, down.reason, cause)

    async def _decide(self, child: ActorSlot | Supervisor, reason: ExitReason, cause: str) -> None:
        now = self._world.clock()
        self.last_error, self.last_error_at = f"{child.id} {cause}", now
        decision = self._policy.on_exit(child.id, reason=reason, cause=cause, now=now, draw=self._world.draw())
        match decision:
            case Stop():
                child.retire(reason)
            case Restart():
                await self._schedule(child, decision, cause)
            case Escalate():
                await self._escalate(decision)

    async def _schedule(self, child: ActorSlot | Supervisor, decision: Restart, cause: str) -> None:
        """Stop the group, then wait for the backoff on a timer: other children's deaths are handled meanwhile."""
        self._world.emit(
            "actor.restarting", actor=child.id, group=decision.group, delay_s=decision.delay_s, cause=cause
        )
        for child_id in decision.stop:
            await self.children[child_id].stop(Stopping())
        for child_id in decision.removed:
            self.children[child_id].retire("removed")
        for child_id in decision.group:
            self._cancel_pending(child_id)
            self.children[child_id].back_off(decision.delay_s)
        self._pending[child.id] = asyncio.get_running_loop().call_later(
            decision.delay_s, self.post, _StartDue(decision.group)
        )

    def _cancel_pending(self, child_id: str) -> None:
        timer = self._pending.pop(child_id, None)
        if timer is not None:
            timer.cancel()

    async def _start_group(self, group: tuple[str, ...]) -> None:
        for child_id in group:
            child = self.children[child_id]
            self._pending.pop(child_id, None)
            if child.state is not ActorState.BACKING_OFF:
                continue  # restarted by hand, or taken over by a larger group
            try:
                await child.start()
            except StartFailed as error:  # another crash of this child; its group covers whoever was not started yet
                await self._decide(child, ExitReason.CRASHED, last_line(error.__cause__) or error.reason)
                return
            self._policy.on_started(child_id, self._world.clock())

    async def _restart_on_request(self, request: _RestartRequest) -> None:
        child = self.children[request.child]
        await child.stop(Stopping())
        child.back_off(0)
        await self._start_group((child.id,))
        if not request.done.done():
            request.done.set_result(None)

    async def _escalate(self, decision: Escalate) -> None:
        error = RestartIntensityExceeded(
            decision.child, count=decision.count, within_s=decision.within_s, causes=decision.causes
        )
        self._world.emit(
            "supervisor.escalated",
            supervisor=self.id,
            child=decision.child,
            count=decision.count,
            causes=decision.causes,
        )
        await self._stop_children(Stopping())
        self.last_error = last_line(error)
        self.last_error_at = self._world.clock()
        self._enter(ActorState.FAILED)
        self._on_down(Down(self.id, self.number, ExitReason.CRASHED, error))

    # -------------------------------------------------------------- looking
    def slots(self) -> Iterator[ActorSlot]:
        """Walk all actors below, in the order of start."""
        for child in self.children.values():
            if isinstance(child, Supervisor):
                yield from child.slots()
            else:
                yield child

    def restarts_in_window(self) -> int:
        """Return how many restarts still count."""
        return self._policy.restarts_in_window(self._world.clock())

    def parent_of(self, actor_id: str) -> Supervisor | None:
        """Return the node that supervises an actor."""
        if isinstance(self.children.get(actor_id), ActorSlot):
            return self
        below = (child.parent_of(actor_id) for child in self.children.values() if isinstance(child, Supervisor))
        return next((found for found in below if found is not None), None)

    def node(self) -> Node:
        """Return this part of the tree as it is now."""
        now = self._world.clock()
        return Node(
            id=self.id,
            kind="supervisor",
            state=self.state,
            since_s=now - self.since,
            restarts_total=self.restarts_total,
            strategy=self.spec.strategy,
            restarts_in_window=self.restarts_in_window(),
            max_restarts=self.spec.max_restarts,
            next_start_in_s=None if self.next_start_at is None else max(0.0, self.next_start_at - now),
            last_error=self.last_error,
            last_error_age_s=None if self.last_error_at is None else now - self.last_error_at,
            children=tuple(
                child.node() if isinstance(child, Supervisor) else actor_node(child, now)
                for child in self.children.values()
                if not self._buried(child, now)
            ),
        )

    @staticmethod
    def _buried(child: ActorSlot | Supervisor, now: float) -> bool:
        ended = child.state in (ActorState.STOPPED, ActorState.FAILED) and child.next_start_at is None
        return ended and isinstance(child, ActorSlot) and now - child.since > GRAVE_S


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
        world = World(
            emit=emit,
            draw=draw,
            clock=self._clock,
            dead_letters=self._dead_letters.add,
            spawn=self._spawn,
            on_interrupt=self._escalate,
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
        self._emit("actor.restart_requested", actor=actor_id, reason=reason)
        done: asyncio.Future[None] = self._loop.create_future()
        node.post(_RestartRequest(actor_id, done))
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

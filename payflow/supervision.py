"""One node of the supervision tree: it starts, stops and restarts its children.

A node decides nothing itself: `core/restart.py` says what a death leads to, the node obeys, one event after the other.
Starts are sequential, as in Erlang/OTP: while one child starts, the death of another waits in the queue. Waiting for a
backoff is a timer, so it holds up nobody.

Invariants:
- Children start in the order of the spec and stop in reverse; each start is acknowledged before the next.
- A Down that names an older run is stale and ignored; so a crash during a group restart is absorbed by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from payflow.actor import ExitReason
from payflow.core.restart import Escalate, Restart, RestartPolicy, Stop
from payflow.errors import ActorStopped, RestartIntensityExceeded, StartFailed
from payflow.inspection import Node, actor_node
from payflow.instance import INTERRUPTS, last_line
from payflow.slot import ActorSlot, ActorState, Down, Stopping, World
from payflow.spec import SupervisorSpec

# Ended children stay on the debug page for this long, so that the reason can still be read.
GRAVE_S: Final = 60.0
# One run that ignores cancellation is bad luck, a second one is a leak.
ABANDONED_MAX: Final = 1


@dataclass(frozen=True, slots=True)
class StartDue:
    """A backoff is over."""

    group: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RestartRequest:
    """An operator wants a fresh run."""

    child: str
    done: asyncio.Future[None]


Event = Down | StartDue | RestartRequest


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
        self._events: asyncio.Queue[Event] = asyncio.Queue()  # bounded by the number of children
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
        self._task.add_done_callback(self._run_ended)
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
            if isinstance(event, RestartRequest) and not event.done.done():
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
    def post(self, event: Event) -> None:
        """Queue an event; events are obeyed in order, one at a time."""
        self._events.put_nowait(event)

    async def _run(self) -> None:
        while self.state is ActorState.RUNNING:
            event = await self._events.get()
            match event:
                case Down():
                    await self._child_down(event)
                case StartDue(group=group):
                    await self._start_group(group)
                case RestartRequest():
                    await self._restart_on_request(event)

    def _run_ended(self, task: asyncio.Task[None]) -> None:
        """A supervisor that fails itself is a bug, and must not leave children that nobody watches unnoticed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _child_down(self, down: Down) -> None:
        child = self.children[down.child]
        if down.number != child.number or child.state not in (ActorState.FAILED, ActorState.STOPPED):
            return  # an older run, or one that a group restart has already dealt with
        if isinstance(down.cause, INTERRUPTS):
            return  # the process has been told and will stop everything
        if not self._world.may_restart():
            child.retire(down.reason)
            return
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
            decision.delay_s, self.post, StartDue(decision.group)
        )

    def _cancel_pending(self, child_id: str) -> None:
        timer = self._pending.pop(child_id, None)
        if timer is not None:
            timer.cancel()

    async def _start_group(self, group: tuple[str, ...]) -> StartFailed | None:
        """Start who backs off, in order; the failure that ended it, which has been decided on."""
        for child_id in group:
            child = self.children[child_id]
            self._pending.pop(child_id, None)
            if child.state is not ActorState.BACKING_OFF:
                continue  # restarted by hand, or taken over by a larger group
            try:
                await child.start()
            except StartFailed as error:  # another crash of this child; its group covers whoever was not started yet
                await self._decide(child, ExitReason.CRASHED, last_line(error.__cause__) or error.reason)
                return error
            self._policy.on_started(child_id, self._world.clock())
        return None

    async def _restart_on_request(self, request: RestartRequest) -> None:
        child = self.children[request.child]
        try:
            await child.stop(Stopping())
            self._cancel_pending(child.id)
            child.back_off(0)
            failed = await self._start_group((child.id,))
            if failed is not None and not request.done.done():
                request.done.set_exception(failed)
            elif not request.done.done():
                request.done.set_result(None)
        finally:
            if not request.done.done():  # we are being stopped in the middle of it
                request.done.set_exception(ActorStopped(child.id, ExitReason.SHUTDOWN))

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
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.last_error, self.last_error_at = last_line(error), self._world.clock()
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

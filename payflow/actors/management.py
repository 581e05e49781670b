"""The management actor: the operators' site, and their actions one at a time. First up, last down.

An action is audited before it is done: in the payments database where this process owns it, else in the log alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar, Final

from payflow.actor import Actor, ActorRef
from payflow.core.outbox import Audit
from payflow.errors import PayflowError
from payflow.errors import PayflowError
from payflow.ports import Clock, HttpFront
from payflow.supervisor import System

AUDIT_TIMEOUT_S: Final = 5.0
PAUSE_DEFAULT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Act:
    """An operator's action on one actor: pause, resume or restart."""

    action: str
    actor_id: str
    by: str
    reason: str
    max_s: float | None
    debug_fields: ClassVar[frozenset[str]] = frozenset({"action", "actor_id", "by"})


@dataclass(frozen=True, slots=True)
class ManagementSnapshot:
    """What the debug page shows."""

    port: int
    actions_total: int


class Management(Actor):
    """Owns the management site; handles Act."""

    def __init__(
        self,
        front: HttpFront,
        *,
        system: System,
        outbox: ActorRef | None,
        clock: Clock,
        on_bound: Callable[[int], None],
    ) -> None:
        self._front = front
        self._system = system
        self._outbox = outbox
        self._store_id = outbox.id if outbox is not None else None
        self._clock = clock
        self._on_bound = on_bound
        self._port = 0
        self._actions = 0

    async def on_start(self, stack: AsyncExitStack) -> None:
        """Bind first, so that a slow start can be watched."""
        stack.push_async_callback(self._front.stop)
        with self.ctx.detached():
            self._port = await self._front.start()
        self._on_bound(self._port)

    def snapshot(self) -> ManagementSnapshot:
        """Small and cheap."""
        return ManagementSnapshot(self._port, self._actions)

    async def handle(self, message: Act) -> dict[str, object] | PayflowError:
        """Audit, then act; a resume is audited afterwards, because the outbox that stores it may be the one that is paused.

        What cannot be done is an answer, not a crash: an outbox that is paused or has no disk must not take this site, and with it the process, down.
        """
        try:
            audited = await self._act(message)
        except PayflowError as error:
            self.ctx.emit("management.not_acted", action=message.action, target=message.actor_id, by=message.by, error=str(error))
            return error
        return {"id": message.actor_id, "action": message.action, "by": message.by, "done": True, "audited": audited}

    async def _act(self, message: Act) -> bool:
        max_s = message.max_s if message.max_s is not None else PAUSE_DEFAULT_S
        detail = f'{{"max_s":{max_s:g}}}' if message.action == "pause" else "{}"
        audit = Audit(message.by, message.action, message.actor_id, message.reason, detail, self._clock.wall_us())
        if message.action != "resume":
            await self._audit(audit)
        self.ctx.emit("management.acted", action=message.action, target=message.actor_id, by=message.by, reason=message.reason)
        self._actions += 1
        if message.action == "pause":
            self._system.pause(message.actor_id, max_s=max_s, by=message.by)
        elif message.action == "resume":
            self._system.resume(message.actor_id, by=message.by)
            try:
                await self._audit(audit)
            except PayflowError as error:  # it is done all the same; the log has it
                self.ctx.emit("management.not_audited", action=message.action, target=message.actor_id, by=message.by, error=str(error))
                return False
        else:
            await self._system.restart(message.actor_id, reason=f"{message.by}: {message.reason}")
        return True

    async def _audit(self, audit: Audit) -> None:
        if self._outbox is not None:
            await self._outbox.ask(audit, timeout_s=AUDIT_TIMEOUT_S)

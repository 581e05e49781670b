"""The management actor: the operators' site, and their actions one at a time. First up, last down.

An action is audited before it is done: in the payments database where this process owns it, else in the log alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import ClassVar, Final

from payflow.actor import Actor, ActorRef
from payflow.core.outbox import Audit, Done, Requeue
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
class PutBack:
    """An operator's wish that rows of the outbox are published again."""

    seqs: tuple[int, ...]
    by: str
    reason: str
    debug_fields: ClassVar[frozenset[str]] = frozenset({"seqs", "by"})


@dataclass(frozen=True, slots=True)
class ManagementSnapshot:
    """What the debug page shows."""

    port: int
    actions_total: int


class Management(Actor):
    """Owns the management site; handles Act and PutBack."""

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

    async def handle(self, message: Act | PutBack) -> dict[str, object] | PayflowError:
        """One action. What cannot be done is an answer, not a crash."""
        return await (self._put_back(message) if isinstance(message, PutBack) else self._do(message))

    async def _put_back(self, message: PutBack) -> dict[str, object] | PayflowError:
        """Audit, then make the rows pending; the outbox tells the publisher. Needs the outbox: see `Inspector`."""
        assert self._outbox is not None
        seqs = ",".join(map(str, message.seqs))
        audit = Audit(message.by, "requeue", "outbox", message.reason, f'{{"seqs":[{seqs}]}}', self._clock.wall_us())
        try:
            await self._outbox.ask(audit, timeout_s=AUDIT_TIMEOUT_S)
            self.ctx.emit(
                "management.acted", action="requeue", target="outbox", by=message.by, reason=message.reason
            )
            self._actions += 1
            done = await self._outbox.ask(Requeue(message.seqs), timeout_s=AUDIT_TIMEOUT_S)
        except PayflowError as error:
            self.ctx.emit("management.not_acted", action="requeue", target="outbox", by=message.by, error=str(error))
            return error
        assert isinstance(done, Done)
        return {"action": "requeue", "by": message.by, "asked": len(message.seqs), "requeued": done.rows}

    async def _do(self, message: Act) -> dict[str, object] | PayflowError:
        """Audit, then act. What would bring the outbox back is audited afterwards: until then it cannot store anything.

        What cannot be done is an answer, not a crash: an outbox that is paused or has no disk must not take this site,
        and with it the process, down.
        """
        brings_back = message.action == "resume" or (message.action == "restart" and message.actor_id == self._store_id)
        try:
            audited = False if brings_back else await self._audit(message)
            await self._act(message)
        except PayflowError as error:
            self._not("acted", message, error)
            return error
        self._actions += 1
        self.ctx.emit(
            "management.acted", action=message.action, target=message.actor_id, by=message.by, reason=message.reason
        )
        if brings_back:
            try:
                audited = await self._audit(message)
            except PayflowError as error:  # it is done all the same, and the log has it
                self._not("audited", message, error)
        return {"id": message.actor_id, "action": message.action, "by": message.by, "done": True, "audited": audited}

    async def _act(self, message: Act) -> None:
        if message.action == "pause":
            self._system.pause(message.actor_id, max_s=_pause_s(message), by=message.by)
        elif message.action == "resume":
            self._system.resume(message.actor_id, by=message.by)
        else:
            await self._system.restart(message.actor_id, reason=f"{message.by}: {message.reason}")

    async def _audit(self, message: Act) -> bool:
        """Whether it was stored; without a payments database here the log is all there is."""
        if self._outbox is None:
            return False
        detail = f'{{"max_s":{_pause_s(message):g}}}' if message.action == "pause" else "{}"
        at_us = self._clock.wall_us()
        audit = Audit(message.by, message.action, message.actor_id, message.reason, detail, at_us)
        await self._outbox.ask(audit, timeout_s=AUDIT_TIMEOUT_S)
        return True

    def _not(self, what: str, message: Act, error: PayflowError) -> None:
        self.ctx.emit(
            f"management.not_{what}", action=message.action, target=message.actor_id, by=message.by, error=str(error)
        )


def _pause_s(message: Act) -> float:
    return message.max_s if message.max_s is not None else PAUSE_DEFAULT_S

"""Small actors, an event recorder and a builder of systems for the runtime tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from payflow.actor import Actor, ExitReason
from payflow.core.backoff import Backoff
from payflow.core.restart import Strategy
from payflow.mailbox import Overflow
from payflow.supervisor import ChildSpec, SupervisorSpec, System

AT_ONCE = Backoff(initial_s=0, cap_s=0, jitter=False)


class Events:
    """Stands in for the log: keeps what was emitted."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, **fields: Any) -> None:
        self.all.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the fields of every event of that name."""
        return [fields for name, fields in self.all if name == event]

    def lives(self) -> list[str]:
        """Return starts and ends in order, as "start a" and "stop a"."""
        verbs = {"actor.started": "start", "actor.stopped": "stop", "actor.crashed": "crash"}
        return [f"{verbs[name]} {fields['actor']}" for name, fields in self.all if name in verbs]


class Scripted(Actor):
    """Handles by calling what it was given, and keeps a diary that outlives it."""

    def __init__(self, handler: Callable[[Scripted, Any], Any] | None = None, diary: list[Any] | None = None) -> None:
        self.handler = handler
        self.diary: list[Any] = diary if diary is not None else []

    async def handle(self, message: Any) -> Any:
        if message == "crash":
            raise RuntimeError("crash")
        if message == "stop":
            self.ctx.stop()
            return None
        if self.handler is None:
            self.diary.append(message)
            return message
        return await self.handler(self, message)

    async def on_stop(self, reason: ExitReason) -> None:
        self.diary.append(reason)


def child(actor_id: str, factory: Callable[[], Actor] = Scripted, **options: Any) -> ChildSpec:
    """Make a child spec with a small blocking mailbox unless told otherwise."""
    options.setdefault("capacity", 64)
    options.setdefault("overflow", Overflow.BLOCK)
    return ChildSpec(actor_id, factory, **options)


def supervisor(*children: ChildSpec | SupervisorSpec, **options: Any) -> SupervisorSpec:
    """Make a supervisor spec that restarts at once unless told otherwise."""
    options.setdefault("backoff", AT_ONCE)
    options.setdefault("id", "root")
    options.setdefault("strategy", Strategy.ONE_FOR_ONE)
    return SupervisorSpec(children=children, **options)


def make_system(root: SupervisorSpec, events: Events | None = None) -> System:
    """Make a system whose random draws are all one half."""
    return System(root, emit=events or Events(), draw=lambda: 0.5)


@asynccontextmanager
async def running(
    *children: ChildSpec | SupervisorSpec, events: Events | None = None, **options: Any
) -> AsyncIterator[System]:
    """Run a system for the length of a test."""
    system = make_system(supervisor(*children, **options), events)
    await system.start()
    try:
        yield system
    finally:
        await system.stop(grace_s=0)


class Starter(Scripted):
    """Runs a function in on_start."""

    def __init__(self, on_start: Callable[[Starter, AsyncExitStack], Any], diary: list[Any] | None = None) -> None:
        super().__init__(diary=diary)
        self.starting = on_start

    async def on_start(self, stack: AsyncExitStack) -> None:
        await self.starting(self, stack)


def factories(*actors: Actor) -> Callable[[], Actor]:
    """Return a factory that hands out these, one per start."""
    waiting: Sequence[Actor] = list(actors)
    return iter(waiting).__next__

"""One actor under test in a real System, and partners that note what they are told and answer as the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from payflow.actor import Actor
from payflow.mailbox import Overflow
from payflow.spec import ChildSpec
from payflow.supervisor import System
from tests.support.actors import Events, supervisor


class Partner(Actor):
    """Keeps what it is told; `answer` decides what an ask hears, and may raise through ctx.fail."""

    def __init__(self, heard: list[Any], answer: Callable[[Any], Any]) -> None:
        self._heard = heard
        self._answer = answer

    async def handle(self, message: Any) -> Any:
        self._heard.append(message)
        answer = self._answer(message)
        if isinstance(answer, Exception):
            assert self.ctx.envelope is not None
            self.ctx.fail(self.ctx.envelope, answer)
            return None
        return answer


class World:
    """Partners by name, made before the actor under test so that their references exist."""

    def __init__(self) -> None:
        self.events = Events()
        self.heard: dict[str, list[Any]] = {}
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self._children: list[ChildSpec] = []
        self.system: System

    def partner(self, name: str, *, capacity: int = 64, overflow: Overflow = Overflow.REJECT) -> None:
        heard = self.heard[name] = []
        self.answers[name] = lambda message: None
        self._children.append(
            ChildSpec(
                name,
                lambda: Partner(heard, self._answers_of(name)),
                capacity=capacity,
                overflow=overflow,
            )
        )

    def _answers_of(self, name: str) -> Callable[[Any], Any]:
        def answer(message: Any) -> Any:
            return self.answers[name](message)

        return answer

    def actor(self, name: str, factory: Callable[[System], Actor], **options: Any) -> None:
        options = {"capacity": 64, "overflow": Overflow.REJECT, **options}
        self._children.append(ChildSpec(name, lambda: factory(self.system), **options))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[System]:
        self.system = System(
            supervisor(*self._children, max_restarts=100), emit=self.events, draw=lambda: 0.5
        )
        await self.system.start()
        try:
            yield self.system
        finally:
            await self.system.stop(grace_s=0)

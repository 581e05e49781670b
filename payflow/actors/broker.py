"""The broker actor: keeps the embedded broker's child process running and tells its clients where it is.

The start does not wait for the child, so that intake is ready at once; a child that ends is this actor's crash, and its
restart is a new, empty broker under another id.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from payflow.actor import Actor, ActorRef
from payflow.errors import BrokerUnavailable, MailboxClosed, MailboxFull
from payflow.messages import BrokerMoved, WhereIsKafka
from payflow.ports import BrokerProcess

ANNOUNCE_RETRY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class BrokerSnapshot:
    """Address and id of the running child; None while it starts."""

    bootstrap: str | None
    broker_id: str | None


class Broker(Actor):
    """Handles WhereIsKafka. `listeners` hear of every new child, in order."""

    def __init__(self, process: BrokerProcess, *, listeners: tuple[ActorRef, ...]) -> None:
        self._process = process
        self._listeners = listeners
        self._moved: BrokerMoved | None = None

    async def on_start(self, stack: AsyncExitStack) -> None:
        """Start the child in the background; only a missing package fails the start at once."""
        self._process.check()
        stack.push_async_callback(self._process.stop)
        self.ctx.spawn(self._keep(), name="child")

    def snapshot(self) -> BrokerSnapshot:
        """Small and cheap."""
        return BrokerSnapshot(*(self._moved.bootstrap, self._moved.broker_id) if self._moved else (None, None))

    async def handle(self, message: WhereIsKafka) -> None:
        """Who starts anew asks; hearing the same address twice changes nothing."""
        await self._announce()

    async def _keep(self) -> None:
        bootstrap, broker_id = await self._process.start()
        self._moved = BrokerMoved(bootstrap, broker_id)
        self.ctx.emit(
            "broker.started",
            bootstrap=bootstrap,
            broker_id=broker_id,
            note="embedded, memory only, for trying and testing",
        )
        await self._announce()
        status = await self._process.wait()
        raise BrokerUnavailable(f"the embedded broker ended with status {status}")

    async def _announce(self) -> None:
        moved = self._moved
        if moved is not None:
            for listener in self._listeners:
                await self._tell(listener, moved)

    async def _tell(self, listener: ActorRef, moved: BrokerMoved) -> None:
        """A listener that is busy must hear it all the same, and is no reason to lose the broker."""
        while True:
            try:
                await listener.send(moved)
            except MailboxFull:
                await asyncio.sleep(ANNOUNCE_RETRY_S)
            except MailboxClosed:
                return
            else:
                return

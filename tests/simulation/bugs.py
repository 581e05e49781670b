"""Five bugs that the simulation has to find, planted one at a time in an actor or a port. The product has none of them.

Each is kept with a seed that finds it, and the product as it is passes that seed: so the simulation itself is tested.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from payflow.actor import Actor
from payflow.actors.consumer import GENERATIONS_AN_INSTANCE, Consumer
from payflow.actors.outbox import Outbox
from payflow.actors.publisher import Publisher
from payflow.core.lanes import Lane
from payflow.core.ledger import Booking, Delivery
from payflow.core.outbox import PendingRow, PublishedRow, Write
from payflow.errors import BrokerUnavailable, PayflowError, ProducerBroken
from payflow.mailbox import Envelope
from payflow.messages import Fetched, Poll

_A = TypeVar("_A", bound=Actor)


class EarlyMark(Publisher):
    """Rows are marked when they are sent, not when the broker has acknowledged them."""

    def _send(self, lane: Lane, rows: Sequence[PendingRow], permits: Any) -> Any:
        self._marks.add(PublishedRow(row.seq, lane.partition, 0) for row in rows)
        return super()._send(lane, rows, permits)


class SameProducer(Publisher):
    """After an unknown outcome the rows are sent again by the producer that may still hold them."""

    def _settle(self, lane: Lane, rows: Any, appended: tuple[int, int], error: PayflowError | None) -> None:
        harmless = BrokerUnavailable(str(error)) if isinstance(error, ProducerBroken) else error
        super()._settle(lane, rows, appended, harmless)


class NoWake(Outbox):
    """Nobody tells the publisher that there is something to do."""

    def _notify(self, writes: Sequence[Write]) -> None:
        pass


class NoPoll(Publisher):
    """The slow poll finds nothing, so a lost wake-up stays lost."""

    async def handle(self, message: object) -> None:
        if not isinstance(message, Poll):
            await super().handle(message)


class NoFence(Consumer):
    """What a crashed instance had fetched is booked by the next one, and its position passes what was lost with it.

    The product had this bug, and the simulation found it.
    """

    async def handle_batch(self, batch: Sequence[Envelope]) -> None:
        for envelope in batch:
            if isinstance(fetched := envelope.payload, Fetched):
                own = self.ctx.instance * GENERATIONS_AN_INSTANCE + fetched.generation % GENERATIONS_AN_INSTANCE
                envelope.payload = Fetched(own, fetched.records)
        await super().handle_batch(batch)


class PositionFirst:
    """A ledger that commits the position in a transaction of its own, before the bookings."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    async def book(self, deliveries: Sequence[Delivery], *, positions: Any, **place: Any) -> Booking:
        await self._ledger.book((), positions=positions, **place)
        await asyncio.sleep(0)
        return await self._ledger.book(deliveries, positions={}, **place)


@dataclass(frozen=True)
class Bug:
    """`actors` stand in for the product's classes they derive from; `wrap_ledger` is around the consumer's port."""

    name: str
    seed: int
    actors: tuple[type[Actor], ...] = ()
    wrap_ledger: Any = None

    def plant(self, actor: _A) -> _A:
        """The actor, or what stands in for it."""
        for planted in self.actors:
            if issubclass(planted, type(actor)):
                actor.__class__ = planted
        return actor

    def ledger(self, port: Any) -> Any:
        """The port, or what is around it."""
        return port if self.wrap_ledger is None else self.wrap_ledger(port)


NONE = Bug("none", 0)
BUGS = {
    bug.name: bug
    for bug in (
        Bug("early-mark", 23, (EarlyMark,)),
        Bug("commit-before-ledger", 1, wrap_ledger=PositionFirst),
        Bug("same-producer", 25, (SameProducer,)),
        Bug("lost-wake-up", 1, (NoWake, NoPoll)),
        Bug("missing-fence", 3545, (NoFence,)),
    )
}

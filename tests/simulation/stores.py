"""The two databases as one life of the process sees them: slow, refusing, silent, or with an answer that got lost.

What is committed lives in the verified fakes (`OutboxMemory`, `LedgerMemory`), which outlive every process. A port is
made for each instance of an actor, so the contract can be watched: after an unknown outcome the file is opened anew
before anything else, and an instance that is over commits nothing. A transaction belongs to the database's own thread:
who is cancelled while it runs cannot know whether it took place, and here a draw says which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from payflow.core.ledger import Booking, CurrencyBalance, Delivery
from payflow.core.outbox import Outcome, PendingRow, Submit, Write
from payflow.errors import StoreBusy, StoreOutcomeUnknown, StoreUnavailable

if TYPE_CHECKING:
    from tests.simulation.life import Life

_T = TypeVar("_T")


class _Transactions:
    """What both databases have in common. `kind` is "store" or "ledger": whose weather it is."""

    def __init__(self, life: Life, actor_id: str, kind: str) -> None:
        self._life = life
        self._actor_id = actor_id
        self._kind = kind
        self._open = False

    async def open(self) -> None:
        await self._life.step(self._actor_id, f"{self._kind}.open")
        self._life.writers[self._kind] = self
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def _read(self, what: str, read: Callable[[], Awaitable[_T]]) -> _T:
        """An answer is of the moment it was looked up, and may be old when it arrives."""
        life = self._life
        await life.step(self._actor_id, f"{self._kind}.{what}")
        for name, error in (("busy", StoreBusy), ("unavailable", StoreUnavailable)):
            if life.happens(f"{self._kind}_read_{name}"):
                life.note(f"{self._kind}.{what}_failed", error=name)
                raise error(f"{name} while reading")
        answer = await read()
        await life.wait(f"{self._kind}_slow_s")
        return answer

    async def _transaction(self, what: str, write: Callable[[], Awaitable[_T]]) -> _T:
        life, kind = self._life, self._kind
        assert self._open, f"{kind} was not opened again after an unknown outcome"
        await life.step(self._actor_id, f"{kind}.{what}")
        for name, error in (("busy", StoreBusy), ("unavailable", StoreUnavailable)):
            if life.happens(f"{kind}_{name}"):
                life.note(f"{kind}.refused", error=name)
                raise error(name)
        unknown, committed = life.happens(f"{kind}_unknown"), life.draw() < 0.5
        try:
            await life.wait(f"{kind}_slow_s")
        except asyncio.CancelledError:
            if life.writers.get(kind) is self and committed:  # the thread carries on without us
                await write()
                life.note(f"{kind}.committed", heard="nobody")
            raise
        assert life.writers.get(kind) is self, f"two writers of the {kind}"
        if unknown and not committed:
            self._open = False
            life.note(f"{kind}.unknown", committed=False)
            raise StoreOutcomeUnknown("EIO before COMMIT")
        result = await write()
        life.note(f"{kind}.committed")
        await life.wait(f"{kind}_slow_s")
        if unknown:
            self._open = False
            life.note(f"{kind}.unknown", committed=True)
            raise StoreOutcomeUnknown("EIO after COMMIT")
        return result


class StorePort(_Transactions):
    """`ports.OutboxStore` for one instance of the outbox actor."""

    def __init__(self, life: Life) -> None:
        super().__init__(life, "outbox", "store")

    async def commit(self, writes: Sequence[Write], *, at_us: int) -> list[Outcome]:
        kinds: dict[str, int] = {}
        for write in writes:
            name = type(write.command if isinstance(write, Submit) else write).__name__
            kinds[name] = kinds.get(name, 0) + 1
        self._life.note("store.commit", **kinds)
        return await self._transaction("commit", lambda: self._life.outside.store.commit(writes, at_us=at_us))


class ReaderPort(_Transactions):
    """`ports.OutboxReader` for one instance of the publisher."""

    def __init__(self, life: Life) -> None:
        super().__init__(life, "publisher", "store")

    async def open(self) -> None:
        await self._life.step(self._actor_id, "reader.open")

    async def pending(self, *, after_seq: int, limit: int, max_bytes: int) -> list[PendingRow]:
        store = self._life.outside.store
        return await self._read(
            "pending", lambda: store.pending(after_seq=after_seq, limit=limit, max_bytes=max_bytes)
        )

    async def unbooked_bytes(self, broker_id: str) -> Mapping[int, int]:
        return await self._read("unbooked", lambda: self._life.outside.store.unbooked_bytes(broker_id))


class LedgerPort(_Transactions):
    """`ports.Ledger` for one instance of the consumer."""

    def __init__(self, life: Life) -> None:
        super().__init__(life, "consumer", "ledger")

    async def positions(self, source_id: str, topic: str) -> Mapping[int, int]:
        return await self._read("positions", lambda: self._life.outside.ledger.positions(source_id, topic))

    async def audit(self) -> list[CurrencyBalance]:
        return await self._read("audit", self._life.outside.ledger.audit)

    async def book(self, deliveries: Sequence[Delivery], **place: Any) -> Booking:
        self._life.note("ledger.book", events=len(deliveries), positions=dict(place["positions"]))
        booking = await self._transaction("book", lambda: self._book(deliveries, **place))
        self._life.note(
            "ledger.booked", booked=len(booking.booked), twice=booking.duplicates, held=booking.held,
            refused=len(booking.refused),
        )  # fmt: skip
        return booking

    async def _book(self, deliveries: Sequence[Delivery], **place: Any) -> Booking:
        ledger, source_id = self._life.outside.ledger, place["source_id"]
        before = await ledger.positions(source_id, place["topic"])
        booking = await ledger.book(deliveries, **place)
        self._life.outside.passed(source_id, before, await ledger.positions(source_id, place["topic"]))
        return booking

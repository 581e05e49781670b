"""Telling the outbox something until it has stored it. Parts of the publisher and the consumer, not an actor.

What is told is idempotent, so a request whose answer was lost is simply made again. One request at a time: what comes
meanwhile rides in the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Final, Generic, TypeVar

from payflow.actor import ActorRef
from payflow.core.outbox import Outcome, Write
from payflow.errors import PayflowError

STORE_TIMEOUT_S: Final = 5.0
# The outbox is away or refuses: often enough for its restart (0.1 s), rare enough for the log.
RETRY_S: Final = 1.0
# One write of the outbox's next group; a whole window of marks is four of them.
LARGEST_WRITE: Final = 1000

_T = TypeVar("_T")


async def store(outbox: ActorRef, write: Write, *, delayed: Callable[[PayflowError], None]) -> Outcome:
    """Ask until it is stored. `delayed` hears each failure; the wait ends with the task."""
    while True:
        try:
            outcome: Outcome = await outbox.ask(write, timeout_s=STORE_TIMEOUT_S)
        except PayflowError as error:
            delayed(error)
            await asyncio.sleep(RETRY_S)
        else:
            return outcome


class Storing(Generic[_T]):
    """Items on their way to the outbox, in order. `run` is a task of the actor that owns this."""

    def __init__(
        self,
        outbox: ActorRef,
        write: Callable[[tuple[_T, ...]], Write],
        *,
        stored: Callable[[tuple[_T, ...]], None] = lambda _: None,
        delayed: Callable[[PayflowError], None],
    ) -> None:
        self._outbox = outbox
        self._write = write
        self._stored = stored
        self._delayed = delayed
        self._items: dict[_T, None] = {}
        self._era = 0
        self._wanted = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[_T]:
        return iter(self._items)

    def add(self, items: Iterable[_T]) -> None:
        """Tell these, too."""
        self._items.update(dict.fromkeys(items))
        if self._items:
            self._settled.clear()
            self._wanted.set()

    def clear(self) -> None:
        """What waits is no longer true. A request under way may still be stored; nobody hears of it."""
        self._items.clear()
        self._era += 1

    async def settled(self) -> None:
        """Return when everything is stored."""
        await self._settled.wait()

    async def run(self) -> None:
        """Never ends by itself."""
        while True:
            await self._wanted.wait()
            while self._items:
                items, era = tuple(islice(self._items, LARGEST_WRITE)), self._era
                await store(self._outbox, self._write(items), delayed=self._delayed)
                if era == self._era:
                    for item in items:
                        del self._items[item]
                    self._stored(items)
            self._wanted.clear()
            self._settled.set()

"""Telling the outbox until it has stored it: in order, one request at a time, never dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from payflow.actors.storing import LARGEST_WRITE, Storing
from payflow.core.outbox import MarkBooked
from payflow.errors import PayflowError, StoreBusy
from tests.support.actor_bench import World
from tests.support.virtual_loop import advance, settle, virtual


class StoringWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.partner("outbox")
        self.stored: list[bytes] = []
        self.delayed: list[PayflowError] = []

    def begin(self) -> Storing[bytes]:
        return Storing(
            self.system.ref("outbox"),
            lambda ids: MarkBooked(ids, 0),
            stored=self.stored.extend,
            delayed=self.delayed.append,
        )

    @property
    def requests(self) -> list[tuple[bytes, ...]]:
        return [write.event_ids for write in self.heard["outbox"]]


@asynccontextmanager
async def world() -> AsyncIterator[tuple[StoringWorld, Storing[bytes]]]:
    made = StoringWorld()
    async with made.running():
        storing = made.begin()
        task = asyncio.create_task(storing.run())
        yield made, storing
        assert not task.done(), "it never ends by itself"
        task.cancel()


@virtual
async def test_what_comes_during_a_request_rides_in_the_next() -> None:
    async with world() as (w, storing):
        w.system.pause("outbox", max_s=1.0, by="test")
        storing.add([b"1"])
        await settle()
        storing.add([b"2", b"3"])
        await storing.settled()

        assert [(b"1",), (b"2", b"3")] == w.requests
        assert [b"1", b"2", b"3"] == w.stored


@virtual
async def test_refused_request_is_made_again_each_second() -> None:
    async with world() as (w, storing):
        w.answers["outbox"] = lambda message: StoreBusy("locked") if len(w.heard["outbox"]) < 4 else None
        storing.add([b"1"])
        await advance(2.5)
        assert 1 == len(storing)

        await storing.settled()

        assert 4 == len(w.requests)
        assert 3 == len(w.delayed)


@virtual
async def test_one_write_is_never_larger_than_it_may() -> None:
    async with world() as (w, storing):
        storing.add(number.to_bytes(4, "big") for number in range(LARGEST_WRITE + 1))
        await storing.settled()

        assert [LARGEST_WRITE, 1] == [len(ids) for ids in w.requests]


@virtual
async def test_items_that_were_cleared_during_their_request_are_not_reported() -> None:
    async with world() as (w, storing):
        w.system.pause("outbox", max_s=1.0, by="test")
        storing.add([b"1"])
        await settle()
        storing.clear()
        storing.add([b"2"])
        await storing.settled()

        assert [b"2"] == w.stored


@virtual
async def test_nothing_to_store_is_settled() -> None:
    async with world() as (w, storing):
        storing.add([])
        await storing.settled()

        assert [] == w.requests

"""The outbox actor: groups, splits, a store that is busy, full or gone, and who is told what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from payflow.actor import ActorRef
from payflow.actors.outbox import Outbox, OutboxSettings, OutboxSnapshot
from payflow.core.outbox import (
    Accepted,
    Done,
    MarkBooked,
    MarkPublished,
    Probe,
    PublishedRow,
    Purge,
    Requeue,
    Submit,
    Unpublish,
)
from payflow.core.payment import Capture
from payflow.errors import (
    ActorCrashed,
    OutcomeUnknown,
    StoreBusy,
    StoreDamaged,
    StoreOutcomeUnknown,
    StoreRejected,
    StoreUnavailable,
)
from payflow.mailbox import Overflow
from payflow.messages import BrokerMoved, Rewind, Tick, Wake, WhereIsKafka
from payflow.supervisor import Batch
from tests.fakes.outbox_memory import OutboxMemory
from tests.support.actor_bench import World
from tests.support.payment_writes import CountingIds, accepted, authorize, submit
from tests.support.pipeline import LoopClock
from tests.support.virtual_loop import advance, settle, virtual


class OutboxWorld(World):
    def __init__(self, *, capacity: int = 2048) -> None:
        super().__init__()
        self.store = OutboxMemory(ids=CountingIds())
        self.partner("publisher", overflow=Overflow.BLOCK)
        self.partner("broker")
        self.actor("outbox", self._outbox, capacity=capacity, batch=Batch(512))

    def _outbox(self, system: Any) -> Outbox:
        return Outbox(
            self.store,
            publisher=system.ref("publisher"),
            broker=system.ref("broker"),
            clock=LoopClock(),
            settings=OutboxSettings(idempotency_retention_s=100.0, published_retention_s=100.0, probe_interval_s=1.0),
        )

    @property
    def outbox(self) -> ActorRef:
        return self.system.ref("outbox")

    @property
    def told(self) -> list[Any]:
        return self.heard["publisher"]

    async def together(self, *writes: Any) -> list[Any]:
        """Ask all at once, so that they share a group."""
        tasks = [asyncio.create_task(self.outbox.ask(write, timeout_s=5.0)) for write in writes]
        await asyncio.wait(tasks)
        return [task.exception() or task.result() for task in tasks]

    async def look(self) -> OutboxSnapshot:
        value = (await self.system.snapshot("outbox", timeout_s=1.0)).value
        assert isinstance(value, OutboxSnapshot)
        return value


@asynccontextmanager
async def world(**options: Any) -> AsyncIterator[OutboxWorld]:
    made = OutboxWorld(**options)
    async with made.running():
        await settle()
        yield made


def bad(write: Any) -> bool:
    return isinstance(write, Submit) and write.key == "bad"


@virtual
async def test_everything_that_waits_shares_one_transaction() -> None:
    async with world() as w:
        outcomes = await w.together(*(submit(authorize()) for _ in range(100)))

        assert all(isinstance(outcome, Accepted) for outcome in outcomes)
        assert [100] == [len(group) for group in w.store.groups]


@virtual
async def test_who_was_answered_is_in_the_next_group_again() -> None:
    """Four clients write while the group of four others is committed; from then on they are one group of eight."""
    async with world() as w:
        w.store.delay_s = 0.01

        async def client(number: int) -> None:
            await asyncio.sleep(0.005 * (number % 2))
            for _ in range(5):
                await w.outbox.ask(submit(authorize()), timeout_s=1.0)
                for _ in range(3):  # the turns that an answer and the next request take to the client and back
                    await asyncio.sleep(0)

        async with asyncio.TaskGroup() as clients:
            for number in range(8):
                clients.create_task(client(number))

        assert [4, 8, 8, 8, 8, 4] == [len(group) for group in w.store.groups]


@virtual
async def test_one_bad_write_fails_alone() -> None:
    """F20: never one client's error for many clients."""
    async with world() as w:
        w.store.refuses = bad
        writes = [submit(authorize()) for _ in range(100)]
        writes[37] = submit(authorize(), key="bad")

        outcomes = await w.together(*writes)

        assert [37] == [place for place, outcome in enumerate(outcomes) if isinstance(outcome, StoreRejected)]
        assert 99 == sum(isinstance(outcome, Accepted) for outcome in outcomes)
        assert 1 == len(w.events.of("outbox.write_rejected"))


@virtual
async def test_split_group_is_written_in_its_order() -> None:
    async with world() as w:
        w.store.refuses = bad
        payment = accepted(await w.outbox.ask(submit(authorize()), timeout_s=1.0)).payment_id
        writes = [submit(Capture(payment, 1)) for _ in range(9)]
        writes.insert(4, submit(authorize(), key="bad"))

        outcomes = await w.together(*writes)

        assert list(range(2, 11)) == [outcome.version for outcome in outcomes if isinstance(outcome, Accepted)]


@virtual
async def test_busy_store_fails_the_waiting_group_only() -> None:
    """F19: not retried by the server; the next group goes through and nobody calls the disk full."""
    async with world() as w:
        w.store.fail_next.append(StoreBusy("locked"))

        first = await w.together(submit(authorize()), submit(authorize()))
        second = await w.together(submit(authorize()))

        assert [StoreBusy, StoreBusy, Accepted] == [type(outcome) for outcome in first + second]
        assert (await w.look()).writable


@virtual
async def test_full_disk_is_probed_each_second_until_it_takes_writes_again() -> None:
    """F18."""
    async with world() as w:
        w.store.fail_next += [StoreUnavailable("full")] * 4

        with pytest.raises(StoreUnavailable):
            await w.outbox.ask(submit(authorize()), timeout_s=1.0)
        await advance(2.5)
        assert not (await w.look()).writable
        await advance(2.0)

        assert (await w.look()).writable
        assert [(Probe(),)] == w.store.groups
        assert [1, 1] == [len(w.events.of(name)) for name in ("outbox.unwritable", "outbox.writable")]


@virtual
async def test_client_may_be_the_first_to_find_the_space_again() -> None:
    async with world() as w:
        w.store.fail_next.append(StoreUnavailable("full"))
        with pytest.raises(StoreUnavailable):
            await w.outbox.ask(submit(authorize()), timeout_s=1.0)

        await w.outbox.ask(submit(authorize()), timeout_s=1.0)

        assert (await w.look()).writable


@virtual
async def test_unknown_outcome_is_said_to_all_and_the_file_is_opened_anew() -> None:
    """F23: never COMMIT again hoping for better."""
    async with world() as w:
        w.store.fail_late.append(StoreOutcomeUnknown("EIO"))

        outcomes = await w.together(submit(authorize()), submit(authorize()), MarkBooked((), 1))
        await settle()

        assert [OutcomeUnknown] * 3 == [type(outcome) for outcome in outcomes]
        assert 2 == w.store.opened
        assert w.store.is_open


@virtual
async def test_damage_is_a_crash_and_is_not_waited_for() -> None:
    async with world() as w:
        w.store.fail_next.append(StoreDamaged("malformed"))

        (outcome,) = await w.together(submit(authorize()))
        await settle()

        assert isinstance(outcome, ActorCrashed)
        assert 2 == w.store.opened
        assert w.events.of("outbox.unwritable") == []


@virtual
async def test_unknown_outcome_of_a_duty_is_said_to_the_group_as_well() -> None:
    async with world() as w:
        w.store.fail_next.append(StoreOutcomeUnknown("EIO"))
        w.system.pause("outbox", max_s=1.0, by="test")
        w.outbox.tell(Tick("purge"))

        (outcome,) = await w.together(submit(authorize()))

        assert isinstance(outcome, OutcomeUnknown)


@virtual
async def test_what_is_queued_behind_a_crash_is_handled_by_the_next_instance() -> None:
    async with world() as w:
        w.store.delay_s = 0.1
        w.store.fail_next.append(StoreOutcomeUnknown("EIO"))
        first = asyncio.create_task(w.together(submit(authorize())))
        await advance(0.05)

        (second,) = await w.together(submit(authorize()))

        assert isinstance((await first)[0], OutcomeUnknown)
        assert isinstance(second, Accepted)


@virtual
async def test_publisher_is_woken_for_new_rows_and_for_booked_ones() -> None:
    async with world() as w:
        del w.told[:]
        await w.outbox.ask(submit(authorize()), timeout_s=1.0)
        await w.outbox.ask(MarkBooked((), 1), timeout_s=1.0)
        await settle()

        assert [Wake(), Wake()] == w.told


@virtual
async def test_publisher_is_not_woken_by_its_own_marks() -> None:
    async with world() as w:
        del w.told[:]
        await w.outbox.ask(MarkPublished((), "cluster", 1), timeout_s=1.0)
        await settle()

        assert [] == w.told


@pytest.mark.parametrize("write", [Requeue((1,)), Unpublish("")])
@virtual
async def test_publisher_rewinds_when_rows_become_pending_again(write: Any) -> None:
    async with world() as w:
        del w.told[:]
        await w.outbox.ask(write, timeout_s=1.0)
        await settle()

        assert [Rewind()] == w.told


@virtual
async def test_each_start_asks_for_the_broker_and_lets_the_publisher_rewind() -> None:
    async with world() as w:
        assert [WhereIsKafka()] == w.heard["broker"]
        assert [Rewind()] == w.told


@virtual
async def test_new_broker_is_announced_after_its_rows_are_pending() -> None:
    async with world() as w:
        await w.outbox.ask(submit(authorize()), timeout_s=1.0)
        await w.outbox.ask(MarkPublished((PublishedRow(1, 0, 0),), "embedded-one", 1), timeout_s=1.0)
        del w.told[:]

        w.outbox.tell(BrokerMoved("b:1", "embedded-two"))
        await settle()

        assert 1 == (await w.store.backlog()).pending
        assert [BrokerMoved("b:1", "embedded-two"), Rewind()] == w.told


@virtual
async def test_new_broker_is_announced_once_the_full_disk_allows_it() -> None:
    """Whoever asks meanwhile hears the address; the rows follow, and the publisher is told to look again."""
    async with world() as w:
        del w.told[:]
        w.store.fail_next += [StoreUnavailable("full")] * 3
        w.outbox.tell(BrokerMoved("b:1", "embedded-two"))
        w.outbox.tell(WhereIsKafka())
        await advance(5.0)

        assert Rewind() == w.told[-1]


@virtual
async def test_retry_of_an_announcement_never_goes_back_to_an_older_broker() -> None:
    async with world() as w:
        w.store.fail_next.append(StoreUnavailable("full"))
        w.outbox.tell(BrokerMoved("a:1", "embedded-one"))
        await advance(0.5)
        w.outbox.tell(BrokerMoved("b:1", "embedded-two"))
        await advance(5.0)

        moves = [message for message in w.told if isinstance(message, BrokerMoved)]
        assert {BrokerMoved("b:1", "embedded-two")} == set(moves)


@virtual
async def test_mark_for_a_broker_that_is_gone_leaves_the_row_pending() -> None:
    async with world() as w:
        await w.outbox.ask(submit(authorize()), timeout_s=1.0)
        w.outbox.tell(BrokerMoved("b:1", "embedded-two"))

        outcome = await w.outbox.ask(MarkPublished((PublishedRow(1, 0, 0),), "embedded-one", 1), timeout_s=1.0)

        assert Done(0) == outcome
        assert 1 == (await w.store.backlog()).pending


@virtual
async def test_retention_takes_small_slices_and_hurries_while_there_is_more() -> None:
    """F30."""
    async with world() as w:
        for first in range(0, 500, 100):
            await w.together(*(submit(authorize()) for _ in range(100)))
            rows = tuple(PublishedRow(first + index, 0, index) for index in range(1, 101))
            await w.outbox.ask(MarkPublished(rows, "c", LoopClock().wall_us()), timeout_s=1.0)

        await advance(151.0)

        purges = [group for group in w.store.groups if isinstance(group[0], Purge)]
        assert all(group[0].limit == 200 for group in purges)
        assert all(row.payload is None for row in w.store._data.rows.values())
        assert len(purges) <= 9


@virtual
async def test_asker_who_is_gone_leaves_the_write_alone() -> None:
    """F01: the handler owns the transaction, not the client."""
    async with world() as w:
        w.store.delay_s = 0.1
        asking = asyncio.create_task(w.outbox.ask(submit(authorize()), timeout_s=5.0))
        await advance(0.05)
        asking.cancel()
        await advance(0.2)

        assert 1 == (await w.store.backlog()).pending

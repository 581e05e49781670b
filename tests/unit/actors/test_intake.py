"""The intake actor: sheds before it queues, forwards the rest, and tells the client what is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from payflow.actors.intake import Intake, IntakeService, IntakeSettings, IntakeSnapshot
from payflow.core.outbox import Accepted
from payflow.errors import OutcomeUnknown, Overloaded, StoreBusy, StoreOutcomeUnknown, StoreUnavailable
from payflow.messages import Wake
from tests.support.actor_bench import World
from tests.support.payment_writes import authorize, submit
from tests.support.pipeline import FrontFake
from tests.support.virtual_loop import advance, settle, virtual

ACCEPTED = Accepted(b"p" * 16, 1, b"{}", created=True, replayed=False)


class IntakeWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.front = FrontFake()
        self.ports: list[int] = []
        self.partner("outbox", capacity=64)
        self.answers["outbox"] = lambda message: ACCEPTED
        self.actor("intake", self._intake, capacity=16)

    def _intake(self, system: Any) -> Intake:
        return Intake(
            self.front,
            readers=(),
            outbox=system.ref("outbox"),
            settings=IntakeSettings(shed_after_s=0.5),
            on_bound=self.ports.append,
        )

    @property
    def service(self) -> IntakeService:
        return IntakeService(self.system.ref("intake"), reader=None, ledger=None, timeout_s=2.0)

    async def look(self) -> IntakeSnapshot:
        value = (await self.system.snapshot("intake", timeout_s=1.0)).value
        assert isinstance(value, IntakeSnapshot)
        return value

    def stall(self, depth: int) -> None:
        """The outbox does nothing, and this many messages wait in front of it."""
        self.system.pause("outbox", max_s=100.0, by="test")
        for _ in range(depth):
            self.system.ref("outbox").tell(Wake())


@asynccontextmanager
async def world() -> AsyncIterator[IntakeWorld]:
    made = IntakeWorld()
    async with made.running():
        yield made


@virtual
async def test_answer_comes_from_the_outbox() -> None:
    async with world() as w:
        request = submit(authorize())

        assert ACCEPTED == await w.service.submit(request)
        assert [request] == w.heard["outbox"]
        assert 1 == (await w.look()).admitted_total


@virtual
async def test_sheds_from_seven_eighths_of_the_outbox_and_queues_nothing() -> None:
    """F07: the last eighth is for marks."""
    async with world() as w:
        w.stall(depth=56)

        with pytest.raises(Overloaded):
            await w.service.submit(submit(authorize()))

        assert 56 == w.system.ref("outbox").load()[0]
        assert (await w.look()).shedding


@virtual
async def test_the_request_id_goes_along_as_the_trace() -> None:
    async with world() as w:
        w.stall(depth=0)
        asking = asyncio.create_task(w.service.submit(submit(authorize()), request_id="request-7"))
        await settle()

        assert ["request-7"] == [message.trace_id for message in w.system.peek("outbox", 10)]
        w.system.resume("outbox", by="test")
        await asking


@virtual
async def test_admits_just_below_seven_eighths() -> None:
    async with world() as w:
        w.stall(depth=55)
        asking = asyncio.create_task(w.service.submit(submit(authorize())))
        await settle()

        assert 56 == w.system.ref("outbox").load()[0]
        w.system.resume("outbox", by="test")
        assert ACCEPTED == await asking


@virtual
async def test_sheds_when_the_oldest_write_has_waited_too_long() -> None:
    async with world() as w:
        w.stall(depth=1)
        await advance(0.6)

        with pytest.raises(Overloaded):
            await w.service.submit(submit(authorize()))


@virtual
async def test_admits_again_once_the_outbox_has_caught_up() -> None:
    async with world() as w:
        w.stall(depth=56)
        with pytest.raises(Overloaded):
            await w.service.submit(submit(authorize()))
        w.system.resume("outbox", by="test")
        await settle()

        assert ACCEPTED == await w.service.submit(submit(authorize()))
        assert [1, 1] == [len(w.events.of(name)) for name in ("intake.shedding", "intake.admitting")]


@virtual
async def test_deadline_of_a_queued_write_is_an_unknown_outcome() -> None:
    """F09: never claim failure."""
    async with world() as w:
        w.stall(depth=0)

        with pytest.raises(OutcomeUnknown):
            await w.service.submit(submit(authorize()))


@pytest.mark.parametrize(
    ("error", "heard"),
    [
        (StoreBusy("locked"), StoreBusy),
        (StoreUnavailable("full"), StoreUnavailable),
        (OutcomeUnknown(retry_after_s=1.0), OutcomeUnknown),
    ],
)
@virtual
async def test_what_the_store_said_reaches_the_front(error: Exception, heard: type[Exception]) -> None:
    async with world() as w:
        w.answers["outbox"] = lambda message: error

        with pytest.raises(heard):
            await w.service.submit(submit(authorize()))


@virtual
async def test_crash_of_the_outbox_under_a_write_is_an_unknown_outcome() -> None:
    async with world() as w:
        w.answers["outbox"] = lambda message: (_ for _ in ()).throw(StoreOutcomeUnknown("EIO"))

        with pytest.raises(OutcomeUnknown):
            await w.service.submit(submit(authorize()))


@virtual
async def test_full_intake_is_overload() -> None:
    async with world() as w:
        w.system.pause("intake", max_s=1.0, by="test")
        for _ in range(16):
            w.system.ref("intake").tell(Wake())

        with pytest.raises(Overloaded):
            await w.service.submit(submit(authorize()))


@virtual
async def test_outbox_that_ended_for_good_is_overload_and_no_crash() -> None:
    async with world() as w:
        w.system._slots["outbox"].mailbox.close("ended")

        with pytest.raises(Overloaded):
            await w.service.submit(submit(authorize()))
        await settle()

        assert [] == w.events.of("actor.crashed")


@virtual
async def test_drain_unbinds_and_waits_for_the_answers() -> None:
    async with world() as w:
        assert await w.system.drain("intake", timeout_s=1.0, close=True)

        assert ["start", "unbind", "requests_done"] == w.front.calls


@virtual
async def test_port_is_reported_and_the_front_stopped_at_the_end() -> None:
    async with world() as w:
        assert [8080] == w.ports

    assert "stop" == w.front.calls[-1]

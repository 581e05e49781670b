"""The management actor: audited actions, and a site that no failing action takes down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from payflow.actors.management import Act, Management, PutBack
from payflow.core.outbox import Audit, Done, Requeue
from payflow.errors import PayflowError, StoreUnavailable
from payflow.mailbox import Overflow
from payflow.supervisor import ActorState
from tests.support.actor_bench import World
from tests.support.pipeline import FrontFake, LoopClock
from tests.support.virtual_loop import settle, virtual


class ManagementWorld(World):
    def __init__(self, *, ingest: bool) -> None:
        super().__init__()
        self.front = FrontFake()
        self.ports: list[int] = []
        self.partner("outbox")
        self.partner("publisher")
        self.answers["outbox"] = lambda message: Done(1)
        self.actor(
            "management",
            lambda system: Management(
                self.front,
                system=system,
                outbox=system.ref("outbox") if ingest else None,
                clock=LoopClock(),
                on_bound=self.ports.append,
            ),
            overflow=Overflow.DROP_NEWEST,
            lossy=True,
        )

    async def act(self, action: str, target: str = "publisher") -> Any:
        return await self.system.ref("management").ask(Act(action, target, "ann", "why", None), timeout_s=30.0)

    def state(self, actor_id: str) -> ActorState:
        return self.system._slots[actor_id].state


@asynccontextmanager
async def world(*, ingest: bool = True) -> AsyncIterator[ManagementWorld]:
    made = ManagementWorld(ingest=ingest)
    async with made.running():
        await settle()
        yield made
    assert [] == made.events.of("actor.crashed")


@virtual
async def test_pause_is_audited_before_it_is_done() -> None:
    async with world() as w:
        states: list[ActorState] = []
        w.answers["outbox"] = lambda message: states.append(w.state("publisher")) or Done(1)

        answer = await w.act("pause")

        assert [ActorState.RUNNING] == states
        assert ActorState.PAUSED is w.state("publisher")
        assert answer["done"]
        (audit,) = w.heard["outbox"]
        assert isinstance(audit, Audit)
        assert ("ann", "pause", "publisher", "why") == (audit.actor, audit.action, audit.target, audit.reason)


@virtual
async def test_paused_actor_is_resumed() -> None:
    async with world() as w:
        await w.act("pause")
        await w.act("resume")

        assert ActorState.RUNNING is w.state("publisher")


@virtual
async def test_restart_makes_a_new_instance() -> None:
    async with world() as w:
        await w.act("restart")

        assert 2 == w.system._slots["publisher"].number


@virtual
async def test_action_that_cannot_be_audited_is_not_done() -> None:
    async with world() as w:
        w.answers["outbox"] = lambda message: StoreUnavailable("full")

        answer = await w.act("pause")

        assert isinstance(answer, PayflowError)
        assert ActorState.RUNNING is w.state("publisher")


@pytest.mark.parametrize("action", ["resume", "restart"])
@virtual
async def test_outbox_that_cannot_store_can_still_be_helped(action: str) -> None:
    async with world() as w:
        w.system.pause("outbox", max_s=1000.0, by="test")

        answer = await w.act(action, "outbox")

        assert answer["done"]


@virtual
async def test_without_a_payments_database_the_log_is_the_audit() -> None:
    async with world(ingest=False) as w:
        await w.act("pause")

        assert [] == w.heard["outbox"]
        assert 1 == len(w.events.of("management.acted"))


@virtual
async def test_site_is_bound_first_and_stopped_last() -> None:
    async with world() as w:
        assert [8080] == w.ports
    assert ["start", "stop"] == w.front.calls


# ------------------------------------------------------------------ rows of the outbox
@virtual
async def test_rows_are_put_back_after_that_was_audited() -> None:
    async with world() as w:
        w.answers["outbox"] = lambda message: Done(2)

        answer = await w.system.ref("management").ask(PutBack((3, 5, 8), "ann", "why"), timeout_s=30.0)

        audit, requeue = w.heard["outbox"]
        assert isinstance(audit, Audit)
        assert ("ann", "requeue", "outbox", "why", '{"seqs":[3,5,8]}') == (
            audit.actor,
            audit.action,
            audit.target,
            audit.reason,
            audit.detail,
        )
        assert Requeue((3, 5, 8)) == requeue
        assert {"action": "requeue", "by": "ann", "asked": 3, "requeued": 2} == answer


@virtual
async def test_rows_whose_audit_is_refused_stay_where_they_are() -> None:
    async with world() as w:
        w.answers["outbox"] = lambda message: StoreUnavailable("no disk")

        answer = await w.system.ref("management").ask(PutBack((3,), "ann", "why"), timeout_s=30.0)

        assert isinstance(answer, PayflowError)
        assert [Audit] == [type(message) for message in w.heard["outbox"]]
        assert [event["action"] for event in w.events.of("management.not_acted")] == ["requeue"]

"""The broker actor: keeps the embedded broker's child, and tells its clients where it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from payflow.actors.broker import Broker, BrokerSnapshot
from payflow.errors import DependencyUnavailable, StartFailed
from payflow.messages import BrokerMoved, Wake, WhereIsKafka
from tests.fakes.event_log import MemoryLog
from tests.support.actor_bench import World
from tests.support.pipeline import BrokerProcessFake
from tests.support.virtual_loop import advance, settle, virtual

FIRST, SECOND = BrokerMoved("127.0.0.1:1", "embedded-1"), BrokerMoved("127.0.0.1:2", "embedded-2")


class BrokerWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.process = BrokerProcessFake(MemoryLog())
        self.partner("outbox", capacity=4)
        self.partner("consumer")
        self.actor(
            "broker",
            lambda system: Broker(self.process, listeners=(system.ref("outbox"), system.ref("consumer"))),
            capacity=4,
        )


@asynccontextmanager
async def world() -> AsyncIterator[BrokerWorld]:
    made = BrokerWorld()
    async with made.running():
        await settle()
        yield made


@virtual
async def test_all_listeners_hear_where_the_child_is() -> None:
    async with world() as w:
        assert {"outbox": [FIRST], "consumer": [FIRST]} == w.heard


@virtual
async def test_child_that_ends_is_followed_by_a_new_one() -> None:
    async with world() as w:
        w.process.die()
        await advance(1.0)

        assert [FIRST, SECOND] == w.heard["consumer"]
        assert BrokerSnapshot(SECOND.bootstrap, SECOND.broker_id) == (
            (await w.system.snapshot("broker", timeout_s=1.0)).value
        )


@virtual
async def test_who_asks_is_told_again() -> None:
    async with world() as w:
        w.system.ref("broker").tell(WhereIsKafka())
        await settle()

        assert [FIRST, FIRST] == w.heard["outbox"]


@virtual
async def test_listener_with_a_full_mailbox_is_no_reason_to_lose_the_broker() -> None:
    async with world() as w:
        w.system.pause("outbox", max_s=5.0, by="test")
        for _ in range(4):
            w.system.ref("outbox").tell(Wake())
        w.system.ref("broker").tell(WhereIsKafka())
        await advance(6.0)

        assert [FIRST, FIRST] == [message for message in w.heard["outbox"] if message != Wake()]
        assert 1 == w.process.starts


@virtual
async def test_listener_that_is_gone_does_not_keep_the_others_from_hearing() -> None:
    async with world() as w:
        w.system._slots["outbox"].mailbox.close("ended")
        w.system.ref("broker").tell(WhereIsKafka())
        await settle()

        assert [FIRST, FIRST] == w.heard["consumer"]


@virtual
async def test_missing_package_fails_the_start_with_its_sentence() -> None:
    """A dependency that is not there: exit code 69, no restarts."""
    w = BrokerWorld()
    w.process.missing = DependencyUnavailable("install the extra")

    with pytest.raises(StartFailed) as failed:
        async with w.running():
            pass

    assert "install the extra" == str(failed.value.__cause__)
    assert 0 == w.process.starts

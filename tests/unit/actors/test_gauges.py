"""The gauges actor: what fails keeps its last reading and is named, and nothing of it is a crash."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from payflow.actors.gauges import FIRST_READ_S, GaugeReader, Gauges
from payflow.core.outbox import Backlog
from payflow.errors import DependencyUnavailable, StoreBusy
from tests.fakes.ledger_memory import LedgerMemory
from tests.fakes.outbox_memory import OutboxMemory
from tests.support.actor_bench import World
from tests.support.payment_writes import CountingIds, authorize, submit
from tests.support.virtual_loop import advance, virtual


class Reader(OutboxMemory):
    """Opens and reads as it is told."""

    def __init__(self) -> None:
        super().__init__(ids=CountingIds())
        self.missing = False
        self.busy = False

    async def open(self) -> None:
        if self.missing:
            raise DependencyUnavailable("no file yet")
        await super().open()

    async def backlog(self) -> Backlog:
        if self.busy:
            raise StoreBusy("locked")
        return await super().backlog()


class GaugeWorld(World):
    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self.gauges = Gauges()
        self.reader = Reader()
        self.actor(
            "gauges",
            lambda system: GaugeReader(
                self.gauges, outbox=self.reader, ledger=LedgerMemory(), data_dir=data_dir
            ),
        )


@asynccontextmanager
async def world(data_dir: Path, *, missing: bool = False) -> AsyncIterator[GaugeWorld]:
    made = GaugeWorld(data_dir)
    made.reader.missing = missing
    async with made.running():
        await advance(FIRST_READ_S + 0.1)
        yield made
    assert [] == made.events.of("actor.crashed")


@virtual
async def test_figures_are_read_soon_and_then_every_two_seconds(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        assert w.gauges.backlog is not None
        assert (w.gauges.free_bytes or 0) > 0
        await w.reader.commit([submit(authorize())], at_us=1)
        await advance(2.0)

        assert 1 == w.gauges.backlog.pending


@virtual
async def test_database_that_is_not_there_yet_is_named_and_found_later(tmp_path: Path) -> None:
    async with world(tmp_path, missing=True) as w:
        assert {"outbox": "no file yet"} == w.gauges.failed
        w.reader.missing = False
        await advance(2.0)

        assert {} == w.gauges.failed


@virtual
async def test_locked_database_keeps_its_last_reading(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        before = w.gauges.backlog
        w.reader.busy = True
        await advance(2.0)

        assert before is w.gauges.backlog
        assert {"outbox"} == set(w.gauges.failed)


@virtual
async def test_data_directory_that_is_gone_is_no_crash(tmp_path: Path) -> None:
    async with world(tmp_path / "gone") as w:
        assert w.gauges.free_bytes is None
        assert {"disk"} == set(w.gauges.failed)

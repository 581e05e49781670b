"""What can go wrong, and the plan of one seed: which of it, when, for how long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from payflow.core.outbox import Requeue, Unpublish
from payflow.errors import ActorStopped, MailboxClosed, MailboxFull
from tests.simulation.life import Life

ACTORS = ("outbox", "publisher", "consumer", "intake")
DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000

# Weather: what it adds, between which values, for how many seconds at most.
SPELLS: dict[str, tuple[tuple[str, float, float], ...]] = {
    "append refused": (("append_refused", 0.2, 1.0), ("connect_refused", 0.0, 1.0)),
    "append slow": (("append_slow_s", 0.2, 8.0),),
    "append hung": (("append_hangs", 0.2, 1.0),),
    "record rejected": (("record_rejected", 0.05, 0.3),),
    "answer lost": (("answer_lost", 0.2, 1.0),),
    "partition down": (("partition_down", 0.0, 6.0),),
    "connect slow": (("connect_slow_s", 1.0, 20.0), ("append_refused", 0.3, 1.0)),
    "fetch refused": (("fetch_refused", 0.2, 1.0),),
    "redelivered": (("redelivered", 0.2, 1.0),),
    "copies": (("copies", 0.2, 1.0),),
    "store busy": (("store_busy", 0.2, 0.9), ("store_read_busy", 0.0, 0.9)),
    "store unavailable": (("store_unavailable", 0.2, 1.0), ("store_read_unavailable", 0.0, 0.6)),
    "store unknown": (("store_unknown", 0.05, 0.5),),
    "store slow": (("store_slow_s", 0.1, 3.0),),
    "ledger busy": (("ledger_busy", 0.2, 1.0), ("ledger_read_busy", 0.0, 0.6)),
    "ledger unavailable": (("ledger_unavailable", 0.2, 1.0),),
    "ledger unknown": (("ledger_unknown", 0.05, 0.5),),
    "ledger slow": (("ledger_slow_s", 0.1, 3.0),),
    "crashes": (("crashes", 0.01, 0.15),),
    "kills": (("kills", 0.002, 0.03),),
    "stuck": (("stuck", 0.005, 0.03),),
}


def crash(world: Any, chance: random.Random) -> None:
    world.crash_soon(chance.choice(ACTORS))


def kill(world: Any, chance: random.Random) -> None:
    world.kill_soon()


def terminate(world: Any, chance: random.Random) -> None:
    world.terminate()


def broker_dies(world: Any, chance: random.Random) -> None:
    """Only the embedded one; it comes back empty, under another id."""
    process = world.outside.process
    if world.outside.embedded and process._ended is not None and not process._ended.done():
        world.outside.note("fault.broker_dies")
        process.die()


def clock_jumps(world: Any, chance: random.Random) -> None:
    jump_us = chance.choice((-HOUR_US, -1_500_000, 40_000_000, HOUR_US, DAY_US))
    outside = world.outside
    if outside.clock_offset_us + jump_us < 2 * DAY_US:  # keys are promised for three days
        outside.clock_offset_us += jump_us
        outside.note("fault.clock_jumps", by_s=jump_us // 1_000_000)


def mailbox_fills(world: Any, chance: random.Random) -> None:
    """An actor that handles nothing for a while: who sends to it meets a full mailbox."""
    life: Life | None = world.life
    if life is not None and life.alive:
        try:
            life.system.pause(chance.choice(ACTORS), max_s=8 * chance.random(), by="simulation")
        except ActorStopped:
            return


def rows_go_again(world: Any, chance: random.Random) -> None:
    """An operator requeues, or everything not known to be booked is published again."""
    life: Life | None = world.life
    seqs = tuple(range(1, 1 + chance.randrange(1, 12)))
    write = Requeue(seqs) if chance.random() < 0.5 else Unpublish("")
    if life is not None and life.alive:
        try:
            life.ref("outbox").tell(write)
        except (MailboxFull, MailboxClosed):
            return
        world.outside.note("fault.rows_go_again", write=type(write).__name__)


def foreign_record(world: Any, chance: random.Random) -> None:
    world.outside.note("fault.foreign_record")
    world.outside.wire.write_foreign(chance.randrange(world.outside.wire.partitions))


ACTS: tuple[Callable[[Any, random.Random], None], ...] = (
    crash, crash, crash, kill, kill, terminate, broker_dies, broker_dies, clock_jumps, mailbox_fills, rows_go_again,
    foreign_record,
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One entry of the plan. A spell has values and a length, an act has not."""

    at_s: float
    name: str
    values: tuple[tuple[str, float], ...] = ()
    lasts_s: float = 0.0
    act: Callable[[Any, random.Random], None] | None = None


def plan(chance: random.Random, *, until_s: float) -> list[Fault]:
    """Two to nine faults, half of them weather, around few moments: where several meet it gets interesting."""
    faults = []
    moments = [chance.random() * until_s for _ in range(chance.randrange(1, 4))]
    for _ in range(chance.randrange(2, 10)):
        at_s = chance.choice(moments) + 2.0 * chance.random()
        if chance.random() < 0.5:
            name = chance.choice(list(SPELLS))
            values = tuple((key, low + (high - low) * chance.random() ** 1.5) for key, low, high in SPELLS[name])
            faults.append(Fault(at_s, name, values, 0.3 + 20 * chance.random() ** 2))
        else:
            act = chance.choice(ACTS)
            faults.append(Fault(at_s, act.__name__, act=act))
    return sorted(faults, key=lambda fault: fault.at_s)


async def play(world: Any, fault: Fault, chance: random.Random) -> None:
    """One fault, from its time to its end."""
    outside = world.outside
    await asyncio.sleep(fault.at_s)
    if fault.act is not None:
        fault.act(world, chance)
        return
    outside.note("fault.begins", what=fault.name, **dict(fault.values))
    for name, value in fault.values:
        outside.weather.add(name, value)
    await asyncio.sleep(fault.lasts_s)
    for name, value in fault.values:
        outside.weather.take_back(name, value)
    outside.note("fault.ends", what=fault.name)

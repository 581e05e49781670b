"""Messages per second of the runtime next to asyncio.Queue, in one run: `python -m tests.bench.bench_mailbox`.

The target is a ratio, not a rate: a supervised actor's `send` reaches at least a third of asyncio.Queue(1024).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from payflow.actor import Actor
from payflow.mailbox import Mailbox, Overflow
from payflow.supervisor import ChildSpec, Strategy, SupervisorSpec, System

try:
    import uvloop
except ImportError:
    uvloop = None

MESSAGES = 300_000
ASKS = 30_000
RUNS = 5
CAPACITY = 1024


async def queue_put_get() -> float:
    queue: asyncio.Queue[int] = asyncio.Queue(CAPACITY)

    async def consume() -> None:
        for _ in range(MESSAGES):
            await queue.get()

    consumer = asyncio.create_task(consume())
    started = time.perf_counter()
    for number in range(MESSAGES):
        await queue.put(number)
    await consumer
    return MESSAGES / (time.perf_counter() - started)


async def mailbox_send_receive() -> float:
    mailbox = Mailbox(CAPACITY, overflow=Overflow.BLOCK)

    async def consume() -> None:
        for _ in range(MESSAGES):
            _, envelope = await mailbox.receive()
            mailbox.done(envelope)

    consumer = asyncio.create_task(consume())
    started = time.perf_counter()
    for number in range(MESSAGES):
        await mailbox.send(number)
    await consumer
    return MESSAGES / (time.perf_counter() - started)


class Sink(Actor):
    async def handle(self, message: Any) -> Any:
        return message


def _system() -> System:
    spec = ChildSpec("sink", Sink, capacity=CAPACITY, overflow=Overflow.BLOCK)
    return System(SupervisorSpec("root", Strategy.ONE_FOR_ONE, (spec,)), emit=lambda *_, **__: None, draw=lambda: 0.5)


async def actor_send() -> float:
    system = _system()
    await system.start()
    ref = system.ref("sink")
    started = time.perf_counter()
    for number in range(MESSAGES):
        await ref.send(number)
    await system.drain("sink", timeout_s=10)
    rate = MESSAGES / (time.perf_counter() - started)
    await system.stop()
    return rate


async def actor_ask() -> float:
    system = _system()
    await system.start()
    ref = system.ref("sink")
    started = time.perf_counter()
    for number in range(ASKS):
        await ref.ask(number, timeout_s=10)
    rate = ASKS / (time.perf_counter() - started)
    await system.stop()
    return rate


async def actor_ask_64() -> float:
    system = _system()
    await system.start()
    ref = system.ref("sink")

    async def caller() -> None:
        for number in range(ASKS // 64):
            await ref.ask(number, timeout_s=10)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(64):
            group.create_task(caller())
    rate = ASKS // 64 * 64 / (time.perf_counter() - started)
    await system.stop()
    return rate


BENCHES: tuple[Callable[[], Awaitable[float]], ...] = (
    queue_put_get,
    mailbox_send_receive,
    actor_send,
    actor_ask,
    actor_ask_64,
)


def measure(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> dict[str, float]:
    rates: dict[str, list[float]] = {bench.__name__: [] for bench in BENCHES}
    for _ in range(RUNS):  # interleaved, so that a slow moment of the machine hits all of them
        for bench in BENCHES:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                rates[bench.__name__].append(runner.run(bench()))  # type: ignore[arg-type]
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None:
        loops["uvloop"] = uvloop.new_event_loop
    for loop_name, factory in loops.items():
        rates = measure(factory)
        for name, rate in rates.items():
            print(f"{loop_name:<8} {name:<22} {rate:>12,.0f}/s")
        print(f"{loop_name:<8} ratio actor_send / queue_put_get: {rates['actor_send'] / rates['queue_put_get']:.3f}")


if __name__ == "__main__":
    main()

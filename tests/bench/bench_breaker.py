"""What the breaker costs: nanoseconds a call over a bare await, interleaved rounds, medians.

Run: .venv/bin/python tests/bench/bench_breaker.py [--rounds 25] [--calls 20000] [--uvloop]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import statistics
import time
from collections.abc import Awaitable, Callable

from payflow.core.breaker import Breaker, BreakerConfig, Outcome, OutcomeKind, State
from payflow.errors import CallNotPermitted
from payflow.guard import Guard

Bench = Callable[[int], Awaitable[None]]


class MonotonicClock:
    now = staticmethod(time.monotonic)


async def call() -> None:
    """Stand for the guarded work."""


def core_only() -> Bench:
    breaker = Breaker("core", BreakerConfig())

    async def run(calls: int) -> None:
        now = time.monotonic
        success = OutcomeKind.SUCCESS
        for _ in range(calls):
            start = now()
            permit = breaker.acquire(start)
            await call()
            end = now()
            breaker.record(permit, Outcome(success, end - start), end)  # type: ignore[arg-type]

    return run


def benches() -> dict[str, Bench]:
    closed = Guard(Breaker("closed", BreakerConfig()), MonotonicClock())
    opened = Guard(Breaker("opened", BreakerConfig(wait_duration_in_open_state_s=3600.0)), MonotonicClock())
    opened.transition(State.OPEN)
    guarded, refused = closed(call), opened(call)

    async def bare(calls: int) -> None:
        for _ in range(calls):
            await call()

    async def decorator(calls: int) -> None:
        for _ in range(calls):
            await guarded()

    async def block(calls: int) -> None:
        for _ in range(calls):
            async with closed:
                await call()

    async def group(calls: int) -> None:
        outcome = Outcome(OutcomeKind.SUCCESS, 0.002)
        for _ in range(calls // 500):
            permits = closed.acquire_many(500)
            for permit in permits:
                closed.record(permit, outcome)

    async def refusal(calls: int) -> None:
        for _ in range(calls):
            try:
                await refused()
            except CallNotPermitted:
                continue

    return {
        "bare await": bare,
        "core: acquire, record": core_only(),
        "guard: decorator": decorator,
        "guard: async with": block,
        "guard: group of 500, a record": group,
        "guard: refusal, raise and catch": refusal,
    }


async def measure(rounds: int, calls: int) -> dict[str, list[float]]:
    subjects = benches()
    results: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, bench in subjects.items():
            start = time.perf_counter_ns()
            await bench(calls)
            results[name].append((time.perf_counter_ns() - start) / calls)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="ns a call of the breaker over a bare await")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    if options.uvloop:
        results = importlib.import_module("uvloop").run(measure(options.rounds, options.calls))
    else:
        results = asyncio.run(measure(options.rounds, options.calls))
    bare = statistics.median(results["bare await"])
    for name, samples in results.items():
        median = statistics.median(samples)
        quartiles = statistics.quantiles(samples, n=4)
        print(f"{name:34} {median:7.0f} ns  {median - bare:+7.0f} over bare  IQR {quartiles[0]:.0f}-{quartiles[2]:.0f}")


if __name__ == "__main__":
    main()

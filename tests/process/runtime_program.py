"""Small processes for test_runtime_process: `python -m tests.process.runtime_program SCENARIO [asyncio|uvloop]`.

Each writes its events to stderr, one JSON object a line, and `ready` when the test may act.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time

from payflow.errors import DependencyUnavailable, RestartIntensityExceeded, StartFailed
from payflow.shutdown import ProcessControl, run

PHASES = ("announce", "unbind", "requests_done", "drain", "stop", "close", "flush")


def emit(event: str, /, **fields: object) -> None:
    os.write(2, (json.dumps({"event": event, **fields}, default=str) + "\n").encode())


async def for_ever() -> None:
    await asyncio.Event().wait()


def add_quick_tasks(control: ProcessControl) -> None:
    """One task in each phase that ends at its first step."""
    for phase in PHASES:

        async def task(phase: str = phase) -> None:
            emit("task.ran", phase=phase)

        control.shutdown.add(phase, "quick", task)


# ------------------------------------------------------------------ signals and phases
async def idle(control: ProcessControl) -> None:
    add_quick_tasks(control)
    control.up()
    emit("ready", frozen=gc.get_freeze_count())
    await for_ever()


async def lingers(control: ProcessControl) -> None:
    """Announce waits for the clients' caches, which a second signal cuts short without abandoning anything."""
    add_quick_tasks(control)
    control.shutdown.add("announce", "caches", lambda: control.shutdown.linger(60))
    control.up()
    emit("ready")
    await for_ever()


async def hangs(control: ProcessControl) -> None:
    """A drain that never ends: a second signal abandons it."""
    add_quick_tasks(control)
    control.shutdown.add("drain", "endless", for_ever)
    control.up()
    emit("ready")
    await for_ever()


async def starts_for_ever(control: ProcessControl) -> None:
    """SV-34: `a` is up, `b` is in its on_start, `c` would come next."""
    add_quick_tasks(control)
    emit("a.started")
    try:
        emit("ready")
        await for_ever()
        emit("c.started")
    finally:
        await asyncio.sleep(0)
        emit("a.stopped")


async def ends_by_itself(control: ProcessControl) -> None:
    add_quick_tasks(control)
    control.up()


# ------------------------------------------------------------------ failures
async def lacks_a_dependency(_control: ProcessControl) -> None:
    try:
        try:
            raise DependencyUnavailable("port 8080 is taken")
        except DependencyUnavailable as error:
            raise StartFailed("intake", "on_start failed") from error
    except StartFailed as error:
        raise StartFailed("pipeline", "on_start failed") from error


async def fails_to_start(_control: ProcessControl) -> None:
    try:
        raise LookupError("typo")
    except LookupError as error:
        raise StartFailed("intake", "on_start failed") from error


async def escalates(control: ProcessControl) -> None:
    add_quick_tasks(control)
    control.up()
    raise RestartIntensityExceeded("outbox", count=4, within_s=300, causes=("boom 1", "boom 2"))


async def interrupts_itself(control: ProcessControl) -> None:
    """A KeyboardInterrupt raised in a callback of the loop leaves the loop."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    add_quick_tasks(control)
    control.up()
    asyncio.get_running_loop().call_soon(interrupt)
    await for_ever()


async def exits_itself(control: ProcessControl) -> None:
    add_quick_tasks(control)
    control.up()
    sys.exit(3)


# ------------------------------------------------------------------ blocked loops
def handler_that_sleeps(seconds: float) -> None:
    time.sleep(seconds)


def handler_that_sleeps_for_ever() -> None:
    while True:
        time.sleep(0.1)


def handler_that_computes_for_ever() -> None:
    while True:
        sum(range(100))


async def blocks_for_a_second(control: ProcessControl) -> None:
    control.up()
    await asyncio.sleep(0)
    handler_that_sleeps(1)
    emit("handler.returned")


async def sleeps_for_ever(control: ProcessControl) -> None:
    control.up()
    emit("ready")
    handler_that_sleeps_for_ever()


async def computes_for_ever(control: ProcessControl) -> None:
    control.up()
    emit("ready")
    handler_that_computes_for_ever()


async def leaves_a_thread(control: ProcessControl) -> None:
    """A thread that is no daemon, as a database driver's: the interpreter would wait for it for ever."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    control.up()


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        idle,
        lingers,
        hangs,
        starts_for_ever,
        ends_by_itself,
        lacks_a_dependency,
        fails_to_start,
        escalates,
        interrupts_itself,
        exits_itself,
        blocks_for_a_second,
        sleeps_for_ever,
        computes_for_ever,
        leaves_a_thread,
    )
}
SHORT_BUDGET_S = 0.5

if __name__ == "__main__":
    name, loop_name = sys.argv[1:]
    budget = {"budget_s": SHORT_BUDGET_S} if name in {"sleeps_for_ever", "computes_for_ever", "leaves_a_thread"} else {}
    sys.exit(run(SCENARIOS[name], emit=emit, use_uvloop=loop_name == "uvloop", **budget))

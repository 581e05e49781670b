"""Small processes for test_runtime_process: `python -m tests.support.runtime_program SCENARIO [asyncio|uvloop]`.

The `time.sleep` calls in here are the fault under test, a blocked loop; nothing waits by sleeping.
Each writes its events to stderr, one JSON object a line, and `ready` when the test may act.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from payflow.actor import Actor
from payflow.core.backoff import Backoff
from payflow.errors import DependencyUnavailable
from payflow.mailbox import Overflow
from payflow.shutdown import BUDGET_S, ProcessControl, run
from payflow.supervisor import ChildSpec, Strategy, SupervisorSpec, System

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


async def live_with(control: ProcessControl, *children: ChildSpec, then: Callable[[System], object]) -> None:
    """What a real main does: register, start, be up, wait for the end of the tree."""
    spec = SupervisorSpec(
        "root",
        Strategy.ONE_FOR_ONE,
        children,
        max_restarts=3,
        within_s=300,
        backoff=Backoff(initial_s=0.01, cap_s=0.01),
    )
    system = System(spec, emit=emit, draw=lambda: 0.5)
    add_quick_tasks(control)
    control.shutdown.add("stop", "tree", system.stop)
    await system.start()
    control.up()
    emit("ready", frozen=gc.get_freeze_count())
    then(system)
    raise await system.escalated


def child(child_id: str, factory: Callable[[], Actor]) -> ChildSpec:
    return ChildSpec(child_id, factory, capacity=4, overflow=Overflow.REJECT)


def tell(child_id: str) -> Callable[[System], object]:
    return lambda system: system.ref(child_id).tell("go")


# ------------------------------------------------------------------ signals and phases
async def idle(control: ProcessControl) -> None:
    await live_with(control, child("a", Actor), then=id)


async def lingers(control: ProcessControl) -> None:
    """Announce waits for the clients' caches, which a second signal cuts short without abandoning anything."""
    control.shutdown.add("announce", "caches", lambda: control.shutdown.linger(60))
    await idle(control)


async def hangs(control: ProcessControl) -> None:
    """A drain that never ends: a second signal abandons it."""
    control.shutdown.add("drain", "endless", for_ever)
    await idle(control)


class StartsForEver(Actor):
    async def on_start(self, stack: AsyncExitStack) -> None:
        emit("ready")
        await for_ever()


async def starts_for_ever(control: ProcessControl) -> None:
    """SV-34: `a` is up, `b` is in its on_start, `c` would come next."""
    await live_with(control, child("a", Actor), child("b", StartsForEver), child("c", Actor), then=id)


async def ends_by_itself(control: ProcessControl) -> None:
    add_quick_tasks(control)
    control.up()


# ------------------------------------------------------------------ failures
class LacksItsPort(Actor):
    async def on_start(self, stack: AsyncExitStack) -> None:
        raise DependencyUnavailable("port 8080 is taken")


class HasATypo(Actor):
    async def on_start(self, stack: AsyncExitStack) -> None:
        raise LookupError("typo")


class Crashes(Actor):
    async def on_start(self, stack: AsyncExitStack) -> None:
        self.ctx.tell_later(0, "go")

    async def handle(self, message: str) -> None:
        raise RuntimeError("boom")


class Raises(Actor):
    """Raises what is no Exception."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    async def handle(self, message: str) -> None:
        raise self._error


async def lacks_a_dependency(control: ProcessControl) -> None:
    await live_with(control, child("intake", LacksItsPort), then=id)


async def fails_to_start(control: ProcessControl) -> None:
    await live_with(control, child("intake", HasATypo), then=id)


async def escalates(control: ProcessControl) -> None:
    await live_with(control, child("a", Actor), child("outbox", Crashes), then=id)


async def main_fails(control: ProcessControl) -> None:
    add_quick_tasks(control)
    control.up()
    raise LookupError("typo in main")


async def handler_interrupts(control: ProcessControl) -> None:
    await live_with(control, child("a", lambda: Raises(KeyboardInterrupt())), then=tell("a"))


async def handler_exits(control: ProcessControl) -> None:
    await live_with(control, child("a", lambda: Raises(SystemExit(3))), then=tell("a"))


async def callback_interrupts(control: ProcessControl) -> None:
    """A KeyboardInterrupt raised in a callback of the loop leaves the loop."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    await live_with(control, then=lambda _: asyncio.get_running_loop().call_soon(interrupt))


async def main_exits(control: ProcessControl) -> None:
    add_quick_tasks(control)
    control.up()
    sys.exit(3)


# ------------------------------------------------------------------ blocked loops
class SleepsForASecond(Actor):
    async def handle(self, message: str) -> None:
        time.sleep(1)
        emit("handler.returned")
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)


class SleepsForEver(Actor):
    async def handle(self, message: str) -> None:
        emit("blocking")
        while True:
            time.sleep(0.1)


class ComputesForEver(Actor):
    async def handle(self, message: str) -> None:
        emit("blocking")
        while True:
            sum(range(100))


async def blocks_for_a_second(control: ProcessControl) -> None:
    await live_with(control, child("a", SleepsForASecond), then=tell("a"))


async def sleeps_for_ever(control: ProcessControl) -> None:
    await live_with(control, child("a", SleepsForEver), then=tell("a"))


async def computes_for_ever(control: ProcessControl) -> None:
    await live_with(control, child("a", ComputesForEver), then=tell("a"))


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
        main_fails,
        main_exits,
        handler_interrupts,
        handler_exits,
        callback_interrupts,
        blocks_for_a_second,
        sleeps_for_ever,
        computes_for_ever,
        leaves_a_thread,
    )
}
SHORT_BUDGET_S = 0.5
SHORT = {"sleeps_for_ever", "computes_for_ever", "leaves_a_thread"}

if __name__ == "__main__":
    name, loop_name = sys.argv[1:]
    budget_s = SHORT_BUDGET_S if name in SHORT else BUDGET_S
    sys.exit(run(SCENARIOS[name], emit=emit, budget_s=budget_s, use_uvloop=loop_name == "uvloop"))

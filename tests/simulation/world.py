"""One run of one seed: clients, faults, and a process that is started again whenever it ends.

Every time and chance comes from the seed, nothing waits for the real clock, there are no threads. `run` returns when
the faults are over, every client knows, everything committed is booked, and the promises were looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass

from payflow.core.outbox import Requeue, RowState
from payflow.errors import ActorStopped, MailboxClosed, MailboxFull, StartFailed
from tests.simulation import faults
from tests.simulation.bugs import NONE, Bug
from tests.simulation.clients import Clients
from tests.simulation.history import History
from tests.simulation.invariants import Promises
from tests.simulation.life import Life, Outside
from tests.simulation.loop import LIFE, SimLoop

FAULTS_UNTIL_S = 10.0
# After the last fault: a breaker, a delivery deadline, the longest backoffs and a late mark, one after another.
PATIENCE_S = 300.0
LOOK_EVERY_S = 0.5
LIVES_AT_MOST = 400


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    seed: int
    bug: str
    broken: tuple[str, ...]
    history: History
    payments: int
    lives: int
    ended_at_s: float

    def summary(self) -> str:
        """What broke, or that nothing did, and how to see it again."""
        planted = f" --bug {self.bug}" if self.bug != NONE.name else ""
        again = f"python -m tests.simulation --seed {self.seed}{planted} --verbose"
        verdict = "\n".join(self.broken) or "every promise held"
        size = f"{len(self.history)} events, {self.payments} steps of payments, {self.lives} lives of the process"
        return f"{verdict}\nseed {self.seed}: {size}, {self.ended_at_s:.1f} s, {self.history.digest()}\n{again}"

    def report(self) -> str:
        """For whoever reads a failing run: its last hundred events, and what broke."""
        return f"{self.history.tail()}\n{self.summary()}"


class World:
    """See the head of the module."""

    def __init__(self, seed: int, bug: Bug) -> None:
        self.promises = Promises()
        self.outside = self.promises.outside = Outside(
            seed, bug, self.promises.written, self.promises.passed
        )
        self.life: Life | None = None
        self.clients = Clients(self.outside, lambda: self.life, self.promises.violated)
        self._chance = self.outside.stream("world")
        self._lives = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> Result:
        outside, promises = self.outside, self.promises
        keeper = asyncio.create_task(self._keep_alive())
        plan = faults.plan(outside.stream("plan"), until_s=FAULTS_UNTIL_S)
        playing = [asyncio.create_task(faults.play(self, f, outside.stream(f"fault-{i}"))) for i, f in enumerate(plan)]
        count = self._chance.randrange(2, 5)
        calling = [asyncio.create_task(self.clients.run(n, self._chance.randrange(4, 12))) for n in range(count)]
        try:
            if await self._until(lambda: all(task.done() for task in playing), within_s=PATIENCE_S):
                outside.weather.clear()
                outside.note("world.is_whole")
                calling.append(asyncio.create_task(self.clients.pay_at_last(self._at_rest)))
                await self._until(lambda: all(task.done() for task in calling), within_s=PATIENCE_S)
                await self._until(self._at_rest, within_s=PATIENCE_S)
            if not promises.broken:
                await promises.final(self.clients.answers)
                if self.life is not None:
                    promises.at_rest(self.life)
                    await self._ends_well(keeper)
        except AssertionError as error:
            promises.violated(f"assertion: {error}")
        finally:
            await self._end([keeper, *playing, *calling, *self._tasks])
        rows = len(outside.store._data.rows)
        broken, ended_at_s = tuple(promises.broken), outside.loop.time()
        return Result(outside.seed, outside.bug.name, broken, outside.history, rows, self._lives, ended_at_s)

    def _at_rest(self) -> bool:
        life = self.life
        if life is None or not self.promises.settled():
            return False
        running = all(slot.state.value == "running" for slot in life.system._slots.values())
        return running and life.guard.state.value == "CLOSED"

    async def _until(self, holds: Callable[[], bool], *, within_s: float) -> bool:
        deadline = self.outside.loop.time() + within_s
        while not holds():
            if self.promises.broken:
                return False
            if self.outside.loop.time() > deadline:
                state = "no process" if self.life is None else self.life.guard.state.value
                self.promises.violated(f"{self.promises.unsettled()} ({state})")
                return False
            await asyncio.sleep(LOOK_EVERY_S)
            if self.life is not None:
                self.promises.bounds(self.life)
                self._operator(self.life)
        return True

    def _operator(self, life: Life) -> None:
        """Parked rows wait for a person. Here is one, when the weather is over."""
        rows = self.outside.store._data.rows.values()
        parked = tuple(row.seq for row in rows if row.state is RowState.PARKED)
        if parked and not self.outside.weather.amount("record_rejected"):
            with suppress(MailboxFull, MailboxClosed):
                life.ref("outbox").tell(Requeue(parked))
                self.outside.note("operator.requeues", rows=len(parked))

    async def _ends_well(self, keeper: asyncio.Task[None]) -> None:
        """The last life ends by SIGTERM, with nothing left behind."""
        keeper.cancel()
        life, self.life = self.life, None
        assert life is not None
        began_at = self.outside.loop.time()
        await life.spawn(life.shut_down())
        took_s = self.outside.loop.time() - began_at
        if took_s > 35.0:
            self.promises.violated(f"I6: the shutdown took {took_s:.1f} s")
        await life.kill()

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.promises.violated(f"simulation: {type(error).__name__}: {error}")
        if self.life is not None:
            await self.life.kill()

    # ------------------------------------------------------------------ the process
    async def _keep_alive(self) -> None:
        """What systemd does: whatever the process ended with, start it again."""
        while True:
            self._lives += 1
            assert self._lives < LIVES_AT_MOST, "the process is started again and again"
            life = await self._begin()
            self.life = life
            escalated = life.system.escalated
            await asyncio.wait({life.ended, escalated}, return_when=asyncio.FIRST_COMPLETED)
            how = life.ended.result() if life.ended.done() else f"escalated: {escalated.result()}"
            self.outside.note("process.ended", number=life.number, how=how)
            self.life = None
            await life.kill()
            await asyncio.sleep(0.1 + 2 * self._chance.random())

    async def _begin(self) -> Life:
        """Make it inside its own context, so that every timer and task it makes is known to be its own."""
        self.outside.note("process.begins", number=self._lives)
        made: asyncio.Future[Life] = self.outside.loop.create_future()

        async def begin() -> None:
            life = Life(self.outside, self._lives, self.crash_soon, self.kill_soon)
            LIFE.set(life)
            made.set_result(life)
            try:
                await life.system.start()
            except (StartFailed, ActorStopped) as error:
                if not life.ended.done():
                    life.ended.set_result(f"not started: {error}")

        task = asyncio.create_task(begin(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await made

    # ------------------------------------------------------------------ what faults do to it
    def crash_soon(self, actor_id: str) -> None:
        """Within a few steps of the loop: at any await."""
        self._soon(lambda life: life.crash(actor_id))

    def kill_soon(self) -> None:
        """SIGKILL, as above."""

        def kill(life: Life) -> None:
            if not life.ended.done():
                self.outside.note("fault.kill")
                life.alive = False
                life.ended.set_result("killed")

        self._soon(kill)

    def terminate(self) -> None:
        """SIGTERM."""
        if self.life is not None and not self.life.ended.done():
            self.life.spawn(self.life.shut_down())

    def _soon(self, act: Callable[[Life], None]) -> None:
        life, turns = self.life, int(6 * self._chance.random())

        async def later() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            if life is not None and life.alive:
                act(life)

        task = asyncio.get_running_loop().create_task(later(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def simulate(seed: int, bug: Bug = NONE) -> Result:
    """Run one seed."""
    with asyncio.Runner(loop_factory=SimLoop, debug=False) as runner:
        return runner.run(_simulate(seed, bug))


async def _simulate(seed: int, bug: Bug) -> Result:
    return await World(seed, bug).run()

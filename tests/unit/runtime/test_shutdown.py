"""Phases of a shutdown in virtual time: order, deadlines, hurry, what counts as abandoned. Signals: tests/process."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from payflow.actor import Actor, ActorRef
from payflow.errors import DependencyUnavailable, MailboxClosed, RestartIntensityExceeded, StartFailed
from payflow.mailbox import Overflow
from payflow.phases import LAST_CHANCE_S
from payflow.shutdown import DEADLINES_S, PhaseReport, Shutdown, _root_cause, exit_code_of, settle_memory
from payflow.supervisor import ChildSpec, Strategy, SupervisorSpec, System
from tests.support.virtual_loop import VirtualLoop, virtual

PHASES = ["announce", "unbind", "requests_done", "drain", "stop", "close", "flush"]


class Events(list[dict[str, object]]):
    """An `emit` that keeps what it was told."""

    def __call__(self, event: str, /, **fields: object) -> None:
        self.append({"event": event, **fields})

    def named(self, event: str) -> list[dict[str, object]]:
        return [fields for fields in self if fields["event"] == event]


class Scene:
    """A shutdown in a virtual loop; `ran` is what its tasks wrote down, with the time."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.events = Events()
        self.shutdown = Shutdown(self.loop, self.events)
        self.ran: list[tuple[str, float]] = []

    def add(self, phase: str, seconds: float | None = 0, *, name: str = "task") -> None:
        """A task that takes so long, or for ever, and writes its end down."""
        self.shutdown.add(phase, name, lambda: self._take(f"{phase}/{name}", seconds))

    def begin_at(self, seconds: float, reason: str = "SIGTERM") -> None:
        self.loop.call_at(seconds, self.shutdown.begin, reason)

    async def _take(self, name: str, seconds: float | None) -> None:
        await (asyncio.sleep(seconds) if seconds is not None else asyncio.Event().wait())
        self.ran.append((name, self.loop.time()))


# ------------------------------------------------------------------ order
@virtual
async def test_phases_run_once_in_order_after_the_begin() -> None:
    scene = Scene()
    for phase in reversed(PHASES):
        scene.add(phase, 0.5)
    scene.begin_at(10)

    report = await scene.shutdown.run()

    assert scene.ran == [(f"{phase}/task", 10.5 + n / 2) for n, phase in enumerate(PHASES)]
    assert report.phases == tuple(PhaseReport(phase, 0.5, (), ()) for phase in PHASES)
    assert (report.reason, report.duration_s, report.abandoned, report.exit_code) == ("SIGTERM", 3.5, (), 0)
    assert [fields["phase"] for fields in scene.events.named("shutdown.phase_ended")] == PHASES


def test_deadlines_are_those_of_the_contract() -> None:
    assert list(DEADLINES_S.items()) == list(zip(PHASES, [5, 2, 8, 10, 5, 3, 1], strict=True))


@virtual
async def test_tasks_of_a_phase_run_in_parallel() -> None:
    scene = Scene()
    scene.add("stop", 3, name="slow")
    scene.add("stop", 2, name="quick")
    scene.begin_at(0)

    report = await scene.shutdown.run()

    assert scene.ran == [("stop/quick", 2.0), ("stop/slow", 3.0)]
    assert report.duration_s == 3.0


@virtual
async def test_begin_may_come_from_another_thread() -> None:
    scene = Scene()
    thread = threading.Thread(target=scene.shutdown.begin, args=("operator",))
    thread.start()

    report = await scene.shutdown.run()

    thread.join()
    assert report.reason == "operator"


def test_begin_after_the_loop_is_gone_does_nothing() -> None:
    loop = VirtualLoop()
    shutdown = Shutdown(loop, Events())
    loop.close()

    shutdown.begin("SIGTERM")

    assert shutdown.reason is None


@virtual
async def test_a_task_name_is_taken_once_and_only_before_its_phase() -> None:
    scene = Scene()
    scene.add("announce")

    with pytest.raises(AssertionError, match="announce/task is there already"):
        scene.add("announce")
    scene.shutdown.begin("SIGTERM")
    await scene.shutdown.run()
    with pytest.raises(AssertionError, match="phase announce has started"):
        scene.add("announce", name="late")


# ------------------------------------------------------------------ deadlines
@virtual
async def test_sv_30_a_phase_that_hangs_is_left_behind() -> None:
    scene = Scene()
    scene.add("requests_done", None, name="http")
    scene.add("requests_done", 1, name="management")
    scene.add("drain", 1)
    scene.begin_at(0)

    report = await scene.shutdown.run()

    timeout = {"event": "shutdown.phase_timeout", "phase": "requests_done", "left": ["http"]}
    assert scene.events.named("shutdown.phase_timeout") == [timeout]
    assert scene.ran == [("requests_done/management", 1.0), ("drain/task", 9.0)]
    assert report.abandoned == ("requests_done/http",)
    assert report.exit_code == 71
    assert report.duration_s <= sum(DEADLINES_S.values())


@virtual
async def test_a_task_that_is_late_but_ends_before_the_last_phase_is_not_abandoned() -> None:
    scene = Scene()
    scene.add("unbind", 4)
    scene.add("drain", 6)
    scene.begin_at(0)

    report = await scene.shutdown.run()

    assert scene.ran == [("unbind/task", 4.0), ("drain/task", 8.0)]
    assert (report.phases[1].left, report.abandoned, report.exit_code) == (("task",), (), 0)


@virtual
async def test_all_phases_hanging_end_after_the_sum_of_their_deadlines_and_a_last_chance() -> None:
    scene = Scene()
    for phase in PHASES:
        scene.add(phase, None)
    scene.begin_at(0)

    report = await scene.shutdown.run()

    assert report.duration_s == 34 + LAST_CHANCE_S
    assert report.abandoned == tuple(f"{phase}/task" for phase in PHASES)


@virtual
async def test_abandoned_tasks_are_cancelled_at_the_end() -> None:
    scene = Scene()
    ends: list[str] = []

    async def hold() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    scene.shutdown.add("flush", "hold", hold)
    scene.begin_at(0)
    await scene.shutdown.run()

    assert ends == ["cancelled"]


# ------------------------------------------------------------------ hurry
@virtual
async def test_sv_29_a_second_begin_cuts_the_remaining_graces_and_skips_no_phase() -> None:
    scene = Scene()
    scene.add("requests_done", None)
    for phase in ("drain", "stop", "close", "flush"):
        scene.add(phase)
    scene.begin_at(0)
    scene.begin_at(1, "SIGTERM again")

    report = await scene.shutdown.run()

    assert [name for name, _ in scene.ran] == ["drain/task", "stop/task", "close/task", "flush/task"]
    assert [phase.name for phase in report.phases] == PHASES
    assert (report.reason, report.duration_s) == ("SIGTERM", 1 + LAST_CHANCE_S)
    assert (report.abandoned, report.exit_code) == (("requests_done/task",), 71)
    assert len(scene.events.named("shutdown.begun")) == len(scene.events.named("shutdown.hurried")) == 1


@virtual
async def test_sv_29_a_second_begin_with_nothing_abandoned_ends_with_0() -> None:
    """A wait for the outside is no work: it gives way."""
    scene = Scene()
    scene.shutdown.add("announce", "caches", lambda: scene.shutdown.linger(30))
    scene.add("close")
    scene.begin_at(0)
    scene.begin_at(1)

    report = await scene.shutdown.run()

    assert (report.duration_s, report.abandoned, report.exit_code) == (1.0, (), 0)


@virtual
async def test_what_is_one_step_from_its_end_is_not_abandoned_in_a_hurry() -> None:
    scene = Scene()
    scene.add("drain", 1.1)
    scene.add("close", 0.1)
    scene.begin_at(0)
    scene.begin_at(1)

    report = await scene.shutdown.run()

    assert (report.abandoned, report.exit_code) == ((), 0)


@virtual
async def test_a_third_begin_and_one_at_the_instant_of_a_deadline_change_nothing() -> None:
    scene = Scene()
    scene.add("unbind", None)
    scene.begin_at(0)
    scene.begin_at(2)
    scene.begin_at(2)

    report = await scene.shutdown.run()

    assert report.abandoned == ("unbind/task",)


@virtual
async def test_lingering_ends_by_itself() -> None:
    scene = Scene()

    await scene.shutdown.linger(3)

    assert scene.loop.time() == 3.0


# ------------------------------------------------------------------ failures
@virtual
async def test_a_task_that_fails_takes_nobody_with_it() -> None:
    scene = Scene()

    async def fail() -> None:
        raise ConnectionError("registry is down")

    async def cancel_itself() -> None:
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    scene.shutdown.add("announce", "eureka", fail)
    scene.shutdown.add("announce", "foreign", cancel_itself)
    scene.add("announce", 1)
    scene.add("flush", 0)
    scene.begin_at(0)

    report = await scene.shutdown.run()

    assert [(fields["task"], fields["error"]) for fields in scene.events.named("shutdown.task_failed")] == [
        ("announce/eureka", "ConnectionError: registry is down"),
        ("announce/foreign", "cancelled from inside"),
    ]
    assert report.phases[0].failed == ("eureka", "foreign")
    assert scene.ran == [("announce/task", 1.0), ("flush/task", 1.0)]
    assert report.exit_code == 0


@dataclass(frozen=True)
class StopReport:
    """As a supervisor's stop answers."""

    abandoned: tuple[str, ...]


@pytest.mark.parametrize(("given_up", "code"), [((), 0), (("consumer",), 71)])
@virtual
async def test_what_a_task_reports_as_abandoned_counts(given_up: tuple[str, ...], code: int) -> None:
    scene = Scene()

    async def stop() -> StopReport:
        return StopReport(given_up)

    scene.shutdown.add("stop", "tree", stop)
    scene.begin_at(0)

    report = await scene.shutdown.run()

    assert report.abandoned == tuple(f"stop/tree/{name}" for name in given_up)
    assert report.exit_code == code


# ------------------------------------------------------------------ with a tree
@dataclass(frozen=True)
class Job:
    """Something that has to come out at the end of the pipeline."""

    number: int


class Stage(Actor):
    """Takes 0.1 s for a job, then hands it on."""

    def __init__(self, next_ref: ActorRef | None, done: list[int]) -> None:
        self._next = next_ref
        self._done = done

    async def handle(self, message: Job) -> None:
        await asyncio.sleep(0.1)
        if self._next is None:
            self._done.append(message.number)
        else:
            await self._next.send(message)


class Poller(Actor):
    """Sits in a long poll that nothing but a cancellation ends, as a consumer of an idle broker does."""

    def __init__(self, fetched: list[float], *, obeys: bool) -> None:
        self._fetched = fetched
        self._obeys = obeys

    async def on_start(self, stack: AsyncExitStack) -> None:
        self._poll = self.ctx.spawn(self._poll_for_ever(), name="poll")

    async def on_drain(self) -> None:
        if not self._obeys:
            await asyncio.Event().wait()
        self._poll.cancel()
        await asyncio.wait({self._poll})

    async def _poll_for_ever(self) -> None:
        while True:
            await asyncio.sleep(60)
            self._fetched.append(self.ctx.now())


def child(child_id: str, actor: Actor) -> ChildSpec:
    return ChildSpec(child_id, lambda: actor, capacity=4, overflow=Overflow.BLOCK)


def tree(events: Events, *children: ChildSpec) -> System:
    spec = SupervisorSpec("root", Strategy.ONE_FOR_ONE, tuple(children))
    return System(spec, emit=events, draw=lambda: 1.0)


@virtual
async def test_sv_31_a_drain_is_acknowledged_before_the_next_phase() -> None:
    scene = Scene()
    fetched: list[float] = []
    system = tree(scene.events, child("consumer", Poller(fetched, obeys=True)))
    await system.start()
    scene.shutdown.add("drain", "consumer", lambda: system.drain("consumer", timeout_s=10))
    scene.add("stop", 4)
    scene.begin_at(61)

    report = await scene.shutdown.run()

    assert fetched == [60.0]
    assert report.phases[3] == PhaseReport("drain", 0.0, (), ())
    await asyncio.sleep(120)
    assert fetched == [60.0]
    await system.stop()


@virtual
async def test_sv_31_a_drain_that_is_never_acknowledged_ends_with_its_deadline() -> None:
    scene = Scene()
    system = tree(scene.events, child("consumer", Poller([], obeys=False)))
    await system.start()
    scene.shutdown.add("drain", "consumer", lambda: system.drain("consumer", timeout_s=60))
    scene.shutdown.add("stop", "tree", lambda: system.stop(grace_s=0))
    scene.begin_at(0)

    report = await scene.shutdown.run()

    assert report.phases[3] == PhaseReport("drain", 10.0, ("consumer",), ())
    assert report.phases[4].left == ()


@virtual
async def test_sv_32_the_pipeline_empties_from_the_front() -> None:
    scene = Scene()
    done: list[int] = []
    refs: dict[str, ActorRef] = {}
    line = ("intake", "outbox", "publisher", "consumer")
    stages = [
        ChildSpec(
            name,
            lambda after=after: Stage(refs.get(after), done),
            capacity=4,
            overflow=Overflow.BLOCK,
        )
        for name, after in zip(line, (*line[1:], "nobody"), strict=True)
    ]
    system = tree(scene.events, *reversed(stages))
    refs.update({name: system.ref(name) for name in line})
    await system.start()

    async def drain() -> None:
        for name in line:
            assert await system.drain(name, timeout_s=10, close=True)
            scene.ran.append((name, scene.loop.time()))

    scene.shutdown.add("drain", "pipeline", drain)
    scene.shutdown.add("stop", "tree", system.stop)
    for number in range(12):
        await refs["intake"].send(Job(number))

    scene.shutdown.begin("SIGTERM")
    report = await scene.shutdown.run()

    assert [name for name, _ in scene.ran] == list(line)
    assert done == list(range(12))
    assert system.dead_letters() == ()
    assert report.exit_code == 0
    with pytest.raises(MailboxClosed):
        refs["intake"].tell(Job(12))


# ------------------------------------------------------------------ exit codes, memory
def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RestartIntensityExceeded("outbox", count=4, within_s=60, causes=("boom",)), 70),
        (DependencyUnavailable("port 8080 is taken"), 69),
        (caused(StartFailed("intake", "on_start"), DependencyUnavailable("port 8080 is taken")), 69),
        (caused(StartFailed("root", "intake"), caused(StartFailed("intake", "x"), DependencyUnavailable("y"))), 69),
        (ExceptionGroup("start", [caused(StartFailed("intake", "x"), DependencyUnavailable("y"))]), 69),
        (caused(StartFailed("intake", "on_start"), LookupError("typo")), 70),
        (StartFailed("intake", "start timeout 10.0 s"), 70),
        (caused(LookupError("typo"), DependencyUnavailable("y")), 70),
        (RuntimeError("bug"), 70),
        (SystemExit(3), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_failure_has_its_exit_code(failure: BaseException, code: int) -> None:
    assert exit_code_of(failure) == code


def test_errors_that_cause_each_other_do_not_hold_the_end_up() -> None:
    own, first, second = LookupError("own"), LookupError("first"), OSError("second")
    own.__cause__ = own
    first.__cause__, second.__cause__ = second, first

    assert _root_cause(own) == "LookupError: own"
    assert _root_cause(first) == "OSError: second"


def test_memory_is_collected_then_frozen() -> None:
    settle_memory()
    try:
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()

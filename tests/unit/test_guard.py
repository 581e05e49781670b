"""The breaker's shell on a loop that is a list: nothing waits, time moves only when a test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from payflow.core.breaker import (
    Breaker,
    BreakerConfig,
    BreakerEvent,
    Cause,
    IllegalTransition,
    Outcome,
    OutcomeKind,
    State,
)
from payflow.errors import CallNotPermitted
from payflow.guard import SHORTEST_TIMER_S, BreakerRegistry, Guard
from tests.support.virtual_loop import virtual

WAIT_S = 30.0
TRIALS = 3
FAST = Outcome(OutcomeKind.SUCCESS, 0.05)
FAILED = Outcome(OutcomeKind.FAILURE, 15.0)
IGNORED = Outcome(OutcomeKind.IGNORED, 0.1)


class TimerFake:
    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class LoopFake:
    """Clock and loop in one; `early_s` makes timers fire that much before they are due, as a coarse loop does."""

    def __init__(self) -> None:
        self.time = 100.0
        self.early_s = 0.0
        self._soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self._timers: list[tuple[float, int, TimerFake]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self.time

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> None:
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> TimerFake:
        timer = TimerFake(self.time + delay, callback, args)
        heapq.heappush(self._timers, (timer.when, next(self._order), timer))
        return timer

    def armed(self) -> list[float]:
        return sorted(when for when, _, timer in self._timers if not timer.cancelled)

    def settle(self) -> None:
        while self._soon:
            callback, args = self._soon.pop(0)
            callback(*args)

    def advance(self, step_s: float) -> None:
        """Let time pass; timers fire in order, each at its own time."""
        end = self.time + step_s
        while self._timers and self._timers[0][0] - self.early_s <= end:
            when, _, timer = heapq.heappop(self._timers)
            self.time = max(self.time, when - self.early_s)
            if not timer.cancelled:
                timer.callback(*timer.args)
            self.settle()
        self.time = end
        self.settle()


class LoopClock:
    def now(self) -> float:
        return asyncio.get_running_loop().time()


@pytest.fixture
def loop() -> LoopFake:
    return LoopFake()


@pytest.fixture
def guard(loop: LoopFake) -> Guard:
    return Guard(Breaker("kafka-publisher", BreakerConfig(), now=loop.now()), loop, loop=loop)


def open_it(guard: Guard, loop: LoopFake) -> None:
    for _ in range(5):
        guard.record(guard.acquire(), FAILED)
    assert guard.state is State.OPEN
    loop.settle()


def half_open_it(guard: Guard, loop: LoopFake) -> None:
    open_it(guard, loop)
    loop.advance(WAIT_S)
    assert guard.state is State.HALF_OPEN


def counts(guard: Guard) -> tuple[int, ...]:
    """Return successes, failures, ignored, released."""
    snapshot = guard.snapshot()
    return (*snapshot.calls_total.values(), snapshot.released_total)


# ------------------------------------------------------------------ permits
def test_refused_call_names_breaker_state_and_time(guard: Guard, loop: LoopFake) -> None:
    open_it(guard, loop)
    loop.advance(10.0)

    with pytest.raises(CallNotPermitted) as caught:
        guard.acquire()

    error = caught.value
    assert (error.name, error.state, error.retry_after_s) == ("kafka-publisher", "OPEN", 20.0)
    assert str(error) == "CircuitBreaker 'kafka-publisher' is OPEN and does not permit further calls"


def test_group_is_whole_while_closed(guard: Guard) -> None:
    permits = guard.acquire_many(500)

    assert len(permits) == 500
    assert len({id(permit) for permit in permits}) == 500


def test_group_is_cut_to_the_trials_in_half_open(guard: Guard, loop: LoopFake) -> None:
    half_open_it(guard, loop)

    first, second = guard.acquire_many(500), guard.acquire_many(500)

    assert (len(first), len(second)) == (TRIALS, 0)
    assert guard.snapshot().not_permitted_calls == 2


def test_group_is_empty_while_open(guard: Guard, loop: LoopFake) -> None:
    open_it(guard, loop)

    assert guard.acquire_many(500) == []
    assert guard.admits_at(loop.now()) == loop.now() + WAIT_S


def test_group_of_nothing_is_a_mistake(guard: Guard) -> None:
    with pytest.raises(AssertionError):
        guard.acquire_many(0)


def test_failed_group_opens_once_and_every_record_counts(guard: Guard, loop: LoopFake) -> None:
    permits = guard.acquire_many(50)

    for permit in permits:
        guard.record(permit, FAILED)

    snapshot = guard.snapshot()
    assert (snapshot.state, snapshot.epoch) == (State.OPEN, 1)
    assert snapshot.calls_total[OutcomeKind.FAILURE] == 50
    assert loop.armed() == [loop.now() + WAIT_S]


# ------------------------------------------------------------------ the timer
def test_breaker_half_opens_without_a_call(guard: Guard, loop: LoopFake) -> None:
    open_it(guard, loop)

    loop.advance(WAIT_S - 0.001)
    before = guard.state
    loop.advance(0.001)

    assert (before, guard.state) == (State.OPEN, State.HALF_OPEN)


def test_every_state_has_at_most_one_timer(guard: Guard, loop: LoopFake) -> None:
    """H2: the timer of a state dies with it."""
    open_it(guard, loop)
    armed = [loop.armed()]
    for to in (State.CLOSED, State.OPEN, State.HALF_OPEN, State.HALF_OPEN, State.CLOSED):
        loop.advance(1.0)
        guard.transition(to)
        armed.append(loop.armed())

    assert armed == [[130.0], [], [132.0], [163.0], [164.0], []]


def test_timer_that_fires_early_is_set_again(guard: Guard, loop: LoopFake) -> None:
    open_it(guard, loop)
    loop.early_s = 0.0004

    loop.advance(WAIT_S - 0.0001)
    early, (again,) = guard.snapshot().state, loop.armed()
    loop.advance(SHORTEST_TIMER_S)

    assert early is State.OPEN
    assert again == pytest.approx(129.9996 + SHORTEST_TIMER_S)
    assert guard.state is State.HALF_OPEN


def test_endless_round_goes_back_to_open(guard: Guard, loop: LoopFake) -> None:
    half_open_it(guard, loop)
    guard.acquire_many(TRIALS)

    loop.advance(60.0)

    assert guard.state is State.OPEN
    assert guard.snapshot().transitions_total[State.HALF_OPEN, State.OPEN, Cause.TIMER] == 1


def test_late_timer_does_not_hold_a_call_back(guard: Guard, loop: LoopFake) -> None:
    """A blocked loop: the call comes before the timer, and the timer of OPEN must not fire into the round."""
    open_it(guard, loop)
    loop.time += WAIT_S + 5

    guard.acquire()

    assert guard.state is State.HALF_OPEN
    assert loop.armed() == [loop.now() + 60.0]


def test_late_timer_does_not_hold_a_group_back(guard: Guard, loop: LoopFake) -> None:
    open_it(guard, loop)
    loop.time += WAIT_S + 5

    permits = guard.acquire_many(500)

    assert (len(permits), guard.state) == (TRIALS, State.HALF_OPEN)
    assert loop.armed() == [loop.now() + 60.0]


def test_closed_guard_has_no_timer(guard: Guard, loop: LoopFake) -> None:
    open_it(guard, loop)

    guard.close()
    guard.close()

    assert loop.armed() == []


def test_illegal_move_leaves_the_timer_alone(guard: Guard, loop: LoopFake) -> None:
    with pytest.raises(IllegalTransition):
        guard.transition(State.HALF_OPEN)

    assert (guard.state, loop.armed()) == (State.CLOSED, [])


# ------------------------------------------------------------------ listeners
def test_listener_hears_each_change_in_order_and_after_the_caller(guard: Guard, loop: LoopFake) -> None:
    heard: list[BreakerEvent] = []
    guard.on_transition(heard.append)
    for _ in range(5):
        guard.record(guard.acquire(), FAILED)
    inside = list(heard)

    loop.advance(WAIT_S)
    for permit in guard.acquire_many(TRIALS):
        guard.record(permit, FAST)
    loop.settle()

    assert inside == []
    assert [(event.from_state, event.to_state, event.cause) for event in heard] == [
        (State.CLOSED, State.OPEN, Cause.AUTO),
        (State.OPEN, State.HALF_OPEN, Cause.TIMER),
        (State.HALF_OPEN, State.CLOSED, Cause.AUTO),
    ]


def test_publisher_is_woken_when_calls_may_be_admitted_again(guard: Guard, loop: LoopFake) -> None:
    woken: list[float] = []
    guard.on_admission(lambda: woken.append(loop.now()))
    open_it(guard, loop)
    opened = list(woken)

    loop.advance(WAIT_S)

    assert (opened, woken) == ([], [130.0])


def test_publisher_is_woken_at_the_end_of_a_wait_that_only_a_call_ends(loop: LoopFake) -> None:
    config = BreakerConfig(automatic_transition_from_open_to_half_open_enabled=False)
    guard = Guard(Breaker("quiet", config, now=loop.now()), loop, loop=loop)
    woken: list[float] = []
    guard.on_admission(lambda: woken.append(loop.now()))
    open_it(guard, loop)

    loop.advance(3600.0)

    assert woken == [pytest.approx(130.001, abs=0.001)]
    assert (guard.state, len(guard.acquire_many(9))) == (State.OPEN, TRIALS)


@pytest.mark.parametrize("how", ["release", "ignored"])
def test_trial_that_comes_back_wakes_who_was_refused(guard: Guard, loop: LoopFake, how: str) -> None:
    half_open_it(guard, loop)
    permit, *_ = guard.acquire_many(TRIALS)
    refused_until = guard.admits_at(loop.now())
    woken: list[bool] = []
    guard.on_admission(lambda: woken.append(True))

    guard.release(permit) if how == "release" else guard.record(permit, IGNORED)
    loop.settle()

    assert (refused_until, woken) == (None, [True])
    assert guard.admits_at(loop.now()) == loop.now()


def test_release_in_closed_wakes_nobody(guard: Guard, loop: LoopFake) -> None:
    woken: list[bool] = []
    guard.on_admission(lambda: woken.append(True))

    guard.release(guard.acquire())
    guard.record(guard.acquire(), IGNORED)
    loop.settle()

    assert woken == []


def test_unsubscribed_listener_hears_nothing(guard: Guard, loop: LoopFake) -> None:
    heard: list[object] = []
    stop_events = guard.on_transition(heard.append)
    stop_admission = guard.on_admission(lambda: heard.append(None))
    stop_events()
    stop_admission()
    stop_admission()

    half_open_it(guard, loop)

    assert heard == []


def test_listener_may_use_the_guard(guard: Guard, loop: LoopFake) -> None:
    granted: list[int] = []
    guard.on_admission(lambda: granted.append(len(guard.acquire_many(10))))

    half_open_it(guard, loop)

    assert granted == [TRIALS]


async def test_listener_that_raises_reaches_the_loop_and_hides_nothing() -> None:
    """The real loop: the caller goes on, the next listener is called, the loop's handler sees the error."""
    problems: list[BaseException | None] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context.get("exception")))
    guard = Guard(Breaker("real", BreakerConfig()), LoopFake())
    heard = asyncio.Event()
    guard.on_transition(lambda _: 1 / 0)
    guard.on_transition(lambda _: heard.set())

    guard.transition(State.OPEN)
    await heard.wait()
    guard.close()

    assert [type(problem) for problem in problems] == [ZeroDivisionError]


# ------------------------------------------------------------------ async with, decorator
async def run_block(guard: Guard, work: Callable[[], Any]) -> Any:
    async with guard:
        return await work()


async def run_decorated(guard: Guard, work: Callable[[], Any]) -> Any:
    return await guard(work)()


BOTH_WAYS = pytest.mark.parametrize("run", [run_block, run_decorated])


@BOTH_WAYS
async def test_success_is_recorded_with_its_duration(guard: Guard, loop: LoopFake, run: Callable[..., Any]) -> None:
    async def work() -> str:
        loop.time += 2.0
        return "done"

    answer = await run(guard, work)

    assert (answer, counts(guard)) == ("done", (1, 0, 0, 0))
    assert guard.snapshot().calls_duration_s_total[OutcomeKind.SUCCESS] == 2.0


@BOTH_WAYS
@pytest.mark.parametrize("error", [ValueError("bad"), TimeoutError(), ExceptionGroup("both", [OSError()])])
async def test_exception_is_a_failure_and_passes(guard: Guard, run: Callable[..., Any], error: Exception) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await run(guard, work)

    assert caught.value is error
    assert counts(guard) == (0, 1, 0, 0)


@BOTH_WAYS
@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        GeneratorExit(),
        KeyboardInterrupt(),
        SystemExit(1),
        BaseExceptionGroup("both", [asyncio.CancelledError(), OSError()]),
    ],
)
async def test_what_ends_a_task_from_outside_gives_the_permit_back(
    guard: Guard,
    loop: LoopFake,
    run: Callable[..., Any],
    error: BaseException,
) -> None:
    half_open_it(guard, loop)
    failed = guard.snapshot().failed_calls

    async def work() -> None:
        raise error

    with pytest.raises(type(error)):
        await run(guard, work)

    assert counts(guard) == (0, 5, 0, 1)
    assert (guard.snapshot().failed_calls, len(guard.acquire_many(TRIALS))) == (failed, TRIALS)


@BOTH_WAYS
async def test_cancelled_task_ends_cancelled(guard: Guard, run: Callable[..., Any]) -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run(guard, work))
    await started.wait()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert counts(guard) == (0, 0, 0, 1)


@BOTH_WAYS
async def test_refused_work_is_not_begun(guard: Guard, loop: LoopFake, run: Callable[..., Any]) -> None:
    open_it(guard, loop)
    begun: list[bool] = []

    async def work() -> None:
        begun.append(True)

    with pytest.raises(CallNotPermitted):
        await run(guard, work)

    assert begun == []
    assert counts(guard) == (0, 5, 0, 0)


@BOTH_WAYS
async def test_fifth_failure_opens(guard: Guard, run: Callable[..., Any]) -> None:
    async def work() -> None:
        raise OSError

    for _ in range(5):
        with pytest.raises(OSError):
            await run(guard, work)

    assert guard.state is State.OPEN


async def test_blocks_of_many_tasks_and_inside_each_other_keep_apart(guard: Guard, loop: LoopFake) -> None:
    """Outer block 7 s, inner 2 s, a second task 5 s: entered and left in mixed order."""
    entered, leave = asyncio.Event(), asyncio.Event()

    async def other() -> None:
        async with guard:
            entered.set()
            await leave.wait()
            loop.time += 1.0
        raise ValueError

    async with guard:
        task = asyncio.create_task(other())
        await entered.wait()
        loop.time += 2.0
        async with guard:
            loop.time += 2.0
        leave.set()
        with pytest.raises(ValueError):
            await task
        loop.time += 2.0

    snapshot = guard.snapshot()
    assert snapshot.calls_total[OutcomeKind.SUCCESS] == 3
    assert snapshot.calls_duration_s_total[OutcomeKind.SUCCESS] == 7.0 + 2.0 + 5.0


async def test_block_gives_its_permit(guard: Guard, loop: LoopFake) -> None:
    async with guard as permit:
        assert (permit.admitted_at, permit.settled) == (loop.now(), False)

    assert permit.settled


async def test_decorated_function_keeps_its_name_and_arguments(guard: Guard) -> None:
    @guard
    async def divide(dividend: int, *, by: int) -> float:
        """Divide."""
        return dividend / by

    assert await divide(6, by=4) == 1.5
    assert (divide.__name__, divide.__doc__) == ("divide", "Divide.")


# ------------------------------------------------------------------ a real loop, virtual time
@virtual
async def test_outage_from_the_first_failure_to_the_closing() -> None:
    """Five calls of 15 s that fail, 30 s of wait, three trials; the timer is the loop's own."""
    running = asyncio.get_running_loop()
    clock = LoopClock()
    guard = Guard(Breaker("kafka-publisher", BreakerConfig(), now=clock.now()), clock)
    seen: list[tuple[float, State]] = []
    guard.on_transition(lambda event: seen.append((event.now, event.to_state)))
    admitting = asyncio.Event()
    guard.on_admission(admitting.set)

    @guard
    async def publish(*, up: bool) -> None:
        async with asyncio.timeout(15.0):
            await asyncio.sleep(0.05 if up else 3600.0)

    for _ in range(5):
        with pytest.raises(TimeoutError):
            await publish(up=False)
    await admitting.wait()
    woken_at = running.time()
    for _ in range(TRIALS):
        await publish(up=True)
    await asyncio.sleep(0)

    assert woken_at == pytest.approx(105.0)
    assert [state for _, state in seen] == [State.OPEN, State.HALF_OPEN, State.CLOSED]
    assert [now for now, _ in seen] == pytest.approx([75.0, 105.0, 105.15])


# ------------------------------------------------------------------ registry
def test_registry_gives_the_same_guard_by_name_and_makes_none(loop: LoopFake) -> None:
    configs = {"ledger": BreakerConfig(), "kafka-publisher": BreakerConfig(sliding_window_size=7)}
    registry = BreakerRegistry(configs, loop, loop=loop)

    guard = registry.get("ledger")

    assert registry.names() == ("kafka-publisher", "ledger")
    assert guard is not None
    assert guard is registry.get("ledger")
    assert guard.name == "ledger"
    assert registry.get("unknown") is None
    assert len(registry.names()) == 2


def test_registry_counts_time_from_its_making_and_stops_every_timer(loop: LoopFake) -> None:
    registry = BreakerRegistry({"one": BreakerConfig(), "two": BreakerConfig()}, loop, loop=loop)
    guards = list(registry)
    for guard in guards:
        loop.time += 1.0
        guard.transition(State.OPEN)

    registry.close()

    assert [guard.snapshot().state_s_total[State.CLOSED] for guard in guards] == [1.0, 2.0]
    assert loop.armed() == []

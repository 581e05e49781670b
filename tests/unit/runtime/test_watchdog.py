"""LoopWatchdog on a clock of the test: what it sees, what it says, and the last resort. Its thread: tests/process."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest

from payflow.watchdog import LoopWatchdog
from tests.support.virtual_loop import real


class FakeClock:
    """Monotonic seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Events(list[tuple[str, dict[str, Any]]]):
    """An `emit` that keeps what it was told; `came` is set by the event it is waiting for."""

    def __init__(self, awaited: str = "") -> None:
        super().__init__()
        self.awaited = awaited
        self.came = threading.Event()

    def __call__(self, event: str, /, **fields: object) -> None:
        self.append((event, fields))
        if event == self.awaited:
            self.came.set()

    def names(self) -> list[str]:
        return [event for event, _ in self]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def ends() -> list[int]:
    return []


@pytest.fixture
def watchdog(clock: FakeClock, events: Events, ends: list[int]) -> LoopWatchdog:
    return LoopWatchdog(events, clock=clock, end=ends.append)


# ------------------------------------------------------------------ blocks
def test_a_heartbeat_in_time_is_no_block(watchdog: LoopWatchdog, clock: FakeClock, events: Events) -> None:
    for _ in range(20):
        clock.advance(0.25)
        watchdog.check()
        watchdog.beat()

    assert events == []


def test_a_block_is_reported_at_once_and_again_after_a_second(
    watchdog: LoopWatchdog, clock: FakeClock, events: Events
) -> None:
    for _ in range(40):
        clock.advance(0.05)
        watchdog.check()

    assert events.names() == ["loop.blocked", "loop.blocked"]
    assert [fields["blocked_s"] for _, fields in events] == pytest.approx([0.3, 1.05])


def test_the_innermost_frame_of_a_block_is_the_line_that_blocks(
    watchdog: LoopWatchdog, clock: FakeClock, events: Events
) -> None:
    """Here the loop's thread is the one that looks, so the innermost frame is inside the watchdog itself."""
    clock.advance(0.3)

    watchdog.check()

    fields = events[0][1]
    stack = fields["stack"]
    assert isinstance(stack, tuple)
    assert str(fields["file"]).endswith("watchdog.py")
    assert stack[-1].startswith(f"{fields['file']}:{fields['line']} in ")
    assert any(frame.endswith("in test_the_innermost_frame_of_a_block_is_the_line_that_blocks") for frame in stack)


def test_the_end_of_a_block_carries_its_duration(watchdog: LoopWatchdog, clock: FakeClock, events: Events) -> None:
    clock.advance(0.3)
    watchdog.check()
    clock.advance(0.9)
    watchdog.beat()

    watchdog.check()
    watchdog.check()

    assert events.names() == ["loop.blocked", "loop.unblocked"]
    assert events[1][1]["duration_s"] == pytest.approx(1.2)


def test_a_second_block_is_a_new_one(watchdog: LoopWatchdog, clock: FakeClock, events: Events) -> None:
    for _ in range(2):
        clock.advance(0.3)
        watchdog.check()
        watchdog.beat()
        watchdog.check()

    assert events.names() == ["loop.blocked", "loop.unblocked"] * 2
    assert watchdog.figures().blocks_total == 2


def test_figures_show_a_block_while_it_lasts_and_afterwards(watchdog: LoopWatchdog, clock: FakeClock) -> None:
    assert watchdog.figures().last_block is None
    clock.advance(0.3)
    watchdog.check()
    during = watchdog.figures().last_block
    watchdog.beat()
    watchdog.check()
    after = watchdog.figures().last_block

    assert during is not None
    assert after is not None
    assert during.duration_s is None
    assert after.duration_s == pytest.approx(0.3)
    assert after.stack == during.stack


def test_a_log_that_fails_does_not_cost_the_last_resort(clock: FakeClock, ends: list[int]) -> None:
    def broken(event: str, /, **fields: object) -> None:
        raise BrokenPipeError

    watchdog = LoopWatchdog(broken, clock=clock, end=ends.append)
    watchdog.arm(105)
    clock.advance(1)
    watchdog.check()
    clock.advance(5)

    watchdog.check()

    assert ends == [71]


# ------------------------------------------------------------------ garbage collection
def test_sv_28_garbage_collection_is_named(watchdog: LoopWatchdog, clock: FakeClock, events: Events) -> None:
    watchdog.on_gc("start", {})
    clock.advance(0.2)
    watchdog.on_gc("stop", {})
    clock.advance(0.1)

    watchdog.check()

    assert events.names() == ["loop.blocked"]  # and nothing that would blame an actor
    assert events[0][1]["gc_s"] == pytest.approx(0.2)


def test_sv_28_a_collection_that_still_runs_counts_as_far_as_it_got(
    watchdog: LoopWatchdog, clock: FakeClock, events: Events
) -> None:
    clock.advance(0.1)
    watchdog.on_gc("start", {})
    clock.advance(0.2)
    watchdog.check()
    clock.advance(0.3)
    watchdog.on_gc("stop", {})
    watchdog.beat()

    watchdog.check()

    assert [fields["gc_s"] for _, fields in events] == pytest.approx([0.2, 0.5])
    assert watchdog.figures().gc_total_s == pytest.approx(0.5)
    assert watchdog.figures().gc_collections == 1


def test_collections_before_the_block_are_not_in_its_account(
    watchdog: LoopWatchdog, clock: FakeClock, events: Events
) -> None:
    watchdog.on_gc("start", {})
    clock.advance(0.2)
    watchdog.on_gc("stop", {})
    watchdog.beat()
    clock.advance(0.3)

    watchdog.check()

    assert events[0][1]["gc_s"] == 0


def test_a_collection_that_began_before_we_listened_is_ignored(watchdog: LoopWatchdog) -> None:
    watchdog.on_gc("stop", {})

    assert watchdog.figures().gc_collections == 0


# ------------------------------------------------------------------ the last resort
def test_an_armed_watchdog_ends_the_process_at_the_deadline_with_the_stack_on_stderr(
    watchdog: LoopWatchdog, clock: FakeClock, ends: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    watchdog.arm(103)
    clock.advance(2.9)
    watchdog.check()
    before = list(ends)
    clock.advance(0.1)

    watchdog.check()

    assert (before, ends) == ([], [71])
    text = capfd.readouterr().err
    assert "payflow: shutdown budget exceeded" in text
    assert "test_an_armed_watchdog_ends_the_process" in text


def test_arming_again_can_only_shorten(watchdog: LoopWatchdog, clock: FakeClock, ends: list[int]) -> None:
    watchdog.arm(103)
    watchdog.arm(200)
    watchdog.arm(102)
    clock.advance(2)

    watchdog.check()

    assert ends == [71]


# ------------------------------------------------------------------ with a loop and the thread
@real
async def test_the_thread_sees_a_block_while_it_lasts() -> None:
    events = Events("loop.blocked")
    watchdog = LoopWatchdog(events)
    watchdog.start(asyncio.get_running_loop())

    seen = events.came.wait(10)  # blocks the loop until the block is reported
    watchdog.stop_watching()
    watchdog.stop()

    assert seen
    assert events.names()[0] == "loop.blocked"
    assert events.names()[-1] == "loop.unblocked"
    assert any("in test_the_thread_sees_a_block_while_it_lasts" in frame for frame in events[0][1]["stack"])


@real
async def test_the_heartbeat_measures_lag() -> None:
    watchdog = LoopWatchdog(Events())
    watchdog.start(asyncio.get_running_loop())
    deadline = time.monotonic() + 10
    while watchdog.figures().samples < 3 and time.monotonic() < deadline:
        await asyncio.sleep(0)

    figures = watchdog.figures()
    watchdog.stop_watching()
    watchdog.stop()

    assert figures.samples >= 3
    assert 0 <= figures.lag_p50_s <= figures.lag_p99_s <= figures.lag_max_s


@real
async def test_after_the_watch_nothing_is_left_behind() -> None:
    callbacks, threads = list(gc.callbacks), threading.active_count()
    watchdog = LoopWatchdog(Events())
    watchdog.start(asyncio.get_running_loop())

    watchdog.stop_watching()
    watchdog.stop()

    assert gc.callbacks == callbacks
    assert threading.active_count() == threads


def test_a_loop_that_is_no_longer_watched_cannot_be_blocked(
    watchdog: LoopWatchdog, clock: FakeClock, events: Events
) -> None:
    loop = asyncio.new_event_loop()
    watchdog.start(loop)
    watchdog.stop_watching()
    loop.close()
    clock.advance(10)

    watchdog.stop()

    assert events == []

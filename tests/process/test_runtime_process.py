"""Real processes: signals, blocked loops, exit codes. Each test starts one small program and reads its events.

Waiting means reading the program's stderr until the event has come; the limit is only there so that a broken program
fails the test instead of hanging it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import linecache
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.runtime_program import PHASES

ROOT = Path(__file__).parents[2]
LIMIT_S = 30
NO_UVLOOP = pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="the uvloop extra is not installed")
LOOPS = ["asyncio", pytest.param("uvloop", marks=NO_UVLOOP)]


class Program:
    """One running scenario, its events as far as they were read, and the lines that are no events."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.other: list[str] = []

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._take(line)
            if self.events and self.events[-1]["event"] == event:
                return self.events[-1]
        raise AssertionError(f"{event} never came: {self.events} {self.other}")

    def signal(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def end(self) -> int:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._take(line)
        return self.process.wait(LIMIT_S)

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for fields in self.events if fields["event"] == event]

    def phases(self) -> list[object]:
        return [fields["phase"] for fields in self.named("shutdown.phase_ended")]

    def _take(self, line: str) -> None:
        try:
            self.events.append(json.loads(line))
        except json.JSONDecodeError:
            self.other.append(line.rstrip())


@contextlib.contextmanager
def program(scenario: str, loop: str = "asyncio") -> Iterator[Program]:
    command = [sys.executable, "-W", "default", "-m", "tests.support.runtime_program", scenario, loop]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        guard = threading.Timer(LIMIT_S, process.kill)
        guard.start()
        try:
            yield Program(process)
        finally:
            guard.cancel()
            process.kill()


# ------------------------------------------------------------------ signals
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_runs_all_phases_in_order_and_ends_with_0(signum: signal.Signals, loop: str) -> None:
    with program("idle", loop) as subject:
        subject.wait_for("ready")

        subject.signal(signum)

        assert subject.end() == 0
    assert subject.phases() == list(PHASES)
    assert [fields["phase"] for fields in subject.named("task.ran")] == list(PHASES)
    assert subject.events[-1] == {"event": "process.ended", "exit_code": 0, "reason": signum.name}
    assert subject.other == []


@pytest.mark.parametrize("loop", LOOPS)
def test_sv_29_a_second_sigterm_hurries_but_skips_no_phase(loop: str) -> None:
    with program("lingers", loop) as subject:
        subject.wait_for("ready")
        subject.signal(signal.SIGTERM)
        subject.wait_for("task.ran")

        subject.signal(signal.SIGTERM)

        assert subject.end() == 0
    assert subject.phases() == list(PHASES)
    assert all(isinstance(fields["duration_s"], float) for fields in subject.named("shutdown.phase_ended"))
    assert [len(subject.named(event)) for event in ("shutdown.begun", "shutdown.hurried")] == [1, 1]
    assert [fields["phase"] for fields in subject.named("task.ran")] == list(PHASES)


def test_sv_29_a_second_sigterm_that_abandons_work_ends_with_71() -> None:
    with program("hangs") as subject:
        subject.wait_for("ready")
        subject.signal(signal.SIGTERM)
        while subject.wait_for("task.ran")["phase"] != "drain":
            pass

        subject.signal(signal.SIGTERM)

        assert subject.end() == 71
    assert subject.phases() == list(PHASES)
    timeout = {"event": "shutdown.phase_timeout", "phase": "drain", "left": ["endless"]}
    assert subject.named("shutdown.phase_timeout")[0] == timeout
    assert subject.named("shutdown.completed")[0]["abandoned"] == ["drain/endless"]


@pytest.mark.parametrize("loop", LOOPS)
def test_sv_34_a_signal_while_starting_cancels_the_start_and_ends_with_0(loop: str) -> None:
    with program("starts_for_ever", loop) as subject:
        subject.wait_for("ready")

        subject.signal(signal.SIGTERM)

        assert subject.end() == 0
    assert [fields["actor"] for fields in subject.named("actor.started")] == ["a"]
    assert [fields["actor"] for fields in subject.named("actor.stopped")] == ["a"]
    assert subject.phases() == []
    assert subject.other == []


def test_memory_is_frozen_once_the_process_is_up() -> None:
    with program("idle") as subject:
        assert subject.wait_for("ready")["frozen"] != 0


# ------------------------------------------------------------------ exit codes
@pytest.mark.parametrize(
    ("scenario", "code"),
    [
        ("ends_by_itself", 0),
        ("escalates", 70),
        ("main_fails", 70),
        ("main_exits", 70),
        ("handler_exits", 70),
        ("handler_interrupts", 130),
        ("callback_interrupts", 130),
    ],
)
@pytest.mark.parametrize("loop", LOOPS)
def test_an_end_after_the_start_runs_the_phases_and_has_its_code(scenario: str, code: int, loop: str) -> None:
    with program(scenario, loop) as subject:
        assert subject.end() == code

    assert subject.phases() == list(PHASES)
    assert subject.other == []


@pytest.mark.parametrize(("scenario", "code"), [("lacks_a_dependency", 69), ("fails_to_start", 70)])
def test_a_failed_start_runs_no_phase_and_has_its_code(scenario: str, code: int) -> None:
    with program(scenario) as subject:
        assert subject.end() == code

    assert subject.phases() == []
    assert subject.other == []


def test_sv_20_escalation_at_the_root_ends_the_process_with_70() -> None:
    with program("escalates") as subject:
        assert subject.end() == 70

    last = subject.events[-1]
    assert (last["event"], last["exit_code"], last["child"]) == ("process.ended", 70, "outbox")
    assert len(last["causes"]) == 4
    assert all("boom" in cause for cause in last["causes"])
    assert "boom" in str(last["error"])
    assert subject.other == []  # no warning of a pending task


def test_the_last_event_of_a_failed_start_names_the_root_cause() -> None:
    with program("lacks_a_dependency") as subject:
        subject.end()

    last = subject.events[-1]
    assert (last["child"], last["cause"]) == ("intake", "DependencyUnavailable: port 8080 is taken")


# ------------------------------------------------------------------ blocked loops
@pytest.mark.parametrize("loop", LOOPS)
def test_sv_27_a_blocked_loop_is_seen_while_it_is_blocked(loop: str) -> None:
    with program("blocks_for_a_second", loop) as subject:
        assert subject.end() == 0

    order = [str(fields["event"]) for fields in subject.events]
    blocked, unblocked = subject.named("loop.blocked")[0], subject.named("loop.unblocked")[0]
    assert order.index("loop.blocked") < order.index("handler.returned") < order.index("loop.unblocked")
    assert str(blocked["stack"][-1]).endswith("in handle")
    assert "time.sleep(1)" in linecache.getline(str(blocked["file"]), int(blocked["line"]))
    assert str(blocked["file"]).endswith("runtime_program.py")
    assert unblocked["duration_s"] >= 1.0
    assert len(subject.named("loop.unblocked")) == 1


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("scenario", ["sleeps_for_ever", "computes_for_ever"])
def test_sv_33_the_process_ends_even_if_the_loop_is_blocked(scenario: str, loop: str) -> None:
    with program(scenario, loop) as subject:
        subject.wait_for("blocking")

        subject.signal(signal.SIGTERM)

        assert subject.end() == 71
    assert any("shutdown budget exceeded" in line for line in subject.other)
    assert any("runtime_program.py" in line and line.endswith("in handle") for line in subject.other)


def test_a_thread_left_behind_does_not_keep_the_process() -> None:
    with program("leaves_a_thread") as subject:
        assert subject.end() == 71

    assert subject.named("process.ended")[0]["exit_code"] == 0

"""Looking at child processes from outside, by polling with a deadline (Linux: /proc)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

WAIT_S = 10.0
POLL_S = 0.002


def state_of(stat: Path) -> str:
    """State letter of a process or thread; X when it is gone."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    return state_of(Path(f"/proc/{pid}/stat")) not in "XZ"


def wait_until_gone(pid: int) -> None:
    """Return when the process has ended."""
    deadline = time.monotonic() + WAIT_S
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(POLL_S)


def freeze(pid: int) -> None:
    """SIGSTOP, and wait: it reaches one thread after the other."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + WAIT_S
    while not all(state_of(stat) == "T" for stat in Path(f"/proc/{pid}/task").glob("*/stat")):
        assert time.monotonic() < deadline, f"process {pid} is not frozen"
        time.sleep(POLL_S)

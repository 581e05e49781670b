"""Fixtures that more than one folder uses, and one rule: no thread outlives the tests.

Virtual time: `tests/support/virtual_loop.py`.
"""

from __future__ import annotations

import os
import sys
import threading

import pytest

from tests.support.actors import Events

_status = pytest.StashKey[int]()


@pytest.fixture
def events() -> Events:
    """Return a recorder to pass as `emit`."""
    return Events()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep the verdict for the very end."""
    session.config.stash[_status] = int(exitstatus)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A database that a test left open has a thread that the interpreter would wait for, for ever: red, and the end."""
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    left = [thread.name for thread in others if not thread.daemon]
    if left:
        sys.stderr.write(f"\nthreads left behind by tests: {', '.join(left)}\n")
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(config.stash.get(_status, 0) or 1)

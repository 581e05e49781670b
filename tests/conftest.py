"""Fixtures that more than one folder uses. Virtual time: `tests/support/virtual_loop.py`."""

from __future__ import annotations

import pytest

from tests.support.actors import Events


@pytest.fixture
def events() -> Events:
    """Return a recorder to pass as `emit`."""
    return Events()

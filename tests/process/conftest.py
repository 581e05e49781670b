"""Fixtures of the tests that start whole processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import Starter, starter


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Starter]:
    """Start `payflow serve` with the given arguments; everything is killed at the end."""
    with starter(tmp_path) as started:
        yield started

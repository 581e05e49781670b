"""The real clock and the real ids."""

from __future__ import annotations

import asyncio
import time
import uuid

from payflow.adapters.system import SystemClock, UuidIds


async def test_now_is_the_time_of_the_loop() -> None:
    """So a virtual-time loop moves it."""
    clock = SystemClock()

    before = asyncio.get_running_loop().time()

    assert before <= clock.now() <= asyncio.get_running_loop().time()


def test_wall_time_is_in_microseconds() -> None:
    """Between two readings of the system's own clock."""
    before = time.time_ns() // 1000

    assert before <= SystemClock().wall_us() <= time.time_ns() // 1000


def test_ids_are_version_7_and_ordered() -> None:
    """Also many within one millisecond: they are keys of a B-tree."""
    ids = UuidIds()

    drawn = [ids.new() for _ in range(5000)]

    assert sorted(set(drawn)) == drawn
    assert {uuid.UUID(bytes=one).version for one in drawn} == {7}

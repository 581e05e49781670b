"""The log: bounded, off the loop, and not ended by an event that cannot be rendered."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TextIO

import pytest

from payflow.telemetry import QUEUE_LINES, LogWriter, render_json


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        yield reader, stream
    os.close(reader)


def test_event_that_cannot_be_rendered_is_written_another_way(pipe: tuple[int, TextIO]) -> None:
    """A path that is not UTF-8 must not end the log of the process."""
    reader, stream = pipe
    writer = LogWriter(stream, render=render_json)

    writer.put({"event": "one", "level": "info", "at": 1.0, "path": "caf\udce9"})
    writer.put({"event": "two", "level": "info", "at": 2.0})
    writer.close(timeout_s=10.0)

    lines = [json.loads(line) for line in os.read(reader, 65536).decode().splitlines()]
    assert ["one", "two"] == [line["event"] for line in lines]
    assert "caf" in lines[0]["path"]


def test_log_that_nobody_reads_drops_and_counts(pipe: tuple[int, TextIO]) -> None:
    """`put` never blocks: what does not fit is counted, and the count is written when there is room."""
    reader, stream = pipe
    writer = LogWriter(stream, render=render_json)
    count = QUEUE_LINES + 5000

    for number in range(count):  # the pipe takes some 64 KiB, then the thread stands
        writer.put({"event": "line", "level": "info", "at": 1.0, "number": number})
    text = b""
    while b"log.dropped" not in text:
        writer.put({"event": "more", "level": "info", "at": 1.0})
        text += os.read(reader, 65536)

    assert 0 < writer.dropped_total <= count
    os.set_blocking(reader, False)
    writer.close(timeout_s=0.0)

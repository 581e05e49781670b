"""Durations and sizes: what is read, what is refused, and how a value is written back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payflow.config.units import parse_duration, parse_size, render_duration, render_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("30s", 30), ("500ms", 0.5), ("10m", 600), ("72h", 259_200), ("14d", 1_209_600), ("0s", 0)),
        *(("250us", 0.00025), ("1.5s", 1.5), ("1h30m", 5400), ("1 h 30 m", 5400), ("0.1s", 0.1)),
    ],
)
def test_duration_is_read_as_seconds(text: str, seconds: float) -> None:
    assert seconds == parse_duration(text)


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1w", "1e3s", ".5s", "5S", "1s2", "\u0663s", "9" * 60 + "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (60, "60s"), (90, "90s"), (120, "2m"), (3600, "1h"), (259_200, "72h"), (1_209_600, "14d")),
        *((0.025, "25ms"), (0.0001, "100us")),
    ],
)
def test_duration_is_written_the_way_people_say_it(seconds: float, text: str) -> None:
    assert text == render_duration(seconds)


@given(st.integers(min_value=0, max_value=3650 * 86_400 * 1_000_000))
def test_written_duration_reads_as_itself(microseconds: int) -> None:
    seconds = microseconds / 1_000_000

    assert seconds == parse_duration(render_duration(seconds))


@pytest.mark.parametrize(
    ("text", "size"), [("64KiB", 65_536), ("1MiB", 1 << 20), ("1.5kB", 1500), ("2 GiB", 2 << 30), ("7B", 7), ("0B", 0)]
)
def test_size_is_read_as_bytes(text: str, size: int) -> None:
    assert size == parse_size(text)


@pytest.mark.parametrize("text", ["", "64", "64kib", "-1B", "1.5B", "1TiB", "9" * 60 + "B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(min_value=0, max_value=1 << 50))
def test_written_size_reads_as_itself(size: int) -> None:
    assert size == parse_size(render_size(size))

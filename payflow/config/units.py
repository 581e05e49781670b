"""Durations and sizes as people write them: `"30s"`, `"1h30m"`, `"64KiB"`. The unit is never left out.

`parse_*` and `render_*` are inverse: what is rendered parses to the same value.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

# Exact, so that "0.1s" and "100ms" are one value and rendering finds the largest unit that divides it.
_SECONDS: Final = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86_400),
}
# People say 60s and 72h, not 1m and 3d.
_LEAST: Final = {"m": 2, "d": 7}
_BYTES: Final = {"B": 1, "kB": 10**3, "KiB": 1 << 10, "MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30}
# A longer text is no duration or size; the bound keeps the arithmetic small.
_LONGEST_TEXT: Final = 40

_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)", re.ASCII)
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern})+", re.ASCII)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(B|kB|KiB|MB|MiB|GB|GiB)", re.ASCII)


def parse_duration(text: str) -> float:
    """Return seconds; raise ValueError when the text is not a duration."""
    compact = text.replace(" ", "")
    if len(compact) > _LONGEST_TEXT or not _DURATION.fullmatch(compact):
        raise ValueError(text)
    return float(sum(Fraction(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(compact)))


def render_duration(seconds: float) -> str:
    """Write seconds with the largest familiar unit that leaves a whole number; microseconds are the finest."""
    exact = Fraction(round(seconds * 1_000_000), 1_000_000)
    if exact == 0:
        return "0s"
    counts = {unit: exact / size for unit, size in reversed(_SECONDS.items())}
    unit = next(unit for unit, count in counts.items() if count.denominator == 1 and count >= _LEAST.get(unit, 1))
    return f"{counts[unit]}{unit}"


def parse_size(text: str) -> int:
    """Return bytes; raise ValueError when the text is not a size or not a whole number of bytes."""
    compact = text.replace(" ", "")
    match = _SIZE.fullmatch(compact) if len(compact) <= _LONGEST_TEXT else None
    if match is None:
        raise ValueError(text)
    exact = Fraction(match[1]) * _BYTES[match[2]]
    if exact.denominator != 1:
        raise ValueError(text)
    return int(exact)


def render_size(size_bytes: int) -> str:
    """Write bytes with the largest binary unit that leaves a whole number."""
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if size_bytes % _BYTES[unit] == 0)
    return f"{size_bytes // _BYTES[unit]}{unit}" if size_bytes else "0B"

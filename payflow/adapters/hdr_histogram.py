"""Latencies in an HDR histogram: microseconds up to an hour, three significant digits, any number of values.

The library is the extra `load`, so it is imported when a histogram is made and missed with a sentence.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Final

from payflow.errors import DependencyUnavailable

EXTRA_MISSING: Final = "payflow load needs the hdrhistogram package: pip install payflow[load]"
LONGEST_US: Final = 3_600_000_000
DIGITS: Final = 3
PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}


class HdrLatencies:
    """Implements `loadgen.values.Histogram`."""

    def __init__(self) -> None:
        if importlib.util.find_spec("hdrh") is None:
            raise DependencyUnavailable(EXTRA_MISSING)
        self._histogram: Any = importlib.import_module("hdrh.histogram").HdrHistogram(1, LONGEST_US, DIGITS)
        self._max_us = 0

    def record(self, seconds: float) -> None:
        """Count one; below the finest it is the finest, above the longest the longest."""
        us = min(LONGEST_US, max(1, round(seconds * 1_000_000)))
        self._max_us = max(self._max_us, us)
        self._histogram.record_value(us)

    def summary(self) -> dict[str, float]:
        """Milliseconds; the maximum is exact."""
        count = int(self._histogram.get_total_count())
        if not count:
            return {"count": 0}
        values = {name: self._histogram.get_value_at_percentile(at) / 1000 for name, at in PERCENTILES.items()}
        mean = round(self._histogram.get_mean_value() / 1000, 3)
        return {"count": count, **values, "max": self._max_us / 1000, "mean": mean}

    def encoded(self) -> str:
        """HdrHistogram V2, compressed, base64."""
        return bytes(self._histogram.encode()).decode()

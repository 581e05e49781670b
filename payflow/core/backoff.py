"""How long to wait before the next attempt: exponential growth, a cap, full jitter.

Pure: the caller counts the attempts and brings the random draw. Full jitter (a uniform draw between zero and the
grown delay) spreads restarts that have one common cause better than a little noise around the delay would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """A delay that grows by `factor` from `initial_s` to `cap_s`; `initial_s=0` means always at once."""

    initial_s: float = 0.1
    factor: float = 2.0
    cap_s: float = 5.0
    jitter: bool = True
    reset_after_s: float = 60.0

    def __post_init__(self) -> None:
        problems = []
        # Written as `not (good)` so that NaN, for which every comparison is false, is refused as well.
        if not (0 <= self.initial_s < math.inf):
            problems.append(f"initial_s must be finite and not negative, is {self.initial_s!r}")
        if not (1 <= self.factor < math.inf):
            problems.append(f"factor must be finite and at least 1, is {self.factor!r}")
        if not (self.initial_s <= self.cap_s < math.inf):
            problems.append(f"cap_s must be finite and at least initial_s, is {self.cap_s!r}")
        if not (0 < self.reset_after_s < math.inf):
            problems.append(f"reset_after_s must be finite and positive, is {self.reset_after_s!r}")
        if problems:
            raise ValueError("backoff: " + "; ".join(problems))

    def delay_s(self, attempt: int, draw: float) -> float:
        """Delay before attempt number `attempt` (0 is the first); `draw` is uniform in [0, 1]."""
        assert 0 <= draw <= 1
        ceiling_s = self.ceiling_s(attempt)
        return draw * ceiling_s if self.jitter else ceiling_s

    def ceiling_s(self, attempt: int) -> float:
        """Return the longest delay that attempt number `attempt` can meet."""
        assert attempt >= 0
        if self.initial_s == 0:
            return 0.0
        try:
            grown_s = self.initial_s * self.factor**attempt
        except OverflowError:  # a child that crashes now and then for months does reach attempt 1024
            return self.cap_s
        return min(self.cap_s, grown_s)

    def longest_total_s(self, attempts: int) -> float:
        """Return the longest time that the first `attempts` delays can take together."""
        return sum(self.ceiling_s(attempt) for attempt in range(attempts))

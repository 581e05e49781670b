"""When the requests of a load run start, and what each payment of it goes through.

Pure: every draw is an argument (uniform in [0, 1)), so one seed gives one schedule and one plan, whatever the answers.

Invariants:
- An offset is never before the one before it and never at or after the end of the run.
- A plan is legal: what is refunded was captured, what is voided was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

Draw = Callable[[], float]
LARGEST_AMOUNT: Final = 100_000


class Arrival(StrEnum):
    """How requests are spread over time."""

    CONSTANT = "constant"
    POISSON = "poisson"


class Step(StrEnum):
    """What happens to a payment after its authorization; the last part of the path."""

    CAPTURE = "capture"
    REFUND = "refund"
    VOID = "void"


def schedule(arrival: Arrival, *, rate: float, duration_s: float, draw: Draw) -> Iterator[float]:
    """Seconds from the start at which requests are meant to start."""
    assert 0 < rate < math.inf
    assert 0 < duration_s < math.inf
    if arrival is Arrival.CONSTANT:
        return constant(rate, duration_s)
    return poisson(rate, duration_s, draw)


def constant(rate: float, duration_s: float) -> Iterator[float]:
    """Equal distances, computed from the number so that nothing adds up."""
    number = 0
    while (offset_s := number / rate) < duration_s:
        yield offset_s
        number += 1


def poisson(rate: float, duration_s: float, draw: Draw) -> Iterator[float]:
    """Exponential distances: independent clients, with the bunches that they make."""
    offset_s = 0.0
    while (offset_s := offset_s - math.log1p(-draw()) / rate) < duration_s:
        yield offset_s


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the payments that are captured, refunded after it, and voided; the rest stays authorized."""

    capture: float = 0.0
    refund: float = 0.0
    void: float = 0.0

    def __post_init__(self) -> None:
        for step in Step:
            # Written as `not (good)` so that NaN is refused as well.
            if not 0 <= getattr(self, step) <= 1:
                raise ValueError(f"{step} is a share from 0 to 1")
        if self.refund > self.capture:
            raise ValueError("refund is at most capture: what is refunded was captured before")
        if self.capture + self.void > 1:
            raise ValueError("capture and void together are at most 1: what is voided was not captured")

    def plan(self, draw: float) -> tuple[Step, ...]:
        """What follows one authorization."""
        assert 0 <= draw < 1
        if draw < self.refund:
            return (Step.CAPTURE, Step.REFUND)
        if draw < self.capture:
            return (Step.CAPTURE,)
        return (Step.VOID,) if draw >= 1 - self.void else ()


def parse_mix(text: str) -> Mix:
    """Read `capture=0.5,refund=0.1`; raises ValueError with a sentence."""
    shares: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, share = (piece.strip() for piece in part.partition("="))
        if name not in set(Step) or name in shares:
            raise ValueError(f"{part!r} is not one of {', '.join(f'{step}=SHARE' for step in Step)}, each once")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ValueError(f"{part!r} has no number after =") from None
    return Mix(**shares)


def amount(draw: float) -> int:
    """Minor units of a payment, 1.00 to LARGEST_AMOUNT."""
    assert 0 <= draw < 1
    return 100 + int(draw * (LARGEST_AMOUNT - 100))

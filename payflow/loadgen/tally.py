"""What is counted while a run goes on: statuses, latencies from the intended start, the slowest, a row each second."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from payflow.loadgen.traffic import Request
from payflow.loadgen.values import Answer, Histogram

SLOWEST_KEPT: Final = 20
# A start later than this is the generator's or the connections' lateness; it is part of the latency all the same.
LATE_S: Final = 0.010


@dataclass(slots=True)
class Second:
    """Requests whose intended start lies in one second."""

    intended: int = 0
    accepted: int = 0
    not_started: int = 0
    latencies: array[float] = field(default_factory=lambda: array("f"))

    def row(self, number: int) -> dict[str, Any]:
        """As it stands in the report; milliseconds."""
        ordered = sorted(self.latencies)
        place = min(len(ordered) - 1, int(len(ordered) * 0.99))
        return {
            "second": number,
            "intended": self.intended,
            "answered": len(ordered),
            "accepted": self.accepted,
            "not_started": self.not_started,
            "p99_ms": round(ordered[place] * 1000, 3) if ordered else None,
            "max_ms": round(ordered[-1] * 1000, 3) if ordered else None,
        }


class Tally:
    """The figures of one run; every intended request is in exactly one of started and not_started."""

    def __init__(self, new_histogram: Callable[[], Histogram]) -> None:
        self.latency = new_histogram()
        self.start_lag = new_histogram()
        self.intended = 0
        self.started = 0
        self.late = 0
        self.not_started = 0
        self.statuses: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.in_flight = 0
        self._seconds: dict[int, Second] = {}
        self._slowest: list[tuple[float, float, float, str, str]] = []

    def intend(self, offset_s: float) -> None:
        """A request is due."""
        self.intended += 1
        self._second(offset_s).intended += 1

    def refuse(self, offset_s: float) -> None:
        """It was due and could not start: too many wait already, or the run was ended."""
        self.not_started += 1
        self._second(offset_s).not_started += 1

    def start(self, lag_s: float, kind: str) -> None:
        """It starts so long after its time."""
        self.started += 1
        self.in_flight += 1
        self.late += lag_s > LATE_S
        self.kinds[kind] += 1
        self.start_lag.record(lag_s)

    def answer(self, offset_s: float, lag_s: float, latency_s: float, request: Request, answer: Answer) -> None:
        """It is over, one way or another."""
        self.in_flight -= 1
        label = answer.label()
        self.statuses[label] += 1
        self.latency.record(latency_s)
        second = self._second(offset_s)
        second.latencies.append(latency_s)
        second.accepted += answer.accepted
        if answer.status >= 400:
            self.problems[_code(answer.body)] += 1
        entry = (latency_s, offset_s, lag_s, request.kind, label)
        if len(self._slowest) < SLOWEST_KEPT:
            heapq.heappush(self._slowest, entry)
        elif entry > self._slowest[0]:
            heapq.heapreplace(self._slowest, entry)

    def series(self) -> list[dict[str, Any]]:
        """One row a second."""
        return [second.row(number) for number, second in sorted(self._seconds.items())]

    def newest(self) -> dict[str, Any] | None:
        """The row of the last second that is over. Cheap: the percentiles of the histogram hold the loop for 30 ms."""
        number = max(self._seconds, default=0) - 1
        return self._seconds[number].row(number) if number in self._seconds else None

    def slowest(self) -> list[dict[str, Any]]:
        """The slowest requests, slowest first."""
        return [
            {
                "at_s": round(offset_s, 4),
                "latency_ms": round(latency_s * 1000, 3),
                "start_lag_ms": round(lag_s * 1000, 3),
                "kind": kind,
                "status": label,
            }
            for latency_s, offset_s, lag_s, kind, label in sorted(self._slowest, reverse=True)
        ]

    def _second(self, offset_s: float) -> Second:
        return self._seconds.setdefault(int(offset_s), Second())


class _Problem(msgspec.Struct):
    code: str = "none"


_problem: Final = msgspec.json.Decoder(_Problem).decode


def _code(body: bytes) -> str:
    try:
        return _problem(body).code
    except msgspec.MsgspecError:
        return "none"

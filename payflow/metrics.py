"""Metrics: one collector that reads plain integers when it is scraped, served by prometheus-async.

Nothing on the hot path touches a Prometheus object: a labelled counter costs 1146 ns, a dictionary entry 50
(docs/performance.md). Names are those of
docs/metrics.md; no label has unbounded values.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from prometheus_async.aio.web import server_stats
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from payflow.core.breaker import BreakerSnapshot, OutcomeKind, State
from payflow.core.outbox import Backlog
from payflow.mailbox_stats import MailboxStats

__all__ = ["ActorFigures", "DurationTable", "Metrics", "MetricsSource", "server_stats"]

# 0.3 s and 5 s must be among them: alerts read them (slow request, slow call).
REQUEST_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 1.0, 5.0)
# What the breaker's states are called in Resilience4j's series; all six always, so that a tile never has "no data".
BREAKER_STATES: Final = ("closed", "open", "half_open", "disabled", "forced_open", "forced_half_open", "metrics_only")
_CALL_KINDS: Final = {OutcomeKind.SUCCESS: "successful", OutcomeKind.FAILURE: "failed", OutcomeKind.IGNORED: "ignored"}


class DurationTable:
    """Counts and seconds per label set, in fixed buckets."""

    def __init__(self, bounds_s: Sequence[float] = REQUEST_BOUNDS_S) -> None:
        self._bounds_s = tuple(bounds_s)
        self._rows: dict[tuple[str, ...], list[float]] = {}

    def observe(self, labels: tuple[str, ...], seconds: float) -> None:
        """Count one observation; the last cell holds the sum."""
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = [0.0] * (len(self._bounds_s) + 2)
        row[bisect_left(self._bounds_s, seconds)] += 1
        row[-1] += seconds

    def family(self, name: str, text: str, labels: Sequence[str]) -> Metric:
        """As a Prometheus histogram."""
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, row in sorted(self._rows.items()):
            family.add_metric(values, list(_cumulative(self._bounds_s, row[:-1])), row[-1])
        return family


def _cumulative(bounds: Sequence[float], counts: Sequence[float]) -> Iterator[tuple[str, float]]:
    total = 0.0
    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
        total += count
        yield bound, total


@dataclass(slots=True)
class RequestTable:
    """What the HTTP front observed."""

    totals: dict[tuple[str, str, int], int] = field(default_factory=dict)
    refused: dict[str, float] = field(default_factory=dict)
    durations: DurationTable = field(default_factory=DurationTable)

    def refuse(self, code: str) -> None:
        """Count one refusal by the code of its problem document."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def observe(self, route: str, method: str, status: int, duration_s: float) -> None:
        """Count one answered request; `route` is the template, never the path."""
        key = (route, method, status)
        self.totals[key] = self.totals.get(key, 0) + 1
        self.durations.observe((route, method), duration_s)


@dataclass(frozen=True, slots=True)
class ActorFigures:
    """What the runtime knows of one actor."""

    actor: str
    restarts_total: int
    stuck: bool
    mailbox: MailboxStats


class MetricsSource(Protocol):
    """Where the numbers are; every method is cheap and does no I/O."""

    def actors(self) -> Iterable[ActorFigures]: ...

    def breakers(self) -> Iterable[BreakerSnapshot]: ...

    def backlog(self) -> Backlog | None: ...

    def oldest_pending_age_s(self) -> float: ...

    def loop_lag_s(self) -> float: ...

    def counters(self) -> Mapping[str, float]:
        """Unlabelled counters and gauges by full name; a name ending in `_total` is a counter."""

    def labelled(self) -> Iterable[tuple[str, str, Mapping[str, float]]]:
        """(name, label, values by label value)."""

    def requests(self) -> Mapping[tuple[str, str, int], int]:
        """Answered requests by (route, method, status)."""

    def durations(self) -> Iterable[tuple[DurationTable, str, tuple[str, ...]]]: ...


HELP: Final[Mapping[str, str]] = {
    "payflow_outbox_published_total": "Outbox rows that the broker acknowledged.",
    "payflow_outbox_parked_total": "Outbox rows that were parked.",
    "payflow_publish_unknown_total": "Outbox rows whose group got no answer in time.",
    "payflow_publish_partial_total": "Groups of which only a part fitted or was taken.",
    "payflow_producer_rebuilt_total": "Producers given up.",
    "payflow_relay_poll_found_total": "Rows found by the slow poll and not by a wake-up.",
    "payflow_consumer_lag_records": "Records in the topic that are not booked.",
    "payflow_consumer_lag_seconds": "Age of the oldest record that is not booked.",
    "payflow_consumer_paused": "1 while the ledger takes no bookings.",
    "payflow_consumer_rebuilt_total": "Consumers given up.",
    "payflow_ledger_entries_total": "Entries booked by this process.",
    "payflow_ledger_events_total": "Events booked or found booked by this process, those without postings included.",
    "payflow_ledger_duplicates_total": "Deliveries of events that were booked before.",
    "payflow_ledger_out_of_order_total": "Events that came before their predecessor.",
    "payflow_offset_out_of_range_total": "Positions that no longer exist in the log.",
    "payflow_ledger_imbalance": "Difference of debit and credit plus drift of accounts, by the last audit.",
    "payflow_held_events": "Events that wait in the ledger for their predecessor.",
    "payflow_held_events_oldest_age_seconds": "Age of the oldest held event.",
    "payflow_intake_rejected_total": "Requests answered with a problem document, by its code.",
    "payflow_dead_letters_total": "Messages that no actor handled.",
    "payflow_dlq_records_total": "Records written to the dead-letter topic.",
    "payflow_log_dropped_total": "Log lines dropped because the log was not read.",
    "payflow_actor_abandoned_total": "Actor instances that ignored their cancellation.",
}


class Metrics(Collector):
    """Registered while the process serves. `close` takes it out again, so that tests can make many."""

    def __init__(self, source: MetricsSource) -> None:
        self._source = source
        REGISTRY.register(self)

    def close(self) -> None:
        """Stop being scraped."""
        REGISTRY.unregister(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing at registration: families depend on what runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._actors()
        yield from self._breakers()
        yield from self._outbox()
        for name, value in sorted(self._source.counters().items()):
            yield _single(name, value)
        for name, label, values in self._source.labelled():
            yield _by_label(name, label, values)
        for table, name, labels in self._source.durations():
            yield table.family(name, "Seconds.", labels)
        requests = CounterMetricFamily(
            "payflow_http_requests", "Answered requests.", labels=("route", "method", "status")
        )
        for (route, method, status), count in sorted(self._source.requests().items()):
            requests.add_metric((route, method, str(status)), count)
        yield requests
        yield GaugeMetricFamily(
            "payflow_event_loop_lag_seconds", "Largest lag of the loop in the last minute.", self._source.loop_lag_s()
        )

    def _outbox(self) -> Iterator[Metric]:
        backlog = self._source.backlog()
        if backlog is None:
            return
        yield GaugeMetricFamily("payflow_outbox_pending_rows", "Outbox rows not published.", backlog.pending)
        yield GaugeMetricFamily("payflow_outbox_parked_rows", "Outbox rows parked.", backlog.parked)
        yield GaugeMetricFamily(
            "payflow_outbox_held_keys", "Payments whose rows wait for an operator.", backlog.held_keys
        )
        yield GaugeMetricFamily(
            "payflow_outbox_oldest_pending_age_seconds",
            "Age of the oldest pending row, 0 when there is none.",
            self._source.oldest_pending_age_s(),
        )

    def _actors(self) -> Iterator[Metric]:
        figures = list(self._source.actors())
        gauges: dict[str, Callable[[MailboxStats], float]] = {
            "payflow_mailbox_depth": lambda s: s.depth,
            "payflow_mailbox_capacity": lambda s: s.capacity,
            "payflow_mailbox_high_water": lambda s: s.high_water,
            "payflow_mailbox_oldest_age_seconds": lambda s: s.oldest_age_s,
            "payflow_mailbox_blocked_senders": lambda s: s.blocked_senders,
            "payflow_mailbox_in_flight": lambda s: s.in_flight,
        }
        for name, read in gauges.items():
            yield _by_label(name, "actor", {f.actor: read(f.mailbox) for f in figures})
        messages = CounterMetricFamily(
            "payflow_mailbox_messages", "Messages by what became of them.", labels=("actor", "outcome")
        )
        for figure in figures:
            box = figure.mailbox
            outcomes = {
                "processed": box.processed_total,
                "rejected": box.rejected_total,
                "coalesced": box.coalesced_total,
            }
            outcomes |= {reason.value: count for reason, count in box.dropped_total.items()}
            for outcome, count in outcomes.items():
                messages.add_metric((figure.actor, outcome), count)
        yield messages
        yield _by_label(
            "payflow_mailbox_blocked_seconds_total",
            "actor",
            {f.actor: f.mailbox.blocked_seconds_total for f in figures},
        )
        yield _by_label("payflow_actor_restarts_total", "actor", {f.actor: f.restarts_total for f in figures})
        yield _by_label("payflow_actor_stuck", "actor", {f.actor: float(f.stuck) for f in figures})
        for name in ("wait_seconds", "handle_seconds"):
            family = HistogramMetricFamily(
                f"payflow_mailbox_{name}", "Seconds a message waited or was handled.", labels=("actor",)
            )
            for figure in figures:
                view = getattr(figure.mailbox, name)
                family.add_metric((figure.actor,), list(_cumulative(view.bounds_s, view.counts)), view.sum_s)
            yield family

    def _breakers(self) -> Iterator[Metric]:
        """The families of Resilience4j's Micrometer binding, to the letter, then ours."""
        prefix = "resilience4j_circuitbreaker"
        state = GaugeMetricFamily(f"{prefix}_state", "The states of the circuit breaker", labels=("name", "state"))
        buffered = GaugeMetricFamily(
            f"{prefix}_buffered_calls",
            "The number of buffered failed calls stored in the ring buffer",
            labels=("kind", "name"),
        )
        slow = GaugeMetricFamily(
            f"{prefix}_slow_calls",
            "The number of slow successful which were slower than a certain threshold",
            labels=("kind", "name"),
        )
        failure_rate = GaugeMetricFamily(
            f"{prefix}_failure_rate", "The failure rate of the circuit breaker", labels=("name",)
        )
        slow_rate = GaugeMetricFamily(
            f"{prefix}_slow_call_rate", "The slow call of the circuit breaker", labels=("name",)
        )
        refused = CounterMetricFamily(
            f"{prefix}_not_permitted_calls", "Total number of not permitted calls", labels=("kind", "name")
        )
        calls = Metric(f"{prefix}_calls_seconds", "Total number of successful calls", "summary")
        moves = CounterMetricFamily(
            "payflow_circuitbreaker_transitions", "State changes.", labels=("name", "from", "to", "cause")
        )
        spent = CounterMetricFamily(
            "payflow_circuitbreaker_state_seconds", "Seconds spent in each state.", labels=("name", "state")
        )
        for snapshot in self._source.breakers():
            name = snapshot.name
            for value in BREAKER_STATES:
                state.add_metric((name, value), float(snapshot.state.value.lower() == value))
            buffered.add_metric(("failed", name), snapshot.failed_calls)
            buffered.add_metric(("successful", name), snapshot.buffered_calls - snapshot.failed_calls)
            slow.add_metric(("successful", name), snapshot.slow_calls - snapshot.slow_failed_calls)
            slow.add_metric(("failed", name), snapshot.slow_failed_calls)
            failure_rate.add_metric((name,), snapshot.failure_rate)
            slow_rate.add_metric((name,), snapshot.slow_call_rate)
            refused.add_metric(("not_permitted", name), snapshot.not_permitted_total)
            for kind, label in _CALL_KINDS.items():
                labels = {"kind": label, "name": name}
                calls.add_sample(f"{prefix}_calls_seconds_count", labels, snapshot.calls_total[kind])
                calls.add_sample(f"{prefix}_calls_seconds_sum", labels, snapshot.calls_duration_s_total[kind])
            for (origin, to, cause), count in snapshot.transitions_total.items():
                moves.add_metric((name, origin.value.lower(), to.value.lower(), cause.value), count)
            for which in State:
                spent.add_metric((name, which.value.lower()), snapshot.state_s_total.get(which, 0.0))
        yield from (state, buffered, slow, failure_rate, slow_rate, refused, calls, moves, spent)


def _single(name: str, value: float) -> Metric:
    text = HELP.get(name, name)
    if name.endswith("_total"):
        return CounterMetricFamily(name.removesuffix("_total"), text, value)
    return GaugeMetricFamily(name, text, value)


def _by_label(name: str, label: str, values: Mapping[str, float]) -> Metric:
    text = HELP.get(name, name)
    family: Metric
    if name.endswith("_total"):
        family = CounterMetricFamily(name.removesuffix("_total"), text, labels=(label,))
    else:
        family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in sorted(values.items()):
        family.add_metric((key,), value)
    return family

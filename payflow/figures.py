"""Where the metrics come from: one object that knows who counts what. Every method is cheap and does no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from payflow.actors.consumer import ConsumerCounters
from payflow.actors.gauges import Gauges
from payflow.actors.publisher import PublisherCounters
from payflow.core.breaker import BreakerSnapshot
from payflow.core.outbox import Backlog
from payflow.guard import BreakerRegistry
from payflow.metrics import ActorFigures, DurationTable, RequestTable
from payflow.ports import Clock
from payflow.supervisor import System
from payflow.telemetry import LogWriter
from payflow.watchdog import LoopWatchdog


class Figures:
    """`metrics.MetricsSource` of the payments process."""

    def __init__(
        self,
        system: System,
        *,
        breakers: BreakerRegistry,
        gauges: Gauges,
        publisher: PublisherCounters | None,
        consumer: ConsumerCounters | None,
        requests: RequestTable,
        publishes: DurationTable,
        watchdog: LoopWatchdog,
        log: LogWriter,
        clock: Clock,
    ) -> None:
        self._system = system
        self._breakers = breakers
        self._gauges = gauges
        self._publisher = publisher
        self._consumer = consumer
        self._requests = requests
        self._publishes = publishes
        self._watchdog = watchdog
        self._log = log
        self._clock = clock

    def actors(self) -> Iterator[ActorFigures]:
        """Every actor of the tree."""
        for node in self._system.tree().walk():
            if node.mailbox is not None:
                yield ActorFigures(node.id, node.restarts_total, node.stuck, node.mailbox)

    def breakers(self) -> Iterable[BreakerSnapshot]:
        """Every breaker."""
        return [guard.snapshot() for guard in self._breakers]

    def backlog(self) -> Backlog | None:
        """The last reading."""
        return self._gauges.backlog

    def oldest_pending_age_s(self) -> float:
        """0 when nothing is pending."""
        backlog = self._gauges.backlog
        return self._age_s(backlog.oldest_pending_at_us if backlog else None)

    def loop_lag_s(self) -> float:
        """Largest of the last minute."""
        return self._watchdog.figures().lag_max_s

    def counters(self) -> Mapping[str, float]:
        """Everything without a label."""
        figures: dict[str, float] = {"payflow_log_dropped_total": self._log.dropped_total}
        if self._publisher is not None:
            counted = self._publisher
            figures |= {
                "payflow_outbox_published_total": counted.published_total,
                "payflow_outbox_parked_total": counted.parked_total,
                "payflow_publish_unknown_total": counted.unknown_total,
                "payflow_publish_partial_total": counted.partial_total,
                "payflow_producer_rebuilt_total": counted.rebuilt_total,
                "payflow_relay_poll_found_total": counted.poll_found_total,
            }
        if self._consumer is not None:
            figures |= self._consumer_figures(self._consumer)
        return figures

    def _consumer_figures(self, counted: ConsumerCounters) -> dict[str, float]:
        return {
            "payflow_consumer_lag_records": counted.lag_records,
            "payflow_consumer_lag_seconds": counted.lag_seconds,
            "payflow_consumer_paused": counted.paused,
            "payflow_consumer_rebuilt_total": counted.rebuilt_total,
            "payflow_ledger_entries_total": counted.entries_total,
            "payflow_ledger_events_total": counted.booked_total,
            "payflow_ledger_duplicates_total": counted.duplicates_total,
            "payflow_ledger_out_of_order_total": counted.out_of_order_total,
            "payflow_offset_out_of_range_total": counted.offset_out_of_range_total,
            "payflow_held_events": self._gauges.held_events,
            "payflow_held_events_oldest_age_seconds": self._age_s(self._gauges.held_since_us),
        }

    def labelled(self) -> Iterator[tuple[str, str, Mapping[str, float]]]:
        """Everything with one label."""
        letters: dict[str, float] = {}
        abandoned: dict[str, float] = {}
        for node in self._system.tree().walk():
            if node.mailbox is not None:
                letters[node.id] = sum(node.mailbox.dropped_total.values())
                abandoned[node.id] = node.abandoned_total
        yield "payflow_dead_letters_total", "actor", letters
        yield "payflow_actor_abandoned_total", "actor", abandoned
        yield "payflow_intake_rejected_total", "reason", dict(self._requests.refused)
        if self._consumer is not None:
            yield "payflow_dlq_records_total", "reason", dict(self._consumer.dead_lettered_total)
            yield "payflow_ledger_imbalance", "currency", dict(self._consumer.imbalance)

    def requests(self) -> Mapping[tuple[str, str, int], int]:
        """Answered requests by (route, method, status)."""
        return self._requests.totals

    def durations(self) -> Iterable[tuple[DurationTable, str, tuple[str, ...]]]:
        """Histograms."""
        return (
            (self._requests.durations, "payflow_http_request_duration_seconds", ("route", "method")),
            (self._publishes, "payflow_publish_duration_seconds", ("outcome",)),
        )

    def _age_s(self, since_us: int | None) -> float:
        return 0.0 if since_us is None else max(0.0, (self._clock.wall_us() - since_us) / 1e6)

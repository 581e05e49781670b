"""Logs: structlog on a bounded queue, written by one thread.

A log call on the loop puts a dictionary on a queue and returns; rendering and writing happen in the thread, so a pipe
that blocks stops no payment. What does not fit is dropped and counted, and the count is the first thing written when
there is room again. Events are names with fields (docs/events.md); no text contains values.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec
import structlog

# About 20 s of one line a payment at 500/s; 10,000 lines of 300 B are 3 MB.
QUEUE_LINES: Final = 10_000
WRITE_LINES: Final = 256

# Everything else is `info`. A warning needs no one at once, an error does.
LEVELS: Final[Mapping[str, str]] = {
    "actor.crashed": "error",
    "actor.stuck": "error",
    "actor.start_failed": "error",
    "actor.abandoned": "error",
    "actor.task_abandoned": "error",
    "actor.cleanup_failed": "warning",
    "actor.drain_timeout": "warning",
    "supervisor.escalated": "error",
    "loop.blocked": "warning",
    "connections.refused": "warning",
    "shutdown.phase_timeout": "error",
    "shutdown.task_failed": "error",
    "broker.started": "warning",
    "breaker.opened": "warning",
    "ledger.imbalance": "error",
    "outbox.unwritable": "error",
    "outbox.write_rejected": "error",
    "publisher.lane_held": "error",
    "publisher.row_parked": "error",
    "publisher.group_failed": "warning",
    "publisher.not_connected": "warning",
    "publisher.marks_delayed": "warning",
    "publisher.park_delayed": "warning",
    "consumer.dead_lettered": "error",
    "consumer.dead_letter_failed": "error",
    "consumer.position_lost": "error",
    "consumer.ledger_unavailable": "warning",
    "consumer.not_connected": "warning",
    "consumer.acks_delayed": "warning",
    "management.not_acted": "warning",
    "management.not_audited": "warning",
    "intake.shedding": "warning",
    "publisher.outbox_unreadable": "warning",
    "ledger.audit_failed": "warning",
    "heartbeat.not_built": "warning",
    "gauges.failed": "warning",
    "consumer.held_event_blocked": "error",
    "request.failed": "error",
}

Event = MutableMapping[str, Any]


class LogWriter:
    """The thread between the queue and the stream."""

    def __init__(self, stream: TextIO, *, render: Callable[[Event], str]) -> None:
        self._fd = stream.fileno()
        self._render = render
        self._lines: deque[Event] = deque()
        self._wanted = threading.Event()
        self._written = threading.Event()
        self._stopping = False
        self.dropped_total = 0
        self._thread = threading.Thread(target=self._run, name="payflow-log", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> None:
        """Queue one event; never blocks, from any thread."""
        if len(self._lines) >= QUEUE_LINES:
            self.dropped_total += 1
            return
        self._lines.append(event)
        self._wanted.set()

    def close(self, *, timeout_s: float) -> None:
        """Write what is queued, for as long as the time given, then give up."""
        self._stopping = True
        self._wanted.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        reported = 0
        while not (self._stopping and not self._lines):
            self._wanted.wait()
            self._wanted.clear()
            while self._lines:
                count = min(len(self._lines), WRITE_LINES)
                events = [self._lines.popleft() for _ in range(count)]
                if self.dropped_total != reported:
                    events.append(
                        {
                            "event": "log.dropped",
                            "level": "error",
                            "lines": self.dropped_total - reported,
                            "at": time.time(),
                        }
                    )
                    reported = self.dropped_total
                try:
                    os.write(self._fd, "".join([self._line(event) for event in events]).encode("utf-8", "replace"))
                except OSError:
                    self.dropped_total += count

    def _line(self, event: Event) -> str:
        """One event that cannot be rendered (a path that is not UTF-8, say) must not end the log of the process."""
        try:
            return self._render(event)
        except Exception:  # noqa: BLE001 - whatever it is, the next event is another
            safe = {str(key): repr(value).encode("ascii", "backslashreplace").decode() for key, value in event.items()}
            return render_json(safe | {"event": str(event.get("event")), "at": time.time()})


def render_json(event: Event) -> str:
    """One JSON object a line."""
    event["at"] = datetime.fromtimestamp(event["at"], UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return msgspec.json.encode(event, enc_hook=str).decode() + "\n"


def console_renderer(*, colors: bool) -> Callable[[Event], str]:
    """For people; colours only on a terminal."""
    renderer = structlog.dev.ConsoleRenderer(colors=colors, timestamp_key="at", sort_keys=False)

    def render(event: Event) -> str:
        event["at"] = datetime.fromtimestamp(event["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
        return str(renderer(None, "", event)) + "\n"

    return render


class _QueueHandler(logging.Handler):
    """Lines of other libraries take the same way. Their messages are theirs; level WARNING keeps values out."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        event = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "at": record.created,
            "logger": record.name,
        }
        if record.exc_info and record.exc_info[1] is not None:
            event["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        self._writer.put(event)


class Telemetry:
    """The process's log. `emit` may be called from any thread and never blocks."""

    def __init__(self, *, log_format: str, level: str, stream: TextIO = sys.stderr) -> None:
        terminal = stream.isatty()
        as_json = log_format == "json" or (log_format == "auto" and not terminal)
        self.writer = LogWriter(stream, render=render_json if as_json else console_renderer(colors=terminal))
        structlog.configure(
            processors=[_stamp, self._enqueue],
            wrapper_class=structlog.make_filtering_bound_logger(level),
            logger_factory=structlog.ReturnLoggerFactory(),
            cache_logger_on_first_use=False,
        )
        self._log = structlog.get_logger()
        self._handler = _QueueHandler(self.writer)
        root = logging.getLogger()
        root.addHandler(self._handler)
        root.setLevel(logging.WARNING)
        # aiokafka logs keys and values, aiosqlite statements with their parameters at DEBUG: a changed root level must
        # not bring payments there.
        for name in ("aiokafka", "aiosqlite"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def emit(self, event: str, /, **fields: object) -> None:
        """Log one event with its fields. An end with a code is an error: no level may hide why the process is gone."""
        level = "error" if event == "process.ended" and fields.get("exit_code") else LEVELS.get(event, "info")
        getattr(self._log, level)(event, **fields)

    def close(self, *, timeout_s: float) -> None:
        """Last lines out."""
        logging.getLogger().removeHandler(self._handler)
        self.writer.close(timeout_s=timeout_s)

    def _enqueue(self, _logger: object, _method: str, event: Event) -> Event:
        self.writer.put(event)
        raise structlog.DropEvent


def _stamp(_logger: object, method: str, event: Event) -> Event:
    event["level"] = method
    event["at"] = time.time()
    return event

"""Writing dead letters: a record that no retry can book, with the reason and its place. A part of the consumer.

The record goes along as it is. Where the broker refuses it in that form (it had just fitted, and the reason makes it
too large), the letter names its place and size instead; the record itself stays in its topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Final

from payflow.errors import (
    BrokerUnavailable,
    LaneUnavailable,
    PayflowError,
    ProducerBroken,
    RecordRejected,
)
from payflow.ports import Clock, EventLog, LogRecord, Record

CLOSE_TIMEOUT_S: Final = 2.0
PARTITION: Final = 0


@dataclass(frozen=True, slots=True)
class Poison:
    """A record that no retry can book. `code` is one of few words, for metrics; `reason` says it to a person."""

    record: Record
    code: str
    reason: str

    @property
    def place(self) -> dict[str, int]:
        """Where it lies, as fields of an event."""
        return {"partition": self.record.partition, "offset": self.record.offset}


class DeadLetterWriter:
    """Owns a producer, made when it is first needed and made anew after each failure."""

    def __init__(
        self,
        open_log: Callable[[], EventLog],
        *,
        topic: str,
        source_topic: str,
        timeout_s: float,
        clock: Clock,
        delay_s: Callable[[int], float],
        failed: Callable[[Poison, PayflowError], None],
    ) -> None:
        self._open_log = open_log
        self._topic = topic
        self._source_topic = source_topic
        self._timeout_s = timeout_s
        self._clock = clock
        self._delay_s = delay_s
        self._failed = failed
        self._log: EventLog | None = None

    async def write(self, poison: Poison) -> None:
        """Return when it is acknowledged; it is tried until then, because it is never dropped."""
        for failures in count():
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._append(poison)
            except TimeoutError:
                self._failed(poison, ProducerBroken(f"no answer within {self._timeout_s:g} s"))
            except (BrokerUnavailable, LaneUnavailable, ProducerBroken, RecordRejected) as error:
                self._failed(poison, error)
            else:
                return
            await self.close()
            await asyncio.sleep(self._delay_s(failures))

    async def close(self) -> None:
        """Give up the producer."""
        log, self._log = self._log, None
        if log is not None:
            await log.discard(timeout_s=CLOSE_TIMEOUT_S)

    async def _append(self, poison: Poison) -> None:
        log = self._log
        if log is None:
            log = self._log = self._open_log()
            await log.open()
        record = poison.record
        at_ms = self._clock.wall_us() // 1000
        headers = (
            ("payflow_reason", poison.reason.encode()),
            ("payflow_source_topic", self._source_topic.encode()),
            ("payflow_source_partition", str(record.partition).encode()),
            ("payflow_source_offset", str(record.offset).encode()),
        )
        try:
            whole = LogRecord(record.key, record.value, (*record.headers, *headers), at_ms)
            await log.append(self._topic, PARTITION, [whole])
        except RecordRejected:
            size = ("payflow_source_value_bytes", str(len(record.value or b"")).encode())
            await log.append(self._topic, PARTITION, [LogRecord(None, None, (*headers, size), at_ms)])

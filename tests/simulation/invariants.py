"""The promises, checked while it runs and when the world is whole again. I9 is that it becomes whole by itself.

What is compared is what clients were told, what is committed, what was written to the log, and what the ledger holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from payflow.core.outbox import Accepted, RowState
from payflow.core.payment import EventType
from payflow.ports import LogRecord
from payflow.wire import id_bytes
from tests.simulation.clients import MERCHANT, SECRET, Answer
from tests.simulation.life import Life, Outside
from tests.simulation.network import OWN_SOURCE
from tests.support.pipeline import TOPIC

# Supervisors, actors, their tasks, one send a partition, requests under way: far below this, and it must not grow.
TASKS_AT_MOST = 250
HISTORY_AT_MOST = 60_000


class Promises:
    """Collects what was broken; an actor must not be able to swallow it."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.outside: Outside
        self._newest: dict[str, int] = {}

    def violated(self, what: str) -> None:
        """Say it once; the run ends at the next look."""
        self.broken.append(what)
        self.outside.note("BROKEN", what=what)

    # ------------------------------------------------------------------ while it runs
    def written(self, record: LogRecord) -> None:
        """I2 and I4, at the moment a record reaches the log."""
        if OWN_SOURCE not in record.headers or record.value is None:
            return
        body = msgspec.json.decode(record.value)
        payment, version = body["payment_id"], body["version"]
        rows = self.outside.store._data.rows.values()
        if not any(row.payload == record.value for row in rows):
            self.violated(f"I2: {payment} {version} is in the log and not committed")
        newest = self._newest.get(payment, 0)
        # Known: a read that sees a requeue before the publisher hears of it can let a later row of that payment pass
        # the one that was parked (seed 1792). The ledger holds such an event back, and that is checked.
        if version > newest + 1 and record.key not in self.outside.wire.parked:
            self.violated(f"I4: {payment} {version} is in the log before {newest + 1}")
        self._newest[payment] = max(newest, version)

    def passed(self, source_id: str, before: Mapping[int, int], after: Mapping[int, int]) -> None:
        """I1: a position never passes what is neither booked nor held, for nobody would read it again."""
        outside = self.outside
        if source_id != outside.wire.log_id:
            return
        for partition, position in after.items():
            place = outside.wire._store[TOPIC, partition]
            for record in place.records[before.get(partition, 0) : position]:
                if OWN_SOURCE not in record.headers:
                    continue
                event_id = id_bytes(dict(record.headers)["ce_id"].decode())
                if event_id not in outside.ledger.applied and event_id not in outside.ledger._held:
                    self.violated(f"I1: the position {partition}:{position} passes an event that is not booked")

    def bounds(self, life: Life) -> None:
        """I6: what has a limit is within it, at any moment. Looked at between two steps of anybody."""
        for slot in life.system._slots.values():
            depth, capacity, _ = slot.ref.load()
            if depth > capacity:
                self.violated(f"I6: {slot.id} has {depth} messages, its mailbox takes {capacity}")
        instance = life.system._slots["publisher"].instance
        publisher: Any = instance._actor if instance is not None else None
        if publisher is not None:
            window = publisher._window
            if window.rows > window._max_rows or len(publisher._sends) > self.outside.wire.partitions:
                self.violated(f"I6: the publisher holds {window.rows} rows and {len(publisher._sends)} groups")
        tasks = len(self.outside.loop.tasks_of(life))
        if tasks - life.front.requests > TASKS_AT_MOST:
            self.violated(f"I6: {tasks} tasks")
        if len(self.outside.history) > HISTORY_AT_MOST:
            self.violated(f"I6: {len(self.outside.history)} events: something spins")

    # ------------------------------------------------------------------ the end
    def settled(self) -> bool:
        """Everything committed is published and booked, and known to be booked where that has to be known."""
        rows, applied = self.outside.store._data.rows.values(), self.outside.ledger.applied
        return all(
            row.state is RowState.PUBLISHED
            and row.event.id in applied
            and (row.booked_at_us is not None or not self.outside.embedded)
            for row in rows
        )

    def unsettled(self) -> str:
        """For a run that never came to rest."""
        rows, applied = self.outside.store._data.rows.values(), self.outside.ledger.applied
        missing = [
            f"{row.seq} {row.state.name.lower()} {'booked' if row.event.id in applied else 'not booked'}"
            for row in rows
            if row.state is not RowState.PUBLISHED or row.event.id not in applied or row.booked_at_us is None
        ]
        return f"I1/I9: not at rest: rows {', '.join(missing[:12])}"

    async def final(self, answers: Sequence[Answer]) -> None:
        """Clients, store and ledger agree."""
        rows = list(self.outside.store._data.rows.values())
        ledger = self.outside.ledger
        committed = {(row.event.payment.id, row.event.payment.version): row for row in rows}
        by_scope = {row.scope: row for row in rows}
        self._expect(len(committed) == len(rows), "I3: two rows are one step of a payment")
        self._expect(len(by_scope) == len(rows), "I5: one key took effect twice")
        for answer in answers:
            row = by_scope.get(answer.scope)
            if isinstance(answer.outcome, Accepted):
                place = answer.outcome.payment_id, answer.outcome.version
                found = row is not None and (row.event.payment.id, row.event.payment.version) == place
                self._expect(found, f"I1/I5: {answer.key} was accepted and is not in the store")
                self._expect(row is None or row.event.id in ledger.applied, f"I1: {answer.key} is not booked")
            else:
                self._expect(row is None, f"I5: {answer.key} was refused and took effect")
        ids = {row.event.id for row in rows}
        self._expect(all(event_id in ids for event_id in ledger.applied), "I2: the ledger booked what nobody committed")
        self._money(rows)
        for balance in await ledger.audit():
            self._expect(balance.imbalance == 0, f"I3: the audit finds {balance}")
        self._expect(not ledger._held, "I4: events are held for ever")
        self._secrets()

    def at_rest(self, life: Life) -> None:
        """I7 and I9: a healthy process says so."""
        closed = life.guard.state.value == "CLOSED"
        self._expect(closed, f"I7: all is well and the breaker is {life.guard.state.value}")
        for slot in life.system._slots.values():
            self._expect(slot.state.value == "running", f"I9: {slot.id} is {slot.state.value}")

    def _money(self, rows: Sequence[Any]) -> None:
        """I3, without the product's own arithmetic: money moved once for each committed step."""
        moved = {EventType.CAPTURED: 0, EventType.REFUNDED: 0}
        for row in rows:
            if row.event.type in moved:
                moved[row.event.type] += row.event.amount
        captured, refunded = moved.values()
        sums = self.outside.ledger._sums
        expected = {
            account: sides
            for account, sides in {
                ("cash", "EUR"): (captured, refunded),
                (f"merchant_payable:{MERCHANT}", "EUR"): (refunded, captured),
            }.items()
            if any(sides)
        }
        self._expect(dict(sums) == expected, f"I3: the accounts are {dict(sums)}, not {expected}")

    def _secrets(self) -> None:
        """I8."""
        said = any(SECRET in line for line in self.outside.history.lines())
        self._expect(not said, "I8: a payment's text is in the log")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.violated(otherwise)



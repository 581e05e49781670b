"""Reading both databases as a whole, beside their owners: streams for reconciling, pages for operators.

Each report holds one read-only connection and one snapshot. Nothing is written, not even a lock; SQLite may leave an
empty `-wal` and `-shm` beside a file that nobody else has open.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from payflow.adapters import sqlite_ledger_sql, sqlite_outbox_sql
from payflow.adapters.sqlite_open import FileSpec, one_sentence, open_read_only, refuse_strangers
from payflow.core.ledger import AccountBalance, LedgerEvent, Posting, Side
from payflow.core.outbox import RowState
from payflow.core.payment import EventType
from payflow.core.reconcile_values import Committed, HeldVersion, Line, PaymentSums
from payflow.errors import DependencyUnavailable

BUSY_TIMEOUT_S: Final = 5.0
PAYMENTS_FILE: Final = FileSpec(sqlite_outbox_sql.APPLICATION_ID, sqlite_outbox_sql.MIGRATIONS, BUSY_TIMEOUT_S, 1)
LEDGER_FILE: Final = FileSpec(sqlite_ledger_sql.APPLICATION_ID, sqlite_ledger_sql.MIGRATIONS, BUSY_TIMEOUT_S, 1)

_SUMS: Final = (
    "SELECT id, merchant_id, currency, captured_amount, refunded_amount, version FROM payment ORDER BY id"
)
_COMMITTED: Final = (
    'SELECT payment, version, id, type, at_us, amount, state, broker, partition, "offset", booked_at_us IS NOT NULL '
    "FROM payment_event ORDER BY payment, version"
)
_BROKERS: Final = "SELECT id, name FROM broker"
_BOOKED: Final = (
    "SELECT event_id, payment_id, version, type, at_us, amount, currency, merchant_id FROM inbox "
    "ORDER BY payment_id, version"
)
_HELD: Final = "SELECT payment_id, version, event_id FROM held_event ORDER BY payment_id, version"
_LINES: Final = (
    "SELECT entry.payment_id, entry.version, entry.event_id, posting.account_id, posting.side, posting.amount "
    "FROM entry LEFT JOIN posting USING (payment_id, version) ORDER BY entry.payment_id, entry.version, posting.line"
)
_POSITIONS: Final = "SELECT source_id, partition, next_offset FROM position WHERE topic = ?"
_ACCOUNTS: Final = "SELECT id, account, currency, debit, credit FROM account ORDER BY account, currency"
_IS_BOOKED: Final = "SELECT EXISTS (SELECT 1 FROM inbox WHERE event_id = ?)"

_ROW: Final = (
    "SELECT event.seq, event.id, event.payment, event.version, event.type, event.state, event.at_us, event.amount, "
    'event.payload_bytes, broker.name, event.partition, event."offset", event.published_at_us, event.booked_at_us, '
    "held_key.error, held_key.since_us FROM payment_event AS event LEFT JOIN broker ON broker.id = event.broker "
    "LEFT JOIN held_key ON held_key.seq = event.seq WHERE "
)
_WHERE: Final = {
    "pending": "event.state = 0",
    "parked": "event.state = 2 AND event.seq IN (SELECT seq FROM held_key)",
    "published": "event.state = 1",
    "all": "TRUE",
}
_AUDIT: Final = (
    "SELECT id, at_us, actor, action, target, reason, detail FROM audit "
    "WHERE id < ?1 AND (?2 IS NULL OR action = ?2) ORDER BY id DESC LIMIT ?3"
)
_END: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One outgoing event as an operator sees it; `error` and `parked_at_us` are those of a parked row."""

    seq: int
    event_id: bytes
    payment_id: bytes
    version: int
    type: EventType
    state: RowState
    at_us: int
    amount: int
    payload_bytes: int
    broker: str | None
    partition: int | None
    offset: int | None
    published_at_us: int | None
    booked_at_us: int | None
    error: str | None
    parked_at_us: int | None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One action of an operator."""

    id: int
    at_us: int
    actor: str
    action: str
    target: str
    reason: str
    detail: str


@contextmanager
def snapshot_of(path: Path, spec: FileSpec) -> Iterator[sqlite3.Connection]:
    """A read-only connection inside one transaction on a file that is one of ours, whoever owns it.

    Raises DependencyUnavailable with one sentence, also for what fails within the block.
    """
    path = path.resolve()
    with one_sentence(path):
        refuse_strangers(path, spec)
        connection = open_read_only(path, spec.busy_timeout_s)
    with closing(connection):
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version < len(spec.migrations):
                raise DependencyUnavailable(
                    f"{path} has schema version {version}, older than this program reads ({len(spec.migrations)}); "
                    "payflow serve brings it up to date"
                )
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # only a read takes the snapshot
            yield connection
        except sqlite3.Error:
            with one_sentence(path):
                raise


# ------------------------------------------------------------------ payments
class PaymentsReport:
    """One snapshot of payments.db. Streams are sorted by payment and version."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def count_events(self) -> int:
        """About how many events there are: events are never deleted."""
        (count,) = self._connection.execute(sqlite_outbox_sql.LAST_SEQ).fetchone()
        return int(count)

    def sums(self) -> Iterator[PaymentSums]:
        """Every payment."""
        return (PaymentSums(*row) for row in self._connection.execute(_SUMS))

    def committed(self) -> Iterator[Committed]:
        """Every event."""
        brokers = dict(self._connection.execute(_BROKERS))
        for payment, version, event_id, code, at_us, amount, state, broker, partition, offset, booked in (
            self._connection.execute(_COMMITTED)
        ):
            place = None if broker is None else (brokers[broker], partition, offset)
            event_type = sqlite_outbox_sql.TYPES[code]
            yield Committed(payment, version, event_id, event_type, at_us, amount, RowState(state), place, bool(booked))

    def rows(self, state: str, *, payment_id: bytes | None, after_seq: int, limit: int) -> Iterator[OutboxRow]:
        """Rows of one state (pending, parked, published, all) in sequence, of one payment where it is given."""
        where = f"{_WHERE[state]} AND event.seq > ?"
        values: list[Any] = [after_seq]
        if payment_id is not None:
            where += " AND event.payment = ?"
            values.append(payment_id)
        query = f"{_ROW}{where} ORDER BY event.seq LIMIT ?"
        return map(_outbox_row, self._connection.execute(query, [*values, limit]))

    def row(self, seq: int) -> OutboxRow | None:
        """One row."""
        found = self._connection.execute(f"{_ROW}event.seq = ?", (seq,)).fetchone()
        return None if found is None else _outbox_row(found)

    def payload(self, seq: int) -> tuple[bytes, str | None] | None:
        """Payload and traceparent of a row, while its retention lasts."""
        found = self._connection.execute("SELECT payload, traceparent FROM outbox WHERE seq = ?", (seq,)).fetchone()
        return None if found is None else (found[0], found[1])

    def audit(self, *, before: int | None, action: str | None, limit: int) -> list[AuditRow]:
        """Actions of operators, newest first."""
        values = (_END if before is None else before, action, limit)
        return [AuditRow(*row) for row in self._connection.execute(_AUDIT, values)]


def _outbox_row(row: Any) -> OutboxRow:
    seq, event_id, payment_id, version, code, state, *rest = row
    return OutboxRow(
        seq, event_id, payment_id, version, sqlite_outbox_sql.TYPES[code], RowState(state), *rest
    )


# ------------------------------------------------------------------ ledger
class LedgerReport:
    """One snapshot of ledger.db. Streams are sorted by payment and version."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def booked(self) -> Iterator[LedgerEvent]:
        """Every event that was applied."""
        for event_id, payment_id, version, word, *rest in self._connection.execute(_BOOKED):
            yield LedgerEvent(event_id, payment_id, version, EventType(word), *rest)

    def held(self) -> Iterator[HeldVersion]:
        """Every event that waits for its predecessor."""
        return (HeldVersion(*row) for row in self._connection.execute(_HELD))

    def lines(self) -> Iterator[Line]:
        """Every entry with its postings."""
        accounts = {row[0]: row[1:3] for row in self._connection.execute(_ACCOUNTS)}
        for payment_id, version, event_id, account_id, side, amount in self._connection.execute(_LINES):
            posting = None
            if account_id is not None:
                account, currency = accounts[account_id]
                posting = Posting(account, Side(side), amount, currency)
            yield Line(payment_id, version, event_id, posting)

    def accounts(self) -> Iterator[AccountBalance]:
        """The sums that accounts keep."""
        return (AccountBalance(*row[1:]) for row in self._connection.execute(_ACCOUNTS))

    def positions(self, topic: str) -> Mapping[tuple[str, int], int]:
        """(log, partition) -> next offset to read."""
        return {(log, partition): offset for log, partition, offset in self._connection.execute(_POSITIONS, (topic,))}


def is_booked(path: Path, event_id: bytes) -> bool:
    """Whether the ledger has the event now, whatever a snapshot of it says."""
    with snapshot_of(path, LEDGER_FILE) as connection:
        (found,) = connection.execute(_IS_BOOKED, (event_id,)).fetchone()
        return bool(found)

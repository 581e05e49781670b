"""The payments database: the one writer of payments.db, and readers beside it. Decisions are made in core/outbox.py,
statements are in sqlite_outbox_sql.py; here they meet in one transaction a group and one thread hop a call.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from payflow import wire
from payflow.adapters import sqlite_outbox_sql as sql
from payflow.adapters.sqlite_file import SqliteFile, SqliteReader
from payflow.adapters.sqlite_rows import marks
from payflow.core.idempotency import StoredKey
from payflow.core.outbox import (
    Audit,
    Backlog,
    Changes,
    Done,
    Group,
    Loaded,
    MarkBooked,
    MarkPublished,
    NewRow,
    Outcome,
    Park,
    PendingRow,
    Probe,
    Purge,
    Requeue,
    RowState,
    Unpublish,
    Write,
)
from payflow.core.payment import Payment, Status
from payflow.errors import StoreRejected
from payflow.ports import Ids, PaymentEventView, PaymentQuery

BUSY_TIMEOUT_S: Final = 5.0
# 16 MiB of WAL; a checkpoint of that takes 20 to 28 ms on 1 % of the commits.
CHECKPOINT_PAGES: Final = 4000
_NEWEST: Final = (2**62, b"")
_NOTHING: Final = Loaded({}, {}, {})


class SqliteOutboxStore:
    """Sole writer of payments.db."""

    def __init__(
        self,
        path: Path | str,
        *,
        ids: Ids,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        checkpoint_pages: int = CHECKPOINT_PAGES,
    ) -> None:
        self._ids = ids
        self._file = SqliteFile(
            path,
            application_id=sql.APPLICATION_ID,
            migrations=sql.MIGRATIONS,
            busy_timeout_s=busy_timeout_s,
            checkpoint_pages=checkpoint_pages,
        )
        # Where the next slice of retention starts to look for payloads; unpublished rows at the head are passed once a
        # round.
        self._purged_to = 0
        # Whether the next group of authorizations is tried without a look at keys and orders. Nearly all are new; after
        # one that was not, groups are loaded again until one had nothing but new ones.
        self._presume_new = True

    async def open(self) -> None:
        """Take the owner lock, migrate, check. Raises DependencyUnavailable with one clear sentence."""
        await self._file.open_writer()

    async def commit(self, writes: Sequence[Write], *, at_us: int) -> list[Outcome]:
        """Load, fold, write, COMMIT; one outcome a write, in order."""
        group = Group(writes, at_us=at_us, new_id=self._ids.new, codec=wire)
        if self._presume_new and group.only_opens:
            try:
                return await self._file.run(partial(self._apply, group, presume_new=True))
            except StoreRejected:  # something is not new, or cannot be stored at all: the second run tells
                self._presume_new = False
        return await self._file.run(partial(self._apply, group, presume_new=False))

    async def close(self) -> None:
        """Checkpoint and release the lock. Idempotent."""
        await self._file.close()

    # ---------------------------------------------------------------- on the connection's thread
    def _apply(self, group: Group, connection: sqlite3.Connection, *, presume_new: bool) -> list[Outcome]:
        if presume_new:
            group.scopes({})
            changes = group.fold(_NOTHING)
            if not changes.all_accepted:
                raise StoreRejected("a refusal needs a look at what is stored")
        else:
            changes = group.fold(_load(group, connection))
            self._presume_new = changes.all_new
        if changes.rows:
            _write(changes, connection)
        outcomes = list(changes.outcomes)
        for place, write in changes.others:
            outcomes[place] = Done(_OTHERS[type(write)](self, connection, write))
        return [outcome for outcome in outcomes if outcome is not None]

    def _purge(self, connection: sqlite3.Connection, purge: Purge) -> int:
        answers = connection.execute(sql.OLD_ANSWERS, (purge.limit, purge.keys_before_us)).fetchall()
        connection.executemany(sql.DELETE_KEY, [(scope, seq) for seq, scope in answers])
        connection.executemany(sql.DELETE_ANSWER, [(seq,) for seq, _ in answers])
        return len(answers) + self._purge_payloads(connection, purge)

    def _purge_payloads(self, connection: sqlite3.Connection, purge: Purge) -> int:
        """From the head on. Rows that are not published are passed; the first that is published and not old ends the
        round, for what follows is younger.
        """
        looked_at = connection.execute(sql.PAYLOADS, (self._purged_to, purge.limit)).fetchall()
        old: list[tuple[int]] = []
        young = False
        for seq, state, published_at_us in looked_at:
            if state != RowState.PUBLISHED:
                continue
            young = published_at_us >= purge.published_before_us
            if young:
                break
            old.append((seq,))
        connection.executemany(sql.DELETE_PAYLOAD, old)
        goes_on = len(looked_at) == purge.limit and not young
        self._purged_to = looked_at[-1][0] if goes_on else 0
        return len(old)


def _load(group: Group, connection: sqlite3.Connection) -> Loaded:
    payments = {payment.id: payment for payment in _payments(connection, group.payment_ids())}
    orders: dict[tuple[str, str], Payment] = {}
    for part in sql.lists(group.orders()):
        statement = sql.ORDERS.format(marks(len(part), "(?, ?)"))
        for row in connection.execute(statement, [value for pair in part for value in pair]):
            orders[row[1], row[2]] = sql.payment_of(row)
    keys: dict[bytes, StoredKey] = {}
    for part in sql.lists(group.scopes(payments)):
        for scope, *stored in connection.execute(sql.KEYS.format(marks(len(part))), part):
            keys[scope] = StoredKey(*stored)
            assert keys[scope].answer is not None
    return Loaded(payments, orders, keys)


def _payments(connection: sqlite3.Connection, ids: set[bytes]) -> list[Payment]:
    return [
        sql.payment_of(row)
        for part in sql.lists(ids)
        for row in connection.execute(sql.PAYMENTS.format(marks(len(part))), part)
    ]


def _write(changes: Changes, connection: sqlite3.Connection) -> None:
    (last_seq,) = connection.execute(sql.LAST_SEQ).fetchone()
    numbered: list[tuple[int, NewRow]] = list(enumerate(changes.rows, last_seq + 1))
    sql.INSERT_PAYMENT.run(connection, [sql.payment_row(payment) for payment in changes.created])
    connection.executemany(
        sql.UPDATE_PAYMENT,
        [
            (
                payment.status,
                payment.captured_amount,
                payment.refunded_amount,
                payment.updated_at_us,
                payment.version,
                payment.id,
            )
            for payment in changes.updated
        ],
    )
    sql.INSERT_EVENT.run(connection, [_event_row(seq, row) for seq, row in numbered])
    sql.INSERT_OUTBOX.run(connection, [(seq, row.payload, row.traceparent) for seq, row in numbered])
    sql.INSERT_ANSWER.run(connection, [(seq, row.scope, row.event.at_us, row.answer) for seq, row in numbered])
    sql.INSERT_KEY.run(connection, [(row.scope, row.fingerprint, seq) for seq, row in numbered])


def _event_row(seq: int, row: NewRow) -> tuple[Any, ...]:
    event = row.event
    return (
        seq,
        event.id,
        event.payment.id,
        event.payment.version,
        sql.TYPE_CODES[event.type],
        event.at_us,
        event.amount,
        len(row.payload),
        int(RowState.PENDING),
    )


# ------------------------------------------------------------------ writes that are no commands; each returns the rows
# it changed
def _mark_published(_: SqliteOutboxStore, connection: sqlite3.Connection, write: MarkPublished) -> int:
    if not write.rows:
        return 0
    known = connection.execute(sql.BROKER, (write.broker_id,)).fetchone()
    broker = known[0] if known else connection.execute(sql.INSERT_BROKER, (write.broker_id,)).lastrowid
    return sql.MARK_ROWS.run(connection, write.rows, broker, write.at_us)


def _mark_booked(_: SqliteOutboxStore, connection: sqlite3.Connection, write: MarkBooked) -> int:
    return sql.MARK_EVENTS.run(connection, [(event_id,) for event_id in write.event_ids], write.at_us)


def _park(_: SqliteOutboxStore, connection: sqlite3.Connection, write: Park) -> int:
    parked = connection.execute(sql.PARK, (write.seq,)).rowcount
    if parked:
        connection.execute(sql.HOLD, (write.at_us, write.error, write.seq))
    return parked


def _unpublish(_: SqliteOutboxStore, connection: sqlite3.Connection, write: Unpublish) -> int:
    gone = connection.execute(sql.OTHER_BROKERS, (write.broker_id,)).fetchall()
    return max(0, connection.executemany(sql.UNPUBLISH, gone).rowcount)


def _requeue(_: SqliteOutboxStore, connection: sqlite3.Connection, write: Requeue) -> int:
    rows = [(seq,) for seq in write.seqs]
    requeued = max(0, connection.executemany(sql.REQUEUE, rows).rowcount)
    connection.executemany(sql.RELEASE, rows)
    return requeued


def _audit(_: SqliteOutboxStore, connection: sqlite3.Connection, write: Audit) -> int:
    row = (write.at_us, write.actor, write.action, write.target, write.reason, write.detail)
    return connection.execute(sql.AUDIT, row).rowcount


def _probe(_: SqliteOutboxStore, connection: sqlite3.Connection, __: Probe) -> int:
    return connection.execute(sql.PROBE).rowcount


_OTHERS: Final[Mapping[type, Callable[[SqliteOutboxStore, sqlite3.Connection, Any], int]]] = {
    MarkPublished: _mark_published,
    MarkBooked: _mark_booked,
    Park: _park,
    Unpublish: _unpublish,
    Requeue: _requeue,
    Audit: _audit,
    Purge: SqliteOutboxStore._purge,  # noqa: SLF001
    Probe: _probe,
}


class SqliteOutboxReader:
    """Read-only side of payments.db. Its reads are short transactions of their own; several readers may be open."""

    def __init__(self, path: Path | str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._file = SqliteReader(path, busy_timeout_s)

    async def open(self) -> None:
        """Raises DependencyUnavailable when there is no such database."""
        await self._file.open()

    async def pending(self, *, after_seq: int, limit: int, max_bytes: int) -> list[PendingRow]:
        """Pending rows in sequence, without those whose key is held; at least one row even if it alone is above
        `max_bytes`.
        """
        return await self._file.read(partial(_pending, after_seq, limit, max_bytes))

    async def backlog(self) -> Backlog:
        """Numbers for metrics. Counting walks the index of pending rows, never the table."""
        return await self._file.read(_backlog)

    async def unbooked_bytes(self, broker_id: str) -> Mapping[int, int]:
        """Payload bytes a partition that were published to `broker_id` and are not booked."""
        return dict(
            await self._file.read(lambda connection: connection.execute(sql.UNBOOKED_BYTES, (broker_id,)).fetchall())
        )

    async def payment(self, payment_id: bytes) -> tuple[Payment, tuple[PaymentEventView, ...]] | None:
        """A payment and its timeline, oldest step first."""
        return await self._file.read(partial(_payment, payment_id))

    async def payments(self, query: PaymentQuery) -> list[Payment]:
        """One page, newest first; `from_us` is inside, `to_us` is not."""
        return await self._file.read(partial(_page, query))

    async def close(self) -> None:
        """Idempotent."""
        await self._file.close()


def _pending(after_seq: int, limit: int, max_bytes: int, connection: sqlite3.Connection) -> list[PendingRow]:
    rows: list[PendingRow] = []
    room = max_bytes
    for seq, event_id, payment_id, code, at_us, traceparent, payload in connection.execute(
        sql.PENDING, (after_seq, limit)
    ):
        room -= len(payload)
        if rows and room < 0:
            break
        headers = wire.event_headers(
            event_id=event_id, event_type=sql.TYPES[code], at_us=at_us, payment_id=payment_id, traceparent=traceparent
        )
        rows.append(PendingRow(seq, event_id, wire.id_text(payment_id).encode(), payload, headers, at_us))
    return rows


def _backlog(connection: sqlite3.Connection) -> Backlog:
    (pending,) = connection.execute(sql.COUNT_PENDING).fetchone()
    parked, held_keys = connection.execute(sql.COUNT_HELD).fetchone()
    oldest = connection.execute(sql.OLDEST_PENDING).fetchone()
    return Backlog(pending, parked, held_keys, oldest[0] if oldest else None)


def _payment(payment_id: bytes, connection: sqlite3.Connection) -> tuple[Payment, tuple[PaymentEventView, ...]] | None:
    found = _payments(connection, {payment_id})
    if not found:
        return None
    timeline = tuple(
        PaymentEventView(event_id, sql.TYPES[code], version, at_us, amount, sql.STATE_WORDS[state], *rest)
        for event_id, code, version, at_us, amount, state, *rest in connection.execute(sql.TIMELINE, (payment_id,))
    )
    return found[0], timeline


def _page(query: PaymentQuery, connection: sqlite3.Connection) -> list[Payment]:
    """The newest of every status, merged: a filter that few rows pass costs no more than one that all pass."""
    end = min(query.after or _NEWEST, _NEWEST if query.to_us is None else (query.to_us, b""))
    bounds = (query.from_us or 0, *end, query.limit)
    places: list[tuple[int, bytes]] = []
    for status in Status if query.status is None else (query.status,):
        if query.merchant_id is None:
            places += connection.execute(sql.PAGE, (status, *bounds))
        else:
            places += connection.execute(sql.PAGE_OF_MERCHANT, (query.merchant_id, status, *bounds))
    newest = sorted(places, reverse=True)[: query.limit]
    found = {payment.id: payment for payment in _payments(connection, {payment_id for _, payment_id in newest})}
    return [found[payment_id] for _, payment_id in newest]

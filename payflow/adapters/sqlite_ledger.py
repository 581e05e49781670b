"""The ledger in a SQLite file: one transaction a batch, around the fold in `core.booking`.

It decides nothing: it loads what the batch asks for and writes what the fold answers. The audit adds up every posting
on a snapshot of its own and compares with the sums that the accounts keep.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from payflow.adapters import sqlite_ledger_sql as sql
from payflow.adapters.sqlite_file import SqliteFile, SqliteReader
from payflow.adapters.sqlite_rows import marks
from payflow.core.booking import Account, Batch, Changes, Loaded, Sums
from payflow.core.ledger import (
    AccountBalance,
    Booking,
    CurrencyBalance,
    Delivery,
    Entry,
    LedgerEvent,
    Posting,
    Side,
)
from payflow.core.payment import EventType

Row = tuple[Any, ...]

# Postings an audit adds up in one statement: its sorter's memory is bounded by this, whatever the size of the books.
_AUDIT_SLICE_ROWS: Final = 65_536


# ------------------------------------------------------------------ the two ends
class SqliteLedger:
    """`ports.Ledger`: the only writer of the file."""

    def __init__(self, path: Path | str, *, busy_timeout_s: float = 5.0, checkpoint_pages: int = 4000) -> None:
        self._file = SqliteFile(
            path,
            application_id=sql.APPLICATION_ID,
            migrations=sql.MIGRATIONS,
            busy_timeout_s=busy_timeout_s,
            checkpoint_pages=checkpoint_pages,
        )
        # An audit reads everything; on the writer's connection bookings would wait for it.
        self._snapshot = SqliteReader(path, busy_timeout_s)

    async def open(self) -> None:
        await self._file.open_writer()
        try:
            await self._snapshot.open()
        except BaseException:
            await self._file.close()
            raise

    async def positions(self, source_id: str, topic: str) -> Mapping[int, int]:
        return await self._file.read(lambda db: dict(db.execute(sql.POSITIONS, (source_id, topic))))

    async def book(
        self,
        deliveries: Sequence[Delivery],
        *,
        source_id: str,
        topic: str,
        positions: Mapping[int, int],
        at_us: int,
    ) -> Booking:
        def transaction(db: sqlite3.Connection) -> Booking:
            batch = Batch(deliveries)
            loaded = _load(db, batch)
            changes = batch.fold(loaded, _load_sums(db, batch.accounts(loaded)), positions)
            _write(db, changes, at_us)
            places = [(source_id, topic, partition, offset) for partition, offset in changes.positions.items()]
            db.executemany(sql.SET_POSITION, places)
            return changes.booking

        return await self._file.run(transaction)

    async def audit(self) -> list[CurrencyBalance]:
        return await self._snapshot.read(_audit)

    async def close(self) -> None:
        try:
            await self._snapshot.close()
        finally:
            await self._file.close()


class SqliteLedgerReader:
    """`ports.LedgerReader`: read-only, beside the writer."""

    def __init__(self, path: Path | str, *, busy_timeout_s: float = 5.0) -> None:
        self._reader = SqliteReader(path, busy_timeout_s)

    async def open(self) -> None:
        await self._reader.open()

    async def entries(self, payment_id: bytes) -> list[Entry]:
        rows = await self._reader.read(lambda db: db.execute(sql.ENTRIES, (payment_id,)).fetchall())
        return [
            Entry(event_id, payment_id, at_us, tuple(Posting(row[2], Side(row[3]), row[4], row[5]) for row in lines))
            for (event_id, at_us), lines in groupby(rows, key=lambda row: row[:2])
        ]

    async def accounts(self, *, after: tuple[str, str] | None, limit: int) -> list[AccountBalance]:
        # No account has an empty name: the pair of empty texts is before them all.
        parameters = (*(after or ("", "")), limit)
        rows = await self._reader.read(lambda db: db.execute(sql.ACCOUNTS, parameters).fetchall())
        return [AccountBalance(*row) for row in rows]

    async def trial_balance(self) -> list[CurrencyBalance]:
        rows = await self._reader.read(lambda db: db.execute(sql.ALL_ACCOUNTS).fetchall())
        return _per_currency((currency, debit, credit, 0) for _, _, currency, debit, credit in rows)

    async def held(self) -> tuple[int, int | None]:
        count, oldest_at_us = await self._reader.read(lambda db: db.execute(sql.HELD).fetchone())
        return count, oldest_at_us

    async def close(self) -> None:
        await self._reader.close()


# ------------------------------------------------------------------ loading, inside the transaction
def _load(db: sqlite3.Connection, batch: Batch) -> Loaded:
    heads = map(_event, _select(db, sql.HEADS, batch.payment_ids, "(?)"))
    applied = map(_event, _select(db, sql.APPLIED, batch.event_ids))
    held: dict[bytes, Delivery] = {}
    if db.execute(sql.ANY_HELD).fetchone()[0]:
        rows = [*_select(db, sql.HELD_OF_PAYMENT, batch.payment_ids), *_select(db, sql.HELD_BY_ID, batch.event_ids)]
        held = {delivery.event.event_id: delivery for delivery in map(_delivery, rows)}
    return Loaded(
        heads={event.payment_id: event for event in heads},
        applied={event.event_id: event for event in applied},
        held=tuple(held.values()),
    )


def _load_sums(db: sqlite3.Connection, accounts: Iterable[Account]) -> dict[Account, Sums]:
    return {account: sums for account in accounts for sums in db.execute(sql.ACCOUNT, account)}


def _select(db: sqlite3.Connection, query: str, keys: Sequence[bytes], one: str = "?") -> Iterator[Row]:
    """Rows for a list of keys. Placeholders grow in powers of two, so that few statements are prepared."""
    if not keys:
        return
    size = 1 << (len(keys) - 1).bit_length()
    padding = [keys[-1]] * (size - len(keys))
    yield from db.execute(query.format(keys=marks(size, one)), [*keys, *padding])


def _event(row: Row) -> LedgerEvent:
    event_id, payment_id, version, type_, *rest = row
    return LedgerEvent(event_id, payment_id, version, EventType(type_), *rest)


def _delivery(row: Row) -> Delivery:
    partition, offset, raw, *event = row
    return Delivery(partition, offset, _event(tuple(event)), raw)


# ------------------------------------------------------------------ writing, inside the transaction
def _write(db: sqlite3.Connection, changes: Changes, at_us: int) -> None:
    booked = [(event, entry) for event, entry in changes.applied if entry is not None]
    sql.ADD_APPLIED.run(db, [(*_columns(event), at_us) for event, _ in changes.applied])
    sql.ADD_ENTRY.run(db, [(e.payment_id, e.version, e.event_id, e.at_us) for e, _ in booked])
    ids = {
        account: account_id
        for account, sums in changes.sums.items()
        for (account_id,) in db.execute(sql.SET_ACCOUNT, (*account, *sums))
    }
    sql.ADD_POSTING.run(
        db,
        [
            (event.payment_id, event.version, line, ids[p.account, p.currency], p.side.value, p.amount)
            for event, entry in booked
            for line, p in enumerate(entry.postings)
        ],
    )
    db.executemany(sql.RELEASE, [(d.event.payment_id, d.event.version) for d in changes.released])
    db.executemany(sql.HOLD, [(d.partition, d.offset, d.raw, *_columns(d.event), at_us) for d in changes.held])


def _columns(event: LedgerEvent) -> Row:
    """In the order of the columns in the SQL."""
    return (
        event.event_id,
        event.payment_id,
        event.version,
        event.type.value,
        event.at_us,
        event.amount,
        event.currency,
        event.merchant_id,
    )


# ------------------------------------------------------------------ balances
def _audit(db: sqlite3.Connection) -> list[CurrencyBalance]:
    """Add up every posting, slice by slice, and compare with the accounts' own sums."""
    booked: dict[tuple[int, str], int] = {}
    after: Row | None = (b"", 0, 0)
    while after is not None:
        window = (*after, _AUDIT_SLICE_ROWS)
        for account_id, side, high, low in db.execute(sql.AUDIT_SLICE, window):
            booked[account_id, side] = booked.get((account_id, side), 0) + (high << 32) + low
        after = db.execute(sql.AUDIT_NEXT, window).fetchone()
    rows = []
    for account_id, _, currency, kept_debit, kept_credit in db.execute(sql.ALL_ACCOUNTS):
        debit, credit = booked.get((account_id, Side.DEBIT), 0), booked.get((account_id, Side.CREDIT), 0)
        rows.append((currency, debit, credit, abs(debit - kept_debit) + abs(credit - kept_credit)))
    return _per_currency(rows)


def _per_currency(rows: Iterable[tuple[str, int, int, int]]) -> list[CurrencyBalance]:
    """Add up (currency, debit, credit, drift), in order of currency."""
    sums: dict[str, tuple[int, int, int]] = {}
    for currency, debit, credit, drift in rows:
        had = sums.get(currency, (0, 0, 0))
        sums[currency] = had[0] + debit, had[1] + credit, had[2] + drift
    return [CurrencyBalance(currency, *sums[currency]) for currency in sorted(sums)]

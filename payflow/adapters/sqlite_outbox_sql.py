"""Schema and statements of payments.db, and how rows become values. No connection is opened here.

`payment_event` is narrow and kept for ever; the row's state is in it, so a mark rewrites 100 bytes and not the payload.
The bytes to send and the bytes to answer with live in tables of their own, keyed by the same `seq` and emptied from
their head. `seq` is one more than the largest ever given: events are never deleted, so no number comes twice, and it is
the order of commits because there is one writer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import msgspec

from payflow.adapters.sqlite_rows import Many, insert_many
from payflow.core.outbox import (
    ROW_LIFE,
    VOLATILE_PREFIX,
    MarkPublished,
    Park,
    Requeue,
    RowState,
    Unpublish,
    Write,
    states_before,
)
from payflow.core.payment import EventType, Payment, Status

APPLICATION_ID: Final = 0x50464F31  # "PFO1"

MIGRATIONS: Final = (
    """
    CREATE TABLE payment (
        id BLOB NOT NULL PRIMARY KEY,
        merchant_id TEXT NOT NULL,
        order_id TEXT,
        amount INTEGER NOT NULL CHECK (amount > 0),
        currency TEXT NOT NULL,
        status TEXT NOT NULL,
        captured_amount INTEGER NOT NULL CHECK (captured_amount BETWEEN 0 AND amount),
        refunded_amount INTEGER NOT NULL CHECK (refunded_amount BETWEEN 0 AND captured_amount),
        description TEXT,
        metadata TEXT NOT NULL,
        created_at_us INTEGER NOT NULL,
        updated_at_us INTEGER NOT NULL,
        version INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX payment_by_order ON payment (merchant_id, order_id) WHERE order_id IS NOT NULL;
    -- Both end in the id, as every index of a table without rowid: the order of a list.
    CREATE INDEX payment_by_merchant ON payment (merchant_id, status, created_at_us);
    CREATE INDEX payment_by_status ON payment (status, created_at_us);

    CREATE TABLE broker (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;

    CREATE TABLE payment_event (
        seq INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        payment BLOB NOT NULL,
        version INTEGER NOT NULL,
        type INTEGER NOT NULL,
        at_us INTEGER NOT NULL,
        amount INTEGER NOT NULL,
        payload_bytes INTEGER NOT NULL,
        state INTEGER NOT NULL,
        broker INTEGER,
        partition INTEGER,
        "offset" INTEGER,
        published_at_us INTEGER,
        booked_at_us INTEGER,
        UNIQUE (payment, version)
    ) STRICT;
    -- The columns of the WHERE are in the keys, at no byte each: else SQLite looks them up in the table, row by row.
    CREATE INDEX event_pending ON payment_event (state, seq) WHERE state = 0;
    CREATE INDEX event_unbooked ON payment_event (broker, partition, payload_bytes, state, booked_at_us)
        WHERE state = 1 AND booked_at_us IS NULL;

    CREATE TABLE outbox (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL, traceparent TEXT) STRICT;
    CREATE TABLE answer (
        seq INTEGER PRIMARY KEY, scope BLOB NOT NULL, at_us INTEGER NOT NULL, body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE idempotency (
        scope BLOB NOT NULL PRIMARY KEY, fingerprint BLOB NOT NULL, seq INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    -- One row a parked row; a payment with any is held.
    CREATE TABLE held_key (
        seq INTEGER PRIMARY KEY, payment BLOB NOT NULL, since_us INTEGER NOT NULL, error TEXT NOT NULL
    ) STRICT;
    CREATE INDEX held_key_by_payment ON held_key (payment);

    CREATE TABLE audit (
        id INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, target TEXT NOT NULL,
        reason TEXT NOT NULL, detail TEXT NOT NULL
    ) STRICT;
    CREATE TABLE probe (id INTEGER PRIMARY KEY CHECK (id = 1), count INTEGER NOT NULL) STRICT;
    INSERT INTO probe VALUES (1, 0);
    """,
)

# ------------------------------------------------------------------ load
_PAYMENT: Final = (
    "id, merchant_id, order_id, amount, currency, status, captured_amount, refunded_amount, description, metadata, "
    "created_at_us, updated_at_us, version"
)
PAYMENTS: Final = f"SELECT {_PAYMENT} FROM payment WHERE id IN ({{}})"
ORDERS: Final = (
    f"SELECT {_PAYMENT} FROM (VALUES {{}}) AS wanted CROSS JOIN payment "
    "ON merchant_id = wanted.column1 AND order_id = wanted.column2"
)
KEYS: Final = (
    "SELECT key.scope, key.fingerprint, event.payment, event.version, answer.body FROM idempotency AS key "
    "CROSS JOIN payment_event AS event ON event.seq = key.seq LEFT JOIN answer ON answer.seq = key.seq "
    "WHERE key.scope IN ({})"
)
LAST_SEQ: Final = "SELECT coalesce(max(seq), 0) FROM payment_event"


# ------------------------------------------------------------------ write
INSERT_PAYMENT: Final = insert_many("payment", _PAYMENT)
UPDATE_PAYMENT: Final = (
    "UPDATE payment SET status = ?, captured_amount = ?, refunded_amount = ?, updated_at_us = ?, version = ? "
    "WHERE id = ?"
)
INSERT_EVENT: Final = insert_many(
    "payment_event", "seq, id, payment, version, type, at_us, amount, payload_bytes, state"
)
INSERT_OUTBOX: Final = insert_many("outbox", "seq, payload, traceparent")
INSERT_ANSWER: Final = insert_many("answer", "seq, scope, at_us, body")
INSERT_KEY: Final = insert_many("idempotency", "scope, fingerprint, seq")

BROKER: Final = "SELECT id FROM broker WHERE name = ?"
OTHER_BROKERS: Final = f"SELECT id FROM broker WHERE name <> ? AND name GLOB '{VOLATILE_PREFIX}*'"
INSERT_BROKER: Final = "INSERT INTO broker (name) VALUES (?)"


def _move(write: type[Write], more: str, where: str, source: str = "") -> str:
    """The UPDATE that moves rows as ROW_LIFE says.

    One state is compared with `=`: only so does SQLite see that a partial index holds the row.
    """
    before = [int(state) for state in states_before(write)]
    test = f"state = {before[0]}" if len(before) == 1 else f"state IN ({', '.join(map(str, before))})"
    (target,) = {ROW_LIFE[RowState(state), write] for state in before}
    return f"UPDATE payment_event SET state = {target:d}{more} {source}WHERE {test} AND {where}"


_UNSENT: Final = ', broker = NULL, partition = NULL, "offset" = NULL, published_at_us = NULL'
# A row whose payload has left after its retention cannot be sent again.
_SENDABLE: Final = "EXISTS (SELECT 1 FROM outbox WHERE outbox.seq = payment_event.seq)"
MARK_PUBLISHED: Final = _move(
    MarkPublished,
    ', broker = ?, published_at_us = ?, partition = mark.column2, "offset" = mark.column3',
    "seq = mark.column1",
    "FROM (VALUES {}) AS mark ",
)
MARK_ROWS: Final = Many(MARK_PUBLISHED, "(?, ?, ?)")
PARK: Final = _move(Park, "", "seq = ?")
REQUEUE: Final = _move(Requeue, _UNSENT, f"seq = ? AND {_SENDABLE}")
UNPUBLISH: Final = _move(Unpublish, _UNSENT, f"broker = ? AND booked_at_us IS NULL AND {_SENDABLE}")
MARK_BOOKED: Final = "UPDATE payment_event SET booked_at_us = ? WHERE id IN ({}) AND booked_at_us IS NULL"
MARK_EVENTS: Final = Many(MARK_BOOKED, "?")
HOLD: Final = (
    "INSERT INTO held_key (seq, payment, since_us, error) SELECT seq, payment, ?, ? FROM payment_event WHERE seq = ?"
)
RELEASE: Final = "DELETE FROM held_key WHERE seq = ?"
AUDIT: Final = "INSERT INTO audit (at_us, actor, action, target, reason, detail) VALUES (?, ?, ?, ?, ?, ?)"
PROBE: Final = "UPDATE probe SET count = count + 1"

# ------------------------------------------------------------------ retention, from the head, a bounded look at a time
OLD_ANSWERS: Final = (
    "SELECT seq, scope FROM (SELECT seq, scope, at_us FROM answer ORDER BY seq LIMIT ?) WHERE at_us < ?"
)
DELETE_ANSWER: Final = "DELETE FROM answer WHERE seq = ?"
DELETE_KEY: Final = "DELETE FROM idempotency WHERE scope = ? AND seq = ?"
PAYLOADS: Final = (
    "SELECT seq, state, published_at_us FROM (SELECT seq FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?) "
    "CROSS JOIN payment_event USING (seq)"
)
DELETE_PAYLOAD: Final = "DELETE FROM outbox WHERE seq = ?"

# ------------------------------------------------------------------ read
_NOT_HELD: Final = "NOT EXISTS (SELECT 1 FROM held_key WHERE held_key.payment = event.payment)"
PENDING: Final = (
    "SELECT event.seq, event.id, event.payment, event.type, event.at_us, outbox.traceparent, outbox.payload "
    "FROM payment_event AS event INDEXED BY event_pending CROSS JOIN outbox ON outbox.seq = event.seq "
    f"WHERE event.state = 0 AND event.seq > ? AND {_NOT_HELD} ORDER BY event.seq LIMIT ?"
)
COUNT_PENDING: Final = "SELECT count(*) FROM payment_event INDEXED BY event_pending WHERE state = 0"
OLDEST_PENDING: Final = (
    "SELECT event.at_us FROM payment_event AS event INDEXED BY event_pending "
    f"WHERE event.state = 0 AND {_NOT_HELD} ORDER BY event.seq LIMIT 1"
)
COUNT_HELD: Final = "SELECT count(*), count(DISTINCT payment) FROM held_key"
UNBOOKED_BYTES: Final = (
    "SELECT partition, sum(payload_bytes) FROM payment_event INDEXED BY event_unbooked "
    "WHERE state = 1 AND booked_at_us IS NULL AND broker = (SELECT id FROM broker WHERE name = ?) GROUP BY partition"
)
TIMELINE: Final = (
    'SELECT id, type, version, at_us, amount, state, partition, "offset", published_at_us, booked_at_us '
    "FROM payment_event WHERE payment = ? ORDER BY version"
)
_PAGE: Final = (
    "status = ? AND created_at_us >= ? AND (created_at_us, id) < (?, ?) ORDER BY created_at_us DESC, id DESC LIMIT ?"
)
PAGE_OF_MERCHANT: Final = (
    f"SELECT created_at_us, id FROM payment INDEXED BY payment_by_merchant WHERE merchant_id = ? AND {_PAGE}"
)
PAGE: Final = f"SELECT created_at_us, id FROM payment INDEXED BY payment_by_status WHERE {_PAGE}"

# ------------------------------------------------------------------ values
TYPE_CODES: Final = {EventType.AUTHORIZED: 1, EventType.CAPTURED: 2, EventType.REFUNDED: 3, EventType.VOIDED: 4}
TYPES: Final = {code: event_type for event_type, code in TYPE_CODES.items()}
STATE_WORDS: Final = {int(state): state.name.lower() for state in RowState}

# Lists of parameters come in these lengths, filled up with their last member: few statements, all of them kept
# prepared.
_LIST_LENGTHS: Final = (1, 4, 16, 64, 256)

_decode_metadata: Final = msgspec.json.Decoder(dict[str, str]).decode
_encode_metadata: Final = msgspec.json.Encoder().encode


def lists(values: Iterable[Any]) -> Iterator[list[Any]]:
    """`values` in lists of a length from _LIST_LENGTHS."""
    members = list(values)
    longest = _LIST_LENGTHS[-1]
    for start in range(0, len(members), longest):
        part = members[start : start + longest]
        length = next(length for length in _LIST_LENGTHS if length >= len(part))
        yield part + part[-1:] * (length - len(part))


def payment_row(payment: Payment) -> tuple[Any, ...]:
    """The columns of `payment`, in the order of INSERT_PAYMENT."""
    return (
        payment.id,
        payment.merchant_id,
        payment.order_id,
        payment.amount,
        payment.currency,
        payment.status.value,  # the driver is quick with plain types only
        payment.captured_amount,
        payment.refunded_amount,
        payment.description,
        _encode_metadata(payment.metadata).decode() if payment.metadata else "{}",
        payment.created_at_us,
        payment.updated_at_us,
        payment.version,
    )


def payment_of(row: Sequence[Any]) -> Payment:
    """The payment that the columns of PAYMENTS hold."""
    (
        payment_id,
        merchant_id,
        order_id,
        amount,
        currency,
        status,
        captured,
        refunded,
        description,
        metadata,
        created,
        updated,
        version,
    ) = row
    return Payment(
        payment_id,
        merchant_id,
        order_id,
        amount,
        currency,
        Status(status),
        captured,
        refunded,
        description,
        {} if metadata == "{}" else _decode_metadata(metadata),
        created,
        updated,
        version,
    )

"""The SQL of the ledger: its tables and every statement that `sqlite_ledger` runs.

`inbox` is what was applied, for ever: it makes a second delivery harmless whatever happens to Kafka. `entry` and
`posting` are the books and are only ever added to. These three are clustered by payment, whose ids ascend with time, so
that new rows go to the end of each tree. `account` keeps the sums of the postings: nobody has to add them up.
"""

from __future__ import annotations

from typing import Final

from payflow.adapters.sqlite_rows import insert_many

APPLICATION_ID: Final = 0x50464C47  # "PFLG"

_TABLES: Final = """
CREATE TABLE inbox (
  payment_id BLOB NOT NULL CHECK (length(payment_id) = 16),
  version INTEGER NOT NULL CHECK (version >= 1),
  event_id BLOB NOT NULL UNIQUE CHECK (length(event_id) = 16),
  type TEXT NOT NULL,
  at_us INTEGER NOT NULL,
  amount INTEGER NOT NULL CHECK (amount >= 0),
  currency TEXT NOT NULL,
  merchant_id TEXT NOT NULL,
  booked_at_us INTEGER NOT NULL,
  PRIMARY KEY (payment_id, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE account (
  id INTEGER PRIMARY KEY,
  account TEXT NOT NULL,
  currency TEXT NOT NULL,
  debit INTEGER NOT NULL CHECK (debit >= 0),
  credit INTEGER NOT NULL CHECK (credit >= 0),
  UNIQUE (account, currency)
) STRICT;

CREATE TABLE entry (
  payment_id BLOB NOT NULL,
  version INTEGER NOT NULL,
  event_id BLOB NOT NULL UNIQUE,
  at_us INTEGER NOT NULL,
  PRIMARY KEY (payment_id, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE posting (
  payment_id BLOB NOT NULL,
  version INTEGER NOT NULL,
  line INTEGER NOT NULL,
  account_id INTEGER NOT NULL REFERENCES account,
  side TEXT NOT NULL CHECK (side IN ('debit', 'credit')),
  amount INTEGER NOT NULL CHECK (amount >= 1),
  PRIMARY KEY (payment_id, version, line),
  FOREIGN KEY (payment_id, version) REFERENCES entry
) STRICT, WITHOUT ROWID;

CREATE TABLE held_event (
  payment_id BLOB NOT NULL CHECK (length(payment_id) = 16),
  version INTEGER NOT NULL CHECK (version >= 1),
  event_id BLOB NOT NULL UNIQUE CHECK (length(event_id) = 16),
  type TEXT NOT NULL,
  at_us INTEGER NOT NULL,
  amount INTEGER NOT NULL CHECK (amount >= 0),
  currency TEXT NOT NULL,
  merchant_id TEXT NOT NULL,
  partition INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  raw BLOB NOT NULL,
  held_at_us INTEGER NOT NULL,
  PRIMARY KEY (payment_id, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX held_event_age ON held_event (held_at_us);

CREATE TABLE position (
  source_id TEXT NOT NULL,
  topic TEXT NOT NULL,
  partition INTEGER NOT NULL,
  next_offset INTEGER NOT NULL CHECK (next_offset >= 0),
  PRIMARY KEY (source_id, topic, partition)
) STRICT, WITHOUT ROWID;
"""
MIGRATIONS: Final = (_TABLES,)

# ------------------------------------------------------------------ loading; `{keys}` stands for a list of placeholders
HEADS: Final = """
SELECT event_id, payment_id, version, type, at_us, amount, currency, merchant_id
FROM (VALUES {keys}) AS wanted CROSS JOIN inbox ON payment_id = wanted.column1
AND version = (SELECT max(version) FROM inbox WHERE payment_id = wanted.column1)
"""
APPLIED: Final = """
SELECT event_id, payment_id, version, type, at_us, amount, currency, merchant_id
FROM inbox WHERE event_id IN ({keys})
"""
ANY_HELD: Final = "SELECT EXISTS (SELECT 1 FROM held_event)"
HELD_OF_PAYMENT: Final = """
SELECT partition, offset, raw, event_id, payment_id, version, type, at_us, amount, currency, merchant_id
FROM held_event WHERE payment_id IN ({keys})
"""
HELD_BY_ID: Final = """
SELECT partition, offset, raw, event_id, payment_id, version, type, at_us, amount, currency, merchant_id
FROM held_event WHERE event_id IN ({keys})
"""
ACCOUNT: Final = "SELECT debit, credit FROM account WHERE account = ? AND currency = ?"

# ------------------------------------------------------------------ writing
ADD_APPLIED: Final = insert_many(
    "inbox", "event_id, payment_id, version, type, at_us, amount, currency, merchant_id, booked_at_us"
)
ADD_ENTRY: Final = insert_many("entry", "payment_id, version, event_id, at_us")
SET_ACCOUNT: Final = """
INSERT INTO account (account, currency, debit, credit) VALUES (?, ?, ?, ?)
ON CONFLICT (account, currency) DO UPDATE SET debit = excluded.debit, credit = excluded.credit RETURNING id
"""
ADD_POSTING: Final = insert_many("posting", "payment_id, version, line, account_id, side, amount")
RELEASE: Final = "DELETE FROM held_event WHERE payment_id = ? AND version = ?"
HOLD: Final = """
INSERT INTO held_event
(partition, offset, raw, event_id, payment_id, version, type, at_us, amount, currency, merchant_id, held_at_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SET_POSITION: Final = """
INSERT INTO position (source_id, topic, partition, next_offset) VALUES (?, ?, ?, ?)
ON CONFLICT (source_id, topic, partition) DO UPDATE SET next_offset = excluded.next_offset
"""

# ------------------------------------------------------------------ reading
POSITIONS: Final = "SELECT partition, next_offset FROM position WHERE source_id = ? AND topic = ?"
ENTRIES: Final = """
SELECT e.event_id, e.at_us, a.account, p.side, p.amount, a.currency
FROM entry e
JOIN posting p ON p.payment_id = e.payment_id AND p.version = e.version
JOIN account a ON a.id = p.account_id
WHERE e.payment_id = ? ORDER BY p.payment_id, p.version, p.line
"""
ACCOUNTS: Final = """
SELECT account, currency, debit, credit FROM account WHERE (account, currency) > (?, ?)
ORDER BY account, currency LIMIT ?
"""
ALL_ACCOUNTS: Final = "SELECT id, account, currency, debit, credit FROM account"
HELD: Final = "SELECT count(*), min(held_at_us) FROM held_event"
# A sum in two halves of 32 bit: sum() of SQLite fails beyond 63 bit, which the sums of a currency may pass.
AUDIT_SLICE: Final = """
WITH slice AS (
  SELECT account_id, side, amount FROM posting WHERE (payment_id, version, line) > (?1, ?2, ?3)
  ORDER BY payment_id, version, line LIMIT ?4
)
SELECT account_id, side, sum(amount >> 32), sum(amount & 0xffffffff) FROM slice GROUP BY account_id, side
"""
AUDIT_NEXT: Final = """
SELECT payment_id, version, line FROM posting WHERE (payment_id, version, line) > (?1, ?2, ?3)
ORDER BY payment_id, version, line LIMIT 1 OFFSET ?4 - 1
"""

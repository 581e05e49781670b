"""How SQLite answers the outbox's questions: through an index that fits, whatever the size of the tables."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from payflow.adapters import sqlite_outbox_sql as sql
from payflow.adapters.sqlite_outbox import SqliteOutboxReader, SqliteOutboxStore
from payflow.core.outbox import Submit
from payflow.core.payment import Void
from payflow.errors import StoreRejected
from tests.support.payment_writes import AT_US, CountingIds, accepted, authorize, submit


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(sql.MIGRATIONS[0])
        yield connection


def _plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    parameters = (None,) * statement.count("?")
    return [detail for *_, detail in connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]


@pytest.mark.parametrize(
    ("statement", "plan"),
    [
        (sql.PENDING, ["event USING INDEX event_pending (state=? AND seq>?)", "outbox USING INTEGER PRIMARY KEY"]),
        (sql.COUNT_PENDING, ["payment_event USING COVERING INDEX event_pending (state=?)"]),
        (
            sql.OLDEST_PENDING,
            ["event USING INDEX event_pending (state=?)", "held_key USING COVERING INDEX held_key_by_payment"],
        ),
        (sql.UNBOOKED_BYTES, ["payment_event USING COVERING INDEX event_unbooked (broker=?)"]),
        (sql.UNPUBLISH, ["payment_event USING INDEX event_unbooked (broker=?)"]),
        (
            sql.MARK_PUBLISHED.format("(?, ?, ?), (?, ?, ?)"),
            ["payment_event USING COVERING INDEX event_pending (state=? AND seq=? AND rowid=?)"],
        ),
        (sql.MARK_BOOKED.format("?, ?"), ["payment_event USING INDEX sqlite_autoindex_payment_event_1 (id=?)"]),
        (sql.PARK, ["payment_event USING INTEGER PRIMARY KEY (rowid=?)"]),
        (sql.REQUEUE, ["payment_event USING INTEGER PRIMARY KEY (rowid=?)"]),
        (sql.PAYMENTS.format("?, ?"), ["payment USING PRIMARY KEY (id=?)"]),
        (sql.ORDERS.format("(?, ?), (?, ?)"), ["payment USING INDEX payment_by_order (merchant_id=? AND order_id=?)"]),
        (sql.KEYS.format("?, ?"), ["key USING PRIMARY KEY (scope=?)", "answer USING INTEGER PRIMARY KEY (rowid=?)"]),
        (sql.TIMELINE, ["payment_event USING INDEX sqlite_autoindex_payment_event_2 (payment=?)"]),
        (sql.PAGE, ["payment USING COVERING INDEX payment_by_status (status=? AND "]),
        (sql.PAGE_OF_MERCHANT, ["payment USING COVERING INDEX payment_by_merchant (merchant_id=? AND status=? AND "]),
        (sql.PAYLOADS, ["outbox USING INTEGER PRIMARY KEY (rowid>?)", "payment_event USING INTEGER PRIMARY KEY"]),
        (sql.DELETE_KEY, ["idempotency USING PRIMARY KEY (scope=?)"]),
        (sql.LAST_SEQ, ["SEARCH payment_event"]),
    ],
)
def test_questions_are_answered_through_their_index(
    connection: sqlite3.Connection, statement: str, plan: list[str]
) -> None:
    steps = _plan(connection, statement)

    assert all(any(expected in step for step in steps) for expected in plan), steps
    assert not [step for step in steps if "TEMP B-TREE" in step and "GROUP BY" not in step]


def test_no_question_reads_a_whole_table(connection: sqlite3.Connection) -> None:
    """Scans of a partial index (what is pending) and of a bounded head (retention) are all there is."""
    statements = {name: text for name, text in vars(sql).items() if isinstance(text, str) and name.isupper()}
    bounded = {"OLD_ANSWERS", "PAYLOADS", "COUNT_HELD", "PROBE", "OTHER_BROKERS"}

    for name in ("PAYMENTS", "KEYS", "MARK_BOOKED"):
        statements[name] = statements[name].format("?")
    statements["ORDERS"] = statements["ORDERS"].format("(?, ?)")
    statements["MARK_PUBLISHED"] = statements["MARK_PUBLISHED"].format("(?, ?, ?)")
    scans = {
        (name, step)
        for name, text in statements.items()
        if name not in bounded and text.startswith(("SELECT", "UPDATE", "DELETE"))
        for step in _plan(connection, text)
        if step.startswith("SCAN") and "INDEX event_pending" not in step
    }

    given = {("ORDERS", "SCAN wanted"), ("MARK_PUBLISHED", "SCAN mark")}  # the rows that the statement brings along
    assert given | {(name, "SCAN CONSTANT ROW") for name, _ in given} >= scans


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteOutboxStore]:
    store = SqliteOutboxStore(tmp_path / "payments.db", ids=CountingIds())
    await store.open()
    yield store
    await store.close()


async def test_one_write_that_cannot_be_stored_rejects_the_group_and_writes_nothing(
    tmp_path: Path, store: SqliteOutboxStore
) -> None:
    good = [submit(authorize(n)) for n in range(1, 100)]
    bad = submit(authorize(5, description="\ud800"))

    with pytest.raises(StoreRejected):
        await store.commit([*good, bad], at_us=AT_US)

    reader = SqliteOutboxReader(tmp_path / "payments.db")
    await reader.open()
    assert 0 == (await reader.backlog()).pending
    await reader.close()
    assert 99 == len([accepted(outcome) for outcome in await store.commit(good, at_us=AT_US)])


async def test_an_id_that_was_given_before_rejects_the_group(tmp_path: Path) -> None:
    """The second store draws the ids of the first again; the index refuses, also inside a statement of many rows."""
    for _ in range(2):
        store = SqliteOutboxStore(tmp_path / "payments.db", ids=CountingIds())
        await store.open()
        writes: list[Submit] = [submit(authorize(n)) for n in range(1, 100)]
        if _ == 0:
            await store.commit(writes, at_us=AT_US)
        else:
            with pytest.raises(StoreRejected):
                await store.commit(writes, at_us=AT_US)
            await store.commit([submit(Void(b"?" * 16))], at_us=AT_US)
        await store.close()


async def test_answers_and_rows_survive_a_restart(tmp_path: Path) -> None:
    request = submit(authorize(), key="k")
    ids = CountingIds()
    first, second = (SqliteOutboxStore(tmp_path / "payments.db", ids=ids) for _ in range(2))
    await first.open()
    (before,) = await first.commit([request], at_us=AT_US)
    await first.close()

    await second.open()
    (after,) = await second.commit([request], at_us=AT_US + 1)
    await second.close()

    assert accepted(before).answer == accepted(after).answer
    assert accepted(after).replayed

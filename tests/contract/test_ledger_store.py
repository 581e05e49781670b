"""`ports.Ledger` and `ports.LedgerReader`: one suite for the fake and for the file; below it what only a file has."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from payflow.adapters import sqlite_ledger_sql as sql
from payflow.adapters.sqlite_ledger import SqliteLedger, SqliteLedgerReader
from payflow.core.ledger import (
    MAX_INTEGER,
    AccountBalance,
    Booking,
    CurrencyBalance,
    Delivery,
    LedgerEvent,
    Reason,
    entry_of,
)
from payflow.core.payment import EventType
from payflow.errors import StoreBusy, StoreOutcomeUnknown, StoreRejected, StoreUnavailable
from payflow.ports import Ledger, LedgerReader
from tests.fakes.ledger_memory import LedgerMemory
from tests.support.ledger_events import deliveries, event, id_of

SOURCE, TOPIC, AT_US = "cluster-a", "payment.events", 1_764_000_000_000_000


class Store:
    """A ledger with its reader, and the two things that tests do to it from outside: reopen it, read positions."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        memory = LedgerMemory()
        self.memory = memory
        self.ledger: Ledger = memory if path is None else SqliteLedger(path)
        self.reader: LedgerReader = memory if path is None else SqliteLedgerReader(path)

    async def open(self) -> None:
        await self.ledger.open()
        await self.reader.open()

    async def close(self) -> None:
        await self.reader.close()
        await self.ledger.close()

    async def reopen(self) -> None:
        await self.close()
        if self.path is not None:
            self.ledger, self.reader = SqliteLedger(self.path), SqliteLedgerReader(self.path)
        await self.open()

    async def book(
        self, batch: Sequence[Delivery], *, positions: dict[int, int] | None = None, at_us: int = AT_US
    ) -> Booking:
        positions = {0: len(batch)} if positions is None else positions
        return await self.ledger.book(batch, source_id=SOURCE, topic=TOPIC, positions=positions, at_us=at_us)

    async def book_events(self, *events: LedgerEvent) -> Booking:
        return await self.book(deliveries(events))

    async def everything(self) -> object:
        """All that can be seen from outside."""
        return (
            await self.reader.accounts(after=None, limit=100),
            await self.reader.trial_balance(),
            await self.ledger.audit(),
            await self.reader.held(),
            await self.ledger.positions(SOURCE, TOPIC),
            [await self.reader.entries(id_of(payment)) for payment in ("p1", "p2")],
        )


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(None if request.param == "memory" else tmp_path / "ledger.db")
    await store.open()
    yield store
    await store.close()


# ---------------------------------------------------------------- empty
async def test_a_new_ledger_is_empty(store: Store) -> None:
    assert await store.ledger.positions(SOURCE, TOPIC) == {}
    assert await store.ledger.audit() == await store.reader.trial_balance() == []
    assert await store.reader.accounts(after=None, limit=10) == []
    assert await store.reader.entries(id_of("p1")) == []
    assert await store.reader.held() == (0, None)


async def test_booking_nothing_changes_nothing(store: Store) -> None:
    booking = await store.book([], positions={})

    assert booking == Booking(booked=(), entries=0, duplicates=0, held=0, refused=())
    assert await store.ledger.positions(SOURCE, TOPIC) == {}


# ---------------------------------------------------------------- booking
async def test_a_payment_is_booked_with_balanced_entries(store: Store) -> None:
    refund = event(version=3, kind=EventType.REFUNDED, amount=200)

    booking = await store.book_events(event(version=1), event(version=2, amount=600), refund)

    assert booking.booked == (id_of("p1-v1"), id_of("p1-v2"), id_of("p1-v3"))
    assert booking.entries == 2
    assert await store.reader.entries(id_of("p1")) == [entry_of(event(version=2, amount=600)), entry_of(refund)]
    assert await store.reader.accounts(after=None, limit=10) == [
        AccountBalance("cash", "EUR", 600, 200),
        AccountBalance("merchant_payable:shop", "EUR", 200, 600),
    ]


async def test_batches_go_on_where_the_last_one_ended(store: Store) -> None:
    for version in range(1, 5):
        await store.book_events(event(version=version))
        await store.reopen()

    assert len(await store.reader.entries(id_of("p1"))) == 3
    assert await store.reader.trial_balance() == [CurrencyBalance("EUR", 3000, 3000)]


async def test_each_currency_is_balanced_for_itself(store: Store) -> None:
    for payment, currency, amount in (("p1", "USD", 5), ("p2", "EUR", 7), ("p3", "USD", 11)):
        await store.book_events(
            event(payment, 1, currency=currency), event(payment, 2, currency=currency, amount=amount)
        )

    expected = [CurrencyBalance("EUR", 7, 7), CurrencyBalance("USD", 16, 16)]

    assert await store.reader.trial_balance() == expected
    assert await store.ledger.audit() == expected


async def test_a_currency_may_pass_63_bit_although_no_account_may(store: Store) -> None:
    """A sum over accounts is no account: it has to be exact, not to fit a column."""
    await store.book_events(
        event("p1", 1), event("p1", 2, amount=MAX_INTEGER), event("p1", 3, kind=EventType.REFUNDED, amount=MAX_INTEGER)
    )

    assert await store.reader.trial_balance() == [CurrencyBalance("EUR", 2 * MAX_INTEGER, 2 * MAX_INTEGER)]
    assert await store.ledger.audit() == await store.reader.trial_balance()


async def test_accounts_come_in_pages_ordered_by_name_and_currency(store: Store) -> None:
    for payment, currency, merchant in (("p1", "USD", "b"), ("p2", "EUR", "a"), ("p3", "EUR", "b")):
        steps = [event(payment, version, currency=currency, merchant=merchant) for version in (1, 2)]
        await store.book_events(*steps)

    pages, after = [], None
    while page := await store.reader.accounts(after=after, limit=2):
        pages.append([(balance.account, balance.currency) for balance in page])
        after = pages[-1][-1]

    assert pages == [
        [("cash", "EUR"), ("cash", "USD")],
        [("merchant_payable:a", "EUR"), ("merchant_payable:b", "EUR")],
        [("merchant_payable:b", "USD")],
    ]


# ---------------------------------------------------------------- F52, F59, F62: delivered again
async def test_a_batch_that_is_delivered_again_is_acknowledged_again_and_changes_nothing(store: Store) -> None:
    batch = deliveries([event(version=1), event(version=2)])
    first = await store.book(batch)
    before = await store.everything()

    again = await store.book(batch)

    assert again == Booking(booked=first.booked, entries=0, duplicates=2, held=0, refused=())
    assert await store.everything() == before


async def test_reading_the_whole_topic_again_changes_nothing_for_ever(store: Store) -> None:
    steps = [event(payment, version) for version in (1, 2, 3) for payment in ("p1", "p2")]
    topic = deliveries([*steps, event("p1", 5), event("p2", 2)])
    await store.book(topic)
    before = await store.everything()

    for years_later_us in (1, 10**14):
        await store.reopen()
        await store.book(topic, at_us=AT_US + years_later_us)

    assert await store.everything() == before


# ---------------------------------------------------------------- F60: too early
async def test_an_early_event_is_held_with_its_time_until_its_predecessor_comes(store: Store) -> None:
    await store.book(deliveries([event(version=1), event(version=3)]), at_us=AT_US)
    await store.book(deliveries([event(version=4)], first_offset=2), positions={0: 3}, at_us=AT_US + 5)
    held = await store.reader.held()
    await store.reopen()

    booking = await store.book(deliveries([event(version=2)], first_offset=3), positions={0: 4}, at_us=AT_US + 9)

    assert held == (2, AT_US)
    assert booking.booked == (id_of("p1-v2"), id_of("p1-v3"), id_of("p1-v4"))
    assert booking.entries == 3
    assert await store.reader.held() == (0, None)
    assert [entry.event_id for entry in await store.reader.entries(id_of("p1"))] == list(booking.booked)


async def test_the_position_passes_a_held_event(store: Store) -> None:
    booking = await store.book_events(event(version=3))

    assert (booking.booked, booking.held) == ((), 1)
    assert await store.ledger.positions(SOURCE, TOPIC) == {0: 1}


async def test_the_twin_of_a_held_event_is_a_duplicate_and_keeps_its_time(store: Store) -> None:
    await store.book(deliveries([event(version=3)]), at_us=AT_US)

    booking = await store.book(deliveries([event(version=3)]), at_us=AT_US + 5)

    assert booking == Booking(booked=(), entries=0, duplicates=1, held=0, refused=())
    assert await store.reader.held() == (1, AT_US)


async def test_a_held_event_keeps_its_place_and_its_raw_value(store: Store) -> None:
    """It is named when its turn comes and it contradicts its payment."""
    stranger = deliveries([event(version=2, merchant="other")], partition=3, first_offset=7)
    await store.book(stranger, positions={3: 8})
    await store.reopen()

    booking = await store.book_events(event(version=1))

    assert [(item.delivery, item.reason) for item in booking.blocked] == [(stranger[0], Reason.PAYMENT_CONTRADICTED)]
    assert await store.reader.held() == (1, AT_US)


async def test_an_event_id_that_is_held_for_another_payment_is_refused(store: Store) -> None:
    await store.book_events(event(version=3))

    booking = await store.book_events(event("p2", version=1, event_id=id_of("p1-v3")))

    assert [item.reason for item in booking.refused] == [Reason.EVENT_ID_REUSED]


# ---------------------------------------------------------------- F56, F57, F63: refused
async def test_hostile_events_are_refused_and_their_neighbours_booked(store: Store) -> None:
    hostile = [
        event("x1", 1, amount=2**63),
        event("x2", 1, merchant="shop\ud800"),
        event("x3", 1, currency="\x00\x00\x00"),
        event("x4", 2**63, event_id=b"x" * 16),
        event("x5", 1, event_id=b""),
        event("x6", 1, at_us=2**63),
    ]

    booking = await store.book_events(event("p1", 1), *hostile, event("p1", 2))

    assert [item.delivery.event for item in booking.refused] == hostile
    assert booking.booked == (id_of("p1-v1"), id_of("p1-v2"))
    assert await store.reader.trial_balance() == [CurrencyBalance("EUR", 1000, 1000)]


async def test_an_account_never_passes_63_bit(store: Store) -> None:
    await store.book_events(event(version=1), event(version=2, amount=MAX_INTEGER))

    booking = await store.book_events(event(version=3, amount=1))

    assert [item.reason for item in booking.refused] == [Reason.ACCOUNT_OVERFLOW]
    assert await store.ledger.audit() == [CurrencyBalance("EUR", MAX_INTEGER, MAX_INTEGER)]


async def test_the_stored_position_waits_at_a_refused_delivery_until_a_later_call_passes_it(store: Store) -> None:
    batch = deliveries([event("p1", 1), event("bad", 1, amount=-1), event("p2", 1)], first_offset=10)

    first = await store.book(batch, positions={0: 13})
    waiting = await store.ledger.positions(SOURCE, TOPIC)
    await store.reopen()
    again = await store.book(batch[1:], positions={0: 13})
    still_waiting = await store.ledger.positions(SOURCE, TOPIC)
    await store.book([], positions={0: 13})

    assert waiting == still_waiting == {0: 11}
    assert again.refused == first.refused
    assert again.booked == (id_of("p2-v1"),)
    assert await store.ledger.positions(SOURCE, TOPIC) == {0: 13}


async def test_positions_belong_to_a_source_a_topic_and_a_partition(store: Store) -> None:
    await store.book([], positions={0: 5, 1: 6})
    await store.ledger.book([], source_id="cluster-b", topic=TOPIC, positions={0: 1}, at_us=AT_US)
    await store.ledger.book([], source_id=SOURCE, topic="other", positions={0: 2}, at_us=AT_US)
    await store.book([], positions={1: 9})
    await store.reopen()

    assert await store.ledger.positions(SOURCE, TOPIC) == {0: 5, 1: 9}
    assert await store.ledger.positions("cluster-b", TOPIC) == {0: 1}
    assert await store.ledger.positions(SOURCE, "other") == {0: 2}
    assert await store.ledger.positions("nobody", TOPIC) == {}


async def test_close_is_idempotent(store: Store) -> None:
    await store.close()
    await store.close()


async def test_a_closed_ledger_can_be_opened_again(store: Store) -> None:
    """What a caller does after StoreOutcomeUnknown: the next batch tells whether the last one was written."""
    await store.book_events(event(version=1))

    await store.ledger.close()
    await store.ledger.open()

    assert (await store.book_events(event(version=1))).duplicates == 1


# ---------------------------------------------------------------- the fake alone
async def test_the_fake_fails_before_or_after_it_wrote(tmp_path: Path) -> None:
    store = Store(None)
    store.memory.failures.append(StoreBusy("busy"))
    store.memory.late_failures.append(StoreOutcomeUnknown("lost"))

    with pytest.raises(StoreBusy):
        await store.book_events(event(version=1))
    assert store.memory.applied == {}
    with pytest.raises(StoreOutcomeUnknown):
        await store.book_events(event(version=1))
    assert list(store.memory.applied) == [id_of("p1-v1")]


# ---------------------------------------------------------------- the file alone
@pytest.fixture
async def file_store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "ledger.db")
    await store.open()
    yield store
    await store.close()


def outside(store: Store, script: str) -> None:
    """Change the file behind the ledger's back."""
    assert store.path is not None
    with closing(sqlite3.connect(store.path)) as db:
        db.executescript(script)


@pytest.mark.parametrize(
    "crash_point",
    [
        "INSERT ON inbox",
        "INSERT ON entry",
        "INSERT ON account",
        "UPDATE ON account",
        "INSERT ON posting",
        "DELETE ON held_event",
        "INSERT ON held_event",
        "INSERT ON position",
        "UPDATE ON position",
    ],
)
async def test_a_failure_between_any_two_statements_leaves_nothing(file_store: Store, crash_point: str) -> None:
    """A trigger fails the statement after it touched a row; once it is gone the same batch goes through."""
    await file_store.book_events(event("p0", 1), event("p0", 2), event("p1", 1), event("p1", 3))
    before = await file_store.everything()
    new = [event("p2", version, merchant="new") for version in (1, 2, 4)]
    batch = deliveries([event("p1", 2), *new], partition=1)
    outside(file_store, f"CREATE TRIGGER crash AFTER {crash_point} BEGIN SELECT RAISE(ABORT, 'crash point'); END")

    with pytest.raises(StoreRejected, match="crash point"):
        await file_store.book(batch, positions={0: 5, 1: 4})

    assert await file_store.everything() == before
    outside(file_store, "DROP TRIGGER crash")
    booking = await file_store.book(batch, positions={0: 5, 1: 4})
    assert booking.booked == tuple(map(id_of, ("p1-v2", "p1-v3", "p2-v1", "p2-v2")))
    assert [balance.imbalance for balance in await file_store.ledger.audit()] == [0]
    assert await file_store.ledger.positions(SOURCE, TOPIC) == {0: 5, 1: 4}


async def test_a_ledger_locked_from_outside_is_busy_and_wrote_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.db")
    store.ledger = SqliteLedger(tmp_path / "ledger.db", busy_timeout_s=0.0)
    await store.open()

    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy):
            await store.book_events(event(version=1))
        db.execute("ROLLBACK")
    booking = await store.book_events(event(version=1))

    assert booking.duplicates == 0
    await store.close()


async def test_a_closed_ledger_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await Store(tmp_path / "ledger.db").book([])


@pytest.mark.parametrize(
    ("tampering", "drift"),
    [
        ("UPDATE account SET debit = debit + 5 WHERE account = 'cash'", 5),
        ("UPDATE posting SET amount = amount + 3", 6),
        ("DELETE FROM posting WHERE side = 'credit'", 1000),
        ("UPDATE account SET debit = debit + 5; UPDATE account SET credit = credit + 5", 20),
    ],
)
async def test_the_audit_finds_what_was_changed_behind_the_ledgers_back(
    file_store: Store, tampering: str, drift: int
) -> None:
    await file_store.book_events(event(version=1), event(version=2))
    outside(file_store, tampering)

    (balance,) = await file_store.ledger.audit()

    assert balance.drift == drift
    assert balance.imbalance >= drift


async def test_the_audit_adds_up_slice_by_slice(file_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of every size end at the last row, none twice: a slice may cut an entry in two."""
    await file_store.book_events(*(event(payment, version) for payment in ("p1", "p2") for version in (1, 2, 3)))

    for rows in range(1, 10):
        monkeypatch.setattr("payflow.adapters.sqlite_ledger._AUDIT_SLICE_ROWS", rows)
        assert await file_store.ledger.audit() == [CurrencyBalance("EUR", 4000, 4000)]


async def test_a_batch_of_any_size_is_one_transaction(file_store: Store) -> None:
    for size in (1, 2, 3, 511, 512, 513):
        events = [event(f"n{size}-{number}", 1) for number in range(size)]

        assert (await file_store.book_events(*events)).booked == tuple(each.event_id for each in events)


STATEMENTS = {
    name: text
    for name, text in vars(sql).items()
    if isinstance(text, str) and text.lstrip().startswith(("SELECT", "INSERT", "DELETE", "WITH"))
}
READS_EVERYTHING = {"ALL_ACCOUNTS", "HELD", "ANY_HELD"}


@pytest.mark.parametrize("name", sorted(STATEMENTS.keys() - READS_EVERYTHING))
async def test_no_statement_of_booking_and_reading_scans_a_table(file_store: Store, name: str) -> None:
    """Where a table is read from its beginning the plan says SCAN; the slice of an audit is a scan of what it holds."""
    assert file_store.path is not None
    with closing(sqlite3.connect(file_store.path)) as db:
        text = STATEMENTS[name]
        text = text.format(keys="(?), (?), (?)" if "VALUES {keys}" in text else "?, ?, ?")
        steps = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {text}", _blanks(text))]

    given = ("slice", "wanted", "CONSTANT ROWS")  # a bounded part, or what the statement brings along
    assert [step for step in steps if step.startswith("SCAN") and not any(word in step for word in given)] == []
    if not name.startswith("AUDIT"):
        assert [step for step in steps if "TEMP B-TREE" in step] == []


def _blanks(text: str) -> list[None]:
    return [None] * (4 if "?4" in text else text.count("?"))

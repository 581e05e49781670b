"""The ledger against its model: the in-order stream of valid events, booked once.

Model: a log of partitions that a consumer reads from its stored position. It may crash and read again, find an event
twice or too early, and meet poison, which it dead-letters before its position passes it. Whatever happens, the books
end where the in-order stream ends.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from payflow.adapters.sqlite_ledger import SqliteLedger, SqliteLedgerReader
from payflow.core.ledger import Booking, Delivery, LedgerEvent, postings
from payflow.core.payment import EventType
from payflow.ports import Ledger, LedgerReader
from tests.fakes.ledger_memory import LedgerMemory
from tests.support.ledger_events import deliveries, event, id_of

PARTITIONS = 2
PAYMENTS = tuple(f"p{number}" for number in range(4))


@st.composite
def valid_streams(draw: st.DrawFn) -> list[LedgerEvent]:
    """Some payments from their authorization on, one payment after the other."""
    stream: list[LedgerEvent] = []
    for payment in PAYMENTS:
        currency = draw(st.sampled_from(["EUR", "USD"]))
        merchant = draw(st.sampled_from(["shop", "other"]))
        captures = draw(st.lists(st.integers(1, 10**15), max_size=3))
        refunds = draw(st.lists(st.sampled_from(captures), max_size=2)) if captures else []
        kinds = [(EventType.AUTHORIZED, 10**15)]
        kinds += [(EventType.CAPTURED, amount) for amount in captures]
        kinds += [(EventType.REFUNDED, amount) for amount in refunds] or [(EventType.VOIDED, 0)]
        stream += [
            event(payment, version, kind, amount=amount, currency=currency, merchant=merchant)
            for version, (kind, amount) in enumerate(kinds, 1)
        ]
    return stream


@st.composite
def disturbed(draw: st.DrawFn) -> tuple[list[LedgerEvent], list[LedgerEvent]]:
    """A valid stream, and the same events in any order, with copies."""
    stream = draw(valid_streams())
    copies = draw(st.lists(st.sampled_from(stream), max_size=6))
    return stream, draw(st.permutations(stream + copies))


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[LedgerEvent], list[list[Delivery]]]:
    """A valid stream, and partitions with its events (any order, copies) and poison among them."""
    stream, given_order = draw(disturbed())
    partitions: list[list[LedgerEvent]] = [[] for _ in range(PARTITIONS)]
    for step in given_order:
        partition = partitions[step.payment_id[-1] % PARTITIONS]
        partition.append(step)
        match draw(st.sampled_from(["", "", "", "flawed", "twin", "reused"])):
            case "flawed":
                partition.append(replace(step, amount=-1))
            case "twin":
                partition.append(replace(step, event_id=id_of(f"twin{len(partition)}"), currency="XXX", amount=0))
            case "reused":
                partition.append(replace(step, at_us=step.at_us + 1))
            case _:
                pass
    return stream, [deliveries(events, partition=number) for number, events in enumerate(partitions)]


async def book(ledger: Ledger, batch: list[Delivery], positions: dict[int, int] | None = None) -> Booking:
    return await ledger.book(batch, source_id="s", topic="t", positions=positions or {}, at_us=0)


async def assert_balanced(ledger: LedgerMemory) -> None:
    balances = await ledger.audit()
    assert balances == await ledger.trial_balance()
    assert all(balance.imbalance == 0 for balance in balances)


async def picture(ledger: Ledger, reader: LedgerReader) -> object:
    """What the books say, without the order in which payments were booked."""
    return (
        await reader.accounts(after=None, limit=100),
        await reader.trial_balance(),
        await ledger.audit(),
        [await reader.entries(id_of(payment)) for payment in PAYMENTS],
        await reader.held(),
    )


async def booked_in_order(stream: list[LedgerEvent]) -> object:
    ledger = LedgerMemory()
    booking = await book(ledger, deliveries(stream))
    assert booking.booked == tuple(step.event_id for step in stream)
    return await picture(ledger, ledger)


@settings(deadline=None)
@given(disturbed(), st.data())
async def test_any_order_duplication_and_batching_ends_in_the_same_books(
    streams: tuple[list[LedgerEvent], list[LedgerEvent]], data: st.DataObject
) -> None:
    stream, given_order = streams
    ledger, left, entries, acknowledged = LedgerMemory(), deliveries(given_order), 0, Counter[bytes]()

    while left:
        size = data.draw(st.integers(1, len(left)), label="batch size")
        batch, left = left[:size], left[size:]
        booking = await book(ledger, batch)
        assert booking.refused == booking.blocked == ()
        await assert_balanced(ledger)
        entries += booking.entries
        acknowledged.update(booking.booked)

    assert await picture(ledger, ledger) == await booked_in_order(stream)
    assert acknowledged.keys() == {step.event_id for step in stream}
    assert entries == sum(bool(postings(step)) for step in stream)


@settings(deadline=None)
@given(disturbed())
async def test_the_number_of_duplicates_held_and_booked_adds_up(
    streams: tuple[list[LedgerEvent], list[LedgerEvent]],
) -> None:
    stream, given_order = streams
    ledger, duplicates = LedgerMemory(), 0

    for delivery in deliveries(given_order):
        booking = await book(ledger, [delivery])
        duplicates += booking.duplicates
        assert booking.duplicates + booking.held + bool(booking.booked and not booking.duplicates) == 1

    assert duplicates == len(given_order) - len(stream)


@settings(deadline=None)
@given(logs(), st.data())
async def test_crashes_and_poison_change_nothing_and_no_position_passes_an_unanswered_refusal(
    log: tuple[list[LedgerEvent], list[list[Delivery]]], data: st.DataObject
) -> None:
    """The consumer, with a crash possible before and after each dead letter."""
    stream, partitions = log
    poison = [delivery for part in partitions for delivery in part if delivery.event not in stream]
    poisoned = {(delivery.partition, delivery.offset) for delivery in poison}
    ledger, dead_letters, crashes_left = LedgerMemory(), set[tuple[int, int]](), 6
    reasons: dict[tuple[int, int], str] = {}
    stored: dict[int, int] = {}

    while any(stored.get(number, 0) < len(part) for number, part in enumerate(partitions)):
        batch: list[Delivery] = []
        for number, part in enumerate(partitions):
            size = data.draw(st.integers(0 if batch else 1, 5), label="records")
            batch += part[stored.get(number, 0) :][:size]
        positions = {delivery.partition: delivery.offset + 1 for delivery in batch}

        booking = await book(ledger, batch, positions)

        await assert_balanced(ledger)
        stored = dict(await ledger.positions("s", "t"))
        for place in poisoned - dead_letters:
            assert stored.get(place[0], 0) <= place[1], "the position passed a refused record without a dead letter"
        crash = crashes_left > 0 and data.draw(st.booleans(), label="crash")
        for refused in booking.refused:
            place = refused.delivery.partition, refused.delivery.offset
            assert place in poisoned
            assert refused.reason == reasons.setdefault(place, refused.reason)
            if not crash or data.draw(st.booleans(), label="dead letter before the crash"):
                dead_letters.add(place)
        if crash:
            crashes_left -= 1
        else:
            await book(ledger, [], positions)
            stored = dict(await ledger.positions("s", "t"))

    assert dead_letters == poisoned
    assert await picture(ledger, ledger) == await booked_in_order(stream)


@settings(deadline=None, max_examples=25)
@given(logs(), st.data())
async def test_the_file_and_the_fake_answer_alike(
    log: tuple[list[LedgerEvent], list[list[Delivery]]], data: st.DataObject
) -> None:
    """They share the fold; what the file loads and writes around it has to be as complete as the fake's own."""
    left = [delivery for part in log[1] for delivery in part]
    memory = LedgerMemory()
    with TemporaryDirectory() as directory:
        file, reader = SqliteLedger(Path(directory) / "ledger.db"), SqliteLedgerReader(Path(directory) / "ledger.db")
        async with AsyncExitStack() as stack:
            for opened in (file, reader):
                await opened.open()
                stack.push_async_callback(opened.close)
            while left:
                size = data.draw(st.integers(1, len(left)), label="batch size")
                batch, left = left[:size], left[size:]
                positions = {delivery.partition: delivery.offset + 1 for delivery in batch}

                assert await book(file, batch, positions) == await book(memory, batch, positions)

                assert await picture(file, reader) == await picture(memory, memory)

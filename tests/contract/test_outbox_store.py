"""What every payments database promises, run against the memory fake and a real file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from payflow import wire
from payflow.adapters.sqlite_outbox import SqliteOutboxReader, SqliteOutboxStore
from payflow.core.outbox import (
    Accepted,
    Audit,
    Backlog,
    Done,
    MarkBooked,
    MarkPublished,
    Outcome,
    Park,
    PendingRow,
    Probe,
    PublishedRow,
    Purge,
    Requeue,
    Unpublish,
    Write,
)
from payflow.core.payment import Capture, EventType, Payment, Refund, Refusal, RefusalCode, Status, Void
from payflow.ports import OutboxReader, OutboxStore, PaymentQuery
from tests.fakes.outbox_memory import OutboxMemory
from tests.support.payment_writes import AT_US, CountingIds, accepted, authorize, submit

ANY_BYTES = 2**30


@dataclass
class Outbox:
    """Both sides of one payments database."""

    store: OutboxStore
    reader: OutboxReader

    async def commit(self, *writes: Write, at_us: int = AT_US) -> list[Outcome]:
        return await self.store.commit(writes, at_us=at_us)

    async def authorized(self, amount: int = 1000, *, at_us: int = AT_US, **fields: object) -> bytes:
        (outcome,) = await self.commit(submit(authorize(amount, **fields)), at_us=at_us)  # type: ignore[arg-type]
        return accepted(outcome).payment_id

    async def payment(self, payment_id: bytes) -> Payment:
        found = await self.reader.payment(payment_id)
        assert found is not None
        return found[0]

    async def pending(self, *, after_seq: int = 0, limit: int = 100, max_bytes: int = ANY_BYTES) -> list[PendingRow]:
        return await self.reader.pending(after_seq=after_seq, limit=limit, max_bytes=max_bytes)

    async def seqs(self) -> list[int]:
        return [row.seq for row in await self.pending()]


@pytest.fixture(params=["memory", "sqlite"])
async def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Outbox]:
    if request.param == "memory":
        memory = OutboxMemory(ids=CountingIds())
        await memory.open()
        yield Outbox(memory, memory)
        await memory.close()
        return
    path = tmp_path / "payments.db"
    store, reader = SqliteOutboxStore(path, ids=CountingIds()), SqliteOutboxReader(path)
    await store.open()
    await reader.open()
    yield Outbox(store, reader)
    await reader.close()
    await store.close()


# ------------------------------------------------------------------ commands
async def test_authorize_stores_payment_event_row_and_answer(outbox: Outbox) -> None:
    command = authorize(1050, order="o-1", description="tea", metadata={"till": "3"})

    (outcome,) = await outbox.commit(submit(command, trace="00-trace"))

    answer = accepted(outcome)
    found = await outbox.reader.payment(answer.payment_id)
    (row,) = await outbox.pending()
    assert found is not None
    payment, (event,) = found
    assert wire.encode_answer(payment) == answer.answer
    assert ("o-1", "tea", {"till": "3"}, 1050, Status.AUTHORIZED, 1) == (
        payment.order_id,
        payment.description,
        payment.metadata,
        payment.amount,
        payment.status,
        payment.version,
    )
    assert (EventType.AUTHORIZED, 1, 1050, "pending", None) == (
        event.type,
        event.version,
        event.amount,
        event.outbox,
        event.offset,
    )
    assert (event.id, wire.id_text(payment.id).encode(), AT_US) == (row.event_id, row.key, row.created_at_us)
    assert payment.id == wire.decode_event(row.payload, row.headers).payment_id
    assert b"00-trace" == dict(row.headers)["traceparent"]
    assert answer.created
    assert not answer.replayed


async def test_a_payment_goes_through_its_life_over_several_groups(outbox: Outbox) -> None:
    payment_id = await outbox.authorized(1000)

    await outbox.commit(submit(Capture(payment_id, 300)), at_us=AT_US + 5)
    await outbox.commit(submit(Capture(payment_id, None)), at_us=AT_US)
    await outbox.commit(submit(Refund(payment_id, 400, "broken")), at_us=AT_US + 9)
    await outbox.commit(submit(Refund(payment_id, None, "broken")), at_us=AT_US + 10)

    found = await outbox.reader.payment(payment_id)
    assert found is not None
    payment, events = found
    assert (Status.REFUNDED, 1000, 1000, 5) == (
        payment.status,
        payment.captured_amount,
        payment.refunded_amount,
        payment.version,
    )
    assert [1000, 300, 700, 400, 600] == [event.amount for event in events]
    assert [AT_US, AT_US + 5, AT_US + 6, AT_US + 9, AT_US + 10] == [event.at_us for event in events]
    assert "broken" == json.loads((await outbox.pending())[-1].payload)["reason"]


async def test_two_captures_in_one_group_see_each_other(outbox: Outbox) -> None:
    payment_id = await outbox.authorized(1000)

    first, second = await outbox.commit(submit(Capture(payment_id, 700)), submit(Capture(payment_id, 700)))

    assert 2 == accepted(first).version
    assert isinstance(second, Refusal)
    assert (RefusalCode.AMOUNT_EXCEEDS, 300) == (second.code, second.left)
    assert 700 == (await outbox.payment(payment_id)).captured_amount


@pytest.mark.parametrize("together", [True, False])
async def test_the_same_key_and_body_gives_the_same_answer(outbox: Outbox, together: bool) -> None:
    twins = [submit(authorize(), key="k") for _ in range(64)]

    groups = [twins] if together else [twins[:1], twins[1:]]
    outcomes = [accepted(outcome) for group in groups for outcome in await outbox.commit(*group)]

    assert [False] + [True] * 63 == [outcome.replayed for outcome in outcomes]
    assert 1 == len({(outcome.payment_id, outcome.answer, outcome.created) for outcome in outcomes})
    assert 1 == len(await outbox.pending())


async def test_a_replay_gives_the_answer_of_then_after_the_payment_moved_on(outbox: Outbox) -> None:
    request = submit(authorize(), key="k")
    (first,) = await outbox.commit(request)
    await outbox.commit(submit(Void(accepted(first).payment_id)))

    (again,) = await outbox.commit(request)

    assert accepted(first).answer == accepted(again).answer
    assert accepted(again).replayed


@pytest.mark.parametrize("together", [True, False])
async def test_the_same_key_with_another_body_changes_nothing(outbox: Outbox, together: bool) -> None:
    first, other = submit(authorize(1), key="k"), submit(authorize(2), key="k")

    if together:
        refused = (await outbox.commit(first, other))[1]
    else:
        await outbox.commit(first)
        (refused,) = await outbox.commit(other)

    assert Refusal(RefusalCode.KEY_REUSED) == refused
    assert [1] == [payment.amount for payment in await outbox.reader.payments(PaymentQuery())]


async def test_a_key_belongs_to_merchant_and_route(outbox: Outbox) -> None:
    one = await outbox.authorized()

    outcomes = await outbox.commit(
        submit(authorize(merchant="m-1"), key="k"),
        submit(authorize(merchant="m-2"), key="k"),
        submit(Capture(one, None), key="k"),
    )

    assert [False, False, False] == [accepted(outcome).replayed for outcome in outcomes]


async def test_a_refused_command_does_not_use_its_key(outbox: Outbox) -> None:
    payment_id = await outbox.authorized(100)
    too_much = submit(Capture(payment_id, 101), key="k")

    (refused,) = await outbox.commit(too_much)
    (taken,) = await outbox.commit(submit(Capture(payment_id, 100), key="k"))

    assert isinstance(refused, Refusal)
    assert not accepted(taken).replayed


async def test_an_unknown_payment_is_refused_before_the_key_is_looked_at(outbox: Outbox) -> None:
    (outcome,) = await outbox.commit(submit(Void(b"?" * 16)))

    assert Refusal(RefusalCode.NOT_FOUND) == outcome


@pytest.mark.parametrize("together", [True, False])
async def test_an_order_is_paid_once_for_ever(outbox: Outbox, together: bool) -> None:
    first, second = submit(authorize(order="o")), submit(authorize(order="o"))
    elsewhere = submit(authorize(order="o", merchant="m-2"))

    if together:
        one, two, three = await outbox.commit(first, second, elsewhere)
    else:
        (one,), (two,), (three,) = [await outbox.commit(write) for write in (first, second, elsewhere)]

    assert isinstance(two, Refusal)
    assert RefusalCode.ORDER_EXISTS == two.code
    assert two.payment is not None
    assert accepted(one).payment_id == two.payment.id
    assert accepted(three).created


async def test_a_group_of_authorizations_meets_what_is_stored(outbox: Outbox) -> None:
    """A store may presume that keys and orders are new; what it answers must not show it."""
    first = submit(authorize(order="o-1"), key="k-1")
    (stored,) = await outbox.commit(first)

    for _ in range(2):  # after the first time nothing is presumed
        outcomes = await outbox.commit(
            submit(authorize(order="o-2"), key="k-2"),
            submit(authorize(7, order="o-2"), key="k-1"),  # in this order: the key is known, whatever the order is
            submit(authorize(order="o-1")),
            first,
            submit(authorize(), key="k-3"),
        )

        new, reused, taken, again, other = outcomes
        assert [RefusalCode.KEY_REUSED, RefusalCode.ORDER_EXISTS] == [
            refused.code for refused in (reused, taken) if isinstance(refused, Refusal)
        ]
        assert accepted(stored).answer == accepted(again).answer
        assert accepted(again).replayed
        assert accepted(new).payment_id != accepted(other).payment_id
    assert 3 == len(await outbox.pending())


async def test_a_key_that_is_stored_goes_before_an_order_of_the_same_group(outbox: Outbox) -> None:
    """The order is taken within the group, so nothing of the second command would meet an index."""
    await outbox.commit(submit(authorize(), key="k-1"))

    _, refused = await outbox.commit(submit(authorize(order="o-1")), submit(authorize(7, order="o-1"), key="k-1"))

    assert Refusal(RefusalCode.KEY_REUSED) == refused


async def test_a_group_larger_than_any_list_of_parameters(outbox: Outbox) -> None:
    outcomes = await outbox.commit(*(submit(authorize(order=f"o-{n}", metadata={"n": str(n)})) for n in range(1300)))
    ids = [accepted(outcome).payment_id for outcome in outcomes]

    captured = await outbox.commit(*(submit(Capture(payment_id, None)) for payment_id in ids))

    assert {2} == {accepted(outcome).version for outcome in captured}
    assert {"n": "1299"} == (await outbox.payment(ids[-1])).metadata
    assert 2600 == (await outbox.reader.backlog()).pending


async def test_an_empty_group_and_a_probe(outbox: Outbox) -> None:
    assert [] == await outbox.commit()
    assert [Done(1)] == await outbox.commit(Probe())
    assert [Done(1)] == await outbox.commit(Audit("ann", "requeue", "seq 1", "asked", "{}", AT_US))


# ------------------------------------------------------------------ the outbox
async def _three(outbox: Outbox) -> list[bytes]:
    return [await outbox.authorized(n, at_us=AT_US + n) for n in (1, 2, 3)]


def _mark(*seqs: int, broker: str = "b-1") -> MarkPublished:
    return MarkPublished(tuple(PublishedRow(seq, seq % 2, 100 + seq) for seq in seqs), broker, AT_US + 50)


async def test_pending_rows_come_in_sequence_and_in_pieces(outbox: Outbox) -> None:
    await _three(outbox)
    rows = await outbox.pending()
    size = len(rows[0].payload)

    assert sorted(row.seq for row in rows) == [row.seq for row in rows]
    assert rows[1:] == await outbox.pending(after_seq=rows[0].seq)
    assert rows[:2] == await outbox.pending(limit=2)
    assert rows[:1] == await outbox.pending(max_bytes=1)
    assert rows[:2] == await outbox.pending(max_bytes=2 * size)
    assert rows[:1] == await outbox.pending(max_bytes=2 * size - 1)


async def test_marks_count_once_and_show_in_the_timeline(outbox: Outbox) -> None:
    payment_id, *_ = await _three(outbox)
    first, second, third = await outbox.seqs()

    assert [Done(2)] == await outbox.commit(_mark(first, third))
    assert [Done(0), Done(0)] == await outbox.commit(_mark(first, third, 999), _mark())

    assert [second] == await outbox.seqs()
    found = await outbox.reader.payment(payment_id)
    assert found is not None
    (event,) = found[1]
    assert ("published", first % 2, 100 + first, AT_US + 50) == (
        event.outbox,
        event.partition,
        event.offset,
        event.published_at_us,
    )
    assert Backlog(1, 0, 0, AT_US + 2) == await outbox.reader.backlog()


async def test_booked_events_count_once_and_free_their_bytes(outbox: Outbox) -> None:
    await _three(outbox)
    rows = await outbox.pending()
    await outbox.commit(_mark(*(row.seq for row in rows)))
    sizes: dict[int, int] = {}
    for row in rows:
        sizes[row.seq % 2] = sizes.get(row.seq % 2, 0) + len(row.payload)
    assert sizes == await outbox.reader.unbooked_bytes("b-1")
    assert {} == await outbox.reader.unbooked_bytes("b-2")

    booked = MarkBooked((rows[0].event_id, rows[1].event_id, b"?" * 16), AT_US + 60)
    assert [Done(2), Done(0), Done(0)] == await outbox.commit(booked, booked, MarkBooked((), AT_US))

    assert {rows[2].seq % 2: len(rows[2].payload)} == await outbox.reader.unbooked_bytes("b-1")


async def test_a_parked_row_holds_its_key_only_until_it_is_requeued(outbox: Outbox) -> None:
    payment_id, *_ = await _three(outbox)
    await outbox.commit(submit(Capture(payment_id, None)), at_us=AT_US + 20)
    first, second, third, later = await outbox.seqs()

    assert [Done(1), Done(0)] == await outbox.commit(Park(first, "too large", AT_US), Park(first, "again", AT_US))

    assert [second, third] == await outbox.seqs()
    assert Backlog(3, 1, 1, AT_US + 2) == await outbox.reader.backlog()
    assert [Done(0)] == await outbox.commit(_mark(first))
    assert [Done(1)] == await outbox.commit(Requeue((first,)))
    assert [first, second, third, later] == await outbox.seqs()
    assert Backlog(4, 0, 0, AT_US + 1) == await outbox.reader.backlog()


async def test_a_key_with_two_parked_rows_is_held_until_both_are_requeued(outbox: Outbox) -> None:
    payment_id = await outbox.authorized(10)
    await outbox.commit(submit(Capture(payment_id, 5)), submit(Capture(payment_id, 5)))
    first, second, third = await outbox.seqs()
    await outbox.commit(Park(first, "x", AT_US), Park(second, "x", AT_US))

    await outbox.commit(Requeue((second,)))
    assert [] == await outbox.seqs()
    assert Backlog(2, 1, 1, None) == await outbox.reader.backlog()

    await outbox.commit(Requeue((first,)))
    assert [first, second, third] == await outbox.seqs()


async def test_rows_on_a_broker_that_is_gone_become_pending_in_sequence(outbox: Outbox) -> None:
    await _three(outbox)
    rows = await outbox.pending()
    first, second, third = [row.seq for row in rows]
    await outbox.commit(_mark(first, second, broker="embedded-old"), _mark(third, broker="embedded-new"))
    await outbox.commit(MarkBooked((rows[0].event_id,), AT_US))

    assert [Done(1), Done(0)] == await outbox.commit(Unpublish("embedded-new"), Unpublish("embedded-new"))

    assert rows[1:2] == await outbox.pending()
    assert {} == await outbox.reader.unbooked_bytes("embedded-old")


async def test_published_rows_can_be_requeued(outbox: Outbox) -> None:
    await _three(outbox)
    first, *_ = await outbox.seqs()
    await outbox.commit(_mark(first))

    assert [Done(1)] == await outbox.commit(Requeue((first, 999)))

    assert first in await outbox.seqs()


# ------------------------------------------------------------------ retention
async def _purge(outbox: Outbox, *, keys: int = 0, published: int = 0, limit: int = 2) -> list[int]:
    slices = [await outbox.commit(Purge(keys, published, limit)) for _ in range(5)]
    return [outcome.rows for (outcome,) in slices if isinstance(outcome, Done)]


async def test_an_expired_key_is_forgotten_but_its_order_is_not(outbox: Outbox) -> None:
    request, keeper = submit(authorize(order="o"), key="k"), submit(authorize(), key="keep")
    (first,) = await outbox.commit(request)
    await outbox.commit(keeper, at_us=AT_US + 10)

    assert 1 == sum(await _purge(outbox, keys=AT_US + 10))

    again, kept = await outbox.commit(request, keeper)
    assert isinstance(again, Refusal)
    assert RefusalCode.ORDER_EXISTS == again.code
    assert again.payment is not None
    assert accepted(first).payment_id == again.payment.id
    assert accepted(kept).replayed


async def test_a_key_that_was_forgotten_and_used_again_is_kept(outbox: Outbox) -> None:
    request = submit(authorize(), key="k")
    (old,) = await outbox.commit(request)
    await _purge(outbox, keys=AT_US + 1)
    (new,) = await outbox.commit(request, at_us=AT_US + 100)

    await _purge(outbox, keys=AT_US + 50)

    (replay,) = await outbox.commit(request)
    assert accepted(old).payment_id != accepted(new).payment_id
    assert accepted(new) == Accepted(
        accepted(replay).payment_id, 1, accepted(replay).answer, created=True, replayed=False
    )


async def test_retention_takes_published_payloads_in_small_slices_and_nothing_else(outbox: Outbox) -> None:
    payment_ids = [await outbox.authorized(n) for n in range(1, 8)]
    parked, pending, *published = await outbox.seqs()
    await outbox.commit(Park(parked, "x", AT_US), _mark(*published))

    slices = await _purge(outbox, published=AT_US + 51)

    assert 5 == sum(slices)
    assert max(slices) <= 2
    assert [pending] == await outbox.seqs()
    assert [Done(1)] == await outbox.commit(Requeue((parked, *published)))
    found = await outbox.reader.payment(payment_ids[-1])
    assert found is not None
    assert "published" == found[1][0].outbox


async def test_retention_spares_what_was_published_since(outbox: Outbox) -> None:
    await _three(outbox)
    await outbox.commit(_mark(*await outbox.seqs()))

    assert [0] * 5 == await _purge(outbox, published=AT_US + 50)


async def test_retention_keeps_up_with_rows_that_become_old_one_after_the_other(outbox: Outbox) -> None:
    """F30: a slice that meets young rows looks at the head again, however many of them there are."""
    for n in range(1, 31):
        await outbox.authorized(n)
    seqs = await outbox.seqs()
    for n, seq in enumerate(seqs):
        await outbox.commit(MarkPublished((PublishedRow(seq, 0, n),), "b-1", AT_US + n))

    freed = []
    for n in range(10, 30, 2):  # time goes on: two rows more are old with each slice
        (outcome,) = await outbox.commit(Purge(0, AT_US + n, 20))
        assert isinstance(outcome, Done)
        freed.append(outcome.rows)

    assert [10, *[2] * 9] == freed


async def test_rows_on_a_real_cluster_stay_published(outbox: Outbox) -> None:
    """Only what a memory-only broker took is gone with it."""
    await _three(outbox)
    first, second, third = await outbox.seqs()
    await outbox.commit(_mark(first, broker="4L6g3nShT"), _mark(second, third, broker="embedded-old"))

    assert [Done(2)] == await outbox.commit(Unpublish(""))

    assert [second, third] == await outbox.seqs()


# ------------------------------------------------------------------ lists
async def _list(outbox: Outbox, **query: object) -> list[int]:
    return [payment.amount for payment in await outbox.reader.payments(PaymentQuery(**query))]  # type: ignore[arg-type]


async def test_lists_are_newest_first_and_filtered(outbox: Outbox) -> None:
    for n in range(1, 7):
        payment_id = await outbox.authorized(n, merchant=f"m-{n % 2}", at_us=AT_US + n // 2)
        if n in {2, 3}:
            await outbox.commit(submit(Capture(payment_id, None)))

    assert [6, 5, 4, 3, 2, 1] == await _list(outbox)
    assert [6, 4, 2] == await _list(outbox, merchant_id="m-0")
    assert [3, 2] == await _list(outbox, status=Status.CAPTURED)
    assert [3] == await _list(outbox, status=Status.CAPTURED, merchant_id="m-1")
    assert [5, 4, 3, 2] == await _list(outbox, from_us=AT_US + 1, to_us=AT_US + 3)
    assert [] == await _list(outbox, merchant_id="nobody")
    assert [6, 5] == await _list(outbox, limit=2)


async def test_pages_follow_each_other_without_gap_or_repeat(outbox: Outbox) -> None:
    await outbox.commit(*(submit(authorize(n, merchant=f"m-{n % 3}")) for n in range(1, 24)))
    seen: list[int] = []
    after: tuple[int, bytes] | None = None

    while page := await outbox.reader.payments(PaymentQuery(after=after, limit=5, to_us=AT_US + 1)):
        seen += [payment.amount for payment in page]
        after = (page[-1].created_at_us, page[-1].id)

    assert list(range(23, 0, -1)) == seen


async def test_an_unknown_payment_is_none(outbox: Outbox) -> None:
    assert await outbox.reader.payment(b"?" * 16) is None

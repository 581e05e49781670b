"""Reconciling: what is still on its way is no difference, and each thing that is wrong is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payflow.core.ledger import AccountBalance, LedgerEvent, Posting, Side, postings
from payflow.core.outbox import RowState
from payflow.core.payment import EventType
from payflow.core.reconcile import Reconciliation
from payflow.core.reconcile_values import (
    Books,
    Committed,
    CurrencyTotals,
    Difference,
    HeldVersion,
    Kind,
    Line,
    PaymentSums,
    Stand,
    by_payment,
)

AT_US = 1_700_000_000_000_000
LOG = "log-1"
Step = tuple[EventType, int]
LIFE: tuple[Step, ...] = (
    (EventType.AUTHORIZED, 1000),
    (EventType.CAPTURED, 600),
    (EventType.CAPTURED, 400),
    (EventType.REFUNDED, 300),
)


def never(event_id: bytes) -> bool:
    raise AssertionError(f"nobody has to look for {event_id.hex()}")


def id_of(number: int, version: int = 0) -> bytes:
    return bytes([number, version]) * 8


def committed(number: int, version: int, step: Step, state: RowState = RowState.PUBLISHED) -> Committed:
    place = (LOG, 0, version) if state is RowState.PUBLISHED else None
    return Committed(id_of(number), version, id_of(number, version), step[0], AT_US, step[1], state, place, False)


def booked(event: Committed) -> LedgerEvent:
    return LedgerEvent(
        event.event_id, event.payment_id, event.version, event.type, event.at_us, event.amount, "EUR", "m-1"
    )


def lines(event: LedgerEvent) -> list[Line]:
    return [Line(event.payment_id, event.version, event.event_id, posting) for posting in postings(event)]


def books(life: Iterable[Step] = LIFE, *, number: int = 1, applied: int | None = None) -> Books:
    """A payment of which the first `applied` events are booked, the rest is published."""
    events = [committed(number, version, step) for version, step in enumerate(life, 1)]
    there = [booked(event) for event in events[: len(events) if applied is None else applied]]
    captured, refunded = (
        sum(event.amount for event in events if event.type is kind)
        for kind in (EventType.CAPTURED, EventType.REFUNDED)
    )
    payment = PaymentSums(id_of(number), "m-1", "EUR", captured, refunded, len(events))
    return Books(id_of(number), payment, events, there, [], [line for event in there for line in lines(event)])


def accounts(*all_books: Books) -> list[AccountBalance]:
    """What the accounts have to keep."""
    sums: dict[tuple[str, str], dict[Side, int]] = {}
    for line in (line for each in all_books for line in each.lines):
        assert line.posting is not None
        kept = sums.setdefault((line.posting.account, line.posting.currency), dict.fromkeys(Side, 0))
        kept[line.posting.side] += line.posting.amount
    return [AccountBalance(*key, kept[Side.DEBIT], kept[Side.CREDIT]) for key, kept in sums.items()]


def compare(
    one: Books,
    *,
    positions: Mapping[tuple[str, int], int] | None = None,
    since: Callable[[bytes], bool] = never,
) -> tuple[list[Difference], Reconciliation]:
    comparison = Reconciliation(positions or {}, since)
    return comparison.add(one), comparison


def kinds(found: Iterable[Difference]) -> list[Kind]:
    return [difference.kind for difference in found]


# ------------------------------------------------------------------ what agrees
def test_a_payment_whose_events_are_all_booked_agrees() -> None:
    one = books()

    found, comparison = compare(one)

    assert found == []
    assert comparison.finish(accounts(one)) == []
    assert (comparison.payments, comparison.events, comparison.entries, comparison.differences) == (1, 4, 3, 0)
    assert comparison.stands == dict.fromkeys(Stand, 0) | {Stand.BOOKED: 4}
    assert comparison.currencies == {
        ("EUR", EventType.CAPTURED): CurrencyTotals(1000, 1000, 0),
        ("EUR", EventType.REFUNDED): CurrencyTotals(300, 300, 0),
    }


@pytest.mark.parametrize(
    ("state", "stand"),
    [(RowState.PENDING, Stand.PENDING), (RowState.PARKED, Stand.PARKED), (RowState.PUBLISHED, Stand.PUBLISHED)],
)
def test_what_is_on_its_way_is_counted_and_no_difference(state: RowState, stand: Stand) -> None:
    one = books(applied=2)
    one.committed[2:] = [replace(event, state=state) for event in one.committed[2:]]

    found, comparison = compare(one)

    assert found == comparison.finish(accounts(one)) == []
    assert (comparison.stands[Stand.BOOKED], comparison.stands[stand]) == (2, 2)
    assert comparison.currencies["EUR", EventType.CAPTURED] == CurrencyTotals(1000, 600, 400)


def test_an_event_that_was_booked_after_the_look_at_the_ledger_is_on_its_way() -> None:
    one = books(applied=3)
    one.committed[3] = replace(one.committed[3], marked_booked=True)
    asked: list[bytes] = []

    found, comparison = compare(one, since=lambda event_id: not asked.append(event_id))

    assert found == []
    assert asked == [one.committed[3].event_id]
    assert comparison.stands[Stand.PUBLISHED] == 1


def test_an_event_the_consumer_has_not_come_to_is_on_its_way() -> None:
    one = books(applied=3)

    assert compare(one, positions={(LOG, 0): 4, ("another", 0): 99, (LOG, 1): 99})[0] == []


def test_an_event_that_waits_for_its_predecessor_is_on_its_way() -> None:
    one = books(applied=2)
    one.held.append(HeldVersion(one.payment_id, 4, one.committed[3].event_id))

    found, comparison = compare(one, positions={(LOG, 0): 3})

    assert found == []
    assert (comparison.stands[Stand.HELD], comparison.stands[Stand.PUBLISHED]) == (1, 1)


# ------------------------------------------------------------------ what does not
def marked(one: Books) -> None:
    del one.booked[3], one.lines[4:]
    one.committed[3] = replace(one.committed[3], marked_booked=True)


def foreign_event(one: Books) -> None:
    one.booked.append(replace(one.booked[0], version=5, event_id=id_of(9)))


def foreign_held(one: Books) -> None:
    one.held.append(HeldVersion(one.payment_id, 9, id_of(9)))


def other_amount(one: Books) -> None:
    one.booked[1] = replace(one.booked[1], amount=599)
    one.lines[:2] = lines(one.booked[1])


def other_id(one: Books) -> None:
    one.booked[0] = replace(one.booked[0], event_id=id_of(8))


def no_payment(one: Books) -> None:
    one.payment = None


def gap(one: Books) -> None:
    del one.committed[1], one.booked[1], one.lines[:2]


def sums(one: Books) -> None:
    assert one.payment is not None
    one.payment = replace(one.payment, captured=999)


def no_events(one: Books) -> None:
    one.committed, one.booked, one.lines = [], [], []


def no_entry(one: Books) -> None:
    del one.lines[:2]


def half_an_entry(one: Books) -> None:
    del one.lines[0]


def entry_without_lines(one: Books) -> None:
    one.lines[:2] = [Line(one.payment_id, 2, one.booked[1].event_id, None)]


def entry_of_nobody(one: Books) -> None:
    one.lines.append(Line(one.payment_id, 7, id_of(9), Posting("cash", Side.DEBIT, 1, "EUR")))


def held_for_ever(one: Books) -> None:
    del one.booked[3], one.lines[4:]
    one.held.append(HeldVersion(one.payment_id, 4, one.committed[3].event_id))


WRONG: list[tuple[Callable[[Books], None], list[Kind]]] = [
    (marked, [Kind.NOT_BOOKED]),
    (foreign_event, [Kind.NOT_COMMITTED]),
    (foreign_held, [Kind.NOT_COMMITTED]),
    (other_amount, [Kind.DIFFERENT_EVENT]),
    (other_id, [Kind.DIFFERENT_EVENT]),
    (no_payment, [Kind.DIFFERENT_EVENT] * 4 + [Kind.PAYMENT_SUMS]),
    (gap, [Kind.VERSION_GAP, Kind.VERSION_GAP, Kind.PAYMENT_SUMS]),
    (sums, [Kind.PAYMENT_SUMS]),
    (no_events, [Kind.PAYMENT_SUMS]),
    (no_entry, [Kind.ENTRY]),
    (half_an_entry, [Kind.ENTRY]),
    (entry_without_lines, [Kind.ENTRY]),
    (entry_of_nobody, [Kind.ENTRY]),
    (held_for_ever, [Kind.HELD_FOR_EVER]),
]


@pytest.mark.parametrize(("spoil", "expected"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_each_thing_that_is_wrong_is_told(spoil: Callable[[Books], None], expected: list[Kind]) -> None:
    one = books()
    spoil(one)

    found, comparison = compare(one, since=lambda _: False)

    assert kinds(found) == expected
    assert comparison.differences == len(expected)
    assert {difference.payment_id for difference in found} == {one.payment_id}


def test_an_event_that_the_consumer_has_passed_without_booking_it_is_told() -> None:
    found, comparison = compare(books(applied=3), positions={(LOG, 0): 5})

    assert kinds(found) == [Kind.NOT_BOOKED]
    assert "offset 4" in found[0].text
    assert comparison.stands[Stand.LOST] == 1
    assert kinds(comparison.finish([]))[-1] is Kind.CURRENCY_SUMS


def test_books_without_a_payment_are_told() -> None:
    one = books()
    one.payment, one.committed = None, []

    assert kinds(compare(one)[0]) == [Kind.NOT_COMMITTED] * 4


def test_an_account_that_keeps_another_sum_is_told() -> None:
    one = books()
    _, comparison = compare(one)
    kept = [replace(account, debit=account.debit + 1) for account in accounts(one)]

    assert kinds(comparison.finish(kept)) == [Kind.ACCOUNT_SUMS] * 2
    assert kinds(Reconciliation({}, never).finish([AccountBalance("cash", "EUR", 1, 1)])) == [Kind.ACCOUNT_SUMS]
    assert comparison.differences == 2


# ------------------------------------------------------------------ streams
def test_streams_meet_payment_by_payment() -> None:
    first, second = books(number=1), books(number=2, applied=1)
    second.held.append(HeldVersion(second.payment_id, 4, second.committed[3].event_id))
    both = (first, second)
    stray = HeldVersion(id_of(3), 2, id_of(3, 2))

    found = list(
        by_payment(
            (each.payment for each in both if each.payment is not None),
            (event for each in both for event in each.committed),
            (event for each in both for event in each.booked),
            (*second.held, stray),
            (line for each in both for line in each.lines),
        )
    )

    assert found == [first, second, Books(id_of(3), held=[stray])]


@st.composite
def lives(draw: st.DrawFn) -> list[Step]:
    """Authorized, then captures, then refunds, or a void."""
    parts = draw(st.lists(st.integers(1, 10**15), max_size=3))
    back = draw(st.lists(st.integers(1, 10**15), max_size=3 if parts else 0))
    void = not parts and draw(st.booleans())
    return [
        (EventType.AUTHORIZED, 10**15),
        *((EventType.CAPTURED, amount) for amount in parts),
        *((EventType.REFUNDED, amount) for amount in back),
        *([(EventType.VOIDED, 10**15)] if void else []),
    ]


@given(st.data(), st.lists(lives(), min_size=1, max_size=6))
def test_whatever_is_under_way_agrees_and_whatever_is_spoilt_does_not(
    data: st.DataObject, all_lives: list[list[Step]]
) -> None:
    everything = []
    for number, life in enumerate(all_lives, 1):
        applied = data.draw(st.integers(0, len(life)))
        everything.append(books(life, number=number, applied=applied))
        waiting = range(applied, len(life))
        for place in waiting:
            state = data.draw(st.sampled_from(RowState))
            event = committed(number, place + 1, life[place], state)
            if place > applied and data.draw(st.booleans()):
                everything[-1].held.append(HeldVersion(event.payment_id, event.version, event.event_id))
            everything[-1].committed[place] = event
    comparison = Reconciliation({(LOG, 0): 0}, never)

    assert [found for one in everything for found in comparison.add(one)] == []
    assert comparison.finish(accounts(*everything)) == []
    assert sum(comparison.stands.values()) == comparison.events == sum(map(len, all_lives))
    for totals in comparison.currencies.values():
        assert totals.committed == totals.booked + totals.on_the_way

    victim = data.draw(st.sampled_from([one for one in everything if one.booked] or [books()]))
    place = data.draw(st.integers(0, len(victim.booked) - 1))
    spoilt = replace(victim.booked[place], amount=victim.booked[place].amount + 1)
    victim.booked[place] = spoilt
    assert Kind.DIFFERENT_EVENT in kinds(compare(victim)[0])

"""One batch: applied, duplicate, held, released, blocked or refused, and where the position stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from payflow.core.booking import Batch, Changes, Loaded, Sums
from payflow.core.ledger import MAX_INTEGER, Delivery, LedgerEvent, Reason, Refused, entry_of
from payflow.core.payment import EventType
from tests.support.ledger_events import deliveries, event, id_of

CASH = ("cash", "EUR")
SHOP = ("merchant_payable:shop", "EUR")


def fold(
    batch: Sequence[Delivery] | Sequence[LedgerEvent],
    *,
    applied: Iterable[LedgerEvent] = (),
    held: Sequence[Delivery] = (),
    sums: dict[tuple[str, str], Sums] | None = None,
    positions: dict[int, int] | None = None,
) -> Changes:
    """Fold a batch on books in which `applied` are applied, in order, and `held` are held."""
    given = deliveries(item for item in batch if isinstance(item, LedgerEvent))
    given += [item for item in batch if isinstance(item, Delivery)]
    before = list(applied)
    loaded = Loaded(
        heads={event_.payment_id: event_ for event_ in before},
        applied={event_.event_id: event_ for event_ in before},
        held=held,
    )
    return Batch(given).fold(loaded, sums or {}, positions or {})


def applied_by(changes: Changes) -> list[LedgerEvent]:
    return [event_ for event_, _ in changes.applied]


def reasons(refused: Iterable[Refused]) -> list[tuple[int, str]]:
    return [(item.delivery.offset, item.reason) for item in refused]


# ---------------------------------------------------------------- applying
def test_an_empty_batch_changes_nothing_but_positions() -> None:
    changes = fold([], positions={0: 7})

    assert changes.positions == {0: 7}
    assert not (changes.applied or changes.held or changes.released or changes.booking.booked or changes.sums)


def test_versions_in_order_are_applied_with_their_entries_and_sums() -> None:
    steps = [event(version=1), event(version=2, amount=600), event(version=3, kind=EventType.REFUNDED, amount=200)]

    changes = fold(steps)

    assert [(step, entry_of(step)) for step in steps] == list(changes.applied)
    assert changes.sums == {CASH: (600, 200), SHOP: (200, 600)}
    assert tuple(step.event_id for step in steps) == changes.booking.booked
    assert changes.booking.entries == 2


def test_sums_go_on_from_what_the_accounts_have_and_leave_others_alone() -> None:
    before = {CASH: (5000, 1000), SHOP: (1000, 5000), ("merchant_payable:other", "EUR"): (1, 2)}

    changes = fold([event(version=2, amount=10)], applied=[event(version=1)], sums=before)

    assert changes.sums == {CASH: (5010, 1000), SHOP: (1000, 5010)}


def test_folding_twice_gives_the_same_answer() -> None:
    """After a rollback the same batch is folded again."""
    batch = Batch(deliveries([event(version=1), event(version=2), event(version=4)]))
    loaded = Loaded(heads={}, applied={}, held=())

    assert batch.fold(loaded, {}, {0: 3}) == batch.fold(loaded, {}, {0: 3})


# ---------------------------------------------------------------- what has to be loaded
def test_a_batch_names_each_id_once_and_keeps_flawed_events_from_the_store() -> None:
    batch = Batch(deliveries([event(version=1), event(version=2), event(version=2), event("p2", version=0)]))

    assert (id_of("p1-v1"), id_of("p1-v2")) == batch.event_ids
    assert (id_of("p1"),) == batch.payment_ids


def test_accounts_include_those_of_held_events() -> None:
    held = deliveries([event(version=3, merchant="late")])
    batch = Batch(deliveries([event(version=2), event("p2", version=2, currency="lira")]))

    accounts = batch.accounts(Loaded(heads={}, applied={}, held=held))

    assert accounts == (CASH, SHOP, ("merchant_payable:late", "EUR"))


# ---------------------------------------------------------------- duplicates
def test_an_event_that_is_applied_is_a_duplicate_and_acknowledged_again() -> None:
    changes = fold([event(version=1)], applied=[event(version=1), event(version=2)])

    assert changes.applied == ()
    assert changes.booking.duplicates == 1
    assert (id_of("p1-v1"),) == changes.booking.booked


def test_the_second_copy_inside_one_batch_is_a_duplicate() -> None:
    changes = fold([event(version=1), event(version=1), event(version=2), event(version=2)])

    assert [event(version=1), event(version=2)] == applied_by(changes)
    assert changes.booking.duplicates == 2
    assert (id_of("p1-v1"), id_of("p1-v2")) == changes.booking.booked


def test_the_copy_of_a_held_event_is_a_duplicate_that_is_not_acknowledged() -> None:
    changes = fold([event(version=3)], held=deliveries([event(version=3)]))

    assert changes.booking.duplicates == 1
    assert not (changes.booking.booked or changes.held)


# ---------------------------------------------------------------- too early
def test_a_version_that_comes_too_early_is_held() -> None:
    early = deliveries([event(version=3)])

    changes = fold(early, applied=[event(version=1)])

    assert tuple(early) == changes.held
    assert changes.booking.held == 1
    assert not (changes.booking.booked or changes.applied)


def test_the_predecessor_releases_everything_up_to_the_next_gap() -> None:
    waiting = deliveries([event(version=3), event(version=4), event(version=6)])

    changes = fold([event(version=2)], applied=[event(version=1)], held=waiting)

    assert [event(version=2), event(version=3), event(version=4)] == applied_by(changes)
    assert tuple(waiting[:2]) == changes.released
    assert (id_of("p1-v2"), id_of("p1-v3"), id_of("p1-v4")) == changes.booking.booked


def test_what_is_held_and_released_in_one_batch_never_reaches_the_store() -> None:
    changes = fold([event(version=3), event(version=2), event(version=1)])

    assert [event_.version for event_ in applied_by(changes)] == [1, 2, 3]
    assert changes.held == changes.released == ()
    assert changes.booking.held == 0


def test_a_released_event_that_contradicts_its_payment_is_blocked_and_stays_held() -> None:
    """Nobody could say so when it was held. Its place in the log has passed, so it stops no position."""
    stranger = deliveries([event(version=2, currency="USD")], first_offset=3)

    changes = fold([event(version=1)], held=stranger, positions={0: 9})

    assert (Refused(stranger[0], Reason.PAYMENT_CONTRADICTED),) == changes.booking.blocked
    assert not (changes.booking.refused or changes.released)
    assert changes.positions == {0: 9}


def test_a_released_event_that_overflows_an_account_is_blocked() -> None:
    waiting = deliveries([event(version=2, amount=1)])

    changes = fold([event(version=1)], held=waiting, sums={CASH: (MAX_INTEGER, 0)})

    assert (Refused(waiting[0], Reason.ACCOUNT_OVERFLOW),) == changes.booking.blocked
    assert not changes.sums


# ---------------------------------------------------------------- refused
def test_flawed_events_are_refused_with_their_reason() -> None:
    changes = fold([event(version=1, amount=2**63), event("p2", version=1)])

    assert reasons(changes.booking.refused) == [(0, Reason.AMOUNT_OUT_OF_RANGE)]
    assert [event("p2", version=1)] == applied_by(changes)


def test_a_flawed_copy_of_an_applied_event_is_refused_too() -> None:
    bad = replace(event(version=1), currency="?")

    changes = fold([bad], applied=[event(version=1)])

    assert reasons(changes.booking.refused) == [(0, Reason.CURRENCY_INVALID)]


def test_another_event_with_the_version_of_an_applied_one_is_refused() -> None:
    changes = fold([event(version=2, event_id=id_of("other"))], applied=[event(version=1), event(version=2)])

    assert reasons(changes.booking.refused) == [(0, Reason.VERSION_TAKEN)]


def test_another_event_with_the_version_of_a_held_one_is_refused() -> None:
    changes = fold([event(version=3, event_id=id_of("other"))], held=deliveries([event(version=3)]))

    assert reasons(changes.booking.refused) == [(0, Reason.VERSION_TAKEN)]


def test_a_known_event_id_with_other_content_is_refused() -> None:
    changed = [event(version=1, amount=999), event("p2", version=1, event_id=id_of("p1-v1"))]

    changes = fold(changed, applied=[event(version=1)])

    assert reasons(changes.booking.refused) == [(0, Reason.EVENT_ID_REUSED), (1, Reason.EVENT_ID_REUSED)]


def test_a_held_event_id_with_other_content_is_refused() -> None:
    changes = fold([event("p2", version=1, event_id=id_of("p1-v3"))], held=deliveries([event(version=3)]))

    assert reasons(changes.booking.refused) == [(0, Reason.EVENT_ID_REUSED)]


def test_another_currency_or_merchant_than_the_payments_is_refused_before_it_could_be_held() -> None:
    wrong = [event(version=2, currency="USD"), event(version=3, merchant="other")]

    changes = fold(wrong, applied=[event(version=1)])

    assert reasons(changes.booking.refused) == [(0, Reason.PAYMENT_CONTRADICTED), (1, Reason.PAYMENT_CONTRADICTED)]
    assert changes.held == ()


def test_an_account_is_filled_to_the_last_unit_and_then_refuses() -> None:
    sums = {CASH: (MAX_INTEGER - 10, 0), SHOP: (0, 7)}
    fits = event(version=2, amount=10, event_id=id_of("fits"))
    steps = [event(version=2, amount=11), fits, event(version=3, amount=1)]

    changes = fold(steps, applied=[event(version=1)], sums=sums)

    assert reasons(changes.booking.refused) == [(0, Reason.ACCOUNT_OVERFLOW), (2, Reason.ACCOUNT_OVERFLOW)]
    assert changes.sums == {CASH: (MAX_INTEGER, 0), SHOP: (0, 17)}


def test_overflow_of_the_second_line_leaves_the_first_unbooked() -> None:
    changes = fold([event(version=2)], applied=[event(version=1)], sums={SHOP: (0, MAX_INTEGER)})

    assert reasons(changes.booking.refused) == [(0, Reason.ACCOUNT_OVERFLOW)]
    assert not changes.sums


def test_the_successors_of_a_refused_event_are_held() -> None:
    changes = fold([event(version=1), event(version=2, amount=0), event(version=3)])

    assert reasons(changes.booking.refused) == [(1, Reason.AMOUNT_OUT_OF_RANGE)]
    assert [delivery.event.version for delivery in changes.held] == [3]


# ---------------------------------------------------------------- position
def test_the_position_stops_at_the_first_refused_delivery_of_its_partition() -> None:
    first = deliveries([event("a"), event("b", amount=-1), event("c"), event("d", amount=-1)], first_offset=10)
    second = deliveries([event("e")], partition=1, first_offset=70)

    changes = fold([*first, *second], positions={0: 14, 1: 71})

    assert changes.positions == {0: 11, 1: 71}
    assert [event("a"), event("c"), event("e")] == applied_by(changes)


def test_a_position_before_the_refused_delivery_is_kept() -> None:
    """The caller stops earlier for its own reason, such as a record that it could not decode."""
    changes = fold(deliveries([event(amount=-1)], first_offset=5), positions={0: 3})

    assert changes.positions == {0: 3}


def test_a_later_call_passes_the_refused_delivery() -> None:
    assert fold([], positions={0: 14}).positions == {0: 14}


def test_a_redelivered_refused_record_is_refused_again_for_the_same_reason() -> None:
    batch = [event(version=1), event(version=2, merchant="other"), event("p2", amount=-1)]
    first = fold(batch, positions={0: 3})

    again = fold(batch[1:], applied=applied_by(first), positions={0: 3})

    assert [item.reason for item in first.booking.refused] == [item.reason for item in again.booking.refused]

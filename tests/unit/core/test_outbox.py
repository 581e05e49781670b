"""The fold of a write group, and the life of an outbox row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from payflow.core.idempotency import StoredKey
from payflow.core.outbox import (
    ROW_LIFE,
    Accepted,
    Changes,
    Event,
    Group,
    Loaded,
    MarkPublished,
    Park,
    Probe,
    Requeue,
    RowState,
    Submit,
    Unpublish,
    Write,
    states_before,
)
from payflow.core.payment import (
    Capture,
    EventType,
    Payment,
    Refund,
    Refusal,
    RefusalCode,
    Status,
    Void,
    decide,
)
from tests.support.payment_writes import AT_US, CountingIds, accepted, authorize, submit

NOTHING = Loaded({}, {}, {})
STANDING_ID = b"standing-payment"


class PlainCodec:
    """Bytes that a test can read."""

    def encode_answer(self, payment: Payment) -> bytes:
        return f"{payment.status} {payment.version}".encode()

    def encode_event(self, event: Event) -> bytes:
        return f"{event.type} {event.amount} {event.reason}".encode()


def _standing(order: str | None = None) -> Payment:
    result = decide(None, authorize(100, order=order), AT_US - 10, payment_id=STANDING_ID)
    assert not isinstance(result, Refusal)
    return result.payment


def _group(*writes: Write) -> Group:
    return Group(writes, at_us=AT_US, new_id=CountingIds().new, codec=PlainCodec())


def _fold(writes: Sequence[Write], loaded: Loaded = NOTHING) -> Changes:
    group = _group(*writes)
    group.scopes(loaded.payments)
    return group.fold(loaded)


def _loaded(payment: Payment, keys: Mapping[bytes, StoredKey] | None = None) -> Loaded:
    orders = {} if payment.order_id is None else {(payment.merchant_id, payment.order_id): payment}
    return Loaded({payment.id: payment}, orders, keys or {})


# ------------------------------------------------------------------ what has to be loaded
def test_a_group_names_the_payments_orders_and_keys_it_needs() -> None:
    group = _group(
        submit(authorize(order="o-1"), key="a"),
        submit(authorize(merchant="m-2"), key="b"),
        submit(Capture(STANDING_ID, 1), key="c"),
        submit(Void(b"?" * 16), key="d"),
        Probe(),
    )

    assert {STANDING_ID, b"?" * 16} == group.payment_ids()
    assert {("m-1", "o-1")} == group.orders()
    assert 2 == len(group.scopes({}))
    assert 3 == len(group.scopes({STANDING_ID: _standing()}))


def test_a_fold_needs_the_scopes_first() -> None:
    with pytest.raises(AssertionError):
        _group(submit(authorize())).fold(NOTHING)


# ------------------------------------------------------------------ commands
def test_an_authorization_creates_a_payment_and_a_row() -> None:
    request = submit(authorize(1050), trace="00-t")

    changes = _fold([request])

    (payment,), (row,) = changes.created, changes.rows
    assert () == changes.updated
    assert [Accepted(payment.id, 1, b"AUTHORIZED 1", created=True, replayed=False)] == changes.outcomes
    assert (payment, EventType.AUTHORIZED, 1050, None) == (
        row.event.payment,
        row.event.type,
        row.event.amount,
        row.event.reason,
    )
    assert (b"payment.authorized 1050 None", "00-t", request.fingerprint, b"AUTHORIZED 1") == (
        row.payload,
        row.traceparent,
        row.fingerprint,
        row.answer,
    )


def test_ids_are_drawn_in_the_order_of_the_group() -> None:
    changes = _fold([submit(authorize()), Probe(), submit(authorize())])

    ids = [bytes_ for row in changes.rows for bytes_ in (row.event.payment.id, row.event.id)]
    assert [1, 2, 3, 4] == [int.from_bytes(bytes_, "big") for bytes_ in ids]


def test_commands_on_one_payment_are_decided_one_after_the_other() -> None:
    writes = [
        submit(Capture(STANDING_ID, 60)),
        submit(Capture(STANDING_ID, 60)),
        submit(Refund(STANDING_ID, None, "broken")),
        submit(Capture(STANDING_ID, None)),
    ]

    changes = _fold(writes, _loaded(_standing()))

    first, second, third, fourth = changes.outcomes
    assert (2, 3) == (accepted_version(first), accepted_version(third))
    assert isinstance(second, Refusal)
    assert (RefusalCode.AMOUNT_EXCEEDS, 40) == (second.code, second.left)
    assert isinstance(fourth, Refusal)
    assert RefusalCode.ILLEGAL_TRANSITION == fourth.code
    (payment,) = changes.updated
    assert (Status.REFUNDED, 3, AT_US + 1) == (payment.status, payment.version, payment.updated_at_us)
    assert ["broken" in row.payload.decode() for row in changes.rows] == [False, True]


def accepted_version(outcome: object) -> int:
    assert isinstance(outcome, Accepted)
    return outcome.version


def test_a_payment_that_is_made_and_moved_in_one_group_is_written_once() -> None:
    ids = CountingIds()
    payment_id = ids.new()
    group = Group(
        [submit(authorize(order="o")), submit(authorize(order="o"))],
        at_us=AT_US,
        new_id=CountingIds().new,
        codec=PlainCodec(),
    )
    group.scopes({})

    changes = group.fold(NOTHING)

    assert [payment_id] == [payment.id for payment in changes.created]
    assert Refusal(RefusalCode.ORDER_EXISTS, changes.created[0]) == changes.outcomes[1]


def test_an_order_that_was_paid_before_is_refused_with_its_payment() -> None:
    standing = _standing(order="o")

    changes = _fold(
        [submit(authorize(order="o")), submit(Capture(STANDING_ID, 100)), submit(authorize(order="o"))],
        _loaded(standing),
    )

    first, _, second = changes.outcomes
    assert Refusal(RefusalCode.ORDER_EXISTS, standing) == first
    assert Refusal(RefusalCode.ORDER_EXISTS, changes.updated[0]) == second


# ------------------------------------------------------------------ keys
def test_twins_in_one_group_get_one_answer() -> None:
    twins = [submit(authorize(), key="k")] * 3

    changes = _fold(twins)

    first, *others = (accepted(outcome) for outcome in changes.outcomes if outcome is not None)
    assert 1 == len(changes.rows)
    assert not first.replayed
    assert all(other.replayed and other.answer == first.answer and other.created for other in others)


def test_a_stored_key_replays_or_conflicts() -> None:
    request = submit(Capture(STANDING_ID, 100), key="k")
    standing = _standing()
    (scope,) = _group(request).scopes({STANDING_ID: standing})
    stored = StoredKey(request.fingerprint, STANDING_ID, 2, b"then")
    other = Submit(request.command, request.route, "k", b"other", None)

    changes = _fold([request, other], _loaded(standing, {scope: stored}))

    assert [
        Accepted(STANDING_ID, 2, b"then", created=False, replayed=True),
        Refusal(RefusalCode.KEY_REUSED),
    ] == changes.outcomes
    assert () == changes.rows


def test_a_refusal_leaves_nothing_behind() -> None:
    changes = _fold([submit(Capture(STANDING_ID, 101), key="k"), submit(Void(b"?" * 16))], _loaded(_standing()))

    assert (((), (), ())) == (changes.created, changes.updated, changes.rows)
    assert [RefusalCode.AMOUNT_EXCEEDS, RefusalCode.NOT_FOUND] == [
        outcome.code for outcome in changes.outcomes if isinstance(outcome, Refusal)
    ]


# ------------------------------------------------------------------ rows
def test_other_writes_keep_their_place() -> None:
    changes = _fold([Probe(), submit(authorize()), Requeue((1,))])

    assert ((0, Probe()), (2, Requeue((1,)))) == changes.others
    assert [True, False, True] == [outcome is None for outcome in changes.outcomes]


@pytest.mark.parametrize(
    ("write", "states"),
    [
        (MarkPublished, {RowState.PENDING}),
        (Park, {RowState.PENDING}),
        (Requeue, {RowState.PARKED, RowState.PUBLISHED}),
        (Unpublish, {RowState.PUBLISHED}),
        (Probe, set()),
    ],
)
def test_a_write_moves_rows_only_out_of_its_states(write: type[Write], states: set[RowState]) -> None:
    assert states == set(states_before(write))


def test_every_state_of_a_row_can_be_left() -> None:
    assert set(RowState) == {state for state, _ in ROW_LIFE}
    assert set(RowState) == set(ROW_LIFE.values())

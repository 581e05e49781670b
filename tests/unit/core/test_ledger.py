"""One event: its postings, and what no books could take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from payflow.core.ledger import (
    MAX_INTEGER,
    CurrencyBalance,
    Entry,
    LedgerEvent,
    Posting,
    Reason,
    Side,
    check,
    entry_of,
    flaw,
    postings,
)
from payflow.core.payment import EventType
from tests.support.ledger_events import event


def entry(*lines: Posting) -> Entry:
    return Entry(b"e" * 16, b"p" * 16, 0, lines)


def debit(amount: int, currency: str = "EUR") -> Posting:
    return Posting("cash", Side.DEBIT, amount, currency)


def credit(amount: int, currency: str = "EUR") -> Posting:
    return Posting("merchant_payable:shop", Side.CREDIT, amount, currency)


@pytest.mark.parametrize("kind", [EventType.AUTHORIZED, EventType.VOIDED])
def test_authorize_and_void_book_nothing(kind: EventType) -> None:
    assert postings(event(kind=kind)) == ()
    assert entry_of(event(kind=kind)) is None


def test_capture_debits_cash_and_credits_what_we_owe_the_merchant() -> None:
    assert postings(event(version=2, kind=EventType.CAPTURED, amount=250)) == (
        Posting("cash", Side.DEBIT, 250, "EUR"),
        Posting("merchant_payable:shop", Side.CREDIT, 250, "EUR"),
    )


def test_refund_is_the_reverse_of_a_capture() -> None:
    assert postings(event(version=3, kind=EventType.REFUNDED, amount=250)) == (
        Posting("merchant_payable:shop", Side.DEBIT, 250, "EUR"),
        Posting("cash", Side.CREDIT, 250, "EUR"),
    )


def test_an_entry_names_its_event_its_payment_and_its_time() -> None:
    capture = event(version=2)

    booked = entry_of(capture)

    assert booked == Entry(capture.event_id, capture.payment_id, capture.at_us, postings(capture))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        pytest.param((debit(5), credit(5)), None, id="two lines"),
        pytest.param((debit(5), credit(2), credit(3)), None, id="three lines"),
        pytest.param((debit(MAX_INTEGER), credit(MAX_INTEGER)), None, id="largest amount"),
        pytest.param((), Reason.UNBALANCED, id="no line"),
        pytest.param((debit(5),), Reason.UNBALANCED, id="one side only"),
        pytest.param((debit(5), credit(4)), Reason.UNBALANCED, id="sides differ"),
        pytest.param((debit(5, "EUR"), credit(5, "USD")), Reason.CURRENCY_INVALID, id="two currencies"),
        pytest.param((debit(5, "eur"), credit(5, "eur")), Reason.CURRENCY_INVALID, id="no ISO code"),
        pytest.param((debit(0), credit(0)), Reason.AMOUNT_OUT_OF_RANGE, id="nothing"),
        pytest.param((debit(-5), credit(-5)), Reason.AMOUNT_OUT_OF_RANGE, id="negative"),
        pytest.param((debit(2**63), credit(2**63)), Reason.AMOUNT_OUT_OF_RANGE, id="beyond 63 bit"),
    ],
)
def test_only_a_balanced_entry_in_one_currency_passes(lines: tuple[Posting, ...], reason: Reason | None) -> None:
    assert check(entry(*lines)) == reason


@pytest.mark.parametrize(
    "sound",
    [
        event(),
        event(amount=0),
        event(version=2),
        event(version=MAX_INTEGER, at_us=MAX_INTEGER, amount=MAX_INTEGER, event_id=b"e" * 16),
        event(version=2, kind=EventType.VOIDED, amount=0),
        event(merchant="A-z_0.9" + "x" * 57),
    ],
)
def test_a_sound_event_has_no_flaw(sound: LedgerEvent) -> None:
    assert flaw(sound) is None


@pytest.mark.parametrize(
    ("flawed", "reason"),
    [
        (replace(event(), event_id=b"short"), Reason.MALFORMED),
        (replace(event(), payment_id=b"x" * 17), Reason.MALFORMED),
        (event(version=0), Reason.MALFORMED),
        (event(version=2**63, event_id=b"e" * 16), Reason.MALFORMED),
        (event(at_us=-1), Reason.MALFORMED),
        (event(at_us=2**63), Reason.MALFORMED),
        (event(version=1, kind=EventType.CAPTURED), Reason.MALFORMED),
        (event(version=2, kind=EventType.AUTHORIZED), Reason.MALFORMED),
        (event(merchant=""), Reason.MALFORMED),
        (event(merchant="x" * 65), Reason.MALFORMED),
        (event(merchant="shop\ud800"), Reason.MALFORMED),
        (event(merchant="shop\n"), Reason.MALFORMED),
        (event(amount=-1), Reason.AMOUNT_OUT_OF_RANGE),
        (event(amount=2**63), Reason.AMOUNT_OUT_OF_RANGE),
        (event(version=2, amount=0), Reason.AMOUNT_OUT_OF_RANGE),
        (event(version=2, amount=2**63), Reason.AMOUNT_OUT_OF_RANGE),
        (event(currency="eur"), Reason.CURRENCY_INVALID),
        (event(currency="EURO"), Reason.CURRENCY_INVALID),
        (event(version=2, currency="EUR\n"), Reason.CURRENCY_INVALID),
    ],
)
def test_what_no_books_could_take_is_named(flawed: LedgerEvent, reason: Reason) -> None:
    assert flaw(flawed) == reason


def test_imbalance_counts_unequal_sides_and_drifted_accounts() -> None:
    assert CurrencyBalance("EUR", 10, 10).imbalance == 0
    assert CurrencyBalance("EUR", 10, 13).imbalance == 3
    assert CurrencyBalance("EUR", 13, 10).imbalance == 3
    assert CurrencyBalance("EUR", 10, 10, drift=4).imbalance == 4

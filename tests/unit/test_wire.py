"""Bytes of payments and events, and what is refused on the way back."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from payflow import wire
from payflow.core.ledger import LedgerEvent
from payflow.core.money import MAX_AMOUNT
from payflow.core.outbox import Event
from payflow.core.payment import EventType, Payment, Status
from payflow.errors import UndecodableEvent

PAYMENT_ID = bytes.fromhex("0192f0a1b2c37d4e8f90a1b2c3d4e5f6")
EVENT_ID = bytes.fromhex("0192f0a1b2c37d4e8f90a1b2c3d4e5f7")
AT_US = 1_764_000_000_000_123
PAYMENT = Payment(
    PAYMENT_ID,
    "m-1",
    None,
    1050,
    "EUR",
    Status.PARTIALLY_REFUNDED,
    1000,
    400,
    "Tee für 2",
    {"a": "b"},
    AT_US,
    AT_US + 1,
    3,
)
EVENT = Event(EVENT_ID, EventType.REFUNDED, AT_US + 1, 400, PAYMENT, "broken")


def test_a_payment_has_the_promised_members_in_the_promised_order() -> None:
    expected = (
        '{"id":"0192f0a1-b2c3-7d4e-8f90-a1b2c3d4e5f6","merchant_id":"m-1","order_id":null,"amount":1050,"currency":"EUR",'
        '"status":"PARTIALLY_REFUNDED","captured_amount":1000,"refunded_amount":400,"description":"Tee für 2",'
        '"metadata":{"a":"b"},"created_at":"2025-11-24T16:00:00.000123Z","updated_at":"2025-11-24T16:00:00.000124Z",'
        '"version":3}'
    )

    assert expected == wire.encode_answer(PAYMENT).decode()


def test_an_event_carries_its_step_and_the_totals() -> None:
    assert {
        "schema_version": 1,
        "event_id": "0192f0a1-b2c3-7d4e-8f90-a1b2c3d4e5f7",
        "payment_id": "0192f0a1-b2c3-7d4e-8f90-a1b2c3d4e5f6",
        "merchant_id": "m-1",
        "version": 3,
        "type": "payment.refunded",
        "at": "2025-11-24T16:00:00.000124Z",
        "amount": 400,
        "currency": "EUR",
        "authorized_amount": 1050,
        "captured_amount": 1000,
        "refunded_amount": 400,
        "reason": "broken",
    } == json.loads(wire.encode_event(EVENT))


def test_only_refunds_have_a_reason() -> None:
    event = Event(EVENT_ID, EventType.CAPTURED, AT_US, 1000, PAYMENT, None)

    assert "reason" not in json.loads(wire.encode_event(event))


@pytest.mark.parametrize("traceparent", [None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"])
def test_headers_are_cloudevents_in_binary_mode(traceparent: str | None) -> None:
    headers = wire.event_headers(
        event_id=EVENT_ID,
        event_type=EventType.REFUNDED,
        at_us=AT_US,
        payment_id=PAYMENT_ID,
        traceparent=traceparent,
    )

    trace = [] if traceparent is None else [("traceparent", traceparent.encode())]
    assert [
        ("ce_id", b"0192f0a1-b2c3-7d4e-8f90-a1b2c3d4e5f7"),
        ("ce_type", b"payment.refunded"),
        ("ce_source", b"/payflow"),
        ("ce_time", b"2025-11-24T16:00:00.000123Z"),
        ("ce_specversion", b"1.0"),
        ("ce_subject", b"0192f0a1-b2c3-7d4e-8f90-a1b2c3d4e5f6"),
        *trace,
        ("content-type", b"application/json"),
    ] == list(headers)


@pytest.mark.parametrize("at_us", [0, 1, 999_999, 1_000_000, AT_US, 4_102_444_800_000_000, 253_402_300_799_999_999])
def test_times_have_z_and_six_digits(at_us: int) -> None:
    text = wire.time_text(at_us)

    moment = datetime.fromisoformat(text)
    assert UTC == moment.tzinfo
    assert at_us == (moment - datetime(1970, 1, 1, tzinfo=UTC)).days * 86_400_000_000 + at_us % 86_400_000_000
    assert moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ") == text


def test_an_id_is_read_only_in_the_form_it_is_written() -> None:
    text = wire.id_text(PAYMENT_ID)

    assert PAYMENT_ID == wire.id_bytes(text)
    for other in (text.upper(), text.replace("-", ""), text[1:], f"{{{text}}}", "", "x" * 36, f" {text}", text + "\n"):
        assert wire.id_bytes(other) is None


# ------------------------------------------------------------------ the way back
def _changed(**members: object) -> bytes:
    return json.dumps(json.loads(wire.encode_event(EVENT)) | members).encode()


def _without(member: str) -> bytes:
    return json.dumps(
        {name: value for name, value in json.loads(wire.encode_event(EVENT)).items() if name != member}
    ).encode()


def test_an_event_comes_back_as_it_went() -> None:
    headers = wire.event_headers(
        event_id=EVENT_ID, event_type=EVENT.type, at_us=EVENT.at_us, payment_id=PAYMENT_ID, traceparent=None
    )

    expected = LedgerEvent(EVENT_ID, PAYMENT_ID, 3, EventType.REFUNDED, AT_US + 1, 400, "EUR", "m-1")
    assert expected == wire.decode_event(wire.encode_event(EVENT), headers)
    assert expected == wire.decode_event(wire.encode_event(EVENT), ())


def test_members_of_a_newer_writer_are_skipped() -> None:
    assert EVENT_ID == wire.decode_event(_changed(loyalty={"points": 3}, reason=None), ()).event_id


def test_a_currency_that_is_newer_than_the_reader_is_taken() -> None:
    assert "QQQ" == wire.decode_event(_changed(currency="QQQ"), ()).currency


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"garbage",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        wire.encode_event(EVENT)[:-1],
        *(
            _without(name)
            for name in ("event_id", "payment_id", "merchant_id", "version", "type", "at", "amount", "currency")
        ),
        _changed(type="payment.exploded"),
        _changed(amount=0),
        _changed(amount=-1),
        _changed(amount=MAX_AMOUNT + 1),
        _changed(amount=2**63),
        _changed(amount=400.0),
        _changed(amount="400"),
        _changed(amount=True),
        _changed(amount=1051),
        _changed(version=0),
        _changed(version=2**40),
        _changed(currency="eur"),
        _changed(currency="EURO"),
        _changed(currency="EUR\n"),
        _changed(merchant_id=""),
        _changed(merchant_id="m" * 65),
        _changed(event_id="not an id"),
        _changed(payment_id=wire.id_text(PAYMENT_ID).upper()),
        _changed(at="2025-11-24"),
        _changed(at="2025-11-24T16:00:00"),
        _changed(captured_amount=399),
        _changed(captured_amount=1051),
        _changed(captured_amount=-1),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_short_reason(value: bytes | None) -> None:
    with pytest.raises(UndecodableEvent) as refused:
        wire.decode_event(value, ())

    assert 0 < len(refused.value.reason) <= 200
    assert str(refused.value) == refused.value.reason


@pytest.mark.parametrize("value", [_changed(schema_version=2), b'{"schema_version": 2}'])
def test_another_schema_version_is_named_as_the_reason(value: bytes) -> None:
    with pytest.raises(UndecodableEvent, match="unknown schema version 2"):
        wire.decode_event(value, ())


def test_headers_of_another_event_are_refused() -> None:
    with pytest.raises(UndecodableEvent, match="ce_id"):
        wire.decode_event(wire.encode_event(EVENT), [("ce_id", wire.id_text(PAYMENT_ID).encode())])

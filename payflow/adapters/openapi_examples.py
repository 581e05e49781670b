"""Examples of /openapi.json, built as values of the real types: an example that does not fit cannot be written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from payflow.adapters import http_types as types
from payflow.adapters import problems as kinds
from payflow.adapters.http_query import payment_cursor
from payflow.adapters.problems import FieldError, ProblemType, Refused, Standing
from payflow.core.ledger import AccountBalance, CurrencyBalance, Entry, Posting, Side
from payflow.core.payment import EventType, Payment, Status
from payflow.ports import PaymentEventView
from payflow.wire import PaymentBody, id_bytes, id_text, payment_body

PAYMENT_ID: Final = "019ac0de-7c00-7a1b-8c2d-3e4f5a6b7c8d"
_REQUEST_ID: Final = "019ac0de-7c05-7000-8000-00000000002a"
_AT_US: Final = 1_764_090_000_123_456
_RAW_ID: Final = id_bytes(PAYMENT_ID) or b""


def _event_id(number: int) -> bytes:
    return _RAW_ID[:15] + bytes([number])


_PAYMENT: Final = Payment(
    _RAW_ID, "m-1001", "order-77", 12500, "EUR", Status.CAPTURED, 12500, 0, "two tickets", {"channel": "web"},
    _AT_US, _AT_US + 2_000_000, 2,
)  # fmt: skip
_EVENTS: Final = (
    PaymentEventView(
        _event_id(1), EventType.AUTHORIZED, 1, _AT_US, 12500, "published", 3, 41, _AT_US + 9_000, _AT_US + 21_000
    ),
    PaymentEventView(_event_id(2), EventType.CAPTURED, 2, _AT_US + 2_000_000, 12500, "pending", None, None, None, None),
)
_ENTRY: Final = Entry(
    _event_id(2), _RAW_ID, _AT_US + 2_000_000,
    (Posting("cash", Side.DEBIT, 12500, "EUR"), Posting("merchant_payable:m-1001", Side.CREDIT, 12500, "EUR")),
)  # fmt: skip
_VALUES: Final[Mapping[type[msgspec.Struct], msgspec.Struct]] = {
    types.PaymentRequest: types.PaymentRequest(
        merchant_id="m-1001", amount=12500, currency="EUR", order_id="order-77", description="two tickets",
        metadata={"channel": "web"},
    ),
    types.CaptureRequest: types.CaptureRequest(amount=5000),
    types.RefundRequest: types.RefundRequest(amount=5000, reason="returned goods"),
    types.VoidRequest: types.VoidRequest(),
    PaymentBody: payment_body(_PAYMENT),
    types.PaymentWithEvents: types.payment_with_events(_PAYMENT, _EVENTS),
    types.PaymentList: types.payment_list([_PAYMENT], payment_cursor(_AT_US, _RAW_ID)),
    types.LedgerOfPayment: types.ledger_of_payment(id_text(_RAW_ID), [_ENTRY]),
    types.AccountList: types.account_list([AccountBalance("cash", "EUR", 12500, 0)], None),
    types.TrialBalance: types.trial_balance([CurrencyBalance("EUR", 12500, 12500)]),
}  # fmt: skip

_ERRORS: Final[Mapping[str, tuple[FieldError, ...]]] = {
    kinds.INVALID_BODY.code: (
        FieldError(
            "not_an_integer", "must be an integer, not a number with a fraction or an exponent", pointer="/amount"
        ),
        FieldError("too_long", "may have 500 characters", pointer="/metadata/note"),
    ),
    kinds.CARD_NUMBER.code: (FieldError("card_number", "looks like a card number", pointer="/description"),),
    kinds.INVALID_QUERY.code: (FieldError("out_of_range", "1 to 100", parameter="limit"),),
    kinds.KEY_MISSING.code: (FieldError("missing", "is required", header="Idempotency-Key"),),
}
_STANDINGS: Final[Mapping[str, Standing]] = {
    kinds.ILLEGAL_TRANSITION.code: Standing(f"/payments/{PAYMENT_ID}", Status.VOIDED.value),
    kinds.ORDER_EXISTS.code: Standing(f"/payments/{PAYMENT_ID}", Status.AUTHORIZED.value),
    kinds.AMOUNT_EXCEEDS.code: Standing(f"/payments/{PAYMENT_ID}", Status.PARTIALLY_CAPTURED.value, 7500, "EUR"),
}


def of(shape: type[msgspec.Struct]) -> Any:
    """The example of a body."""
    return msgspec.to_builtins(_VALUES[shape])


def problem(kind: ProblemType) -> Any:
    """The example of a problem document."""
    refused = Refused(kind, errors=_ERRORS.get(kind.code, ()), standing=_STANDINGS.get(kind.code))
    return msgspec.json.decode(kinds.document(refused, _REQUEST_ID))

"""The payments API without a web server: from the parts of a request to an answer, through the PaymentsService port.

Nothing here knows aiohttp, so another HTTP front stays possible. It checks shape only; what a payment may do is decided
behind the port. Every refusal is raised as `Refused`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

import msgspec

from payflow.adapters import http_query, http_types, problems, strict_json
from payflow.adapters.body_errors import explain, pointer
from payflow.adapters.http_types import CaptureRequest, PaymentRequest, RefundRequest, VoidRequest, WriteRequest
from payflow.adapters.problems import FieldError, ProblemType, Refused, Standing
from payflow.core.idempotency import normalise_key
from payflow.core.money import is_currency
from payflow.core.outbox import Submit
from payflow.core.pan import holds_card, may_hold_card
from payflow.core.payment import Payment, Refusal, RefusalCode
from payflow.ports import PaymentsService
from payflow.wire import id_text

JSON: Final = "application/json"
PAYMENTS: Final = "/payments"
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

_REFUSALS: Final[Mapping[RefusalCode, ProblemType]] = {
    RefusalCode.NOT_FOUND: problems.PAYMENT_NOT_FOUND,
    RefusalCode.ILLEGAL_TRANSITION: problems.ILLEGAL_TRANSITION,
    RefusalCode.AMOUNT_EXCEEDS: problems.AMOUNT_EXCEEDS,
    RefusalCode.KEY_REUSED: problems.KEY_REUSED,
    RefusalCode.ORDER_EXISTS: problems.ORDER_EXISTS,
}
_REPLAYED: Final = ("Idempotent-Replayed", "true")


class Answer(msgspec.Struct, frozen=True):
    """A response that is not a refusal."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Writing:
    """How one route that writes reads its body."""

    template: str
    shape: type[WriteRequest]
    decoder: msgspec.json.Decoder[Any]
    takes_empty_body: bool


def _writing(template: str, shape: type[Any], *, takes_empty_body: bool = False) -> Writing:
    return Writing(template, shape, msgspec.json.Decoder(shape), takes_empty_body)


CREATE: Final = _writing("/payments", PaymentRequest)
CAPTURE: Final = _writing("/payments/{id}/capture", CaptureRequest, takes_empty_body=True)
REFUND: Final = _writing("/payments/{id}/refund", RefundRequest)
VOID: Final = _writing("/payments/{id}/void", VoidRequest, takes_empty_body=True)


def idempotency_key(values: Sequence[str]) -> str:
    """The one key of the request."""
    if len(values) != 1:
        kind, code, detail = _KEY_REPEATED if values else _KEY_MISSING
    elif key := normalise_key(values[0]):
        return key
    else:
        kind, code, detail = _KEY_MALFORMED
    raise Refused(kind, errors=[FieldError(code, detail, header="Idempotency-Key")])


_KEY_MISSING: Final = (problems.KEY_MISSING, "missing", "is required")
_KEY_REPEATED: Final = (problems.KEY_REPEATED, "repeated", "may be sent once")
_KEY_MALFORMED: Final = (problems.KEY_MALFORMED, "wrong_form", "1 to 255 visible ASCII characters, bare or in quotes")


def valid_traceparent(value: str) -> str | None:
    """W3C Trace Context level 1; whatever is not valid is as good as absent."""
    return value if _TRACEPARENT.fullmatch(value) else None


class PaymentsApi:
    """The routes under /payments and /ledger."""

    def __init__(self, service: PaymentsService) -> None:
        self._service = service
        self._encode = msgspec.json.Encoder().encode

    # -------------------------------------------------------------- writes
    async def write(
        self,
        writing: Writing,
        path: str,
        payment_id: bytes,
        *,
        key: str,
        trace: str | None,
        body: bytes,
        request_id: str,
    ) -> Answer:
        """`payment_id` is empty when a payment is created; `key` and `trace` come from the functions above."""
        request = _decode(writing, body)
        if may_hold_card(body):
            _refuse_cards(request)
        outcome = await self._service.submit(
            Submit(
                request.command(payment_id),
                writing.template,
                key,
                sha256(b"POST\n%b\n%b" % (path.encode(), body)).digest(),
                trace,
            ),
            request_id=request_id,
        )
        if isinstance(outcome, Refusal):
            raise _refused(outcome)
        headers: tuple[tuple[str, str], ...] = (_REPLAYED,) if outcome.replayed else ()
        if writing is not CREATE:
            return Answer(200, outcome.answer, headers)
        return Answer(201, outcome.answer, (("Location", f"{PAYMENTS}/{id_text(outcome.payment_id)}"), *headers))

    # -------------------------------------------------------------- reads
    async def payment(self, payment_id: bytes, query: str) -> Answer:
        http_query.refuse_query(query)
        found = await self._service.payment(payment_id)
        if found is None:
            raise Refused(problems.PAYMENT_NOT_FOUND)
        return Answer(200, self._encode(http_types.payment_with_events(*found)))

    async def payments(self, query: str) -> Answer:
        asked = http_query.payment_query(query)
        # One more than was asked for tells whether there is a next page.
        found = await self._service.payments(replace(asked, limit=asked.limit + 1))
        page, cursor = found[: asked.limit], None
        if len(found) > asked.limit:
            cursor = http_query.payment_cursor(page[-1].created_at_us, page[-1].id)
        return self._page(PAYMENTS, query, cursor, http_types.payment_list(page, cursor))

    async def ledger_of_payment(self, payment_id: bytes, query: str) -> Answer:
        http_query.refuse_query(query)
        entries = await self._service.ledger_entries(payment_id)
        return Answer(200, self._encode(http_types.ledger_of_payment(id_text(payment_id), entries)))

    async def accounts(self, query: str) -> Answer:
        after, limit = http_query.account_query(query)
        found = await self._service.ledger_accounts(after=after, limit=limit + 1)
        page, cursor = found[:limit], None
        if len(found) > limit:
            cursor = http_query.account_cursor(page[-1].account, page[-1].currency)
        return self._page("/ledger/accounts", query, cursor, http_types.account_list(page, cursor))

    async def trial_balance(self, query: str) -> Answer:
        http_query.refuse_query(query)
        return Answer(200, self._encode(http_types.trial_balance(await self._service.trial_balance())))

    def _page(self, path: str, query: str, cursor: str | None, body: msgspec.Struct) -> Answer:
        headers = () if cursor is None else (("Link", http_query.next_link(path, query, cursor)),)
        return Answer(200, self._encode(body), headers)


def _decode(writing: Writing, body: bytes) -> Any:
    if not body and writing.takes_empty_body:
        body = b"{}"
    try:
        request = strict_json.decode(writing.decoder, body)
    except msgspec.ValidationError:
        raise explain(body, writing.shape) from None
    if writing is CREATE and not is_currency(request.currency):
        raise explain(body, writing.shape)
    return request


def _refuse_cards(request: WriteRequest) -> None:
    errors = [
        FieldError("card_number", "looks like a card number", pointer=pointer(*where))
        for where, text, identifier in request.texts()
        if holds_card(text, identifier=identifier)
    ]
    if errors:
        raise Refused(problems.CARD_NUMBER, errors=errors)


def _refused(outcome: Refusal) -> Refused:
    kind, payment = _REFUSALS[outcome.code], outcome.payment
    if payment is None:
        return Refused(kind)
    standing = Standing(
        payment=f"{PAYMENTS}/{id_text(payment.id)}",
        current_status=payment.status.value,
        left=outcome.left,
        currency=None if outcome.left is None else payment.currency,
    )
    return Refused(kind, _detail(outcome, payment), standing=standing, headers=_link(kind, standing))


def _detail(outcome: Refusal, payment: Payment) -> str | None:
    if outcome.code is RefusalCode.ILLEGAL_TRANSITION:
        return f"The payment is {payment.status.value}, which does not allow this."
    if outcome.code is RefusalCode.AMOUNT_EXCEEDS:
        return f"The amount is more than what is left: {outcome.left} minor units of {payment.currency}."
    return None


def _link(kind: ProblemType, standing: Standing) -> Mapping[str, str]:
    return {"Link": f'<{standing.payment}>; rel="related"'} if kind is problems.ORDER_EXISTS else {}


def retry_after(seconds: float) -> Mapping[str, str]:
    """Whole seconds, never 0: a client that obeys must not come back at once."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}

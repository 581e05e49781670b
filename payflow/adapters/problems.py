"""Catalogue of problem documents (RFC 9457): one table for the code, /openapi.json, /problems and docs/problems.md.

A type and its code never change their meaning; details may. A detail never repeats what the client sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

CONTENT_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "/problems/"
# A body of 64 KiB can hold thousands of bad members; the first ones are enough to mend a client.
MAX_FIELD_ERRORS: Final = 20


@dataclass(frozen=True, slots=True)
class ProblemType:
    """One kind of refusal. `detail` is the sentence used where the code has nothing more exact to say; `advice` is for
    the reader of the docs. `management`: only the management site answers it.
    """

    code: str
    status: int
    title: str
    detail: str
    advice: str
    retryable: bool = False
    management: bool = False

    @property
    def type(self) -> str:
        return TYPE_PREFIX + self.code


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is wrong with one member of the body (`pointer`, RFC 6901), one query parameter or one header."""

    code: str
    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET
    header: str | UnsetType = UNSET


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every refusal. `payment`, `current_status`, `left` and `currency` are there where a payment stands in
    the way.
    """

    type: str
    code: str
    title: str
    status: int
    detail: str
    retryable: bool
    request_id: str
    errors: tuple[FieldError, ...] | UnsetType = UNSET
    payment: str | UnsetType = UNSET
    current_status: str | UnsetType = UNSET
    left: int | UnsetType = UNSET
    currency: str | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Standing:
    """The payment that stands in the way of a command, as far as the problem document shows it."""

    payment: str
    current_status: str
    left: int | None = None
    currency: str | None = None


class Refused(Exception):
    """A request ends here with a problem document."""

    def __init__(
        self,
        problem: ProblemType,
        detail: str | None = None,
        *,
        errors: Iterable[FieldError] = (),
        standing: Standing | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(problem.code)
        self.problem = problem
        self.detail = detail or problem.detail
        self.errors = tuple(errors)[:MAX_FIELD_ERRORS]
        self.standing = standing
        self.headers = headers or {}
        self.close = close


_encode: Final = msgspec.json.Encoder().encode


def document(refused: Refused, request_id: str) -> bytes:
    """The bytes of the problem document."""
    kind, standing = refused.problem, refused.standing
    return _encode(
        Problem(
            type=kind.type,
            code=kind.code,
            title=kind.title,
            status=kind.status,
            detail=refused.detail,
            retryable=kind.retryable,
            request_id=request_id,
            errors=refused.errors or UNSET,
            payment=standing.payment if standing else UNSET,
            current_status=standing.current_status if standing else UNSET,
            left=standing.left if standing and standing.left is not None else UNSET,
            currency=standing.currency if standing and standing.currency is not None else UNSET,
        )
    )


# ------------------------------------------------------------------ 400: the request cannot be read
MALFORMED_HTTP: Final = ProblemType(
    "malformed-http",
    400,
    "The request is not valid HTTP",
    "The request line or a header could not be read.",
    "A proxy or a hand-written client sends broken HTTP. The connection is closed.",
)
MALFORMED_JSON: Final = ProblemType(
    "malformed-json",
    400,
    "The body is not JSON",
    "The body is not one well-formed JSON document.",
    "Send one JSON object, UTF-8 without a byte order mark. NaN, Infinity, comments and trailing commas are not JSON.",
)
DUPLICATE_MEMBER: Final = ProblemType(
    "duplicate-member",
    400,
    "A member name occurs twice",
    "An object of the body names the same member twice.",
    "Parsers disagree on which of two equal names counts, so neither is taken. Escapes are resolved before comparing.",
)
INVALID_UNICODE: Final = ProblemType(
    "invalid-unicode",
    400,
    "The text is not valid Unicode",
    "The body is not UTF-8, or has a surrogate without its other half, or U+0000.",
    "Send UTF-8. An escape beyond U+FFFF is a pair of surrogates. U+0000 is refused everywhere.",
)
NESTING_TOO_DEEP: Final = ProblemType(
    "nesting-too-deep",
    400,
    "The body is nested too deep",
    "No body of this API is nested deeper than two levels.",
    "An object that holds `metadata` is as deep as it gets.",
)
INVALID_QUERY: Final = ProblemType(
    "invalid-query",
    400,
    "The query string is not valid",
    "A query parameter is unknown, repeated or has a value that is not allowed.",
    "`errors` names each parameter. Routes that write take no query at all.",
)
INVALID_CURSOR: Final = ProblemType(
    "invalid-cursor",
    400,
    "The cursor is not one of ours",
    "The cursor was changed or cut on its way.",
    'Pass `next_cursor` (or follow `Link: rel="next"`) exactly as it came; it has no parts to edit.',
)
KEY_MISSING: Final = ProblemType(
    "idempotency-key-missing",
    400,
    "Idempotency-Key is missing",
    "Every POST that writes needs an Idempotency-Key header.",
    "Draw one random key (a UUID) for each thing you want done, keep it, and send it with every retry.",
)
KEY_MALFORMED: Final = ProblemType(
    "idempotency-key-malformed",
    400,
    "Idempotency-Key is malformed",
    "The key is 1 to 255 visible ASCII characters, bare or in double quotes.",
    "Both forms name the same key.",
)
KEY_REPEATED: Final = ProblemType(
    "idempotency-key-repeated",
    400,
    "Idempotency-Key is repeated",
    "The request has more than one Idempotency-Key header.",
    "One request does one thing and has one key.",
)
# ------------------------------------------------------------------ 401, 403: an operator's action
UNAUTHORIZED: Final = ProblemType(
    "unauthorized",
    401,
    "The action needs a token",
    "An action needs a bearer token of this process.",
    "Send `Authorization: Bearer` and a token of `management.tokens`.",
    management=True,
)
ACTIONS_OFF: Final = ProblemType(
    "actions-off",
    403,
    "Actions are off",
    "Actions are off; management.allow_actions switches them on.",
    "A configuration of its own, so that a leaked token alone does nothing.",
    management=True,
)
# ------------------------------------------------------------------ 404, 405: nothing here
ACTOR_NOT_FOUND: Final = ProblemType(
    "actor-not-found",
    404,
    "No such actor",
    "There is no actor of that id; /debug/actors lists them.",
    "Supervisors have no mailbox and take no actions.",
    management=True,
)
NOT_FOUND: Final = ProblemType(
    "not-found",
    404,
    "No such resource",
    "Nothing is served at this path.",
    "/openapi.json lists every route.",
)
PAYMENT_NOT_FOUND: Final = ProblemType(
    "payment-not-found",
    404,
    "No such payment",
    "There is no payment with this id.",
    "Also the answer to an id that is not a UUIDv7 in lower-case text.",
)
BREAKER_NOT_FOUND: Final = ProblemType(
    "breaker-not-found",
    404,
    "No such circuit breaker",
    "There is no circuit breaker with this name.",
    "/circuit-breaker/status lists them.",
)
ROLE_NOT_SERVED: Final = ProblemType(
    "role-not-served",
    404,
    "Another process serves this route",
    "This process does not run the role that serves this route.",
    "Payments belong to `ingest`, the ledger to `consumer`. Ask the registry for the other service.",
)
METHOD_NOT_ALLOWED: Final = ProblemType(
    "method-not-allowed",
    405,
    "Method not allowed",
    "This path does not answer this method.",
    "The Allow header lists what it answers.",
)
# ------------------------------------------------------------------ 408, 413, 415, 417: the body cannot be taken
BODY_TIMEOUT: Final = ProblemType(
    "body-timeout",
    408,
    "The body came too slowly",
    "The body was not complete within its time. Nothing was written.",
    "Send the whole body at once. The connection is closed.",
    retryable=True,
)
BODY_INCOMPLETE: Final = ProblemType(
    "body-incomplete",
    400,
    "The body ended early or its framing is broken",
    "The body could not be read to its end. Nothing was written.",
    "Content-Length or the chunks do not agree with what was sent. The connection is closed.",
)
BODY_TOO_LARGE: Final = ProblemType(
    "body-too-large",
    413,
    "The body is too large",
    "The body has more bytes than this server takes (64 KiB by default).",
    "The connection is closed.",
)
UNSUPPORTED_MEDIA_TYPE: Final = ProblemType(
    "unsupported-media-type",
    415,
    "Content-Type is not JSON",
    "Send Content-Type: application/json, UTF-8.",
    "An empty body needs no Content-Type.",
)
UNSUPPORTED_CONTENT_ENCODING: Final = ProblemType(
    "unsupported-content-encoding",
    415,
    "Compressed bodies are not taken",
    "Send the body without a Content-Encoding.",
    "The fingerprint of a key is made from the bytes you send, and bodies are small.",
)
EXPECTATION_FAILED: Final = ProblemType(
    "expectation-failed",
    417,
    "The expectation is not known",
    "The only Expect that is understood is 100-continue.",
    "Leave the header out.",
)
# ------------------------------------------------------------------ 409, 422: understood, and refused
ILLEGAL_TRANSITION: Final = ProblemType(
    "illegal-transition",
    409,
    "The payment's state does not allow this",
    "The payment is in a state that does not allow this.",
    "`current_status` is the state. The first refund ends capturing; only what was not captured can be voided.",
)
ORDER_EXISTS: Final = ProblemType(
    "order-exists",
    409,
    "The order was paid before",
    "The merchant already has a payment with this order_id.",
    "`payment` links to it. An order_id is unique for a merchant, for ever, so an expired key cannot charge twice.",
)
NOT_POSSIBLE: Final = ProblemType(
    "not-possible",
    409,
    "The action is not possible",
    "This action is not possible on this actor.",
    "`detail` has the reason. The management actor cannot be paused or restarted by itself.",
    management=True,
)
REASON_MISSING: Final = ProblemType(
    "reason-missing",
    422,
    "The action needs a reason",
    "A reason of 1 to 500 characters is needed.",
    "It is audited together with the name of the token.",
    management=True,
)
INVALID_BODY: Final = ProblemType(
    "invalid-body",
    422,
    "The body breaks the schema",
    "One or more members of the body are not valid.",
    "`errors` points to each bad member.",
)
CARD_NUMBER: Final = ProblemType(
    "card-number",
    422,
    "The text looks like a card number",
    "A free text holds what looks like a card number. It was not kept.",
    "Never send card numbers. A digit string that passes the Luhn check by chance is refused too: add a letter to it.",
)
AMOUNT_EXCEEDS: Final = ProblemType(
    "amount-exceeds",
    422,
    "The amount is more than is left",
    "The amount is more than what is left.",
    "`left` is what can still be captured or refunded, in minor units of `currency`.",
)
KEY_REUSED: Final = ProblemType(
    "idempotency-key-reused",
    422,
    "The key was used for another request",
    "This Idempotency-Key belongs to a request with another path or body.",
    "A key stands for one request: same method, path and body bytes. Draw a new key for a new request.",
)
# ------------------------------------------------------------------ 5xx: not the client's fault
INTERNAL_ERROR: Final = ProblemType(
    "internal-error",
    500,
    "Something broke on our side",
    "The request could not be answered. Retry with the same key.",
    "Report `request_id`. A retry with the same Idempotency-Key is safe.",
    retryable=True,
)
OVERLOADED: Final = ProblemType(
    "overloaded",
    503,
    "Too busy to take the request",
    "Nothing was queued and nothing was written. Retry later with the same key.",
    "Wait for Retry-After seconds.",
    retryable=True,
)
OUTCOME_UNKNOWN: Final = ProblemType(
    "outcome-unknown",
    503,
    "The outcome is not known yet",
    "The write may still take effect. Retry with the same key to learn what happened.",
    "Never retry this with a new key.",
    retryable=True,
)
UNAVAILABLE: Final = ProblemType(
    "unavailable",
    503,
    "The store does not answer",
    "Nothing was written. Retry later with the same key.",
    "The disk is full, the database is locked, or a read took too long. Wait for Retry-After seconds.",
    retryable=True,
)
TOO_MANY_CONNECTIONS: Final = ProblemType(
    "too-many-connections",
    503,
    "Too many connections are open",
    "The request was not read. Retry later, on a connection that is kept.",
    "The connection is closed. Keep connections and use them again.",
    retryable=True,
)
NOT_DONE: Final = ProblemType(
    "not-done",
    503,
    "The action was not done",
    "The action was not done.",
    "`detail` has the reason, mostly that it could not be audited.",
    retryable=True,
    management=True,
)
DRAINING: Final = ProblemType(
    "draining",
    503,
    "The process is stopping",
    "Nothing was queued and nothing was written. Retry on a new connection.",
    "The connection is closed. Another instance, or this one after its restart, will answer.",
    retryable=True,
)

CATALOGUE: Final[tuple[ProblemType, ...]] = tuple(
    sorted(
        (value for value in list(globals().values()) if isinstance(value, ProblemType)),
        key=lambda kind: (kind.status, kind.code),
    )
)
BY_CODE: Final[Mapping[str, ProblemType]] = {kind.code: kind for kind in CATALOGUE}

"""/openapi.json: OpenAPI 3.1, made from the route table, the types that decode and encode, and the catalogue of
problems.

Nothing is described twice: a member, a limit or a problem that changes in the code changes here. Only prose and
examples live in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import groupby
from typing import Any, Final

import msgspec

from payflow import __version__
from payflow.adapters import http_types as types
from payflow.adapters import openapi_examples as examples
from payflow.adapters import problems as kinds
from payflow.adapters.http_query import LIMIT_DEFAULT, LIMIT_MAX
from payflow.adapters.http_routes import ROUTES, Route
from payflow.adapters.problems import ProblemType
from payflow.core.payment import EventType, Status
from payflow.wire import PaymentBody

_SCHEMA: Final = "#/components/schemas/"
_PROSE: Final = """Payments over HTTP, answered only after they are committed to disk.

Money is an integer of minor units with an ISO 4217 code. Times are RFC 3339, UTC, with six digits. Ids are UUIDv7 in
lower case. Every POST needs an `Idempotency-Key`: the same key with the same method, path and body bytes gives the
stored answer byte for byte and `Idempotent-Replayed: true`; with another path or body it is refused. Keys are kept for
72 hours. Only a success uses a key up. Every refusal is `application/problem+json` (RFC 9457); its `type` is a page of
this server. Beside those listed with each operation, any request can meet `malformed-http`, `not-found` and
`method-not-allowed`. Every response has a `Request-Id`."""

_LICENSE: Final = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
_READ_FAILURES: Final = (kinds.INTERNAL_ERROR, kinds.UNAVAILABLE, kinds.DRAINING)
_READ: Final = (kinds.INVALID_QUERY, kinds.ROLE_NOT_SERVED, *_READ_FAILURES)
_WRITE: Final = (
    kinds.MALFORMED_JSON, kinds.DUPLICATE_MEMBER, kinds.INVALID_UNICODE, kinds.NESTING_TOO_DEEP, kinds.INVALID_QUERY,
    kinds.KEY_MISSING, kinds.KEY_MALFORMED, kinds.KEY_REPEATED, kinds.ROLE_NOT_SERVED, kinds.BODY_INCOMPLETE,
    kinds.BODY_TIMEOUT, kinds.BODY_TOO_LARGE, kinds.UNSUPPORTED_MEDIA_TYPE, kinds.UNSUPPORTED_CONTENT_ENCODING,
    kinds.EXPECTATION_FAILED, kinds.INVALID_BODY, kinds.KEY_REUSED, kinds.INTERNAL_ERROR, kinds.OVERLOADED,
    kinds.OUTCOME_UNKNOWN, kinds.UNAVAILABLE, kinds.DRAINING,
)  # fmt: skip
_STEP: Final = (*_WRITE, kinds.PAYMENT_NOT_FOUND, kinds.ILLEGAL_TRANSITION)


class Doc(msgspec.Struct, frozen=True):
    """What a route's row in the table does not say. `answer` is a type of http_types, or the media type of a body
    without a schema.
    """

    tag: str
    summary: str
    answer: type[msgspec.Struct] | str
    problems: tuple[ProblemType, ...] = ()
    parameters: tuple[str, ...] = ()


_JSON: Final = "application/json"
_TEXT: Final = "text/plain"
DOCS: Final[Mapping[str, Doc]] = {
    "create_payment": Doc(
        "payments", "Authorize a payment", PaymentBody, (*_WRITE, kinds.CARD_NUMBER, kinds.ORDER_EXISTS)
    ),
    "list_payments": Doc(
        "payments",
        "List payments, newest first",
        types.PaymentList,
        (*_READ, kinds.INVALID_CURSOR),
        ("merchant_id", "status", "from", "to", "cursor", "limit"),
    ),
    "get_payment": Doc(
        "payments", "A payment and its timeline", types.PaymentWithEvents, (*_READ, kinds.PAYMENT_NOT_FOUND)
    ),
    "capture_payment": Doc(
        "payments", "Capture all that is left, or part of it", PaymentBody, (*_STEP, kinds.AMOUNT_EXCEEDS)
    ),
    "refund_payment": Doc(
        "payments",
        "Refund all that is left, or part of it",
        PaymentBody,
        (*_STEP, kinds.AMOUNT_EXCEEDS, kinds.CARD_NUMBER),
    ),
    "void_payment": Doc("payments", "Release an authorization that was not captured", PaymentBody, _STEP),
    "get_ledger_of_payment": Doc(
        "ledger", "What was booked for a payment", types.LedgerOfPayment, (*_READ, kinds.PAYMENT_NOT_FOUND)
    ),
    "list_accounts": Doc(
        "ledger", "List accounts", types.AccountList, (*_READ, kinds.INVALID_CURSOR), ("cursor", "limit")
    ),
    "get_trial_balance": Doc("ledger", "Whether every currency balances", types.TrialBalance, _READ),
    "list_breakers": Doc("operation", "All circuit breakers by name", _JSON),
    "get_breaker": Doc("operation", "One circuit breaker", _JSON, (kinds.BREAKER_NOT_FOUND,)),
    "get_liveness": Doc("operation", "Whether the loop turns", _TEXT),
    "get_readiness": Doc("operation", "Whether this process does its work; 503 while it does not", _JSON),
    "get_health": Doc("operation", "Components; 503 only while the database is down", _JSON),
    "get_info": Doc("operation", "Name and version", _JSON),
    "get_metrics": Doc("operation", "Prometheus metrics", _TEXT),
    "get_openapi": Doc("description", "This document", _JSON),
    "list_problems": Doc("description", "All problem types", _JSON),
    "get_problem": Doc("description", "One problem type, in words", _TEXT),
    "get_docs": Doc("description", "This document as a page", "text/html"),
    "get_docs_file": Doc("description", "Files of that page", "*/*"),
}
_MAY_BE_503: Final = frozenset({"get_readiness", "get_health"})

_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "id": {
        "in": "path",
        "required": True,
        "schema": {"type": "string", "format": "uuid"},
        "example": examples.PAYMENT_ID,
    },
    "name": {"in": "path", "required": True, "schema": {"type": "string"}, "example": "kafka-publisher"},
    "code": {"in": "path", "required": True, "schema": {"type": "string"}, "example": "invalid-body"},
    "file": {"in": "path", "required": True, "schema": {"type": "string"}, "example": "swagger-ui.css"},
    "merchant_id": {"in": "query", "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"}},
    "status": {"in": "query", "schema": {"type": "string", "enum": [status.value for status in Status]}},
    "from": {"in": "query", "description": "Created at or after.", "schema": {"type": "string", "format": "date-time"}},
    "to": {"in": "query", "description": "Created before.", "schema": {"type": "string", "format": "date-time"}},
    "cursor": {
        "in": "query",
        "description": "`next_cursor` of the page before, as it came.",
        "schema": {"type": "string"},
    },
    "limit": {
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
    },
    "Idempotency-Key": {
        "in": "header",
        "required": True,
        "description": "1 to 255 visible ASCII characters, bare or in quotes. Draw a new one for each new thing.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 257},
        "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
    },
    "traceparent": {
        "in": "header",
        "description": "W3C Trace Context; travels with the event. Ignored when it is not valid.",
        "schema": {"type": "string"},
    },
}
_HEADERS: Final[Mapping[str, str]] = {
    "Request-Id": "UUIDv7 of this response; quote it in a report.",
    "Location": "Path of the new payment.",
    "Idempotent-Replayed": "`true` on a stored answer.",
    "Retry-After": "Seconds to wait.",
    "Link": 'The next page, `rel="next"`.',
}


@cache
def openapi_document() -> bytes:
    """The document; the same bytes for the life of the process."""
    return msgspec.json.encode(openapi())


def openapi() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, DOCS[route.operation])
    return {
        "openapi": "3.1.0",
        "info": {"title": "payflow", "version": __version__, "description": _PROSE, "license": _LICENSE},
        "servers": [{"url": "/"}],
        "tags": [{"name": name} for name in ("payments", "ledger", "operation", "description")],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "parameters": {name: {"name": name, **rest} for name, rest in _PARAMETERS.items()},
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
            "examples": {
                kind.code: {"summary": kind.title, "value": examples.problem(kind)}
                for kind in kinds.CATALOGUE
                if not kind.management
            },
        },
    }


def _operation(route: Route, doc: Doc) -> dict[str, Any]:
    path_names = [part[1:-1] for part in route.template.split("/") if part.startswith("{")]
    names = [*path_names, *doc.parameters, *(("Idempotency-Key", "traceparent") if route.writing else ())]
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "tags": [doc.tag],
        "summary": doc.summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names],
        "responses": {**_answer(route, doc), **_problems(doc.problems)},
    }
    if route.writing:
        operation["requestBody"] = {
            "required": not route.writing.takes_empty_body,
            "content": {_JSON: _content(route.writing.shape)},
        }
    return operation


def _answer(route: Route, doc: Doc) -> dict[str, Any]:
    names = ["Request-Id"]
    if route.writing:
        names += ["Idempotent-Replayed"]
    if route.operation == "create_payment":
        names += ["Location"]
    if "cursor" in doc.parameters:
        names += ["Link"]
    content = {doc.answer: {}} if isinstance(doc.answer, str) else {_JSON: _content(doc.answer)}
    answer = {"description": doc.summary, "headers": _header_refs(names), "content": content}
    answers = {"201" if route.operation == "create_payment" else "200": answer}
    if route.operation in _MAY_BE_503:
        answers["503"] = answer
    return answers


def _problems(listed: Iterable[ProblemType]) -> dict[str, Any]:
    ordered = sorted(listed, key=lambda kind: (kind.status, kind.code))
    return {str(status): _problem(list(group)) for status, group in groupby(ordered, key=lambda kind: kind.status)}


def _problem(group: list[ProblemType]) -> dict[str, Any]:
    names = ["Request-Id", "Retry-After"] if group[0].status == 503 else ["Request-Id"]
    return {
        "description": "; ".join(f"`{kind.code}`: {kind.title.lower()}" for kind in group),
        "headers": _header_refs(names),
        "content": {
            kinds.CONTENT_TYPE: {
                "schema": {"$ref": _SCHEMA + "Problem"},
                "examples": {kind.code: {"$ref": f"#/components/examples/{kind.code}"} for kind in group},
            }
        },
    }


def _header_refs(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _content(shape: type[msgspec.Struct]) -> dict[str, Any]:
    return {"schema": {"$ref": _SCHEMA + shape.__name__}, "examples": {"example": {"value": examples.of(shape)}}}


# Members that the wire keeps as plain text or numbers and a reader wants to know more of.
_REFINED: Final[Mapping[str, Mapping[str, Any]]] = {
    "id": {"format": "uuid"},
    "payment_id": {"format": "uuid"},
    "event_id": {"format": "uuid"},
    "status": {"enum": [status.value for status in Status]},
    "created_at": {"format": "date-time"},
    "updated_at": {"format": "date-time"},
    "at": {"format": "date-time"},
    "currency": {"pattern": "^[A-Z]{3}$"},
    "outbox": {"enum": ["pending", "published", "parked"]},
    "side": {"enum": ["debit", "credit"]},
}


def _schemas() -> dict[str, Any]:
    shapes: set[type[msgspec.Struct]] = {route.writing.shape for route in ROUTES if route.writing}
    shapes |= {doc.answer for doc in DOCS.values() if not isinstance(doc.answer, str)}
    shapes.add(kinds.Problem)
    ordered = sorted(shapes, key=lambda shape: shape.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=_SCHEMA + "{name}")
    for name, schema in schemas.items():
        for member, properties in schema.get("properties", {}).items():
            if properties.get("type") == "string" and name != "Problem":
                properties.update(_REFINED.get(member, {}))
            if "pattern" in properties:
                properties["pattern"] = properties["pattern"].replace(r"\Z", "$")
    schemas["PaymentEvent"]["properties"]["type"]["enum"] = [kind.value for kind in EventType]
    return schemas

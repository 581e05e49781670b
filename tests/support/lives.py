"""One payment from authorization to a partial refund, as the client's log of `books`."""

from __future__ import annotations

import json
import uuid

from tests.support.books import Sent
from tests.support.process import Client


def whole_life(api: Client) -> list[Sent]:
    """Authorize, capture, refund a part; every answer is checked."""
    log: list[Sent] = []
    path = "/payments"
    steps = (
        ("", {"merchant_id": "m-1", "amount": 1000, "currency": "EUR", "description": "two tickets"}, "AUTHORIZED"),
        ("/capture", {}, "CAPTURED"),
        ("/refund", {"amount": 300, "reason": "returned"}, "PARTIALLY_REFUNDED"),
    )
    for step, body, status in steps:
        sent = Sent(uuid.uuid4().hex, path + step, json.dumps(body).encode())
        reply = api.post(sent.path, sent.body, key=sent.key)
        sent.status, sent.answer = reply.status, reply.body
        log.append(sent)
        assert sent.accepted, reply
        assert sent.payment()["status"] == status
        path = f"/payments/{sent.payment()['id']}"
    return log

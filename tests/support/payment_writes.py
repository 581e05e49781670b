"""Builders for payment commands and ids that count up, for tests of everything between the API and the outbox."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from itertools import count

from payflow.core.outbox import Accepted, Outcome, Submit
from payflow.core.payment import Authorize, Capture, Command, Refund, Void

AT_US = 1_764_000_000_000_000
ROUTES = {
    Authorize: "/payments",
    Capture: "/payments/{id}/capture",
    Refund: "/payments/{id}/refund",
    Void: "/payments/{id}/void",
}


class CountingIds:
    """16-byte ids in ascending order."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def new(self) -> bytes:
        return next(self._numbers).to_bytes(16, "big")


_keys = count(1)


def submit(command: Command, *, key: str | None = None, body: str | None = None, trace: str | None = None) -> Submit:
    """A command as the API hands it on; a new key and a body that says what it does, unless given."""
    fingerprint = sha256((body or repr(command)).encode()).digest()
    return Submit(command, ROUTES[type(command)], key or f"key-{next(_keys)}", fingerprint, trace)


def authorize(
    amount: int = 1000,
    *,
    merchant: str = "m-1",
    order: str | None = None,
    currency: str = "EUR",
    description: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Authorize:
    return Authorize(merchant, amount, currency, order, description, dict(metadata or {}))


def accepted(outcome: Outcome) -> Accepted:
    """The outcome, which has to be an acceptance."""
    assert isinstance(outcome, Accepted), outcome
    return outcome

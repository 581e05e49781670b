"""What the next request is, and what is known of each payment from the answers.

A follow-up (capture, refund, void) is ready when the step before it was answered; the next arrival takes the oldest
ready one, else it makes a new payment. So requests keep their times and legal traffic stays legal.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import msgspec

from payflow.core.arrivals import Mix, Step, amount
from payflow.loadgen.values import BROKEN, TIMEOUT, Answer

MERCHANTS: Final = 4
CURRENCY: Final = "EUR"
# Duplicates are drawn from so many of the newest accepted requests.
RECENT: Final = 1000
EVENT_OF: Final = {
    Step.CAPTURE: "payment.captured",
    Step.REFUND: "payment.refunded",
    Step.VOID: "payment.voided",
}
AUTHORIZED: Final = "payment.authorized"


class Shown(msgspec.Struct, frozen=True):
    """The members of a payment that the answers and the books must agree on."""

    id: str
    version: int
    status: str
    amount: int
    captured_amount: int
    refunded_amount: int


@dataclass(slots=True)
class Life:
    """One payment. `events` are the types of what was accepted, in order; `shown` is the newest answer."""

    number: int
    merchant: str
    amount: int
    plan: tuple[Step, ...]
    events: list[str] = field(default_factory=list)
    shown: Shown | None = None


@dataclass(slots=True)
class Request:
    """One request to be sent. `original` is the answer that a duplicate has to repeat."""

    path: str
    body: bytes
    key: str
    life: Life
    kind: str
    original: bytes | None = None


class Traffic:
    """Draws requests, takes answers, and keeps what the books are compared with."""

    def __init__(self, run: str, *, mix: Mix, duplicates: float, seed: int) -> None:
        self.run = run
        self.lives: dict[str, Life] = {}
        self.unknown: list[Request] = []
        self.accepted = 0
        self.replays = 0
        self.wrong_replays: list[str] = []
        self.unreadable: list[str] = []
        self._mix = mix
        self._duplicates = duplicates
        self._plans = random.Random(f"{seed}-plans")  # noqa: S311 - a reproducible draw, no secret
        self._picks = random.Random(f"{seed}-picks")  # noqa: S311
        self._ready: deque[Life] = deque()
        self._recent: deque[Request] = deque(maxlen=RECENT)
        self._payments = 0
        self._decode = msgspec.json.Decoder(Shown).decode
        self._encode = msgspec.json.Encoder().encode

    @property
    def merchants(self) -> list[str]:
        """Merchants of this run and no other."""
        return [f"load-{self.run}-{number}" for number in range(MERCHANTS)]

    # -------------------------------------------------------------- what to send
    def next(self) -> Request:
        """The request of the next arrival."""
        if self._duplicates and self._picks.random() < self._duplicates and self._recent:
            return self._duplicate(self._recent[self._picks.randrange(len(self._recent))])
        if self._ready:
            return self._follow_up(self._ready.popleft())
        return self._payment()

    def _payment(self) -> Request:
        number, self._payments = self._payments, self._payments + 1
        merchant = f"load-{self.run}-{number % MERCHANTS}"
        life = Life(number, merchant, amount(self._plans.random()), self._mix.plan(self._plans.random()))
        body = {
            "merchant_id": merchant,
            "amount": life.amount,
            "currency": CURRENCY,
            "order_id": f"{self.run}-{number}",
            "description": "payflow load",
        }
        return Request("/payments", self._encode(body), f"{self.run}-{number}-0", life, "payment")

    def _follow_up(self, life: Life) -> Request:
        assert life.shown is not None
        done = len(life.events)
        step = life.plan[done - 1]
        body = b'{"reason":"payflow load"}' if step is Step.REFUND else b"{}"
        return Request(f"/payments/{life.shown.id}/{step}", body, f"{self.run}-{life.number}-{done}", life, step)

    @staticmethod
    def _duplicate(first: Request) -> Request:
        return Request(first.path, first.body, first.key, first.life, "duplicate", first.original)

    # -------------------------------------------------------------- what came back
    def answered(self, request: Request, answer: Answer) -> None:
        """Take the answer of a request that was sent."""
        if request.kind == "duplicate":
            self._replayed(request, answer)
        elif answer.accepted:
            self._accept(request, answer)
        elif is_unknown(answer):
            self.unknown.append(request)

    def _replayed(self, request: Request, answer: Answer) -> None:
        if answer.accepted:
            self.replays += 1
        same = answer.accepted and answer.replayed and answer.body == request.original
        # A duplicate that was shed or lost says nothing; one that is refused lost its key.
        if not same and not is_unknown(answer) and answer.status not in {429, 503} and not answer.failure:
            self.wrong_replays.append(request.key)

    def _accept(self, request: Request, answer: Answer) -> None:
        life = request.life
        self.accepted += 1
        try:
            life.shown = self._decode(answer.body)
        except msgspec.MsgspecError:
            self.unreadable.append(request.key)
            return
        life.events.append(AUTHORIZED if request.kind == "payment" else EVENT_OF[Step(request.kind)])
        self.lives[life.shown.id] = life
        if len(life.events) <= len(life.plan):
            self._ready.append(life)
        if self._duplicates:
            self._recent.append(
                Request(request.path, request.body, request.key, life, request.kind, original=answer.body)
            )


def is_unknown(answer: Answer) -> bool:
    """Whether the write may have happened although nobody said so."""
    if answer.status == 503:
        return b'"outcome-unknown"' in answer.body
    return answer.failure in {TIMEOUT, BROKEN} or answer.status in {408, 500, 502, 504}

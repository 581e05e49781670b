"""Merchants: they submit, capture, refund and void, hang up, and ask again with the same key until they know.

The other side of the HTTP front. What a client saw is kept: it is what the promises are about.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from payflow.core.idempotency import scope_of
from payflow.core.outbox import Accepted, Outcome, Refusal, Submit
from payflow.core.payment import Authorize, Capture, Command, Refund, RefusalCode, Void
from payflow.errors import OutcomeUnknown, Overloaded, StoreBusy, StoreUnavailable
from tests.simulation.life import Life, Outside
from tests.support.payment_writes import ROUTES

# I8: nothing of a payment's text is ever in what the process says about itself.
SECRET = "Mrs Miller's order"
MERCHANT = "m-1"
RETRY_S = 1.0
LAST_PAYMENTS_AT_MOST = 60


class Disconnected(Exception):
    """Nobody listens, or the process died before it answered."""


@dataclass(frozen=True)
class Answer:
    """The last word a client got on one key. `outcome` is Accepted or Refusal."""

    key: str
    scope: bytes
    outcome: Any


class Clients:
    """All of them. `current` is the process that listens now, or None."""

    def __init__(self, outside: Outside, current: Callable[[], Life | None], violated: Callable[[str], None]) -> None:
        self.outside = outside
        self.current = current
        self.violated = violated
        self.answers: list[Answer] = []
        self.payments: list[tuple[bytes, int]] = []

    async def run(self, number: int, steps: int) -> None:
        """One client, from its first request to its last answer."""
        chance = self.outside.stream(f"client-{number}")
        for step in range(steps):
            await asyncio.sleep(chance.random() ** 3 * 4.0)
            burst = chance.randrange(2, 12) if chance.random() < 0.1 else 1
            async with asyncio.TaskGroup() as group:
                for index in range(burst):
                    key = f"k-{number}-{step}-{index}"
                    command = self._command(chance)
                    group.create_task(self._until_known(key, command, self.outside.stream(key)))

    async def pay_at_last(self, at_rest: Callable[[], bool]) -> None:
        """When all is well again: a breaker that is half open closes only by real payments, so there are some."""
        chance = self.outside.stream("at-last")
        for index in range(LAST_PAYMENTS_AT_MOST):
            command = Authorize(MERCHANT, 700, "EUR", None, SECRET, {})
            await self._until_known(f"k-last-{index}", command, chance)
            await asyncio.sleep(0.5 + chance.random())
            if index and at_rest():
                return

    def _command(self, chance: random.Random) -> Command:
        if not self.payments or chance.random() < 0.45:
            return Authorize(MERCHANT, chance.randrange(2, 10_000), "EUR", None, SECRET, {})
        payment_id, amount = chance.choice(self.payments[-8:])
        part = None if chance.random() < 0.2 else chance.randrange(1, max(2, amount // 2))
        kind = chance.random()
        if kind < 0.6:
            return Capture(payment_id, part)
        return Refund(payment_id, part, "requested_by_customer") if kind < 0.9 else Void(payment_id)

    async def _until_known(self, key: str, command: Command, chance: random.Random) -> None:
        route = ROUTES[type(command)]
        request = Submit(command, route, key, sha256(repr(command).encode()).digest(), None)
        outcome = await self._ask(request, chance)
        answer = Answer(key, scope_of(MERCHANT, route, key), outcome)
        self.answers.append(answer)
        if isinstance(outcome, Accepted):
            if isinstance(command, Authorize):
                self.payments.append((outcome.payment_id, command.amount))
            if chance.random() < 0.15:
                again = await self._ask(request, chance)
                if not isinstance(again, Accepted) or (again.answer, again.replayed) != (outcome.answer, True):
                    self.violated(f"I5: {key} was answered {outcome}, and asked again {again}")
            if chance.random() < 0.1:
                other = Submit(command, route, key, sha256(b"another body").digest(), None)
                again = await self._ask(other, chance)
                if not isinstance(again, Refusal) or again.code is not RefusalCode.KEY_REUSED:
                    self.violated(f"I5: {key} with another body was answered {again}")

    async def _ask(self, request: Submit, chance: random.Random) -> Outcome:
        while True:
            try:
                outcome = await self._call(request, patience_s=0.05 if chance.random() < 0.1 else 30.0)
            except (Overloaded, OutcomeUnknown, StoreBusy, StoreUnavailable, Disconnected, TimeoutError) as error:
                self.outside.note("client.retries", key=request.key, error=type(error).__name__)
                await asyncio.sleep(RETRY_S * (0.2 + chance.random()))
            else:
                self._heard(request, outcome)
                return outcome

    def _heard(self, request: Submit, outcome: Outcome) -> None:
        """I7: what is answered is committed by now."""
        if isinstance(outcome, Refusal):
            self.outside.note("client.refused", key=request.key, code=outcome.code.name)
            return
        assert isinstance(outcome, Accepted)
        place = outcome.payment_id, outcome.version
        self.outside.note("client.accepted", key=request.key, payment=place[0], version=place[1])
        rows = self.outside.store._data.rows.values()
        if not any((row.event.payment.id, row.event.payment.version) == place for row in rows):
            self.violated(f"I7: {request.key} was answered before it was committed")

    async def _call(self, request: Submit, *, patience_s: float) -> Outcome:
        """One request. A client that loses its patience hangs up; the write goes on without it."""
        life = self.current()
        if life is None or not life.front.bound:
            raise Disconnected
        life.front.requests += 1
        task = life.spawn(life.service.submit(request))
        task.add_done_callback(lambda _: life.front.done())
        await asyncio.wait({task, life.ended}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            raise Disconnected
        if task.cancelled():
            raise Disconnected
        return task.result()

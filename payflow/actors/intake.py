"""The intake actor: the HTTP front's door to the pipeline. It admits or sheds, and forwards; it decides nothing about a
payment.

Shedding is decided before anything is queued: by the age of the oldest waiting write and by the depth of the outbox's
mailbox, of which the last eighth is kept for marks. The answer comes straight from the outbox, because the envelope is
forwarded with its reply, deadline and trace.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from payflow.actor import Actor, ActorRef
from payflow.core.ledger import AccountBalance, CurrencyBalance, Entry
from payflow.core.outbox import Accepted, Submit
from payflow.core.payment import Payment, Refusal
from payflow.errors import (
    ActorCrashed,
    ActorStopped,
    DeadlineExceeded,
    MailboxClosed,
    MailboxFull,
    OutcomeUnknown,
    Overloaded,
)
from payflow.ports import HttpFront, LedgerReader, OutboxReader, PaymentEventView, PaymentQuery

RETRY_AFTER_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeSettings:
    """`shed_after_s`: age of the oldest waiting write above which new ones are refused."""

    shed_after_s: float


@dataclass(frozen=True, slots=True)
class IntakeSnapshot:
    """What the debug page shows."""

    port: int
    shedding: bool
    admitted_total: int
    shed_total: int


class Intake(Actor):
    """Owns the HTTP front; handles Submit. `outbox` is None where this process does not serve the ingest role."""

    def __init__(
        self,
        front: HttpFront,
        *,
        readers: tuple[OutboxReader | LedgerReader, ...],
        outbox: ActorRef | None,
        settings: IntakeSettings,
        on_bound: Callable[[int], None],
    ) -> None:
        self._front = front
        self._readers = readers
        self._outbox = outbox
        self._settings = settings
        self._on_bound = on_bound
        self._port = 0
        self._shedding = False
        self._admitted = self._shed = 0

    async def on_start(self, stack: AsyncExitStack) -> None:
        """Bind last, when everything behind it runs."""
        for reader in self._readers:
            stack.push_async_callback(reader.close)
            await reader.open()
        stack.push_async_callback(self._front.stop)
        with self.ctx.detached():
            self._port = await self._front.start()
        self._on_bound(self._port)

    async def on_drain(self) -> None:
        """Everything that was admitted has been forwarded by now; wait for the answers."""
        await self._front.unbind()
        await self._front.requests_done()

    def snapshot(self) -> IntakeSnapshot:
        """Small and cheap."""
        return IntakeSnapshot(self._port, self._shedding, self._admitted, self._shed)

    async def handle(self, message: Submit) -> object:
        """Forward to the outbox, or answer Overloaded. No await from the check to the forward: the depth must still
        hold when we act on it.
        """
        outbox = self._outbox
        assert outbox is not None, "a Submit reached a process without the ingest role"
        depth, capacity, oldest_age_s = outbox.load()
        if depth >= capacity - capacity // 8 or oldest_age_s > self._settings.shed_after_s:
            self._shed += 1
            if not self._shedding:
                self._shedding = True
                self.ctx.emit("intake.shedding", depth=depth, oldest_age_s=round(oldest_age_s, 3))
            return Overloaded(retry_after_s=RETRY_AFTER_S)
        if self._shedding:
            self._shedding = False
            self.ctx.emit("intake.admitting", shed_total=self._shed)
        try:
            self.ctx.forward(outbox, message)
        except MailboxClosed:  # the outbox has ended for good; nothing was queued
            self._shed += 1
            return Overloaded(retry_after_s=RETRY_AFTER_S)
        self._admitted += 1
        return None


class IntakeService:
    """`ports.PaymentsService`: commands go to the intake actor, reads to read-only connections. It outlives the actor's
    instances.
    """

    def __init__(
        self, intake: ActorRef, *, reader: OutboxReader | None, ledger: LedgerReader | None, timeout_s: float
    ) -> None:
        self._intake = intake
        self._reader = reader
        self._ledger = ledger
        self._timeout_s = timeout_s

    async def submit(self, request: Submit, *, request_id: str | None = None) -> Accepted | Refusal:
        """`request_id` goes with the message, so that debug pages and dead letters lead back to the client's answer.

        Raises Overloaded (nothing was queued), StoreBusy and StoreUnavailable (nothing was written), OutcomeUnknown
        (ask again with the same key).
        """
        try:
            outcome = await self._intake.ask(request, timeout_s=self._timeout_s, trace_id=request_id)
        except (MailboxFull, MailboxClosed) as error:
            raise Overloaded(retry_after_s=RETRY_AFTER_S) from error
        except (DeadlineExceeded, ActorStopped, ActorCrashed) as error:
            raise OutcomeUnknown(retry_after_s=RETRY_AFTER_S) from error
        if isinstance(outcome, Overloaded):
            raise outcome
        assert isinstance(outcome, (Accepted, Refusal))
        return outcome

    async def payment(self, payment_id: bytes) -> tuple[Payment, tuple[PaymentEventView, ...]] | None:
        """State and timeline, or None."""
        return await self._payments().payment(payment_id)

    async def payments(self, query: PaymentQuery) -> list[Payment]:
        """One page, newest first."""
        return await self._payments().payments(query)

    async def ledger_entries(self, payment_id: bytes) -> list[Entry]:
        """Entries in the order they were booked."""
        return await self._books().entries(payment_id)

    async def ledger_accounts(self, *, after: tuple[str, str] | None, limit: int) -> list[AccountBalance]:
        """One page by (account, currency)."""
        return await self._books().accounts(after=after, limit=limit)

    async def trial_balance(self) -> list[CurrencyBalance]:
        """Sums a currency."""
        return await self._books().trial_balance()

    def _payments(self) -> OutboxReader:
        assert self._reader is not None, "the front serves payments only with the ingest role"
        return self._reader

    def _books(self) -> LedgerReader:
        assert self._ledger is not None, "the front serves the ledger only with the consumer role"
        return self._ledger

"""The periodic audit of the ledger: every posting summed anew. A part of the consumer.

It runs beside the bookings on a connection of its own, and takes as long as it takes: a million entries need about a
second.
"""

from __future__ import annotations

import asyncio

from payflow.actor import ActorContext
from payflow.actors.consumer_values import ConsumerCounters
from payflow.errors import PayflowError
from payflow.ports import Ledger


class Auditor:
    """Keeps `imbalance` in the counters and reports what does not balance."""

    def __init__(self, ledger: Ledger, *, interval_s: float, counters: ConsumerCounters, ctx: ActorContext) -> None:
        self._ledger = ledger
        self._interval_s = interval_s
        self._counters = counters
        self.ctx = ctx

    async def run(self) -> None:
        """Audit for ever; an audit that cannot read is reported, and the next one comes."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                balances = await self._ledger.audit()
            except PayflowError as error:
                self.ctx.emit("ledger.audit_failed", error=f"{type(error).__name__}: {error}")
                continue
            self._counters.imbalance = {balance.currency: balance.imbalance for balance in balances}
            for balance in balances:
                if balance.imbalance:
                    self.ctx.emit(
                        "ledger.imbalance",
                        currency=balance.currency,
                        debit=balance.debit,
                        credit=balance.credit,
                        drift=balance.drift,
                    )

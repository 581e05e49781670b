"""The debug endpoint's answers: frozen pictures of the runtime turned into plain JSON values. Reads change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from payflow.actors.management import Act, PutBack
from payflow.errors import PayflowError
from payflow.ports import Clock, LedgerReader, OutboxReader
from payflow.supervisor import System, render_text
from payflow.watchdog import LoopWatchdog
from payflow.wire import id_text, time_text

ACT_TIMEOUT_S: Final = 10.0


class Inspector:
    """`ports.ManagementService` over one System."""

    def __init__(
        self,
        system: System,
        *,
        watchdog: LoopWatchdog,
        payments: OutboxReader | None,
        ledger: LedgerReader | None,
        clock: Clock,
    ) -> None:
        self._system = system
        self._watchdog = watchdog
        self._management = system.ref("management")
        self._payments = payments
        self._ledger = ledger
        self._clock = clock
        self._started_at = clock.now()
        self._seq = 0

    def tree(self) -> Mapping[str, object]:
        """The whole tree."""
        return self._stamped({"tree": plain(self._system.tree())})

    def tree_text(self) -> str:
        """The tree as a drawing."""
        return render_text(self._system.tree()) + "\n"

    async def actor(self, actor_id: str, *, timeout_s: float) -> Mapping[str, object]:
        """One node with its state; a busy actor's last state is shown with its age."""
        system = self._system
        node = next((node for node in system.tree().walk() if node.id == actor_id and node.kind == "actor"), None)
        if node is None:
            raise KeyError(actor_id)
        state = await system.snapshot(actor_id, timeout_s)
        return self._stamped({"actor": plain(node), "state": plain(state)})

    def mailbox(self, actor_id: str, *, limit: int) -> Mapping[str, object]:
        """The first queued messages, redacted."""
        system = self._system
        stats = system.ref(actor_id).stats()
        return self._stamped({"id": actor_id, "stats": plain(stats), "messages": plain(system.peek(actor_id, limit))})

    def stack(self, actor_id: str) -> Sequence[str]:
        """Where the handler waits, innermost last."""
        return [str(frame) for frame in self._system.stack(actor_id)]

    def dead_letters(self, *, limit: int) -> Sequence[Mapping[str, object]]:
        """The newest dead letters, newest first."""
        return list(reversed([plain(letter) for letter in self._system.dead_letters()[-limit:]]))

    def loop(self) -> Mapping[str, object]:
        """Lag, garbage collection, and the last time the loop stood still."""
        return self._stamped({"loop": plain(self._watchdog.figures())})

    async def journey(self, payment_id: bytes) -> Mapping[str, object] | None:
        """What happened to a payment and when: accepted, committed, published, booked, with the time between.

        The writer takes the time of acceptance just before COMMIT; the time of COMMIT itself cannot be in the row,
        but a row that can be read is committed.
        """
        if self._payments is None:
            return None
        found = await self._payments.payment(payment_id)
        if found is None:
            return None
        payment, events = found
        booked_at = {}
        if self._ledger is not None:
            booked_at = {entry.event_id: entry.at_us for entry in await self._ledger.entries(payment_id)}
        return self._stamped(
            {
                "payment": id_text(payment_id),
                "status": payment.status.value,
                "version": payment.version,
                "events": [_hops(event, booked_at.get(event.id)) for event in events],
            }
        )

    async def act(
        self, action: str, actor_id: str, *, by: str, reason: str, max_s: float | None
    ) -> Mapping[str, object]:
        """Hand the action to the management actor, which audits and does it.

        KeyError: no such actor; ValueError: not this action on this actor; PayflowError: it could not be done.
        """
        self._system.ref(actor_id)
        if action != "resume" and actor_id == self._management.id:
            raise ValueError(f"{actor_id} carries out the actions: it cannot {action} itself")
        result = await self._management.ask(Act(action, actor_id, by, reason, max_s), timeout_s=ACT_TIMEOUT_S)
        if isinstance(result, PayflowError):
            raise result
        return dict(result)

    async def requeue(self, seqs: Sequence[int], *, by: str, reason: str) -> Mapping[str, object]:
        """Hand the wish to the management actor, which audits and does it.

        ValueError: no outbox in this process; PayflowError: it could not be done, or it is not known whether it was.
        """
        if self._payments is None:
            raise ValueError("this process has no outbox; ask the one with the ingest role")
        result = await self._management.ask(PutBack(tuple(seqs), by, reason), timeout_s=ACT_TIMEOUT_S)
        if isinstance(result, PayflowError):
            raise result
        return dict(result)

    def _stamped(self, body: dict[str, object]) -> Mapping[str, object]:
        self._seq += 1
        return {
            "captured_at": time_text(self._clock.wall_us()),
            "seq": self._seq,
            "uptime_s": round(self._clock.now() - self._started_at, 3),
            **body,
        }


def _hops(event: Any, entry_at_us: int | None) -> dict[str, object]:
    published, booked = event.published_at_us, event.booked_at_us
    return {
        "event": id_text(event.id),
        "type": event.type.value,
        "version": event.version,
        "outbox": event.outbox,
        "accepted_at": time_text(event.at_us),
        "committed": True,
        "published_at": None if published is None else time_text(published),
        "booked_at": None if booked is None else time_text(booked),
        "ledger_entry_at": None if entry_at_us is None else time_text(entry_at_us),
        "to_published_s": None if published is None else (published - event.at_us) / 1e6,
        "to_booked_s": None if booked is None else (booked - event.at_us) / 1e6,
        "partition": event.partition,
        "offset": event.offset,
    }


def plain(value: Any) -> Any:
    """Dataclasses, enums and tuples as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return value

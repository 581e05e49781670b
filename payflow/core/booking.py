"""Booking: what one batch of deliveries needs to know, what it changes, and the fold between the two.

`Batch` says what has to be loaded, `Batch.fold` turns that into `Changes`. A store loads, folds, writes and commits in
one transaction; after a rollback the batch is folded again, on fresh data. Invariants:

- An event id is booked once, for ever. Versions of a payment are applied without a gap; one that is too early is held.
- A version belongs to the event that brought it first. Whatever contradicts what is there changes nothing.
- The position of a partition stops at the first delivery of the batch that was refused. A later call may pass it, and
  is the caller's word that the dead letter was acknowledged; event ids make what is booked behind it harmless.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from payflow.core.ledger import (
    MAX_INTEGER,
    Booking,
    Delivery,
    Entry,
    LedgerEvent,
    Reason,
    Refused,
    Side,
    entry_of,
    flaw,
    postings,
)

Account = tuple[str, str]  # name, currency
Sums = tuple[int, int]  # debit, credit


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the store knows about a batch.

    `heads`: the last applied event of each payment; `applied`: the batch's event ids that are applied, with their
    events; `held`: held deliveries whose payment or event id is in the batch.
    """

    heads: Mapping[bytes, LedgerEvent]
    applied: Mapping[bytes, LedgerEvent]
    held: Sequence[Delivery]


@dataclass(frozen=True, slots=True)
class Changes:
    """What the store has to write, in the transaction in which it loaded.

    `sums` are new sums, not differences. `released` left the held events, `held` joined them; both are disjoint.
    """

    applied: tuple[tuple[LedgerEvent, Entry | None], ...]
    sums: Mapping[Account, Sums]
    held: tuple[Delivery, ...]
    released: tuple[Delivery, ...]
    positions: Mapping[int, int]
    booking: Booking


class Batch:
    """Deliveries to book in one transaction, in order."""

    __slots__ = ("_deliveries", "event_ids", "payment_ids")

    def __init__(self, deliveries: Iterable[Delivery]) -> None:
        self._deliveries = tuple((delivery, flaw(delivery.event)) for delivery in deliveries)
        # Flawed events are kept away from the store: it could not even look them up.
        sound = [delivery.event for delivery, reason in self._deliveries if reason is None]
        self.event_ids: tuple[bytes, ...] = tuple(dict.fromkeys(event.event_id for event in sound))
        self.payment_ids: tuple[bytes, ...] = tuple(dict.fromkeys(event.payment_id for event in sound))

    def accounts(self, loaded: Loaded) -> tuple[Account, ...]:
        """Every account that the fold may book on: load its sums where it exists."""
        events = [delivery.event for delivery, reason in self._deliveries if reason is None]
        events += [delivery.event for delivery in loaded.held]
        return tuple(dict.fromkeys((line.account, line.currency) for event in events for line in postings(event)))

    def fold(self, loaded: Loaded, sums: Mapping[Account, Sums], positions: Mapping[int, int]) -> Changes:
        """Decide each delivery in order, given the sums of `accounts` and the next offsets after this batch."""
        fold = _Fold(loaded, sums)
        for delivery, reason in self._deliveries:
            fold.take(delivery, reason)
        return fold.changes(positions)


class _Fold:
    """The books as one batch sees them while it is decided."""

    def __init__(self, loaded: Loaded, sums: Mapping[Account, Sums]) -> None:
        self._heads = dict(loaded.heads)
        self._known = {**loaded.applied, **{delivery.event.event_id: delivery.event for delivery in loaded.held}}
        self._held = {(delivery.event.payment_id, delivery.event.version): delivery for delivery in loaded.held}
        self._sums = dict(sums)
        self._touched: set[Account] = set()
        self._applied: list[tuple[LedgerEvent, Entry | None]] = []
        self._booked: dict[bytes, None] = {}
        self._duplicates = 0
        self._new_held: dict[bytes, Delivery] = {}
        self._released: list[Delivery] = []
        self._refused: list[Refused] = []
        self._blocked: list[Refused] = []
        self._stops: dict[int, int] = {}

    def take(self, delivery: Delivery, reason: Reason | None) -> None:
        event = delivery.event
        if reason is None and self._known.get(event.event_id) == event:
            self._repeat(event)
        elif reason := reason or self._objection(event):
            self._refuse(delivery, reason)
        elif event.version > self._version(event.payment_id) + 1:
            self._hold(delivery)
        elif reason := self._apply(event):
            self._refuse(delivery, reason)
        else:
            self._release(event.payment_id)

    def changes(self, positions: Mapping[int, int]) -> Changes:
        entries = sum(entry is not None for _, entry in self._applied)
        return Changes(
            applied=tuple(self._applied),
            sums={account: self._sums[account] for account in self._touched},
            held=tuple(self._new_held.values()),
            released=tuple(self._released),
            positions={p: min(offset, self._stops.get(p, offset)) for p, offset in positions.items()},
            booking=Booking(
                booked=tuple(self._booked),
                entries=entries,
                duplicates=self._duplicates,
                held=len(self._new_held),
                refused=tuple(self._refused),
                blocked=tuple(self._blocked),
            ),
        )

    def _version(self, payment_id: bytes) -> int:
        head = self._heads.get(payment_id)
        return head.version if head is not None else 0

    def _objection(self, event: LedgerEvent) -> Reason | None:
        """Why a sound event that is no duplicate contradicts what is there, or None."""
        if event.event_id in self._known:
            return Reason.EVENT_ID_REUSED
        if event.version <= self._version(event.payment_id) or (event.payment_id, event.version) in self._held:
            return Reason.VERSION_TAKEN
        return self._contradiction(event)

    def _contradiction(self, event: LedgerEvent) -> Reason | None:
        head = self._heads.get(event.payment_id)
        if head is None or (head.currency == event.currency and head.merchant_id == event.merchant_id):
            return None
        return Reason.PAYMENT_CONTRADICTED

    def _repeat(self, event: LedgerEvent) -> None:
        """A duplicate: acknowledge it again if it is booked, not while it is only held."""
        self._duplicates += 1
        if event.version <= self._version(event.payment_id):
            self._booked[event.event_id] = None

    def _hold(self, delivery: Delivery) -> None:
        event = delivery.event
        self._held[event.payment_id, event.version] = delivery
        self._new_held[event.event_id] = delivery
        self._known[event.event_id] = event

    def _apply(self, event: LedgerEvent) -> Reason | None:
        """Apply the next version of a payment, or say why an account cannot take it."""
        assert event.version == self._version(event.payment_id) + 1
        entry = entry_of(event)
        if entry is not None and not self._post(entry):
            return Reason.ACCOUNT_OVERFLOW
        self._applied.append((event, entry))
        self._booked[event.event_id] = None
        self._known[event.event_id] = self._heads[event.payment_id] = event
        return None

    def _post(self, entry: Entry) -> bool:
        """All lines or none: False when a sum would not fit."""
        after: dict[Account, Sums] = {}
        for line in entry.postings:
            account = line.account, line.currency
            debit, credit = after.get(account) or self._sums.get(account, (0, 0))
            if line.side is Side.DEBIT:
                debit += line.amount
            else:
                credit += line.amount
            if max(debit, credit) > MAX_INTEGER:
                return False
            after[account] = debit, credit
        self._sums.update(after)
        self._touched.update(after)
        return True

    def _release(self, payment_id: bytes) -> None:
        """Apply held events whose predecessor has come, as far as there is no gap."""
        while delivery := self._held.get((payment_id, self._version(payment_id) + 1)):
            reason = self._contradiction(delivery.event) or self._apply(delivery.event)
            if reason is not None:
                self._blocked.append(Refused(delivery, reason))
                return
            del self._held[payment_id, delivery.event.version]
            if self._new_held.pop(delivery.event.event_id, None) is None:
                self._released.append(delivery)

    def _refuse(self, delivery: Delivery, reason: Reason) -> None:
        self._refused.append(Refused(delivery, reason))
        stop = self._stops.get(delivery.partition, delivery.offset)
        self._stops[delivery.partition] = min(stop, delivery.offset)

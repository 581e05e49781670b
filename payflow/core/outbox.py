"""The outbox: what one write group asks for, what it changes, and the fold between the two.

A group is decided as a whole and in order: `Group` names what has to be loaded, `Group.fold` turns that into `Changes`.
A store loads, folds, writes and commits in one transaction; after a rollback the fold is run again on fresh data, never
on a remembered answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from payflow.core.idempotency import Conflict, Replay, StoredKey, judge, scope_of
from payflow.core.payment import Authorize, Command, Decision, EventType, Payment, Refund, Refusal, RefusalCode, decide
from payflow.core.value import value


class RowState(IntEnum):
    """Where an outbox row stands. The API's words are the names in lower case."""

    PENDING = 0
    PUBLISHED = 1
    PARKED = 2


# The ids of memory-only brokers begin so; what such a broker acknowledged is gone with it.
VOLATILE_PREFIX: Final = "embedded-"


# ------------------------------------------------------------------ what a group is made of
@value
class Submit:
    """A client's command with its idempotency key.

    `route` is the route template, `fingerprint` the SHA-256 of method, concrete path and raw body, `traceparent` the
    W3C header or None.
    """

    command: Command
    route: str
    key: str
    fingerprint: bytes
    traceparent: str | None


class PublishedRow(NamedTuple):
    """One row that the broker acknowledged. A tuple, because it is hashed several times on its way."""

    seq: int
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class MarkPublished:
    """Rows that reached the broker `broker_id`. Idempotent; counts only for rows that are still pending."""

    rows: tuple[PublishedRow, ...]
    broker_id: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Park:
    """A row that the broker will never take; its key is held until an operator decides."""

    seq: int
    error: str
    at_us: int


@dataclass(frozen=True, slots=True)
class MarkBooked:
    """Events that the ledger of this process booked. Idempotent."""

    event_ids: tuple[bytes, ...]
    at_us: int


@dataclass(frozen=True, slots=True)
class Unpublish:
    """Memory-only brokers are gone: published rows that were not booked become pending again if they went to any of
    these but `broker_id`. What a real cluster acknowledged stays published.
    """

    broker_id: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """Put rows back to pending: parked ones by an operator, published ones whose place on the broker is lost.

    Releases their keys.
    """

    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """An operator's action, kept for ever. `detail` is JSON text."""

    actor: str
    action: str
    target: str
    reason: str
    detail: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Purge:
    """One small slice of retention: expired keys, payloads of old published rows."""

    keys_before_us: int
    published_before_us: int
    limit: int


@dataclass(frozen=True, slots=True)
class Probe:
    """A one-row write that shows whether the disk takes writes again."""


Write = Submit | MarkPublished | Park | MarkBooked | Unpublish | Requeue | Audit | Purge | Probe

# The life of a row. A pair that is absent changes nothing, which is what makes marks idempotent.
ROW_LIFE: Final[Mapping[tuple[RowState, type[Write]], RowState]] = MappingProxyType(
    {
        (RowState.PENDING, MarkPublished): RowState.PUBLISHED,
        (RowState.PENDING, Park): RowState.PARKED,
        (RowState.PARKED, Requeue): RowState.PENDING,
        (RowState.PUBLISHED, Requeue): RowState.PENDING,
        (RowState.PUBLISHED, Unpublish): RowState.PENDING,
    }
)


def states_before(write: type[Write]) -> tuple[RowState, ...]:
    """The states in which `write` changes a row."""
    return tuple(state for state, kind in ROW_LIFE if kind is write)


# ------------------------------------------------------------------ what comes back, one outcome a write
@value
class Accepted:
    """A command took effect, now or (replayed) when its key was first seen.

    `answer` is the stored body, byte for byte.
    """

    payment_id: bytes
    version: int
    answer: bytes
    created: bool
    replayed: bool


@dataclass(frozen=True, slots=True)
class Done:
    """A write that is not a command took effect; `rows` counts what it changed."""

    rows: int


Outcome = Accepted | Refusal | Done


# ------------------------------------------------------------------ what the publisher reads
@value
class PendingRow:
    """An outbox row ready to go: `key` is the payment id as text in bytes, `headers` those of CloudEvents, in order."""

    seq: int
    event_id: bytes
    key: bytes
    payload: bytes
    headers: tuple[tuple[str, bytes], ...]
    created_at_us: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """Numbers of the outbox for metrics and debug pages. `oldest_pending_at_us` is None when nothing is pending."""

    pending: int
    parked: int
    held_keys: int
    oldest_pending_at_us: int | None


# ------------------------------------------------------------------ the fold
@value
class Event:
    """One step of a payment. `payment` is the payment after it, `reason` is why money went back."""

    id: bytes
    type: EventType
    at_us: int
    amount: int
    payment: Payment
    reason: str | None


@value
class NewRow:
    """What a store keeps of one accepted command: event, outbox row, idempotency key, and the answer for the key."""

    event: Event
    payload: bytes
    traceparent: str | None
    scope: bytes
    fingerprint: bytes
    answer: bytes


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a store found of the things a group asked for; what it did not find is absent."""

    payments: Mapping[bytes, Payment]
    orders: Mapping[tuple[str, str], Payment]
    keys: Mapping[bytes, StoredKey]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a group changes, as data. Payments are in their last state; rows take sequence numbers in their order.

    `outcomes` has None where only the store can count: `others` are these writes with their place, to be applied in
    order after the rows.
    """

    created: tuple[Payment, ...]
    updated: tuple[Payment, ...]
    rows: tuple[NewRow, ...]
    others: tuple[tuple[int, Write], ...]
    outcomes: list[Outcome | None]

    @property
    def all_accepted(self) -> bool:
        """Whether no command was refused."""
        return not any(isinstance(outcome, Refusal) for outcome in self.outcomes)

    @property
    def all_new(self) -> bool:
        """Whether every command took effect now: none was refused, none replayed."""
        return len(self.rows) + len(self.others) == len(self.outcomes)


class Codec(Protocol):
    """How payments and events become bytes. wire.py is the one in use."""

    def encode_answer(self, payment: Payment) -> bytes: ...

    def encode_event(self, event: Event) -> bytes: ...


@dataclass(slots=True)
class _Draft:
    """What the commands of a group folded so far have made of what was loaded."""

    payments: dict[bytes, Payment]
    orders: dict[tuple[str, str], Payment]
    keys: dict[bytes, StoredKey]
    created: set[bytes] = field(default_factory=set)
    touched: dict[bytes, Payment] = field(default_factory=dict)
    rows: list[NewRow] = field(default_factory=list)


class Group:
    """The writes that share one transaction.

    Ids are drawn here, by the caller's thread; the rest may run on another.
    """

    def __init__(self, writes: Sequence[Write], *, at_us: int, new_id: Callable[[], bytes], codec: Codec) -> None:
        self._writes = tuple(writes)
        self._at_us = at_us
        self._codec = codec
        self._event_ids: list[bytes] = []
        self._payment_ids: list[bytes | None] = []
        for write in self._writes:
            if isinstance(write, Submit):
                self._payment_ids.append(new_id() if isinstance(write.command, Authorize) else None)
                self._event_ids.append(new_id())
        self._submits = [write for write in self._writes if isinstance(write, Submit)]
        self._scopes: list[bytes | None] = []

    @property
    def only_opens(self) -> bool:
        """Whether every command opens a payment: then a store may presume that its keys and orders are new.

        It loads nothing, folds, and writes; a key or an order that is there after all breaks a unique index, and the
        group is folded again on what was loaded. That holds for `Changes.all_accepted` alone, where every key and
        every order that the fold looked at is also written.
        """
        return all(isinstance(submit.command, Authorize) for submit in self._submits)

    def payment_ids(self) -> set[bytes]:
        """Payments to load first."""
        return {submit.command.payment_id for submit in self._submits if not isinstance(submit.command, Authorize)}

    def orders(self) -> set[tuple[str, str]]:
        """Order ids, with their merchants, whose payments have to be loaded."""
        commands = [submit.command for submit in self._submits]
        return {
            (command.merchant_id, command.order_id)
            for command in commands
            if isinstance(command, Authorize) and command.order_id is not None
        }

    def scopes(self, payments: Mapping[bytes, Payment]) -> set[bytes]:
        """Keys to load, now that the payments of the group are known. A command on an unknown payment has none."""
        self._scopes = [_scope(submit, payments) for submit in self._submits]
        return {scope for scope in self._scopes if scope is not None}

    def fold(self, loaded: Loaded) -> Changes:
        """Decide every command in order, each on what the ones before it left behind. After `scopes`."""
        assert len(self._scopes) == len(self._submits)
        draft = _Draft(dict(loaded.payments), dict(loaded.orders), dict(loaded.keys))
        drawn = zip(self._submits, self._scopes, self._payment_ids, self._event_ids, strict=True)
        outcomes: list[Outcome | None] = []
        others: list[tuple[int, Write]] = []
        for place, write in enumerate(self._writes):
            if isinstance(write, Submit):
                outcomes.append(self._submit(draft, *next(drawn)))
            else:
                others.append((place, write))
                outcomes.append(None)
        return Changes(
            created=tuple(payment for payment_id, payment in draft.touched.items() if payment_id in draft.created),
            updated=tuple(payment for payment_id, payment in draft.touched.items() if payment_id not in draft.created),
            rows=tuple(draft.rows),
            others=tuple(others),
            outcomes=outcomes,
        )

    def _submit(
        self, draft: _Draft, submit: Submit, scope: bytes | None, payment_id: bytes | None, event_id: bytes
    ) -> Accepted | Refusal:
        if scope is None:
            return Refusal(RefusalCode.NOT_FOUND)
        judgement = judge(submit.fingerprint, draft.keys.get(scope))
        if isinstance(judgement, Replay):
            stored = judgement.stored
            return Accepted(
                stored.payment_id, stored.version, stored.answer, created=stored.version == 1, replayed=True
            )
        if isinstance(judgement, Conflict):
            return Refusal(RefusalCode.KEY_REUSED)
        command = submit.command
        if isinstance(command, Authorize):
            before = None
            first = draft.orders.get((command.merchant_id, command.order_id)) if command.order_id is not None else None
            if first is not None:
                return Refusal(RefusalCode.ORDER_EXISTS, first)
        else:
            before = draft.payments[command.payment_id]
        decision = decide(before, command, self._at_us, payment_id=payment_id)
        if isinstance(decision, Refusal):
            return decision
        return self._accept(draft, submit, scope, decision, event_id)

    def _accept(self, draft: _Draft, submit: Submit, scope: bytes, decision: Decision, event_id: bytes) -> Accepted:
        payment = decision.payment
        reason = submit.command.reason if isinstance(submit.command, Refund) else None
        event = Event(event_id, decision.event_type, payment.updated_at_us, decision.amount, payment, reason)
        answer = self._codec.encode_answer(payment)
        draft.payments[payment.id] = draft.touched[payment.id] = payment
        if payment.version == 1:
            draft.created.add(payment.id)
        if payment.order_id is not None:
            draft.orders[payment.merchant_id, payment.order_id] = payment
        draft.keys[scope] = StoredKey(submit.fingerprint, payment.id, payment.version, answer)
        draft.rows.append(
            NewRow(event, self._codec.encode_event(event), submit.traceparent, scope, submit.fingerprint, answer)
        )
        return Accepted(payment.id, payment.version, answer, created=payment.version == 1, replayed=False)


def _scope(submit: Submit, payments: Mapping[bytes, Payment]) -> bytes | None:
    command = submit.command
    if isinstance(command, Authorize):
        return scope_of(command.merchant_id, submit.route, submit.key)
    payment = payments.get(command.payment_id)
    return None if payment is None else scope_of(payment.merchant_id, submit.route, submit.key)

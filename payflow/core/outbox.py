"""The outbox: what one write group asks for, what it changes, and the fold between the two.

A group is decided as a whole and in order: `Group` names what has to be loaded, `Group.fold` turns that into `Changes`. A store loads,
folds, writes and commits in one transaction; after a rollback the fold is run again on fresh data, never on a remembered answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from payflow.core.payment import Command, Payment


class RowState(IntEnum):
    """Where an outbox row stands. The API's words are the names in lower case."""

    PENDING = 0
    PUBLISHED = 1
    PARKED = 2


# ------------------------------------------------------------------ what a group is made of
@dataclass(frozen=True, slots=True)
class Submit:
    """A client's command with its idempotency key.

    `route` is the route template, `fingerprint` the SHA-256 of method, concrete path and raw body, `traceparent` the W3C header or None.
    """

    command: Command
    route: str
    key: str
    fingerprint: bytes
    traceparent: str | None


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One row that the broker acknowledged."""

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
    """A memory-only broker is gone: published rows that were not booked and did not go to `broker_id` become pending again."""

    broker_id: str


@dataclass(frozen=True, slots=True)
class Requeue:
    """Put rows back to pending: parked ones by an operator, published ones whose place on the broker is lost. Releases their keys."""

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


# ------------------------------------------------------------------ what comes back, one outcome a write
@dataclass(frozen=True, slots=True)
class Accepted:
    """A command took effect, now or (replayed) when its key was first seen. `answer` is the stored body, byte for byte."""

    payment_id: bytes
    version: int
    answer: bytes
    created: bool
    replayed: bool


class RefusalCode(IntEnum):
    """Why a command changed nothing; http_api.py holds the status and problem type of each."""

    NOT_FOUND = 1
    ILLEGAL_TRANSITION = 2
    AMOUNT_EXCEEDS = 3
    KEY_REUSED = 4
    ORDER_EXISTS = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command changed nothing and its key was not used. `payment` is the payment that stands in the way, where there is one; `left` what could
    still be captured or refunded."""

    code: RefusalCode
    payment: Payment | None = None
    left: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """A write that is not a command took effect; `rows` counts what it changed."""

    rows: int


Outcome = Accepted | Refusal | Done


# ------------------------------------------------------------------ what the publisher reads
@dataclass(frozen=True, slots=True)
class PendingRow:
    """An outbox row ready to go: `key` is the payment id as text in bytes, `headers` the CloudEvents headers in order."""

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

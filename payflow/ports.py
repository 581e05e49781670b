"""What payflow needs from the outside, as protocols. Adapters implement them, actors use them, fakes in tests pass the
same contract suites.

Sizes are bytes, times are seconds unless a name says otherwise (`_us`: microseconds UTC), ids are 16 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from payflow.core.ledger import AccountBalance, Booking, CurrencyBalance, Delivery, Entry
from payflow.core.outbox import Accepted, Backlog, Outcome, PendingRow, Submit, Write
from payflow.core.payment import EventType, Payment, Refusal, Status
from payflow.core.value import value


# ------------------------------------------------------------------ clock, ids, chance
class Clock(Protocol):
    """The only source of time for actors."""

    def now(self) -> float:
        """Monotonic seconds: the running loop's own time."""

    def wall_us(self) -> int:
        """Wall clock in microseconds UTC."""


class Ids(Protocol):
    """The only source of identifiers."""

    def new(self) -> bytes:
        """A UUIDv7, 16 bytes, ordered within the process."""


# ------------------------------------------------------------------ payments database
class OutboxStore(Protocol):
    """Sole writer of the payments database. One call is one transaction.

    Raises StoreBusy or StoreUnavailable when nothing was written, StoreOutcomeUnknown when that cannot be told (reopen
    before any other call), StoreDamaged when the file is broken (reopening refuses it),
    ValueError-like errors of a single bad write as StoreRejected: the caller splits the group and tries again.
    """

    async def open(self) -> None:
        """Take the owner lock, migrate, check. Raises DependencyUnavailable with one clear sentence."""

    async def commit(self, writes: Sequence[Write], *, at_us: int) -> list[Outcome]:
        """Load, fold, write, COMMIT; one outcome a write, in order."""

    async def close(self) -> None:
        """Checkpoint and release the lock. Idempotent."""


@dataclass(frozen=True, slots=True)
class PaymentEventView:
    """One step of a payment's timeline, with what is known of its way through the outbox."""

    id: bytes
    type: EventType
    version: int
    at_us: int
    amount: int
    outbox: str
    partition: int | None
    offset: int | None
    published_at_us: int | None
    booked_at_us: int | None


@dataclass(frozen=True, slots=True)
class PaymentQuery:
    """Filter and place of a list. `after` is the (created_at_us, id) of the last item of the page before; newest first.
    """

    merchant_id: str | None = None
    status: Status | None = None
    from_us: int | None = None
    to_us: int | None = None
    after: tuple[int, bytes] | None = None
    limit: int = 20


class OutboxReader(Protocol):
    """Read-only side of the payments database; many may be open beside the one writer."""

    async def open(self) -> None: ...

    async def pending(self, *, after_seq: int, limit: int, max_bytes: int) -> list[PendingRow]:
        """Pending rows in sequence, without those whose key is held; at least one row even if it alone is above
        `max_bytes`.
        """

    async def backlog(self) -> Backlog: ...

    async def unbooked_bytes(self, broker_id: str) -> Mapping[int, int]:
        """Payload bytes a partition that were published to `broker_id` and are not booked."""

    async def payment(self, payment_id: bytes) -> tuple[Payment, tuple[PaymentEventView, ...]] | None: ...

    async def payments(self, query: PaymentQuery) -> list[Payment]: ...

    async def close(self) -> None: ...


# ------------------------------------------------------------------ ledger database
class Ledger(Protocol):
    """Sole writer of the ledger database. Errors as OutboxStore."""

    async def open(self) -> None: ...

    async def positions(self, source_id: str, topic: str) -> Mapping[int, int]:
        """Next offset to read, a partition; partitions never seen are absent."""

    async def book(
        self, deliveries: Sequence[Delivery], *, source_id: str, topic: str, positions: Mapping[int, int], at_us: int
    ) -> Booking:
        """Inbox, postings, held events and positions in one transaction.

        `positions` are the next offsets after this batch; the position of a partition with a refused delivery stops at
        its offset. `at_us`
        is the booking time.
        """

    async def audit(self) -> list[CurrencyBalance]: ...

    async def close(self) -> None: ...


class LedgerReader(Protocol):
    """Read-only side of the ledger database."""

    async def open(self) -> None: ...

    async def entries(self, payment_id: bytes) -> list[Entry]: ...

    async def accounts(self, *, after: tuple[str, str] | None, limit: int) -> list[AccountBalance]:
        """Ordered by (account, currency)."""

    async def trial_balance(self) -> list[CurrencyBalance]: ...

    async def held(self) -> tuple[int, int | None]:
        """Number of held events and the `at_us` at which the oldest was held."""

    async def close(self) -> None: ...


# ------------------------------------------------------------------ Kafka
@dataclass(frozen=True, slots=True)
class LogInfo:
    """A log that is connected: `log_id` is the cluster id, or the id an embedded broker made at its start."""

    log_id: str
    partitions: int


@value
class LogRecord:
    """A record to append."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


class EventLog(Protocol):
    """An idempotent producer. An instance that raised ProducerBroken, or whose append was given up, is only good for
    `discard`.
    """

    async def open(self) -> LogInfo:
        """Connect, create missing topics on a real cluster. Raises BrokerUnavailable, LaneUnavailable."""

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        """Append the longest prefix that fits one batch; returns (how many, offset of the first). acks=all.

        Raises RecordRejected (the first record can never be taken), LaneUnavailable (topic or rights are missing),
        BrokerUnavailable (nothing is
        known to be wrong with the record), ProducerBroken (build a new one first). May never return while the broker is
        gone: the caller owns the
        deadline.
        """

    async def discard(self, *, timeout_s: float) -> None:
        """Stop within the time given, abandoning what does not stop. Never raises."""


@value
class Record:
    """A record that was read."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


class RecordSource(Protocol):
    """A consumer that assigns itself all partitions of one topic."""

    async def open(self) -> LogInfo: ...

    async def seek(self, positions: Mapping[int, int]) -> None:
        """Start reading there; partitions that are absent are read from their beginning."""

    async def fetch(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """Records in order per partition; an empty list after the timeout. Raises OffsetOutOfRange, BrokerUnavailable.
        """

    def pause(self, partitions: Sequence[int]) -> None: ...

    def resume(self, partitions: Sequence[int]) -> None: ...

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Tell Kafka how far we are, for lag tools only. Never raises for a broker that is away."""

    async def bounds(self) -> Mapping[int, tuple[int, int]]:
        """(First offset that is there, next offset to be written), a partition. Raises BrokerUnavailable."""

    async def close(self, *, timeout_s: float) -> None: ...


class BrokerProcess(Protocol):
    """The embedded broker: a child process that ends with us."""

    def check(self) -> None:
        """Raises DependencyUnavailable when the extra it needs is not installed."""

    async def start(self) -> tuple[str, str]:
        """(bootstrap address, broker id). Raises BrokerUnavailable when it does not start."""

    async def wait(self) -> int:
        """Exit status, when it ends."""

    async def stop(self) -> None: ...


# ------------------------------------------------------------------ HTTP
class PaymentsService(Protocol):
    """What the HTTP front calls. Implemented by the intake; shapes are checked by the caller, decisions are made behind
    it.
    """

    async def submit(self, request: Submit, *, request_id: str) -> Accepted | Refusal:
        """Raises Overloaded (nothing was queued), StoreBusy and StoreUnavailable (nothing was written), OutcomeUnknown
        (the write may still happen).
        """

    async def payment(self, payment_id: bytes) -> tuple[Payment, tuple[PaymentEventView, ...]] | None: ...

    async def payments(self, query: PaymentQuery) -> list[Payment]: ...

    async def ledger_entries(self, payment_id: bytes) -> list[Entry]: ...

    async def ledger_accounts(self, *, after: tuple[str, str] | None, limit: int) -> list[AccountBalance]: ...

    async def trial_balance(self) -> list[CurrencyBalance]: ...


class Health(Protocol):
    """What the health routes show."""

    def ready(self) -> tuple[bool, Mapping[str, str]]:
        """Whether this role can do its work, and each part's word."""

    def components(self) -> Mapping[str, object]:
        """The Spring-like body of /healthz."""


class HttpFront(Protocol):
    """The listening side of the payments API."""

    async def start(self) -> int:
        """Bind and serve; the port. Raises DependencyUnavailable when the port is taken."""

    async def unbind(self) -> None:
        """Stop listening; kept connections get 503 and Connection: close from now on."""

    async def requests_done(self) -> None:
        """Return when no request is being answered."""

    async def stop(self) -> None: ...


class ManagementService(Protocol):
    """What the management front calls. Reads are answered from memory (journey: from the databases); every list has a
    limit.

    Methods that name an actor raise KeyError for one that is not there.
    """

    def tree(self) -> Mapping[str, object]: ...

    def tree_text(self) -> str: ...

    async def actor(self, actor_id: str, *, timeout_s: float) -> Mapping[str, object]: ...

    def mailbox(self, actor_id: str, *, limit: int) -> Mapping[str, object]: ...

    def stack(self, actor_id: str) -> Sequence[str]: ...

    def dead_letters(self, *, limit: int) -> Sequence[Mapping[str, object]]: ...

    def loop(self) -> Mapping[str, object]: ...

    async def journey(self, payment_id: bytes) -> Mapping[str, object] | None: ...

    async def act(
        self, action: str, actor_id: str, *, by: str, reason: str, max_s: float | None
    ) -> Mapping[str, object]:
        """`action` is pause, resume or restart; audited before it is done."""

    async def requeue(self, seqs: Sequence[int], *, by: str, reason: str) -> Mapping[str, object]:
        """Make parked or published rows pending again; audited before it is done. ValueError without an outbox."""

"""The exception tree. Wrong input, refused work and a failing outside world are told apart by type; fields carry what a
caller needs.
"""

from __future__ import annotations


class PayflowError(Exception):
    """Base of every error that payflow raises on purpose."""


# ------------------------------------------------------------------ runtime: mailbox, actor, supervisor
class ActorError(PayflowError):
    """Base of what a sender or a supervisor can meet in the actor runtime."""


class MailboxFull(ActorError):
    """The mailbox refused a message; the sender decides whether to shed, wait or drop."""

    def __init__(self, actor_id: str, *, depth: int, capacity: int, oldest_age_s: float) -> None:
        super().__init__(f"mailbox of {actor_id} is full: {depth} of {capacity}, oldest {oldest_age_s:.3f} s")
        self.actor_id = actor_id
        self.depth = depth
        self.capacity = capacity
        self.oldest_age_s = oldest_age_s


class MailboxClosed(ActorError):
    """The mailbox takes no more messages."""

    def __init__(self, actor_id: str, reason: str) -> None:
        super().__init__(f"mailbox of {actor_id} is closed: {reason}")
        self.actor_id = actor_id
        self.reason = reason


class DeadlineExceeded(ActorError):
    """The one deadline of a message passed; `stage` says where: enqueue, queue or handle."""

    def __init__(self, actor_id: str, stage: str) -> None:
        super().__init__(f"deadline passed for a message to {actor_id} (stage {stage})")
        self.actor_id = actor_id
        self.stage = stage


class DeadlockError(ActorError):
    """An ask would wait for itself; `path` names the actors of the cycle."""

    def __init__(self, path: tuple[str, ...]) -> None:
        super().__init__(" -> ".join(path))
        self.path = path


class ActorStopped(ActorError):
    """The actor stopped before it answered."""

    def __init__(self, actor_id: str, reason: str) -> None:
        super().__init__(f"{actor_id} stopped: {reason}")
        self.actor_id = actor_id
        self.reason = reason


class ActorCrashed(ActorError):
    """The handler of this very message failed; the cause is chained."""

    def __init__(self, actor_id: str) -> None:
        super().__init__(f"{actor_id} crashed while it handled the message")
        self.actor_id = actor_id


class StartFailed(ActorError):
    """A child did not start; the cause, where there is one, is chained."""

    def __init__(self, child: str, reason: str) -> None:
        super().__init__(f"{child} did not start: {reason}")
        self.child = child
        self.reason = reason


class RestartIntensityExceeded(ActorError):
    """A child came down more often than its supervisor allows; `causes` are short reasons, newest last."""

    def __init__(self, child: str, *, count: int, within_s: float, causes: tuple[str, ...]) -> None:
        super().__init__(
            f"{child} came down {count} times within {within_s:g} s: {causes[-1] if causes else 'unknown'}"
        )
        self.child = child
        self.count = count
        self.within_s = within_s
        self.causes = causes


# ------------------------------------------------------------------ the outside world
class DependencyUnavailable(PayflowError):
    """Something the process cannot start without is not there: a port, a file, a lock. Ends with exit code 69."""


class StoreBusy(PayflowError):
    """The database is locked from outside for longer than we wait; nothing was written."""


class StoreUnavailable(PayflowError):
    """The store refused a write and rolled it back, for example because the disk is full; nothing was written."""


class StoreDamaged(PayflowError):
    """The database file is broken; nothing was written. Waiting mends nothing: reopen, which refuses the file."""


class StoreOutcomeUnknown(PayflowError):
    """COMMIT or the connection failed: the group may or may not be on disk. Reopen before anything else."""


class BrokerUnavailable(PayflowError):
    """Kafka did not answer or refused for a reason that is not the record's fault."""


class StoreRejected(PayflowError):
    """One write of the group cannot be stored (a constraint, a value); everything was rolled back. Split the group."""


class RecordRejected(PayflowError):
    """Kafka will never take this record (too large, invalid): park it."""


class LaneUnavailable(PayflowError):
    """Topic or rights are missing: nothing is wrong with records or broker, a person has to mend the configuration."""


class ProducerBroken(PayflowError):
    """The producer instance is unusable (fenced, out of order sequence, its sender died): discard it and build another.
    """


class OffsetOutOfRange(PayflowError):
    """The stored position no longer exists in the log."""

    def __init__(self, partition: int, offset: int) -> None:
        super().__init__(f"offset {offset} of partition {partition} no longer exists")
        self.partition = partition
        self.offset = offset


# ------------------------------------------------------------------ intake
class Overloaded(PayflowError):
    """Refused before anything was queued; safe to send again with the same key."""

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__(f"overloaded, retry after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class OutcomeUnknown(PayflowError):
    """The write may or may not take effect; a retry with the same key tells."""

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__(f"outcome unknown, retry with the same key after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


# ------------------------------------------------------------------ circuit breaker
class CallNotPermitted(PayflowError):
    """The breaker refused the call before it began. `retry_after_s` is None where outcomes of trials decide, not the
    clock.
    """

    def __init__(self, name: str, state: str, retry_after_s: float | None) -> None:
        super().__init__(name, state, retry_after_s)
        self.name = name
        self.state = state
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        # Made when it is read: an open breaker refuses far more calls than anybody looks at.
        return f"CircuitBreaker '{self.name}' is {self.state} and does not permit further calls"


# ------------------------------------------------------------------ events
class UndecodableEvent(PayflowError):
    """A record that no retry will make readable. `reason` is short and holds nothing of the payload but names of
    members.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

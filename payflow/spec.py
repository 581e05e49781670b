"""What a supervision tree is built from. Frozen, validated at construction, all problems of a spec in one error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from payflow.actor import Actor
from payflow.core.backoff import Backoff
from payflow.core.restart import ChildRule, RestartType, Strategy, problems
from payflow.mailbox import Overflow

# An accepted message may vanish under these; a mailbox that carries payments is `block` or `reject`.
LOSSY: Final = frozenset({Overflow.DROP_OLDEST, Overflow.DROP_NEWEST, Overflow.COALESCE})


@dataclass(frozen=True, slots=True)
class Batch:
    """Receive together: up to `max_items`, waiting at most `linger_s` after the first."""

    max_items: int
    linger_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_items < 1 or self.linger_s < 0:
            raise ValueError(f"a batch has at least one item and no negative linger, not {self}")


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One actor: how to make it, how it receives, how it may end."""

    id: str
    factory: Callable[[], Actor]
    restart: RestartType = field(default=RestartType.PERMANENT, kw_only=True)
    capacity: int = field(kw_only=True)
    overflow: Overflow = field(kw_only=True)
    lossy: bool = field(default=False, kw_only=True)
    batch: Batch | None = field(default=None, kw_only=True)
    start_timeout_s: float = field(default=10.0, kw_only=True)
    # How long a stop waits for the work in hand (or, when draining, for the whole queue) before it cancels.
    drain_timeout_s: float = field(default=10.0, kw_only=True)
    # How long after the cancellation an instance may take; then it is left behind and reported as abandoned.
    shutdown_timeout_s: float = field(default=5.0, kw_only=True)
    handler_timeout_s: float | None = field(default=None, kw_only=True)
    stuck_action: Literal["log", "restart"] = field(default="log", kw_only=True)
    backoff: Backoff | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        found = []
        if not self.id:
            found.append("id must not be empty")
        if self.capacity < 1:
            found.append(f"capacity must be at least 1, is {self.capacity}")
        if self.overflow in LOSSY and not self.lossy:
            found.append(f"overflow {self.overflow} loses messages, so lossy=True must be declared")
        if self.batch is not None and self.batch.max_items > self.capacity:
            found.append(f"a batch of {self.batch.max_items} can never fill from a capacity of {self.capacity}")
        for name in ("start_timeout_s", "shutdown_timeout_s", "handler_timeout_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                found.append(f"{name} must be positive, is {value}")
        if not self.drain_timeout_s >= 0:
            found.append(f"drain_timeout_s must not be negative, is {self.drain_timeout_s}")
        if self.stuck_action not in ("log", "restart"):
            found.append(f"stuck_action must be log or restart, is {self.stuck_action!r}")
        if found:
            raise ValueError(f"child {self.id!r}: " + "; ".join(found))


@dataclass(frozen=True, slots=True)
class SupervisorSpec:
    """Children in the order of their start, and how often they may come down before this level gives up."""

    id: str
    strategy: Strategy
    children: tuple[ChildSpec | SupervisorSpec, ...]
    max_restarts: int = field(default=5, kw_only=True)
    within_s: float = field(default=60.0, kw_only=True)
    backoff: Backoff = field(default_factory=Backoff, kw_only=True)

    def __post_init__(self) -> None:
        found = problems(max_restarts=self.max_restarts, within_s=self.within_s, children=self.rules())
        ids = list(self.all_ids())
        found += [f"id {twice!r} is used twice in the tree" for twice in sorted({i for i in ids if ids.count(i) > 1})]
        if found:
            raise ValueError(f"supervisor {self.id!r}: " + "; ".join(found))

    def rules(self) -> tuple[ChildRule, ...]:
        """Return what the restart policy needs to know of the children. A supervisor below is permanent."""
        return tuple(
            ChildRule(child.id, child.restart, child.backoff or self.backoff)
            if isinstance(child, ChildSpec)
            else ChildRule(child.id, RestartType.PERMANENT, self.backoff)
            for child in self.children
        )

    def all_ids(self) -> tuple[str, ...]:
        """Return every id of this tree, its own first."""
        below = tuple(
            child_id
            for child in self.children
            for child_id in (child.all_ids() if isinstance(child, SupervisorSpec) else (child.id,))
        )
        return (self.id, *below)

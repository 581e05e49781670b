"""What the debug page shows: frozen pictures of the tree, of a mailbox, of the dead letters. Reading changes nothing.

Redaction is deny by default: of a message only the fields named in its class attribute `debug_fields` are shown.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from payflow.errors import MailboxClosed, MailboxFull
from payflow.instance import SnapshotCommand
from payflow.mailbox import Clock, DropReason, Envelope, Mailbox, MailboxStats
from payflow.slot import ActorSlot, ActorState

DEAD_LETTERS_KEPT: Final = 500
_BAR_CELLS: Final = 8
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One supervisor or actor. What only one of the two kinds has is None for the other."""

    id: str
    kind: Literal["supervisor", "actor"]
    state: ActorState
    since_s: float
    restarts_total: int
    instance: int = 0
    strategy: str | None = None
    restarts_in_window: int | None = None
    max_restarts: int | None = None
    stuck: bool = False
    stuck_total: int = 0
    abandoned_total: int = 0
    mailbox: MailboxStats | None = None
    next_start_in_s: float | None = None
    exit_reason: str | None = None
    last_error: str | None = None
    last_error_age_s: float | None = None
    paused_by: str | None = None
    resumes_in_s: float | None = None
    busy_with: str | None = None
    busy_s: float = 0.0
    children: tuple[Node, ...] = ()

    def walk(self) -> Iterator[Node]:
        """Walk this node and everything below."""
        yield self
        for child in self.children:
            yield from child.walk()


def actor_node(slot: ActorSlot, now: float) -> Node:
    """Return the picture of one actor."""
    pause = slot.pause_info
    return Node(
        id=slot.id,
        kind="actor",
        state=slot.state,
        since_s=now - slot.since,
        restarts_total=slot.restarts_total,
        instance=slot.number,
        stuck=slot.stuck,
        stuck_total=slot.stuck_total,
        abandoned_total=slot.abandoned_total,
        mailbox=slot.mailbox.stats(),
        next_start_in_s=None if slot.next_start_at is None else max(0.0, slot.next_start_at - now),
        exit_reason=slot.last_exit.reason if slot.last_exit is not None else None,
        last_error=slot.last_error,
        last_error_age_s=None if slot.last_error_at is None else now - slot.last_error_at,
        paused_by=pause.by if pause is not None else None,
        resumes_in_s=max(0.0, pause.until - now) if pause is not None else None,
        busy_with=busy_with(slot),
        busy_s=slot.busy_s(),
    )


def busy_with(slot: ActorSlot) -> str | None:
    """Return the type of the message in hand, with the size of a batch."""
    work = slot.instance.work if slot.instance is not None else None
    if work is None or work.envelope is None:
        return None
    name = type(work.envelope.payload).__name__
    return f"{name} x {len(work.envelopes)}" if work.envelopes else name


# ------------------------------------------------------------------ dead letters
@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was accepted and not processed. No payload: it may hold what nobody should read."""

    actor: str
    message_type: str
    seq: int
    reason: DropReason
    age_s: float
    trace_id: str | None
    detail: str
    at: float


class DeadLetters:
    """The last dead letters of the whole tree."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ring: deque[DeadLetter] = deque(maxlen=DEAD_LETTERS_KEPT)

    def add(self, actor_id: str, envelope: Envelope, reason: DropReason, detail: str) -> None:
        """Keep a note of one."""
        now = self._clock()
        name = type(envelope.payload).__name__
        self._ring.append(
            DeadLetter(actor_id, name, envelope.seq, reason, now - envelope.enqueued_at, envelope.trace_id, detail, now)
        )

    def view(self) -> tuple[DeadLetter, ...]:
        """Return all that are kept, oldest first."""
        return tuple(self._ring)


# ------------------------------------------------------------------ mailbox content
@dataclass(frozen=True, slots=True)
class EnvelopeView:
    """One queued message without its secrets."""

    message_type: str
    seq: int
    age_s: float
    deadline_in_s: float | None
    trace_id: str | None
    fields: Mapping[str, Any] = field(default_factory=dict)


def peek(mailbox: Mailbox, *, limit: int, now: float) -> tuple[EnvelopeView, ...]:
    """Return the first queued messages, redacted."""
    return tuple(
        EnvelopeView(
            message_type=type(envelope.payload).__name__,
            seq=envelope.seq,
            age_s=now - envelope.enqueued_at,
            deadline_in_s=None if envelope.deadline is None else envelope.deadline - now,
            trace_id=envelope.trace_id,
            fields=_shown(envelope.payload),
        )
        for envelope in mailbox.peek(limit)
    )


def _shown(message: Any) -> dict[str, Any]:
    allowed: frozenset[str] = getattr(type(message), "debug_fields", frozenset())
    return {name: getattr(message, name) for name in sorted(allowed)}


# ------------------------------------------------------------------ state of an actor
@dataclass(frozen=True, slots=True)
class SnapshotView:
    """A snapshot and how old it is; `busy` says why it is not fresh."""

    value: object | None
    stale_s: float | None
    busy: str | None = None


async def take_snapshot(slot: ActorSlot, *, timeout_s: float, clock: Clock) -> SnapshotView:
    """Ask through the system lane; fall back to what was published last."""
    loop = asyncio.get_running_loop()
    reply: asyncio.Future[object | None] = loop.create_future()
    with suppress(MailboxClosed, MailboxFull):
        slot.mailbox.tell_system(SnapshotCommand(reply))
        await asyncio.wait({reply}, timeout=timeout_s)
    if reply.done():
        return SnapshotView(reply.result(), 0.0)
    reply.cancel()
    stale_s = None if slot.home.snapshot_at is None else clock() - slot.home.snapshot_at
    name = busy_with(slot)
    return SnapshotView(
        slot.home.snapshot, stale_s, f"busy in {name} for {slot.busy_s():.1f} s" if name else str(slot.state)
    )


# ------------------------------------------------------------------ text
def render_text(tree: Node) -> str:
    """Draw the tree with a depth bar per mailbox."""
    width = max(depth * 3 + len(node.id) for node, depth in _depths(tree))
    return "\n".join(_lines(tree, "", "", width))


def _depths(node: Node, depth: int = 0) -> Iterator[tuple[Node, int]]:
    yield node, depth
    for child in node.children:
        yield from _depths(child, depth + 1)


def _lines(node: Node, head: str, tail: str, width: int) -> Iterator[str]:
    yield f"{head + node.id:<{width}} {_describe(node)}".rstrip()
    for child in node.children:
        last = child is node.children[-1]
        yield from _lines(child, tail + ("└─ " if last else "├─ "), tail + ("   " if last else "│  "), width)


def _describe(node: Node) -> str:
    state = "BACKING" if node.state is ActorState.BACKING_OFF else str(node.state)
    head = f"{node.strategy or '':<13} {state:<9}"
    if node.mailbox is None:
        restarts = f"{node.restarts_in_window}/{node.max_restarts}"
        return f"{head} up {_duration(node.since_s):<9} restarts {restarts}{_last_error(node)}"
    box = node.mailbox
    level = f"{box.depth}/{box.capacity}"
    return f"{head} mbox {_bar(box.depth, box.capacity)} {level:<10} age {box.oldest_age_s:.1f}s{_note(node)}"


def _note(node: Node) -> str:
    if node.next_start_in_s is not None:
        return f"  start in {node.next_start_in_s:.1f}s{_last_error(node)}"
    if node.paused_by is not None:
        return f"  paused by {node.paused_by} (auto-resume {node.resumes_in_s:.0f}s)"
    if node.stuck:
        return f"  STUCK in {node.busy_with} {node.busy_s:.1f}s"
    if node.busy_with is not None and node.busy_s >= 1:
        return f"  busy in {node.busy_with} {node.busy_s:.1f}s"
    if node.state in (ActorState.STOPPED, ActorState.FAILED):
        return f"  ended {node.exit_reason}{_last_error(node)}"
    return ""


def _last_error(node: Node) -> str:
    if node.last_error is None or node.last_error_age_s is None:
        return ""
    return f" (last: {node.last_error} {_duration(node.last_error_age_s)} ago)"


def _bar(depth: int, capacity: int) -> str:
    eighths = round(_BAR_CELLS * 8 * depth / capacity)
    full, rest = divmod(eighths, 8)
    bar = "█" * full + (_EIGHTHS[rest] if rest else "")
    return f"{bar:<{_BAR_CELLS}}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"

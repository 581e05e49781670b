"""Lanes: which pending rows may go next, one lane a partition.

A lane has at most one group in flight, and a key always lies in one partition, so nothing of a payment overtakes what
came before it. Rows enter in
sequence, leave when the broker acknowledged them, and go back to the head of their lane in order when it did not.

Bounds: the window holds at most `max_rows` rows and about `max_bytes` bytes, from loading a row to the outbox's word
that its mark is stored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from payflow.core.outbox import PendingRow

OVERHEAD_BYTES: Final = 340


def row_bytes(row: PendingRow) -> int:
    """What a row counts for: its payload, and what key and headers of every event come to (eight headers, 300 bytes).
    """
    return len(row.payload) + OVERHEAD_BYTES


@dataclass(slots=True)
class Lane:
    """Rows of one partition. `failures` counts groups in a row that did not get through; `not_before` is monotonic
    seconds.
    """

    partition: int
    queue: deque[PendingRow] = field(default_factory=deque)
    in_flight: tuple[PendingRow, ...] = ()
    failures: int = 0
    not_before: float = 0.0
    unbooked_bytes: int = 0

    def ready(self, now: float, *, unbooked_limit: int | None) -> bool:
        """Whether a group may start now."""
        within = unbooked_limit is None or self.unbooked_bytes < unbooked_limit
        return bool(self.queue) and not self.in_flight and now >= self.not_before and within


class Window:
    """All rows that are loaded and not yet done with, over their lanes."""

    def __init__(self, *, max_rows: int, max_bytes: int) -> None:
        assert max_rows >= 1
        assert max_bytes >= 1
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._claimed: dict[int, int] = {}
        self._bytes = 0
        self._barred: set[bytes] = set()
        self.lanes: tuple[Lane, ...] = ()
        self.cursor = 0

    @property
    def rows(self) -> int:
        """Rows in the window."""
        return len(self._claimed)

    @property
    def room(self) -> tuple[int, int]:
        """How many rows and bytes more may be loaded."""
        return max(0, self._max_rows - len(self._claimed)), max(0, self._max_bytes - self._bytes)

    def size_of(self, seq: int) -> int:
        """Bytes of a row in the window, 0 for one that is not."""
        return self._claimed.get(seq, 0)

    def reset(self, partitions: int) -> None:
        """Forget every row and start from the first pending one: the log is another, or its partitions changed."""
        self.lanes = tuple(Lane(partition) for partition in range(partitions))
        self._claimed.clear()
        self._bytes = 0
        self.cursor = 0

    def rewind(self) -> None:
        """Rows before the cursor became pending again: read everything anew, so that they come in sequence.

        What is in flight, or acknowledged and not yet stored, stays claimed and is skipped when it is met.
        """
        for lane in self.lanes:
            self.release(row.seq for row in lane.queue)
            lane.queue.clear()
        self.cursor = 0

    def load(self, rows: Sequence[PendingRow], place: Callable[[bytes], int]) -> int:
        """Take rows in sequence; `place` gives the partition of a key. Returns how many were new."""
        new = 0
        for row in rows:
            assert row.seq > self.cursor, "rows come in sequence"
            self.cursor = row.seq
            if row.seq in self._claimed or row.key in self._barred:
                continue
            size = row_bytes(row)
            self._claimed[row.seq] = size
            self._bytes += size
            self.lanes[place(row.key)].queue.append(row)
            new += 1
        return new

    def take(self, lane: Lane, count: int) -> tuple[PendingRow, ...]:
        """Start a group of at most `count` rows from the head of the lane."""
        assert not lane.in_flight, "one group in flight a lane"
        lane.in_flight = tuple(lane.queue.popleft() for _ in range(min(count, len(lane.queue))))
        return lane.in_flight

    def acknowledged(self, lane: Lane, count: int) -> tuple[PendingRow, ...]:
        """The first `count` rows of the group are in the log; the rest goes back to the head. The rows stay claimed
        until `release`.
        """
        group, lane.in_flight = lane.in_flight, ()
        assert 0 <= count <= len(group)
        lane.queue.extendleft(reversed(group[count:]))
        if count:
            lane.failures = 0
            lane.not_before = 0.0
            lane.unbooked_bytes += sum(self._claimed.get(row.seq, 0) for row in group[:count])
        return group[:count]

    def failed(self, lane: Lane, *, not_before: float) -> None:
        """Nothing of the group is known to be in the log: it goes again, in the same order, not before that time."""
        self.acknowledged(lane, 0)
        lane.failures += 1
        lane.not_before = not_before

    def bar(self, lane: Lane, key: bytes) -> None:
        """The key is about to be held: its rows leave the window and are not loaded until `unbar`."""
        assert not lane.in_flight
        self._barred.add(key)
        kept = deque(row for row in lane.queue if row.key != key)
        self.release(row.seq for row in lane.queue if row.key == key)
        lane.queue = kept

    def unbar(self, key: bytes) -> None:
        """The hold is stored: the store itself leaves the key out from now on."""
        self._barred.discard(key)

    def release(self, seqs: Iterable[int]) -> None:
        """The outbox has stored what became of these rows."""
        for seq in seqs:
            self._bytes -= self._claimed.pop(seq, 0)

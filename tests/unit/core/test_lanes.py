"""Lanes: order per partition, one group in flight, bounds of the window."""

from __future__ import annotations

from payflow.core.lanes import Window, row_bytes
from payflow.core.outbox import PendingRow


def row(seq: int, key: bytes = b"k", payload: bytes = b"p") -> PendingRow:
    return PendingRow(seq, seq.to_bytes(16, "big"), key, payload, (("ce_id", b"x"),), 0)


def window(partitions: int = 2, *, max_rows: int = 100, max_bytes: int = 10_000) -> Window:
    made = Window(max_rows=max_rows, max_bytes=max_bytes)
    made.reset(partitions)
    return made


def place(key: bytes) -> int:
    return key[-1] % 2


def test_rows_keep_their_sequence_in_their_lane() -> None:
    """A key lies in one lane, and what is loaded later stands behind."""
    w = window()

    new = w.load([row(1, b"\0"), row(2, b"\1"), row(3, b"\0")], place)

    assert 3 == new
    assert [1, 3] == [r.seq for r in w.lanes[0].queue]
    assert [2] == [r.seq for r in w.lanes[1].queue]
    assert 3 == w.cursor


def test_rewind_skips_what_is_in_the_window() -> None:
    """Rows that are claimed are not taken twice when the pages are read again."""
    w = window(1)
    w.load([row(1), row(2), row(4)], lambda _: 0)
    w.take(w.lanes[0], 2)

    w.rewind()
    new = w.load([row(1), row(2), row(3), row(4)], lambda _: 0)

    assert 2 == new
    assert [3, 4] == [r.seq for r in w.lanes[0].queue]
    assert 4 == w.rows


def test_a_failed_group_goes_back_to_the_head_in_order() -> None:
    """Nothing later of a payment can pass what failed."""
    w = window(1)
    lane = w.lanes[0]
    w.load([row(1), row(2), row(3)], lambda _: 0)

    group = w.take(lane, 2)
    w.failed(lane, not_before=7.0)

    assert [1, 2] == [r.seq for r in group]
    assert [1, 2, 3] == [r.seq for r in lane.queue]
    assert 1 == lane.failures
    assert not lane.ready(6.9, unbooked_limit=None)
    assert lane.ready(7.0, unbooked_limit=None)


def test_a_partly_taken_group_gives_its_rest_back() -> None:
    """The broker took a prefix; the rest is next."""
    w = window(1)
    lane = w.lanes[0]
    w.load([row(1), row(2), row(3)], lambda _: 0)
    w.take(lane, 3)

    done = w.acknowledged(lane, 1)

    assert [1] == [r.seq for r in done]
    assert [2, 3] == [r.seq for r in lane.queue]
    assert () == lane.in_flight
    assert row_bytes(row(1)) == lane.unbooked_bytes


def test_room_shrinks_until_the_marks_are_stored() -> None:
    """An acknowledged row still counts: its mark may have to be sent again."""
    w = window(1, max_rows=2, max_bytes=1000)
    lane = w.lanes[0]
    w.load([row(1), row(2)], lambda _: 0)
    w.take(lane, 2)
    w.acknowledged(lane, 2)

    before = w.room
    w.release([1, 2])

    assert 0 == before[0]
    assert (2, 1000) == w.room


def test_an_unbooked_limit_stops_the_lane() -> None:
    """A memory-only broker holds no more than may be published and not booked."""
    w = window(1)
    lane = w.lanes[0]
    w.load([row(1), row(2)], lambda _: 0)
    w.take(lane, 1)
    w.acknowledged(lane, 1)

    assert not lane.ready(0.0, unbooked_limit=lane.unbooked_bytes)
    assert lane.ready(0.0, unbooked_limit=lane.unbooked_bytes + 1)


def test_a_barred_key_leaves_the_window_and_stays_out() -> None:
    """From the moment a row is refused for good, nothing later of its payment may be sent."""
    w = window(1)
    lane = w.lanes[0]
    w.load([row(1, b"a"), row(2, b"b"), row(3, b"a")], lambda _: 0)
    w.take(lane, 1)
    w.acknowledged(lane, 0)

    w.bar(lane, b"a")
    w.load([row(4, b"a"), row(5, b"b")], lambda _: 0)

    assert [2, 5] == [r.seq for r in lane.queue]
    assert 2 == w.rows
    w.unbar(b"a")
    w.rewind()
    w.load([row(1, b"a"), row(2, b"b")], lambda _: 0)
    assert [1, 2] == [r.seq for r in lane.queue]


def test_reset_forgets_everything() -> None:
    """Another log: what was sent to the old one counts for nothing."""
    w = window(1)
    w.load([row(1)], lambda _: 0)
    w.take(w.lanes[0], 1)

    w.reset(3)

    assert (0, 0, 3) == (w.rows, w.cursor, len(w.lanes))
    assert 0 == w.size_of(1)

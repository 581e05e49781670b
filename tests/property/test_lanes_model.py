"""Lanes against a model: whatever happens to groups, the log gets the rows of a key in sequence, each at least once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from payflow.core.lanes import Window
from payflow.core.outbox import PendingRow

KEYS = 4
PARTITIONS = 2
STEP = st.sampled_from(["add", "load", "start", "ack", "part", "fail", "mark", "rewind", "reset"])


@given(st.lists(st.tuples(STEP, st.integers(0, 7)), max_size=120))
def test_every_key_reaches_the_log_in_sequence(steps: list[tuple[str, int]]) -> None:
    """First appearances in the log are in sequence per key; the window stays within its bounds; nothing is forgotten.
    """
    window = Window(max_rows=6, max_bytes=10_000)
    window.reset(PARTITIONS)
    pending: dict[int, PendingRow] = {}
    log: list[PendingRow] = []
    acked: list[int] = []
    seq = 0

    def load() -> None:
        room, _ = window.room
        rows = [row for s, row in sorted(pending.items()) if s > window.cursor][:room]
        window.load(rows, lambda key: key[0] % PARTITIONS)

    def start(lane_index: int, count: int) -> None:
        lane = window.lanes[lane_index % PARTITIONS]
        if lane.ready(0.0, unbooked_limit=None):
            window.take(lane, count)

    def settle(lane_index: int, share: float) -> None:
        lane = window.lanes[lane_index % PARTITIONS]
        if lane.in_flight:
            done = window.acknowledged(lane, round(len(lane.in_flight) * share))
            log.extend(done)
            acked.extend(row.seq for row in done)

    def mark() -> None:
        window.release(acked)
        for done in acked:
            pending.pop(done, None)
        acked.clear()

    for step, number in steps:
        if step == "add":
            seq += 1
            pending[seq] = PendingRow(seq, b"", bytes([number % KEYS]), b"p", (), 0)
        elif step == "load":
            load()
        elif step == "start":
            start(number, 1 + number // 2)
        elif step == "ack":
            settle(number, 1.0)
        elif step == "part":
            settle(number, 0.5)
        elif step == "fail":
            settle(number, 0.0)
        elif step == "mark":
            mark()
        elif step == "rewind":
            window.rewind()
        elif step == "reset":
            acked.clear()
            window.reset(PARTITIONS)
        assert window.rows <= 6

    window.reset(PARTITIONS)
    acked.clear()
    while pending:
        load()
        for index in range(PARTITIONS):
            start(index, 10)
            settle(index, 1.0)
        mark()
    for key in range(KEYS):
        seen = [row.seq for row in log if row.key[0] == key]
        first = list(dict.fromkeys(seen))
        assert sorted(first) == first
    assert set(range(1, seq + 1)) == {row.seq for row in log}

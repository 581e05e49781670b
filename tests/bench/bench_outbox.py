"""Durable payments a second of the SQLite outbox, one transaction a group, and where the time of a group goes.

`python -m tests.bench.bench_outbox [--seconds 2] [--directory DIR]`. Authorizations with an order id, 500 merchants at
random, random idempotency keys, ascending ids; one group in flight, as the outbox actor works. Marks are the
publisher's and the consumer's word, in the same transactions.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from payflow import wire
from payflow.adapters.sqlite_outbox import SqliteOutboxReader, SqliteOutboxStore
from payflow.adapters.system import UuidIds
from payflow.core.outbox import (
    Accepted,
    Done,
    Group,
    Loaded,
    MarkBooked,
    MarkPublished,
    PublishedRow,
    Submit,
    Write,
)
from payflow.core.payment import Authorize, Capture, decide

TARGET_PER_S = 25_000
GROUPS = (1, 16, 64, 256, 512)
ROUNDS = 3
MERCHANTS = 500
AT_US = 1_764_000_000_000_000
NOTHING = Loaded({}, {}, {})


def requests(rng: random.Random) -> Iterator[Submit]:
    """Endless authorizations, as many merchants send them."""
    for number in itertools.count():
        body = rng.randbytes(16)
        command = Authorize(
            f"merchant-{rng.randrange(MERCHANTS)}", 1050, "EUR", f"order-{number}", "two cups of tea", {}
        )
        yield Submit(command, "/payments", body.hex(), sha256(body).digest(), None)


async def measure(
    directory: Path,
    *,
    group: int,
    seconds: float,
    next_writes: Callable[[int], list[Write]],
    after: Callable[..., object],
) -> float:
    """Commands a second."""
    store = SqliteOutboxStore(directory / f"bench-{group}-{time.time_ns()}.db", ids=UuidIds())
    await store.open()
    done = 0
    spent = 0.0
    while spent < seconds:
        writes = next_writes(group)
        started = time.perf_counter()
        outcomes = await store.commit(writes, at_us=AT_US + done)
        spent += time.perf_counter() - started
        done += sum(not isinstance(outcome, Done) for outcome in outcomes)
        after(outcomes)
    await store.close()
    return done / spent


class Authorizing:
    """Groups of authorizations only."""

    def __init__(self) -> None:
        self._requests = requests(random.Random(1))

    def next_writes(self, group: int) -> list[Write]:
        return list(itertools.islice(self._requests, group))

    def after(self, outcomes: list[object]) -> None:
        """Nothing to remember."""


class Marking(Authorizing):
    """The same, and every row is marked published and booked two groups later."""

    def __init__(self) -> None:
        super().__init__()
        self._seq = 0
        self._marks: list[Write] = []
        self._ids: list[bytes] = []

    def next_writes(self, group: int) -> list[Write]:
        return [*super().next_writes(group), *self._marks]

    def after(self, outcomes: list[object]) -> None:
        accepted = sum(isinstance(outcome, Accepted) for outcome in outcomes)
        seqs = range(self._seq + 1, self._seq + 1 + accepted)
        self._seq += accepted
        booked, self._ids = self._ids, []
        self._marks = [
            MarkPublished(tuple(PublishedRow(seq, seq % 4, seq) for seq in seqs), "broker", AT_US),
            MarkBooked(tuple(booked), AT_US),
        ]


class Capturing(Authorizing):
    """A capture of every payment, in the group after its authorization."""

    def __init__(self) -> None:
        super().__init__()
        self._ids: list[bytes] = []

    def next_writes(self, group: int) -> list[Write]:
        captures = [
            Submit(Capture(payment_id, None), "/payments/{id}/capture", payment_id.hex(), payment_id * 2, None)
            for payment_id in self._ids
        ]
        return [*captures, *super().next_writes(group - len(captures) if len(captures) < group else 0)][:group]

    def after(self, outcomes: list[object]) -> None:
        created = [outcome.payment_id for outcome in outcomes if isinstance(outcome, Accepted) and outcome.created]
        self._ids = created[: max(1, len(created) // 2)]


def shares() -> None:
    """Microseconds a payment of the steps that are Python."""
    batch = list(itertools.islice(requests(random.Random(2)), 256))
    ids = UuidIds()
    command = batch[0].command
    assert isinstance(command, Authorize)
    group = Group(batch, at_us=AT_US, new_id=ids.new, codec=wire)
    group.scopes({})
    row = group.fold(NOTHING).rows[0]
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "draw ids, make the group": (lambda: Group(batch, at_us=AT_US, new_id=ids.new, codec=wire), len(batch)),
        "what to load": (lambda: (group.payment_ids(), group.orders(), group.scopes({})), len(batch)),
        "fold, with decide and encode": (lambda: group.fold(NOTHING), len(batch)),
        "  decide": (lambda: decide(None, command, AT_US, payment_id=row.event.id), 1),
        "  encode the answer": (lambda: wire.encode_answer(row.event.payment), 1),
        "  encode the event": (lambda: wire.encode_event(row.event), 1),
    }
    for name, (step, payments) in steps.items():
        rounds = []
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(20_000 // payments):
                step()
            rounds.append((time.perf_counter() - started) / (20_000 // payments) / payments)
        print(f"  {name:<32} {statistics.median(rounds) * 1e6:6.2f} us a payment")


async def backlog(directory: Path, rows: int) -> None:
    """What the reader costs with a large backlog."""
    path = directory / "backlog.db"
    store, reader = SqliteOutboxStore(path, ids=UuidIds()), SqliteOutboxReader(path)
    await store.open()
    stream = requests(random.Random(3))
    for start in range(0, rows, 512):
        await store.commit(list(itertools.islice(stream, 512)), at_us=AT_US + start)
    await reader.open()
    for name, read in (
        ("backlog", reader.backlog),
        ("pending, first 512", lambda: reader.pending(after_seq=0, limit=512, max_bytes=2**20)),
        ("pending, last 512", lambda: reader.pending(after_seq=rows - 512, limit=512, max_bytes=2**20)),
    ):
        started = time.perf_counter()
        await read()
        print(f"  {name:<32} {(time.perf_counter() - started) * 1e3:8.2f} ms with {rows} rows pending")
    await reader.close()
    started = time.perf_counter()
    await store.close()
    await store.open()
    print(f"  {'close and open again':<32} {(time.perf_counter() - started) * 1e3:8.2f} ms")
    await store.close()


async def main(seconds: float, directory: Path, rows: int) -> None:
    """Print every figure beside its target."""
    print("durable payments a second (median of three)")
    for workload in (Authorizing, Marking, Capturing):
        for group in GROUPS:
            rates = []
            for _ in range(ROUNDS):
                work = workload()
                rates.append(
                    await measure(
                        directory, group=group, seconds=seconds, next_writes=work.next_writes, after=work.after
                    )
                )
            target = f"  (target {TARGET_PER_S:,})" if group == 256 and workload is Authorizing else ""
            print(f"  {workload.__name__.lower():<12} group {group:>4}  {statistics.median(rates):>10,.0f}{target}")
    print("Python's share")
    shares()
    print("reading")
    await backlog(directory, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--directory", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        asyncio.run(main(options.seconds, Path(temporary), options.rows))

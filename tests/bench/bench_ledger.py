"""Booking speed of the SQLite ledger: events a second, durable, one transaction a batch.

`python -m tests.bench.bench_ledger [--seconds 2] [--directory DIR]`. The stream is what payments look like: authorize,
then capture, one in four refunded; 500 merchants at random; ids ascend with time. The CPU column hardly depends on what
else the machine does; where it is far below 1e6 / events/s, the disk or other processes set the pace.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from payflow.adapters.sqlite_ledger import SqliteLedger
from payflow.core.ledger import Delivery, LedgerEvent
from payflow.core.payment import EventType

TARGET_PER_S = 25_000
BATCHES = (1, 16, 64, 256, 512)
ROUNDS = 3
MERCHANTS = 500
AT_US = 1_764_000_000_000_000
RAW = b"{}" * 150


def stream(seed: int) -> Iterator[Delivery]:
    """Endless deliveries; 64 payments are open at once, so a batch mixes first and later versions."""
    chance = random.Random(seed)
    ids = itertools.count(1)
    offsets = itertools.count()

    def steps() -> Iterator[LedgerEvent]:
        payment_id = next(ids).to_bytes(16, "big")
        merchant, amount = f"merchant-{chance.randrange(MERCHANTS)}", chance.randrange(100, 100_000)
        kinds = [EventType.AUTHORIZED, EventType.CAPTURED] + [EventType.REFUNDED] * (chance.random() < 0.25)
        for version, kind in enumerate(kinds, 1):
            event_id = next(ids).to_bytes(16, "big")
            yield LedgerEvent(event_id, payment_id, version, kind, AT_US + version, amount, "EUR", merchant)

    open_payments = [steps() for _ in range(64)]
    while True:
        for place, payment in enumerate(open_payments):
            event = next(payment, None)
            if event is None:
                open_payments[place] = steps()
            else:
                yield Delivery(event.payment_id[-1] % 6, next(offsets), event, RAW)


async def measure(directory: Path, batch: int, seconds: float) -> tuple[float, float, float, float]:
    """Events a second, p50 and p99 of a batch in milliseconds, microseconds of CPU an event."""
    ledger = SqliteLedger(directory / f"ledger-{batch}-{time.monotonic_ns()}.db")
    await ledger.open()
    source, took_s, spent_s, cpu_s = stream(batch), [], 0.0, 0.0
    while spent_s < seconds:
        deliveries = list(itertools.islice(source, batch))
        positions = {delivery.partition: delivery.offset + 1 for delivery in deliveries}
        started_at, cpu_started_at = time.perf_counter(), time.process_time()
        booking = await ledger.book(deliveries, source_id="bench", topic="events", positions=positions, at_us=AT_US)
        took_s.append(time.perf_counter() - started_at)
        spent_s += took_s[-1]
        cpu_s += time.process_time() - cpu_started_at
        assert len(booking.booked) == batch
    assert all(balance.imbalance == 0 for balance in await ledger.audit())
    await ledger.close()
    cuts = statistics.quantiles(took_s, n=100)
    events = batch * len(took_s)
    return events / spent_s, cuts[49] * 1e3, cuts[98] * 1e3, cpu_s / events * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--directory", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        print(f"{'batch':>6} {'events/s':>9} {'p50 ms':>7} {'p99 ms':>7} {'CPU us':>7}   median of {ROUNDS} rounds")
        for batch in BATCHES:
            rounds = [asyncio.run(measure(Path(directory), batch, arguments.seconds)) for _ in range(ROUNDS)]
            rate, p50, p99, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
            target = f"  target {TARGET_PER_S:,}: {rate / TARGET_PER_S:.2f}" if batch == BATCHES[-1] else ""
            print(f"{batch:>6} {rate:>9,.0f} {p50:>7.2f} {p99:>7.2f} {cpu:>7.1f}{target}")


if __name__ == "__main__":
    main()

"""What the Kafka adapters cost: placing a key, starting the embedded broker, appending, reading.

`python -m tests.bench.bench_kafka [--bootstrap HOST:PORT]`; without an address the embedded broker is measured. The
figures are medians; placement is compared with aiokafka's in the same run, because machines differ and swing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
import timeit

from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka

from payflow.adapters.embedded_broker import EmbeddedBroker
from payflow.adapters.kafka_consumer import KafkaRecordSource
from payflow.adapters.kafka_producer import KafkaEventLog
from payflow.adapters.system import UuidIds
from payflow.core.routing import murmur2
from payflow.ports import LogRecord

BROKER_STARTS = 10
# Records a partition, by batch size; what is written before it is read stays below the embedded broker's 5 MiB.
COUNTS = {1: 500, 16: 4_000, 256: 5_120}
EVENT_BYTES = 300
# What we send with an event: CloudEvents attributes, content type, trace.
HEADERS = tuple(
    (name, b"x" * size)
    for name, size in (
        ("ce_id", 36),
        ("ce_type", 18),
        ("ce_source", 16),
        ("ce_time", 27),
        ("ce_specversion", 3),
        ("ce_subject", 36),
        ("content-type", 16),
        ("traceparent", 55),
    )
)


def nanoseconds(call: object, key: bytes) -> float:
    """Best of seven: the rest is the machine's."""
    runs = timeit.repeat("call(key)", globals={"call": call, "key": key}, number=20_000, repeat=7)
    return min(runs) / 20_000 * 1e9


def measure_placement() -> None:
    """Ours beside aiokafka's."""
    for size in (16, 36):
        key = os.urandom(size)
        ours, theirs = nanoseconds(murmur2, key), nanoseconds(murmur2_of_aiokafka, key)
        print(f"murmur2 of {size} bytes: {ours:.0f} ns, aiokafka's {theirs:.0f} ns, ratio {ours / theirs:.2f}")
    ids = UuidIds()
    print(f"a new id: {min(timeit.repeat(ids.new, number=20_000, repeat=7)) / 20_000 * 1e9:.0f} ns")


async def measure_start() -> None:
    """From nothing to an address."""
    took_ms = []
    for _ in range(BROKER_STARTS):
        broker, begin = EmbeddedBroker(), time.perf_counter()
        await broker.start()
        took_ms.append((time.perf_counter() - begin) * 1000)
        await broker.stop()
    print(f"embedded broker starts in {statistics.median(took_ms):.0f} ms, at most {max(took_ms):.0f} ms")


async def measure_log(bootstrap: str, log_id: str | None) -> None:
    """One append in flight per partition, all partitions, then one reader."""
    topic = f"bench-{os.urandom(4).hex()}"
    log = KafkaEventLog(bootstrap, topic=topic, dead_letter_topic=f"{topic}.dlq", client_id="bench", log_id=log_id)
    source = KafkaRecordSource(bootstrap, topic=topic, group_id="bench", client_id="bench", log_id=log_id)
    partitions = (await log.open()).partitions
    await source.open()
    try:
        for size, count in COUNTS.items():
            await source.seek({place: end for place, (_, end) in (await source.bounds()).items()})
            appended_per_s = await append_rate(log, topic, partitions, size, count)
            fetched_per_s = await fetch_rate(source, count * partitions)
            print(f"batches of {size}: {appended_per_s:,.0f} appended/s, {fetched_per_s:,.0f} fetched/s")
    finally:
        await source.close(timeout_s=2.0)
        await log.discard(timeout_s=2.0)


async def append_rate(log: KafkaEventLog, topic: str, partitions: int, size: int, count: int) -> float:
    """`count` records to every partition."""
    now_ms = time.time_ns() // 1_000_000
    batch = [LogRecord(os.urandom(16), b"v" * EVENT_BYTES, HEADERS, now_ms) for _ in range(size)]

    async def fill(partition: int) -> None:
        left = count
        while left > 0:
            taken, _ = await log.append(topic, partition, batch[:left])
            left -= taken

    begin = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for partition in range(partitions):
            group.create_task(fill(partition))
    return count * partitions / (time.perf_counter() - begin)


async def fetch_rate(source: KafkaRecordSource, count: int) -> float:
    """Until all are there, or nothing comes any more."""
    begin, fetched = time.perf_counter(), 0
    while fetched < count:
        records = await source.fetch(max_records=512, timeout_s=2.0)
        if not records:
            break
        fetched += len(records)
    return fetched / (time.perf_counter() - begin)


async def main(bootstrap: str | None) -> None:
    """Measure and print."""
    measure_placement()
    await measure_start()
    if bootstrap is not None:
        await measure_log(bootstrap, None)
        return
    broker = EmbeddedBroker()
    try:
        await measure_log(*await broker.start())
    finally:
        await broker.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", help="a real cluster")
    asyncio.run(main(parser.parse_args().bootstrap))

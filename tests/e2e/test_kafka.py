"""The whole way over a real Kafka broker: what a plain client finds there, one process or two, kill -9 of either.

Every test has topics and a group of its own, so runs do not disturb each other.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.structs import ConsumerRecord

from tests.support.books import Sent, Traffic, check_api, check_books, rows, send_again, settle
from tests.support.lives import whole_life
from tests.support.process import Serve, Starter, starter, wait_for, wait_for_async

pytestmark = pytest.mark.kafka

PARTITIONS = 6
SEED = int(os.environ.get("PAYFLOW_KILL_SEED", "20261125"))
LIVES = 2000
TOKEN = "token-of-alice-0123456789"
ACTIONS = {"PAYFLOW_MANAGEMENT__TOKENS__ALICE": TOKEN, "PAYFLOW_MANAGEMENT__ALLOW_ACTIONS": "true"}


def bootstrap() -> str:
    """The cluster under test. Whoever selects the marker wants these tests to run, so a missing name is a failure."""
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "embedded")
    if named == "embedded":
        pytest.fail("KAFKA_BOOTSTRAP_SERVERS names no cluster, and tests that need Kafka were selected")
    return named


class Cluster:
    """Starts payflow on the real broker, with names that no other test has."""

    def __init__(self, start: Starter) -> None:
        name = uuid.uuid4().hex[:8]
        self.topic = f"e2e.{name}"
        self.dead_letter_topic = f"{self.topic}.dlq"
        self.group = f"e2e-{name}"
        self.folder = start.folder
        self._start = start

    def serve(self, *arguments: str, data_dir: Path | None = None) -> Serve:
        """One `payflow serve` with this test's names."""
        return self._start(
            *arguments,
            data_dir=data_dir,
            env={"KAFKA_BOOTSTRAP_SERVERS": bootstrap(), **ACTIONS},
            kafka__topic=self.topic,
            kafka__dead_letter_topic=self.dead_letter_topic,
            kafka__consumer_group=self.group,
        )

    async def records(self) -> list[ConsumerRecord]:
        """Everything in the topic, as any Kafka client reads it, in the order of each partition."""
        async with client(AIOKafkaConsumer(bootstrap_servers=bootstrap(), auto_offset_reset="earliest")) as consumer:
            return await read_all(consumer, self.topic)

    async def warm_up(self) -> None:
        """Wait for the group coordinator, which a fresh broker makes at the first question."""

        async def asked() -> bool:
            try:
                await self.committed()
            except GroupCoordinatorNotAvailableError:
                return False
            return True

        await wait_for_async(asked, "the broker has a group coordinator")

    async def committed(self) -> dict[int, int]:
        """What the group has committed: partition -> next offset."""
        async with client(AIOKafkaAdminClient(bootstrap_servers=bootstrap())) as admin:
            offsets = await admin.list_consumer_group_offsets(self.group)
        return {place.partition: meta.offset for place, meta in offsets.items() if meta.offset >= 0}

    async def has_committed(self, records: int) -> None:
        """Wait until the group has committed so many; never more. The commit follows the booking."""

        async def enough() -> bool:
            return sum((await self.committed()).values()) >= records

        await wait_for_async(enough, f"{records} records are committed")
        assert sum((await self.committed()).values()) == records

    async def delete(self) -> None:
        """Leave nothing behind on the broker."""
        with suppress(KafkaError):
            async with client(AIOKafkaAdminClient(bootstrap_servers=bootstrap())) as admin:
                await admin.delete_topics([self.topic, self.dead_letter_topic])


@asynccontextmanager
async def client(kafka: Any) -> AsyncIterator[Any]:
    """A plain client of aiokafka, closed in any case."""
    try:
        await kafka.start()
        yield kafka
    finally:
        await (kafka.close() if isinstance(kafka, AIOKafkaAdminClient) else kafka.stop())


async def read_all(consumer: AIOKafkaConsumer, topic: str) -> list[ConsumerRecord]:
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    missing = {place: end for place, end in (await consumer.end_offsets(partitions)).items() if end}
    found: list[ConsumerRecord] = []
    while missing:
        batches = await consumer.getmany(timeout_ms=10_000)
        assert batches, f"not readable: {missing}"
        for place, batch in batches.items():
            found += batch
            if place in missing and batch[-1].offset + 1 >= missing[place]:
                del missing[place]
    return found


@pytest.fixture(scope="session", autouse=True)
def named() -> None:
    """Say once what is missing."""
    bootstrap()


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Starter]:
    with starter(tmp_path) as start:
        yield start


@pytest.fixture
async def cluster(serving: Starter) -> AsyncIterator[Cluster]:
    made = Cluster(serving)
    await made.warm_up()
    yield made
    serving.close()
    await made.delete()


def ended(running: Serve, log: list[Sent], *, seed: int = 0) -> int:
    """After the last blow: ask again, all booked, all stories agree, clean end."""
    executed = send_again(log, running.api)
    settle(running.data_dir, acknowledged=False)
    events = check_books(log, running.data_dir)
    check_api(log, running.api)
    print(f"seed {seed}: {len(log)} requests, {events} events, {executed} executed by the retry")
    assert running.stop() == 0
    return events


def check_topic(records: list[ConsumerRecord], *data_dirs: Path) -> int:
    """I2 and I4 in Kafka: nothing that was not accepted, all of it, and no event before its predecessor. The copies."""
    accepted = {
        bytes(event).hex(): (bytes(payment), version)
        for event, payment, version in rows(
            data_dirs[0] / "payments.db", "SELECT id, payment, version FROM payment_event"
        )
    }
    seen: dict[bytes, list[int]] = defaultdict(list)
    ids = set()
    for record in records:
        event_id = uuid.UUID(headers(record)["ce_id"]).hex
        payment, version = accepted[event_id]
        assert record.key.decode() == str(uuid.UUID(bytes=payment))
        if event_id not in ids:
            ids.add(event_id)
            seen[payment].append(version)
    assert ids == accepted.keys()
    for versions in seen.values():
        assert versions == list(range(1, len(versions) + 1))
    return len(records) - len(ids)


def headers(record: ConsumerRecord) -> dict[str, str]:
    assert len({name for name, _ in record.headers}) == len(record.headers)
    return {name: value.decode() for name, value in record.headers}


# ------------------------------------------------------------------ one process
async def test_a_payment_is_published_as_cloud_events_and_booked(cluster: Cluster) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    running = cluster.serve().ready()
    log = whole_life(running.api)
    traced = running.api.post(
        "/payments", {"merchant_id": "m-2", "amount": 5, "currency": "USD"}, key="traced", traceparent=trace
    )
    assert traced.status == 201
    settle(running.data_dir)

    payment = running.api.get(f"/payments/{log[0].payment()['id']}").json()
    assert running.api.get("/healthz").json()["components"]["kafka"]["status"] == "UP"
    records = await cluster.records()
    assert len(records) == 4
    mine = [record for record in records if record.key.decode() == payment["id"]]
    assert [event["outbox"] for event in payment["events"]] == ["published"] * 3
    assert [(event["partition"], event["offset"]) for event in payment["events"]] == [
        (r.partition, r.offset) for r in mine
    ]
    for record, event, version in zip(mine, payment["events"], (1, 2, 3), strict=True):
        said, value = headers(record), json.loads(record.value)
        assert (
            said.items()
            >= {
                "ce_specversion": "1.0",
                "ce_id": event["id"],
                "ce_type": event["type"],
                "ce_source": "/payflow",
                "ce_subject": payment["id"],
                "ce_time": event["at"],
                "content-type": "application/json",
            }.items()
        )
        assert datetime.fromisoformat(said["ce_time"]).tzinfo is not None
        assert (value["event_id"], value["payment_id"], value["version"]) == (event["id"], payment["id"], version)
        assert (value["amount"], value["currency"], value["schema_version"]) == (event["amount"], "EUR", 1)
    assert (json.loads(mine[2].value)["captured_amount"], json.loads(mine[2].value)["refunded_amount"]) == (1000, 300)
    other = next(record for record in records if record.key.decode() == traced.json()["id"])
    assert headers(other)["traceparent"].split("-")[1] == trace.split("-")[1]
    await cluster.has_committed(len(records))

    assert running.stop() == 0
    again = cluster.serve().ready()
    again.event("consumer.connected")
    assert again.api.get(f"/payments/{payment['id']}").json() == payment
    check_api(log, again.api)
    assert again.stop() == 0
    assert len(await cluster.records()) == 4, "a second start publishes nothing again"


async def test_topics_have_six_partitions_and_keys_lie_where_java_puts_them(cluster: Cluster) -> None:
    running = cluster.serve().ready()
    Traffic(running.http_port, seed=1, lives=60).start().join()
    settle(running.data_dir)

    async with client(AIOKafkaAdminClient(bootstrap_servers=bootstrap())) as admin:
        described = await admin.describe_topics([cluster.topic, cluster.dead_letter_topic])
    assert [len(topic["partitions"]) for topic in described] == [PARTITIONS, PARTITIONS]
    place = DefaultPartitioner()
    everywhere = list(range(PARTITIONS))
    records = await cluster.records()
    assert [record.partition for record in records] == [place(record.key, everywhere, everywhere) for record in records]
    assert {record.partition for record in records} == set(everywhere)
    assert check_topic(records, running.data_dir) == 0


async def test_the_lag_of_the_consumer_is_visible_here_and_to_kafkas_own_tools(cluster: Cluster) -> None:
    running = cluster.serve().ready()
    whole_life(running.api)
    settle(running.data_dir)
    act(running, "consumer", "pause", max_s=600)
    log = Traffic(running.http_port, seed=2, lives=40).start().join()
    published = "SELECT count(*) FROM payment_event WHERE state <> 1"
    wait_for(lambda: rows(running.data_dir / "payments.db", published) == [(0,)], "all is published")

    management = running.management
    wait_for(
        lambda: metric(management.get("/metrics").body, "payflow_consumer_lag_records") >= len(log), "lag in the metric"
    )
    assert 0 < metric(management.get("/metrics").body, "payflow_consumer_lag_seconds") < 600
    await cluster.has_committed(3)

    act(running, "consumer", "resume")
    settle(running.data_dir)
    wait_for(lambda: metric(management.get("/metrics").body, "payflow_consumer_lag_records") == 0, "no lag any more")
    await cluster.has_committed(3 + len(log))


def metric(page: bytes, name: str) -> float:
    """Value of a metric without labels."""
    (line,) = [line for line in page.decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def act(serve: Serve, actor_id: str, action: str, **fields: float) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    body = {"reason": "test", **fields}
    done = serve.management.request("POST", f"/debug/actors/{actor_id}/{action}", body, **headers)
    assert done.status == 200, done


# ------------------------------------------------------------------ kill -9
@pytest.mark.parametrize("seed", [SEED])
async def test_f67_kill_9_under_load_loses_and_doubles_nothing(cluster: Cluster, seed: int) -> None:
    rng = random.Random(seed)
    log: list[Sent] = []
    for number in range(5):
        running = cluster.serve().ready()
        traffic = Traffic(running.http_port, seed=seed * 10 + number, lives=LIVES).start()
        traffic.until(rng.randrange(1, 500))
        running.kill()
        log += traffic.join()

    last = cluster.serve().ready()
    ended(last, log, seed=seed)

    copies = check_topic(await cluster.records(), last.data_dir)
    print(f"seed {seed}: {copies} events are in the topic twice, and once in the ledger")


# ------------------------------------------------------------------ two processes
async def test_two_processes_share_the_work_and_either_can_be_killed(cluster: Cluster) -> None:
    ingest_dir, ledger_dir = cluster.folder / "ingest", cluster.folder / "ledger"
    ingest = cluster.serve("--roles", "ingest", data_dir=ingest_dir).ready()
    consumer = cluster.serve("--roles", "consumer", data_dir=ledger_dir).ready()
    assert [ingest.api.get("/info").json()["roles"], consumer.api.get("/info").json()["roles"]] == [
        ["ingest"],
        ["consumer"],
    ]
    log = whole_life(ingest.api)
    settle(ingest_dir, ledger_dir, acknowledged=False)
    check_api(log, ingest.api, consumer.api)

    traffic = Traffic(ingest.http_port, seed=SEED, lives=LIVES).start()
    traffic.until(100)
    consumer.kill()
    traffic.until(300)
    ingest.kill()
    log += traffic.join()
    consumer = cluster.serve("--roles", "consumer", data_dir=ledger_dir).ready()
    ingest = cluster.serve("--roles", "ingest", data_dir=ingest_dir).ready()

    send_again(log, ingest.api)
    settle(ingest_dir, ledger_dir, acknowledged=False)
    check_books(log, ingest_dir, ledger_dir)
    check_api(log, ingest.api, consumer.api)
    check_topic(await cluster.records(), ingest_dir)
    assert [path.name for path in ingest_dir.glob("*.db")] == ["payments.db"]
    assert [path.name for path in ledger_dir.glob("*.db")] == ["ledger.db"]
    assert (ingest.stop(), consumer.stop()) == (0, 0)


async def test_a_new_ledger_reads_the_topic_from_its_beginning(cluster: Cluster) -> None:
    """The books are what the events say: thrown away and read again they are the same."""
    ingest_dir, first_dir, second_dir = (cluster.folder / name for name in ("ingest", "first", "second"))
    ingest = cluster.serve("--roles", "ingest", data_dir=ingest_dir).ready()
    log = Traffic(ingest.http_port, seed=3, lives=60).start().join()
    for ledger_dir in (first_dir, second_dir):
        consumer = cluster.serve("--roles", "consumer", data_dir=ledger_dir).ready()
        settle(ingest_dir, ledger_dir, acknowledged=False)
        check_books(log, ingest_dir, ledger_dir)
        assert consumer.stop() == 0

    sums = "SELECT account, currency, debit, credit FROM account ORDER BY account, currency"
    assert rows(first_dir / "ledger.db", sums) == rows(second_dir / "ledger.db", sums)

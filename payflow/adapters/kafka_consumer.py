"""The record source on Kafka: a consumer that assigns itself all partitions of a topic and starts where it is told.

There is no group membership, so no rebalance. The position that counts is stored with the bookings; what `commit` tells
Kafka is for lag tools only, so it is a plain request beside the consumer: a missing group right or a lost coordinator
never stops the reading. (Given a group_id, aiokafka runs a whole group coordinator even for assigned partitions;
its errors come out of getmany, and its commit never gives up.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition, errors
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import KafkaError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.metadata import MetadataRequest

from payflow.adapters import _aiokafka
from payflow.errors import BrokerUnavailable, LaneUnavailable, OffsetOutOfRange
from payflow.ports import LogInfo, Record

FETCH_MAX_BYTES: Final = 8 * 1024 * 1024  # read ahead per broker; aiokafka's own 50 MiB is more than we want to lend
RETRY_BACKOFF_MS: Final = 250
FETCH_WAIT_S: Final = 0.5  # a real broker answers as soon as there is something
EMBEDDED_FETCH_WAIT_S: Final = 0.05  # the mock lets an empty fetch wait to its end, so this is the longest latency
METADATA_POLL_S: Final = 0.05
COMMIT_TIMEOUT_S: Final = 2.0  # informational, so it may not hold up a booking for long

_CONFIGURATION: Final = (
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.InvalidTopicError,
    errors.UnsupportedVersionError,
    errors.IncompatibleBrokerVersion,
)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except _CONFIGURATION as error:
        raise LaneUnavailable(f"{doing}: {error}") from error
    except (KafkaError, OSError) as error:
        raise BrokerUnavailable(f"{doing}: {error or type(error).__name__}") from error


class KafkaRecordSource:
    """A RecordSource: open, seek, fetch. `log_id` is given for the embedded broker; a real cluster is asked for its id.

    An instance whose `fetch` raised BrokerUnavailable or LaneUnavailable is only good for `close`.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        topic: str,
        group_id: str,
        client_id: str,
        request_timeout_s: float = 10.0,
        log_id: str | None = None,
    ) -> None:
        assert request_timeout_s > FETCH_WAIT_S
        self._bootstrap = bootstrap
        self._topic = topic
        self._group_id = group_id
        self._client_id = client_id
        self._request_timeout_s = request_timeout_s
        self._fetch_wait_s = FETCH_WAIT_S if log_id is None else EMBEDDED_FETCH_WAIT_S
        self._log_id = log_id
        self._consumer: AIOKafkaConsumer | None = None
        self._partitions: tuple[TopicPartition, ...] = ()
        self._coordinator: int | None = None

    async def open(self) -> LogInfo:
        """Connect and look up the partitions. Leaves nothing behind when it fails."""
        assert self._consumer is None, "open once"
        _aiokafka.tame_logging()
        timeout_ms = int(self._request_timeout_s * 1000)
        self._consumer = consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a position that is gone is an error, never a silent jump
            fetch_max_bytes=FETCH_MAX_BYTES,
            fetch_max_wait_ms=int(self._fetch_wait_s * 1000),
            request_timeout_ms=timeout_ms,
            retry_backoff_ms=RETRY_BACKOFF_MS,
        )
        open_timeout_s = self._request_timeout_s * (self._bootstrap.count(",") + 3)
        try:
            with _translated("open"):
                async with asyncio.timeout(open_timeout_s):
                    return await self._connect(consumer)
        except BaseException:
            await self.close(timeout_s=0)
            raise

    async def seek(self, positions: Mapping[int, int]) -> None:
        """Start reading there; partitions that are absent are read from their beginning."""
        consumer = self._opened()
        absent = [tp for tp in self._partitions if tp.partition not in positions]
        start = {TopicPartition(self._topic, partition): offset for partition, offset in positions.items()}
        if not start.keys() <= set(self._partitions):
            count = len(self._partitions)
            raise LaneUnavailable(f"topic {self._topic} has {count} partitions, positions are for {sorted(positions)}")
        with _translated("seek"):
            start |= await consumer.beginning_offsets(absent)
        # No await from here: an assigned partition without a position would be an error to the reading task.
        if not consumer.assignment():
            consumer.assign(self._partitions)
        for partition, offset in start.items():
            consumer.seek(partition, offset)

    async def fetch(self, *, max_records: int, timeout_s: float) -> list[Record]:
        """Records in order per partition; empty after the timeout, also while the broker is away (`bounds` tells).

        May be cancelled at any time: no await stands between the client's move of its position and the return.
        """
        consumer = self._opened()
        assert consumer.assignment(), "seek comes first"
        with _translated("fetch"):
            try:
                fetched = await consumer.getmany(timeout_ms=int(timeout_s * 1000), max_records=max_records)
            except errors.OffsetOutOfRangeError as error:
                raise _out_of_range(error) from error
        if not fetched:
            self._check_health(consumer)
            return []
        return [
            Record(partition.partition, record.offset, record.key, record.value, record.headers, record.timestamp)
            for partition, records in fetched.items()
            for record in records
        ]

    def pause(self, partitions: Sequence[int]) -> None:
        """Stop reading these; what was read ahead is dropped and read again after `resume`."""
        self._opened().pause(*(TopicPartition(self._topic, partition) for partition in partitions))

    def resume(self, partitions: Sequence[int]) -> None:
        """Read these again."""
        self._opened().resume(*(TopicPartition(self._topic, partition) for partition in partitions))

    async def commit(self, positions: Mapping[int, int]) -> None:
        """Tell Kafka how far we are. Never raises for a broker that is away or refuses: the next one tells it all."""
        client = _aiokafka.network_client(self._opened())
        if not positions:
            return
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                accepted = await self._commit(client, positions)
        except (KafkaError, OSError):
            accepted = False
        if not accepted:
            self._coordinator = None  # look it up again: it may have moved

    async def bounds(self) -> Mapping[int, tuple[int, int]]:
        """(First offset that is there, next offset to be written), a partition."""
        with _translated("bounds of the log"):
            ends = await self._opened().end_offsets(self._partitions)
            begins = await self._opened().beginning_offsets(self._partitions)
        return {place.partition: (begins[place], end) for place, end in ends.items()}

    async def close(self, *, timeout_s: float) -> None:
        """Stop within `timeout_s` and sever what does not stop. Idempotent."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await _aiokafka.stop(consumer, timeout_s=timeout_s)

    # ------------------------------------------------------------------ parts
    async def _connect(self, consumer: AIOKafkaConsumer) -> LogInfo:
        await consumer.start()
        client = _aiokafka.network_client(consumer)
        log_id = self._log_id
        if log_id is None:
            answer = await client.send(client.get_random_node(), MetadataRequest([]))
            log_id = answer.cluster_id
        count = await self._partition_count(client)
        self._partitions = tuple(TopicPartition(self._topic, partition) for partition in range(count))
        return LogInfo(log_id=log_id, partitions=count)

    async def _partition_count(self, client: AIOKafkaClient) -> int:
        """Ask until a broker knows the topic (the embedded one makes it because we ask) or says that it does not."""
        deadline = asyncio.get_running_loop().time() + self._request_timeout_s
        answered = await client.add_topic(self._topic)
        while (partitions := client.cluster.partitions_for_topic(self._topic)) is None:
            if self._topic in client.cluster.unauthorized_topics:
                raise LaneUnavailable(f"not allowed to see topic {self._topic}")
            if answered and self._log_id is None:
                raise LaneUnavailable(f"topic {self._topic} does not exist")
            if asyncio.get_running_loop().time() > deadline:
                raise BrokerUnavailable(f"no metadata for topic {self._topic}")
            await asyncio.sleep(METADATA_POLL_S)
            answered = await client.force_metadata_update()
        return len(partitions)

    async def _commit(self, client: AIOKafkaClient, positions: Mapping[int, int]) -> bool:
        if self._coordinator is None:
            self._coordinator = await client.coordinator_lookup(CoordinationType.GROUP, self._group_id)
        offsets = [(partition, offset, "") for partition, offset in positions.items()]
        request = OffsetCommitRequest(
            self._group_id,
            OffsetCommitRequest.DEFAULT_GENERATION_ID,  # no member of the group: a plain store of offsets
            "",
            OffsetCommitRequest.DEFAULT_RETENTION_TIME,
            [(self._topic, offsets)],
        )
        answer = await client.send(self._coordinator, request, group=ConnectionGroup.COORDINATION)
        return all(code == 0 for _, partitions in answer.topics for _, code in partitions)

    def _opened(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "not open"
        return self._consumer

    def _check_health(self, consumer: AIOKafkaConsumer) -> None:
        """What makes a consumer silent for ever, looked at when there is nothing to return."""
        if _aiokafka.fetch_task(consumer).done():
            raise BrokerUnavailable("the consumer's fetch task has ended")
        count = len(consumer.partitions_for_topic(self._topic) or ())
        if count > len(self._partitions):
            read = len(self._partitions)
            raise BrokerUnavailable(f"topic {self._topic} has grown to {count} partitions, {read} are read: open again")


def _out_of_range(error: errors.OffsetOutOfRangeError) -> OffsetOutOfRange:
    ((partition, offset),) = error.args[0].items()
    return OffsetOutOfRange(partition.partition, offset)

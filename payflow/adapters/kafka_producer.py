"""The event log on Kafka: an idempotent producer that appends whole batches and says what went wrong in our own words.

aiokafka retries what can be retried for ever, so `append` may never return while the broker is gone: the deadline is
the caller's, and an instance whose append was given up is only good for `discard`. One append at a time per
partition keeps order through every retry.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from aiokafka import AIOKafkaProducer, errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from payflow.adapters import _aiokafka
from payflow.errors import BrokerUnavailable, LaneUnavailable, PayflowError, ProducerBroken, RecordRejected
from payflow.ports import LogInfo, LogRecord

MAX_BATCH_BYTES: Final = 128 * 1024  # some 200 of our events; tests/bench/bench_kafka.py
MAX_RECORD_BYTES: Final = 1024 * 1024  # just below the broker's own default, message.max.bytes = 1,048,588
RETRY_BACKOFF_MS: Final = 250

# What an error says about who has to act. Any other: the broker did not do it, and nothing is wrong with the record.
VERDICTS: Final[dict[type[Exception], type[PayflowError]]] = {
    **dict.fromkeys(
        (
            errors.MessageSizeTooLargeError,
            errors.RecordListTooLargeError,
            errors.RecordTooLargeError,
            errors.InvalidTimestampError,
        ),
        RecordRejected,
    ),
    **dict.fromkeys(
        (
            errors.TopicAuthorizationFailedError,
            errors.ClusterAuthorizationFailedError,
            errors.TransactionalIdAuthorizationFailed,
            errors.InvalidTopicError,
            errors.PolicyViolationError,
            errors.InvalidPartitionsError,
            errors.InvalidReplicationFactorError,
            errors.InvalidConfigurationError,
            errors.InvalidRequiredAcksError,
            errors.UnsupportedForMessageFormatError,
            errors.UnsupportedVersionError,
            errors.IncompatibleBrokerVersion,
            errors.AuthenticationFailedError,
            errors.AuthenticationMethodNotSupported,
            errors.SaslAuthenticationFailed,
            errors.UnsupportedSaslMechanismError,
            errors.IllegalSaslStateError,
            errors.SecurityDisabled,
        ),
        LaneUnavailable,
    ),
    **dict.fromkeys(
        (
            errors.OutOfOrderSequenceNumber,
            errors.DuplicateSequenceNumber,
            errors.InvalidProducerEpoch,
            errors.InvalidProducerIdMapping,
            errors.UnknownProducerId,
            errors.ProducerFenced,
            errors.ProducerClosed,
            errors.InvalidTxnState,
            errors.IllegalStateError,
            KafkaError,  # exactly this class: the sender task died and left this for every later batch
        ),
        ProducerBroken,
    ),
}
# The broker answered that it did not take the batch, so the batch's sequence numbers are free again.
_REFUSALS: Final = (RecordRejected, LaneUnavailable)
# The metadata has no leader for the partition: a leader election, or the topic is gone.
_NO_LEADER: Final = (
    errors.UnknownTopicOrPartitionError,
    errors.NotLeaderForPartitionError,
    errors.LeaderNotAvailableError,
)


def verdict(error: Exception) -> type[PayflowError]:
    """Class of ours for an error of aiokafka's or the network's."""
    return VERDICTS.get(type(error), BrokerUnavailable)


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError) as error:
        raise verdict(error)(f"{doing}: {error or type(error).__name__}") from error


class KafkaEventLog:
    """An EventLog. `log_id` is given for the embedded broker, which makes topics by itself; a real cluster is asked."""

    def __init__(
        self,
        bootstrap: str,
        *,
        topic: str,
        dead_letter_topic: str,
        client_id: str,
        partitions: int = 6,
        replication_factor: int = 3,
        create_topics: bool = True,
        request_timeout_s: float = 10.0,
        log_id: str | None = None,
    ) -> None:
        assert partitions > 0
        assert replication_factor > 0
        assert request_timeout_s > 0
        self._bootstrap = bootstrap
        self._topics = (topic, dead_letter_topic)
        self._client_id = client_id
        self._new_partitions = partitions
        self._replication_factor = replication_factor
        self._create_topics = create_topics and log_id is None
        self._request_timeout_s = request_timeout_s
        self._log_id = log_id
        self._producer: AIOKafkaProducer | None = None
        self._in_order: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.abandoned = False  # whether discard had to sever the client

    async def open(self) -> LogInfo:
        """Connect, create what is missing, look up partitions. Leaves nothing behind when it fails."""
        assert self._producer is None, "open once"
        _aiokafka.tame_logging()
        self._producer = producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=int(self._request_timeout_s * 1000),
            retry_backoff_ms=RETRY_BACKOFF_MS,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=MAX_RECORD_BYTES,
        )
        # Every address of the bootstrap list may use up one request timeout, and so may topics and metadata.
        open_timeout_s = self._request_timeout_s * (self._bootstrap.count(",") + 3)
        try:
            with _translated("open"):
                async with asyncio.timeout(open_timeout_s):
                    return await self._connect(producer)
        except BaseException:
            await self.discard(timeout_s=0)
            raise

    async def append(self, topic: str, partition: int, records: Sequence[LogRecord]) -> tuple[int, int]:
        """Append the longest prefix that the broker takes in one batch; returns (how many, offset of the first)."""
        assert records
        producer = self._producer
        if producer is None:
            raise ProducerBroken("the producer is not open")
        async with self._in_order[topic, partition]:
            if partition not in await self._partitions(producer, topic):
                raise LaneUnavailable(f"topic {topic} has no partition {partition}")
            while True:
                batch = _fill(producer, records)
                count: int = batch.record_count()
                try:
                    return count, await self._send(producer, batch, topic, partition)
                except _REFUSALS as error:
                    _aiokafka.take_back_sequence(producer, topic, partition, count)
                    if count == 1 or isinstance(error, LaneUnavailable):
                        raise
                    # One is bad, or all are too much: halving finds the part that is good, or the first that is not.
                    records = records[: count // 2]

    async def discard(self, *, timeout_s: float) -> None:
        """Stop within `timeout_s` and sever what does not stop: nothing is sent afterwards. Idempotent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self.abandoned = not await _aiokafka.stop(producer, timeout_s=timeout_s)

    # ------------------------------------------------------------------ opening
    async def _connect(self, producer: AIOKafkaProducer) -> LogInfo:
        await producer.start()
        log_id = self._log_id or await _cluster_id(producer)
        if self._create_topics:
            await self._create_missing(brokers=len(producer.client.cluster.brokers()))
        topic, dead_letter_topic = self._topics
        partitions = await self._partitions(producer, topic)
        await self._partitions(producer, dead_letter_topic)
        return LogInfo(log_id=log_id, partitions=len(partitions))

    async def _create_missing(self, *, brokers: int) -> None:
        admin = AIOKafkaAdminClient(
            bootstrap_servers=self._bootstrap,
            client_id=self._client_id,
            request_timeout_ms=int(self._request_timeout_s * 1000),
        )
        try:
            await admin.start()
            present = set(await admin.list_topics())
            replicas = min(self._replication_factor, brokers)
            missing = [NewTopic(name, self._new_partitions, replicas) for name in self._topics if name not in present]
            if missing:
                answer = await admin.create_topics(missing)
                for name, code, *_ in answer.topic_errors:
                    error = errors.for_code(code)
                    if error not in (errors.NoError, errors.TopicAlreadyExistsError):
                        raise error(f"cannot create topic {name}")
        finally:
            await admin.close()

    async def _partitions(self, producer: AIOKafkaProducer, topic: str) -> set[int]:
        """Partitions of `topic` by the newest metadata; LaneUnavailable only when a broker said that there are none."""
        known: set[int] | None = producer.client.cluster.partitions_for_topic(topic)
        if known is None:
            try:
                with _translated(f"metadata of topic {topic}"):
                    known = await producer.partitions_for(topic)
            except BrokerUnavailable as error:
                raise await self._missing(producer, topic) from error
        return known

    async def _missing(self, producer: AIOKafkaProducer, topic: str) -> PayflowError:
        try:
            cluster = await producer.client.fetch_all_metadata()
        except (KafkaError, OSError) as error:
            return BrokerUnavailable(f"no metadata for topic {topic}: {error}")
        if topic in cluster.topics():
            return BrokerUnavailable(f"topic {topic} has no leader")
        return LaneUnavailable(f"topic {topic} does not exist")

    # ------------------------------------------------------------------ sending
    async def _send(self, producer: AIOKafkaProducer, batch: Any, topic: str, partition: int) -> int:
        try:
            with _translated(f"append to {topic}/{partition}"):
                delivered = await producer.send_batch(batch, topic, partition=partition)
                delivered.add_done_callback(_retrieve)
                await asyncio.wait((delivered, _aiokafka.sender_task(producer)), return_when=asyncio.FIRST_COMPLETED)
                if not delivered.done() or delivered.cancelled():
                    raise ProducerBroken("the producer's sender task has ended")
                offset: int = delivered.result().offset
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, _NO_LEADER):
                raise await self._missing(producer, topic) from error
            raise
        if offset < 0:  # the broker knows the batch from before but not where it put it
            raise ProducerBroken(f"append to {topic}/{partition}: taken earlier, place unknown")
        return offset


def _fill(producer: AIOKafkaProducer, records: Sequence[LogRecord]) -> Any:
    """A closed batch with the longest prefix of `records` that fits and that can be encoded."""
    batch = producer.create_batch()
    append = batch.append
    for index, record in enumerate(records):
        headers = list(record.headers)
        try:
            place = append(timestamp=record.timestamp_ms, key=record.key, value=record.value, headers=headers)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            if index == 0:
                raise RecordRejected(f"cannot be encoded: {type(error).__name__}") from error
            return _fill(producer, records[:index])  # what the failed append has left in the builder is not known
        if place is None:
            break
    if batch.size() > MAX_RECORD_BYTES:
        assert batch.record_count() == 1, "only a first record may be larger than a batch"
        raise RecordRejected(f"{batch.size()} bytes, the limit is {MAX_RECORD_BYTES}")
    batch.close()  # a closed batch does not linger
    return batch


async def _cluster_id(producer: AIOKafkaProducer) -> str:
    client = producer.client
    answer = await client.send(client.get_random_node(), MetadataRequest([]))
    cluster_id: str = answer.cluster_id
    return cluster_id


def _retrieve(delivered: asyncio.Future[Any]) -> None:
    """Look at the outcome of an append that was given up, or asyncio complains about an exception that nobody saw."""
    if not delivered.cancelled():
        delivered.exception()

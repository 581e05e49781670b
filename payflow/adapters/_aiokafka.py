"""What aiokafka 0.14 does not offer: the one place that uses its private names (pinned by test_aiokafka_internals.py).

An idempotent aiokafka producer never gives up, so its `stop()` waits for a dead broker for ever (issue #1101); a
consumer's `stop()` can end with the CancelledError of one of its own tasks. Both leave tasks and sockets behind. `stop`
here ends either within a given time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

LOGGER_NAMES: Final = (
    "aiokafka",
    "aiokafka.cluster",
    "aiokafka.conn",
    "aiokafka.consumer.fetcher",
    "aiokafka.producer.sender",
)
SEVER_TIMEOUT_S: Final = 0.2  # of the time to stop, kept for severing; it takes a few turns of the loop
_PARTS: Final = ("_sender", "_message_accumulator", "client", "_fetcher", "_coordinator", "_client")


class _Repeats(logging.Filter):
    """Passes a message once in `every_s`. A dead broker makes some 40 lines a second otherwise, all alike."""

    def __init__(self, every_s: float) -> None:
        super().__init__()
        self._every_s = every_s
        self._last: dict[str, float] = {}  # bounded: aiokafka's message templates are constants

    def filter(self, record: logging.LogRecord) -> bool:
        last = self._last.get(str(record.msg))
        if last is not None and 0 <= record.created - last < self._every_s:
            return False
        self._last[str(record.msg)] = record.created
        return True


_REPEATS: Final = _Repeats(every_s=10.0)


def tame_logging() -> None:
    """Keep aiokafka from repeating itself, and from logging keys and values, which it does at DEBUG.

    The level is pinned on aiokafka's own logger, so a root logger at DEBUG changes nothing.
    """
    for name in LOGGER_NAMES:
        logging.getLogger(name).addFilter(_REPEATS)  # adding twice is adding once
    parent = logging.getLogger("aiokafka")
    if parent.level < logging.INFO:
        parent.setLevel(logging.INFO)


def network_client(client: AIOKafkaProducer | AIOKafkaConsumer) -> AIOKafkaClient:
    """The part that holds connections and metadata; its own methods are public."""
    return client.client if isinstance(client, AIOKafkaProducer) else client._client  # noqa: SLF001


def sender_task(producer: AIOKafkaProducer) -> asyncio.Task[None]:
    """The task that carries every batch. When it ends, pending batches wait for ever (issue #1039)."""
    task: asyncio.Task[None] = producer._sender.sender_task  # noqa: SLF001
    return task


def take_back_sequence(producer: AIOKafkaProducer, topic: str, partition: int, records: int) -> None:
    """Make the next batch of the partition follow the last one that the broker took.

    aiokafka counts a batch when it is first sent, also when the broker then refuses it; without this the next one
    fails with OutOfOrderSequenceNumber (seen on Kafka 4.1). Only right while no later batch of the partition has been
    handed to the producer.
    """
    producer._txn_manager.increment_sequence_number(TopicPartition(topic, partition), -records)  # noqa: SLF001


def fetch_task(consumer: AIOKafkaConsumer) -> asyncio.Task[None]:
    """The task that reads ahead. When it ends, getmany() returns nothing for ever."""
    task: asyncio.Task[None] = consumer._fetcher.error_future  # noqa: SLF001
    return task


async def stop(client: AIOKafkaProducer | AIOKafkaConsumer, *, timeout_s: float) -> bool:
    """Stop within `timeout_s`; False when the client had to be severed. A cancellation severs at once and goes on."""
    politely = False
    try:
        async with asyncio.timeout(max(0.0, timeout_s - SEVER_TIMEOUT_S)):
            await client.stop()
        politely = True
    except asyncio.CancelledError:
        if _cancelled_from_outside():
            raise
    except (TimeoutError, KafkaError, OSError):
        pass  # the answer says it
    finally:
        # Also after a polite end: with its sender gone (issue #1039), aiokafka's stop() leaves a task waiting for ever.
        severed = sever(client)
    if severed:
        await asyncio.wait(severed, timeout=SEVER_TIMEOUT_S / 2)
    if not politely:
        with contextlib.suppress(TimeoutError, KafkaError, OSError):
            async with asyncio.timeout(SEVER_TIMEOUT_S / 2):
                await network_client(client).close()
    return politely


def sever(client: AIOKafkaProducer | AIOKafkaConsumer) -> set[asyncio.Task[Any]]:
    """Drop the connections with all they hold and cancel every task that works for `client`; returns these tasks."""
    client._closed = True  # noqa: SLF001 - or its __del__ complains
    parts = {id(part) for name in _PARTS if (part := getattr(client, name, None)) is not None}
    current = asyncio.current_task()
    tasks = {task for task in asyncio.all_tasks() if task is not current and id(_self_of(task)) in parts}
    for connection in network_client(client)._conns.values():  # noqa: SLF001
        if connection._writer is not None:  # noqa: SLF001
            # Not close(): a frozen peer would have to take what is buffered first, and that must not arrive any more.
            connection._writer.transport.abort()  # noqa: SLF001
    for task in tasks:
        task.cancel()
    return tasks


def _self_of(task: asyncio.Task[Any]) -> object:
    """`self` of the method that the task runs."""
    frame = getattr(task.get_coro(), "cr_frame", None)
    return None if frame is None else frame.f_locals.get("self")


def _cancelled_from_outside() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

"""Placement is Kafka's own: compared with answers of the Java client and with aiokafka's port."""

from __future__ import annotations

import pytest
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import example, given
from hypothesis import strategies as st

from payflow.core.routing import murmur2, partition_for

# org.apache.kafka.common.utils.UtilsTest.testMurmur2: signed there.
JAVA_VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "signed"), JAVA_VECTORS.items(), ids=repr)
def test_hash_is_that_of_the_java_client(key: bytes, signed: int) -> None:
    """The vectors of Kafka's own test."""
    assert murmur2(key) == signed & 0xFFFFFFFF


@given(key=st.binary(max_size=80))
@example(key=b"")
@example(key=b"\xff" * 63)
@example(key=b"\xff" * 64)
@example(key=b"\xff" * 1025)
def test_hash_is_that_of_aiokafka(key: bytes) -> None:
    """Every length modulo four, below and above the cached ones."""
    assert murmur2(key) == murmur2_of_aiokafka(key)


@given(key=st.binary(max_size=80), partitions=st.integers(1, 1000))
def test_partition_is_that_of_aiokafka(key: bytes, partitions: int) -> None:
    """So another producer on the topic puts a payment where we do."""
    everything = list(range(partitions))

    assert partition_for(key, partitions) == DefaultPartitioner()(key, everything, everything)


def test_payments_spread_over_the_partitions() -> None:
    """No partition of six gets less than half or more than double its share."""
    counts = [0] * 6
    for number in range(6000):
        counts[partition_for(number.to_bytes(16, "big"), 6)] += 1

    assert all(500 < count < 2000 for count in counts)


@pytest.mark.parametrize("partitions", [0, -1])
def test_a_topic_without_partitions_is_a_bug(partitions: int) -> None:
    """It would otherwise be a division by zero, or a partition below zero."""
    with pytest.raises(AssertionError):
        partition_for(b"key", partitions)

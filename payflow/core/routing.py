"""Which partition a key belongs to: Kafka's own placement (murmur2 as in the Java client), so that any client finds a payment where we put it.

Pure Python, because per-byte loops are what makes the usual port slow: whole words come from one cached struct call.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

SEED: Final = 0x9747B28C
M: Final = 0x5BD1E995
MASK: Final = 0xFFFFFFFF

# Unpackers by length of the key. Payment ids have one length, so a handful of entries is all there ever is; longer keys are not kept.
_CACHED_LENGTHS: Final = 128
_words: Final[list[Callable[[bytes], tuple[int, ...]]]] = [Struct(f"<{length // 4}I{length % 4}x").unpack for length in range(_CACHED_LENGTHS)]


def murmur2(key: bytes) -> int:
    """MurmurHash2 as org.apache.kafka.common.utils.Utils.murmur2, as an unsigned 32-bit integer."""
    length = len(key)
    words = _words[length](key) if length < _CACHED_LENGTHS else Struct(f"<{length // 4}I{length % 4}x").unpack(key)
    m, mask = M, MASK
    h = SEED ^ length
    for k in words:
        k = k * m & mask
        h = (h * m ^ (k ^ k >> 24) * m) & mask
    tail = length & 3
    if tail:
        h = (h ^ int.from_bytes(key[-tail:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def partition_for(key: bytes, partitions: int) -> int:
    """The partition of `key` among `partitions`, as every Kafka client's default partitioner places it."""
    assert partitions > 0
    return (murmur2(key) & 0x7FFFFFFF) % partitions

"""`ports.RecordSource`: one suite for the fake, the embedded broker and a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from payflow.errors import LaneUnavailable, OffsetOutOfRange
from payflow.ports import Record
from tests.support.kafka_backends import (
    BACKENDS,
    WAIT_S,
    Backend,
    append_all,
    fetch_count,
    numbers,
    open_backend,
    record,
)

SOON_S = 0.2  # an empty fetch takes this long


@pytest.fixture(params=BACKENDS)
async def kafka(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with open_backend(request.param) as backend:
        yield backend


async def filled(kafka: Backend, *counts: int) -> None:
    """Put `counts[p]` records, numbered from p * 1000, into each partition p."""
    log = await kafka.opened_log()
    for partition, count in enumerate(counts):
        if count:
            numbered = [record(partition * 1000 + number) for number in range(count)]
            await append_all(log, kafka.topic, partition, numbered)


def by_partition(records: list[Record]) -> dict[int, list[int]]:
    """Numbers in the order of their arrival, a partition."""
    found: dict[int, list[int]] = {}
    for item in records:
        found.setdefault(item.partition, []).extend(numbers([item]))
    return found


async def test_without_positions_reading_starts_at_the_beginning(kafka: Backend) -> None:
    """In order per partition, every partition."""
    await filled(kafka, 3, 0, 2)
    source = await kafka.opened_source()

    assert by_partition(await fetch_count(source, 5)) == {0: [0, 1, 2], 2: [2000, 2001]}


async def test_positions_are_the_next_offset_to_read(kafka: Backend) -> None:
    """Partitions that have none are read from the beginning."""
    await filled(kafka, 3, 2)
    source = await kafka.opened_source({0: 2})

    assert by_partition(await fetch_count(source, 3)) == {0: [2], 1: [1000, 1001]}


async def test_an_empty_fetch_comes_back_after_its_timeout(kafka: Backend) -> None:
    """Nothing new is not an error."""
    await filled(kafka, 1)
    source = await kafka.opened_source({0: 1})

    assert await source.fetch(max_records=10, timeout_s=SOON_S) == []


async def test_a_waiting_fetch_wakes_up_for_a_new_record(kafka: Backend) -> None:
    """Long before its timeout."""
    log = await kafka.opened_log()
    source = await kafka.opened_source()

    async with asyncio.TaskGroup() as group:
        fetch = group.create_task(source.fetch(max_records=10, timeout_s=WAIT_S))
        await log.append(kafka.topic, 0, [record(7)])

    assert numbers(fetch.result()) == [7]


async def test_no_more_than_asked_for_and_no_gap_between_two_fetches(kafka: Backend) -> None:
    """A limit cuts through batches and partitions."""
    await filled(kafka, 25, 25)
    source = await kafka.opened_source()
    fetched: list[Record] = []

    while len(fetched) < 50:
        records = await source.fetch(max_records=7, timeout_s=WAIT_S)
        assert 0 < len(records) <= 7
        fetched += records

    assert {0: list(range(25)), 1: list(range(1000, 1025))} == by_partition(fetched)


async def test_a_cancelled_fetch_loses_nothing(kafka: Backend) -> None:
    """Cancelled at every turn of the loop, the records come out once each and in order all the same."""
    await filled(kafka, 40)
    source = await kafka.opened_source()
    fetched: list[Record] = []

    for turns in range(40):
        async with asyncio.TaskGroup() as group:
            fetch = group.create_task(source.fetch(max_records=1, timeout_s=WAIT_S))
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            fetch.cancel()
        if not fetch.cancelled():
            fetched += fetch.result()
    fetched += await fetch_count(source, 40 - len(fetched))

    assert list(range(40)) == numbers(fetched)


async def test_a_paused_partition_is_silent_until_it_is_resumed(kafka: Backend) -> None:
    """The others go on, and nothing of it is lost."""
    await filled(kafka, 3, 3)
    source = await kafka.opened_source()
    source.pause([0])

    before = await fetch_count(source, 3)
    silent = await source.fetch(max_records=10, timeout_s=SOON_S)
    source.resume([0])

    assert by_partition(before) == {1: [1000, 1001, 1002]}
    assert silent == []
    assert by_partition(await fetch_count(source, 3)) == {0: [0, 1, 2]}


async def test_seeking_back_reads_again(kafka: Backend) -> None:
    """What a booking that was rolled back needs."""
    await filled(kafka, 3)
    source = await kafka.opened_source()
    await fetch_count(source, 3)

    await source.seek({0: 1})

    assert numbers(await fetch_count(source, 2)) == [1, 2]


async def test_a_position_past_the_end_is_out_of_range(kafka: Backend) -> None:
    """The topic was made anew: say so with partition and offset, never jump."""
    await filled(kafka, 3)
    source = await kafka.opened_source({0: 50})

    with pytest.raises(OffsetOutOfRange) as caught:
        await source.fetch(max_records=10, timeout_s=WAIT_S)

    assert (caught.value.partition, caught.value.offset) == (0, 50)


async def test_other_partitions_go_on_beside_one_that_is_out_of_range(kafka: Backend) -> None:
    """The caller pauses it; whatever was there before the error comes out as well."""
    await filled(kafka, 3, 2)
    source = await kafka.opened_source({0: 50})
    fetched: list[Record] = []

    while len(fetched) < 2:
        try:
            fetched += await source.fetch(max_records=10, timeout_s=WAIT_S)
        except OffsetOutOfRange:
            source.pause([0])

    assert by_partition(fetched) == {1: [1000, 1001]}


async def test_a_position_of_an_unknown_partition_is_refused(kafka: Backend) -> None:
    """A topic that was made anew with fewer partitions."""
    await filled(kafka, 1)
    source = kafka.record_source()
    await source.open()

    with pytest.raises(LaneUnavailable):
        await source.seek({99: 0})


async def test_bounds_are_the_first_there_and_the_next_to_be_written(kafka: Backend) -> None:
    """Whatever was read."""
    await filled(kafka, 3, 1)
    source = await kafka.opened_source()

    bounds = await source.bounds()

    assert (bounds[0], bounds[1], bounds[2]) == ((0, 3), (0, 1), (0, 0))


async def test_commit_does_not_move_the_reading(kafka: Backend) -> None:
    """It is for others to see."""
    await filled(kafka, 3)
    source = await kafka.opened_source()

    await source.commit({0: 3})
    await source.commit({})

    assert numbers(await fetch_count(source, 3)) == [0, 1, 2]


async def test_two_sources_read_the_whole_topic_each(kafka: Backend) -> None:
    """No group shares partitions out."""
    await filled(kafka, 2)
    first, second = await kafka.opened_source(), await kafka.opened_source()

    assert [0, 1] == numbers(await fetch_count(first, 2)) == numbers(await fetch_count(second, 2))


async def test_close_may_come_twice_and_before_open(kafka: Backend) -> None:
    """Whoever cleans up need not know how far things went."""
    source = kafka.record_source()

    await source.close(timeout_s=1.0)
    await source.close(timeout_s=1.0)

"""The publisher alone: sending, and what becomes of a group."""

from __future__ import annotations

from payflow.core.breaker import BreakerConfig
from payflow.core.outbox import Requeue
from payflow.errors import LaneUnavailable
from payflow.messages import BrokerMoved, Reconnect
from tests.support.payment_writes import authorize, submit
from tests.support.publisher_bench import Bench, publishing
from tests.support.virtual_loop import advance, settle, virtual


# ------------------------------------------------------------------ sending
@virtual
async def test_first_row_goes_at_once_and_is_marked() -> None:
    async with publishing() as bench:
        await advance(10.5)

        await bench.pay()
        await settle()

        assert ["published"] == bench.states()
        assert 0 == (await bench.look()).window_rows


@virtual
async def test_under_load_at_most_one_cycle_starts_in_a_pace() -> None:
    async with publishing(pace_s=0.5) as bench:
        for _ in range(100):
            await bench.pay()
            await advance(0.02)
        await advance(1.0)

        assert len(bench.groups) <= 6
        assert {"published"} == set(bench.states())


@virtual
async def test_lost_wake_up_is_found_by_the_poll() -> None:
    """F48."""
    async with publishing() as bench:
        await bench.store.commit([submit(authorize())], at_us=1)

        await advance(1.2)

        assert ["published"] == bench.states()
        assert 1 == bench.counters.poll_found_total


@virtual
async def test_row_that_became_pending_behind_the_cursor_is_found_by_the_poll() -> None:
    async with publishing() as bench:
        await bench.pay(3)
        await advance(0.5)
        await bench.store.commit([Requeue((1,))], at_us=1)

        await advance(2.5)

        assert ["published"] * 3 == bench.states()
        assert 4 == len(bench.memory.history)


@virtual
async def test_payment_never_has_two_groups_in_flight() -> None:
    async with publishing(partitions=3) as bench:
        bench.memory.slow(0.4)
        ids = await bench.pay(6, captures=3)
        await advance(0.1)
        keys = [key for _, group in bench.groups for key in set(group)]

        assert len(keys) == len(set(keys)) == len(ids)


@virtual
async def test_rows_behind_a_partial_batch_go_in_the_next_group() -> None:
    async with publishing() as bench:
        bench.memory.reject(lambda record: b'"version":4' in (record.value or b""))
        await bench.pay(captures=2)
        await bench.pay()
        await advance(1.0)
        bench.memory.mend()

        assert ["published"] * 4 == bench.states()


@virtual
async def test_window_never_holds_more_rows_than_it_may() -> None:
    async with publishing(window_rows=10, page_rows=7) as bench:
        bench.memory.hang()
        await bench.pay(50)
        await advance(5.0)

        assert (await bench.look()).window_rows <= 10


@virtual
async def test_small_window_drains_a_long_backlog() -> None:
    def preload(bench: Bench) -> None:
        bench.memory.refuse()

    async with publishing(window_rows=10, page_rows=7, before=preload) as bench:
        await bench.pay(100)
        bench.memory.mend()

        await advance(15.0)

        assert {"published"} == set(bench.states())


# ------------------------------------------------------------------ outcomes
@virtual
async def test_old_producer_is_gone_before_its_keys_are_sent_again() -> None:
    """F36, F42: discard takes a while and everybody waits for it."""
    async with publishing(delivery_timeout_s=3.0) as bench:
        bench.discard_s = 1.5
        bench.memory.hang()
        await bench.pay()
        await advance(3.1)
        bench.memory.mend()
        await advance(3.0)

        assert ["open 1", "append 1", "discarded 1", "open 2", "append 2"] == bench.diary
        assert 1 == bench.counters.unknown_total


@virtual
async def test_broker_that_moves_during_a_discard_waits_for_it_as_well() -> None:
    async with publishing(bootstrap=None, delivery_timeout_s=3.0) as bench:
        bench.publisher.tell(BrokerMoved("a:1", "cluster-1"))
        await settle()
        bench.discard_s = 1.5
        bench.memory.hang()
        await bench.pay()
        await advance(3.1)
        bench.discard_s = 0.0
        bench.publisher.tell(BrokerMoved("b:1", "cluster-2"))
        bench.memory.mend()
        await advance(10.0)

        assert bench.diary.index("discarded 1") < bench.diary.index("open 3")
        assert "open 2" not in bench.diary
        assert ["published"] == bench.states()


@virtual
async def test_late_outcome_of_a_replaced_producer_changes_nothing() -> None:
    async with publishing(partitions=2, delivery_timeout_s=3.0) as bench:
        bench.memory.slow(2.0)
        await bench.pay(8)
        await advance(0.5)
        bench.publisher.tell(BrokerMoved("b:1", "cluster-1"))
        await advance(1.8)
        in_flight = (await bench.look()).in_flight
        await advance(5.0)

        assert 8 == in_flight
        assert {"published"} == set(bench.states())
        assert 0 == (await bench.look()).window_rows


@virtual
async def test_reconnect_of_a_connected_producer_changes_nothing() -> None:
    async with publishing() as bench:
        bench.publisher.tell(Reconnect(3))
        await advance(1.0)

        assert ["open 1"] == bench.diary


@virtual
async def test_connecting_is_tried_again_with_backoff() -> None:
    async with publishing(before=lambda bench: bench.memory.refuse()) as bench:
        await advance(60.0)
        bench.memory.mend()
        await advance(10.0)

        assert (await bench.look()).connected
        assert 5 <= sum(line.startswith("open") for line in bench.diary) <= 20


@virtual
async def test_missing_rights_hold_the_lane_without_a_word_to_the_breaker() -> None:
    async with publishing() as bench:
        bench.memory.refuse(lambda: LaneUnavailable("no rights"))
        await bench.pay(10)
        await advance(21.0)

        assert 0 == bench.guard.snapshot().buffered_calls
        assert 1 == (await bench.look()).lanes_held
        assert 4 <= len(bench.groups) <= 6


@virtual
async def test_third_attempt_in_a_row_waits() -> None:
    """The first retry comes at once, then the lane backs off."""
    async with publishing(breaker=BreakerConfig(minimum_number_of_calls=20)) as bench:
        bench.memory.refuse()
        await bench.pay()
        await advance(0.13)
        assert 2 <= len(bench.groups) <= 3

        await advance(60.0)

        assert len(bench.groups) < 25

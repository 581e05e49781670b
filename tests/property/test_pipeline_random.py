"""Random faults in random order over the whole pipeline; when the world is whole again every promise holds (I1-I4, I9).

The actors are the real ones, the world is the fakes', time is virtual: a run of minutes takes milliseconds and can be
repeated from its example. Latencies of the stores are drawn as well, because reads that are stale by the time they
return are where order is lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payflow.core.breaker import BreakerConfig
from payflow.core.outbox import Requeue, Unpublish
from payflow.core.payment import Capture
from payflow.errors import (
    BrokerUnavailable,
    LaneUnavailable,
    OutcomeUnknown,
    Overloaded,
    ProducerBroken,
    StoreBusy,
    StoreOutcomeUnknown,
    StoreUnavailable,
)
from tests.support.payment_writes import authorize, submit
from tests.support.pipeline import Pipeline, crash, flowing, seeded
from tests.support.virtual_loop import advance, virtual

BROKER_ERRORS = (BrokerUnavailable, LaneUnavailable, ProducerBroken)
STORE_ERRORS = (StoreBusy, StoreUnavailable, StoreOutcomeUnknown)
LEDGER_ERRORS = (StoreBusy, StoreUnavailable, StoreOutcomeUnknown)

Fault = Callable[[Pipeline, int], Awaitable[None]]


async def submit_until_known(pipeline: Pipeline, command: Any) -> bytes:
    """As a client does: the same key again until the answer says what happened."""
    request = submit(command)
    while True:
        try:
            outcome = await pipeline.service.submit(request)
        except (Overloaded, OutcomeUnknown, StoreBusy, StoreUnavailable):
            await advance(0.3)
        else:
            pipeline.accepted.append(outcome)  # type: ignore[arg-type]
            return outcome.payment_id  # type: ignore[union-attr]


async def new_payments(pipeline: Pipeline, number: int) -> None:
    for _ in range(1 + number % 5):
        await submit_until_known(pipeline, authorize(1000))


async def captures(pipeline: Pipeline, number: int) -> None:
    known = list(dict.fromkeys(accepted.payment_id for accepted in pipeline.accepted))
    for index in range(min(len(known), 1 + number % 4)):
        await submit_until_known(pipeline, Capture(known[(number + index) % len(known)], 1))


async def refuse(pipeline: Pipeline, number: int) -> None:
    pipeline.memory.refuse(lambda: BROKER_ERRORS[number % 3]("no"))


async def hang(pipeline: Pipeline, number: int) -> None:
    pipeline.memory.hang()


async def slow(pipeline: Pipeline, number: int) -> None:
    pipeline.memory.slow(0.01 * number)


async def one_partition_down(pipeline: Pipeline, number: int) -> None:
    pipeline.memory.refused_partitions.add(number % pipeline.memory.partitions)


async def mend(pipeline: Pipeline, number: int) -> None:
    pipeline.memory.mend()


async def land(pipeline: Pipeline, number: int) -> None:
    pipeline.memory.land()


async def lose(pipeline: Pipeline, number: int) -> None:
    pipeline.memory.lose()


async def outbox_fails(pipeline: Pipeline, number: int) -> None:
    faults = pipeline.store.fail_late if number % 2 else pipeline.store.fail_next
    faults.append(StoreOutcomeUnknown("EIO") if number % 2 else STORE_ERRORS[number % 3]("store"))


async def outbox_unreadable(pipeline: Pipeline, number: int) -> None:
    pipeline.store.fail_reads.append(STORE_ERRORS[number % 2]("store"))


async def ledger_fails(pipeline: Pipeline, number: int) -> None:
    if number % 4 == 3:
        pipeline.ledger.late_failures.append(StoreOutcomeUnknown("EIO"))
    elif number % 4 == 2:
        pipeline.ledger.read_failures.append(LEDGER_ERRORS[number % 2]("ledger"))
    else:
        pipeline.ledger.failures.append(LEDGER_ERRORS[number % 3]("ledger"))


async def latency(pipeline: Pipeline, number: int) -> None:
    pipeline.store.delay_s = 0.004 * (number % 8)
    pipeline.ledger.delay_s = 0.004 * (number % 7)


async def rows_go_again(pipeline: Pipeline, number: int) -> None:
    """An operator requeues, or everything that is not known to be booked is published again."""
    seqs = tuple(range(1, 1 + number % 10))
    pipeline.ref("outbox").tell(Requeue(seqs) if number % 2 else Unpublish(""))


async def crash_one(pipeline: Pipeline, number: int) -> None:
    await crash(pipeline, ("outbox", "publisher", "consumer")[number % 3])


async def time_passes(pipeline: Pipeline, number: int) -> None:
    await advance(0.02 * number)


async def long_time_passes(pipeline: Pipeline, number: int) -> None:
    await advance(1.0 * number)


async def broker_dies(pipeline: Pipeline, number: int) -> None:
    """Only the embedded one does; a cluster's memory is on disks."""
    running = pipeline.process._ended
    if pipeline.process.starts and running is not None and not running.done():
        pipeline.process.die()


FAULTS: tuple[Fault, ...] = (
    refuse, hang, slow, one_partition_down, mend, mend, land, lose, outbox_fails, outbox_unreadable, ledger_fails,
    latency, rows_go_again, crash_one, time_passes, time_passes, long_time_passes, broker_dies,
)  # fmt: skip
STEPS = st.lists(
    st.tuples(st.sampled_from((new_payments, captures, captures, *FAULTS)), st.integers(0, 40)), min_size=4, max_size=40
)
QUICK = BreakerConfig(wait_duration_in_open_state_s=2.0, max_wait_duration_in_half_open_state_s=5.0)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(steps=STEPS, embedded=st.booleans(), seed=st.integers(0, 2**16))
def test_after_any_faults_everything_accepted_is_booked_once_and_in_order(
    steps: list[tuple[Fault, int]], embedded: bool, seed: int
) -> None:
    run(steps, embedded=embedded, seed=seed)


@virtual
async def run(steps: list[tuple[Fault, int]], *, embedded: bool, seed: int) -> None:
    async with flowing(embedded=embedded, breaker=QUICK, draw=seeded(seed)) as pipeline:
        await new_payments(pipeline, 2)
        for step, number in steps:
            await step(pipeline, number)
        pipeline.memory.mend()
        pipeline.memory.land()
        for faults in (pipeline.store.fail_next, pipeline.store.fail_late, pipeline.store.fail_reads):
            faults.clear()
        for queue in (pipeline.ledger.failures, pipeline.ledger.late_failures, pipeline.ledger.read_failures):
            queue.clear()

        await pipeline.until(lambda: len(pipeline.ledger.applied) >= len(pipeline.accepted))
        await pipeline.until(lambda: set(pipeline.states()) == {"published"})
        if embedded:
            await pipeline.until_booked()

        await pipeline.check()
        assert not pipeline.system.escalated.done()

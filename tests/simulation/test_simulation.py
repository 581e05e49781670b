"""Seeded runs of the whole pipeline, and the proof that they would notice."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.bugs import BUGS, Bug
from tests.simulation.world import simulate

SEEDS_A_SHARD = 64
SHARDS = 8
# Each has kills, a crash and weather; the digests must not depend on the process that computes them.
REPLAYED = (4, 54, 116)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_every_promise_holds_whatever_the_seed_brings(shard: int) -> None:
    """I1 to I9 after each run; a failing seed says how to see it again."""
    for seed in range(1 + shard * SEEDS_A_SHARD, 1 + (shard + 1) * SEEDS_A_SHARD):
        result = simulate(seed)

        assert not result.broken, result.report()


@pytest.mark.parametrize("seed", REPLAYED)
def test_a_seed_replays_event_for_event(seed: int) -> None:
    first, second = simulate(seed), simulate(seed)

    assert list(first.history.lines()) == list(second.history.lines())


def test_a_seed_replays_in_another_process_under_another_hash_seed() -> None:
    seed = REPLAYED[0]
    digests = {simulate(seed).history.digest()}
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed)]
        ran = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        digests.add(ran.stdout.splitlines()[-2].split()[-1])

    assert len(digests) == 1, digests


def test_seeds_differ() -> None:
    assert simulate(1).history.digest() != simulate(2).history.digest()


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_planted_bug_is_found_by_its_seed_and_the_product_passes_it(bug: Bug) -> None:
    assert simulate(bug.seed, bug).broken

    as_it_is = simulate(bug.seed)
    assert not as_it_is.broken, as_it_is.report()


def test_a_failing_run_shows_its_last_hundred_events() -> None:
    bug = BUGS["lost-wake-up"]

    lines = simulate(bug.seed, bug).report().splitlines()

    assert 100 <= len(lines) <= 110
    assert f"--seed {bug.seed} --bug lost-wake-up" in lines[-1]

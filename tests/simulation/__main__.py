"""`python -m tests.simulation --seed N [--bug NAME] [--verbose]`, or `--forever` until a promise breaks."""

from __future__ import annotations

import argparse
import itertools
import sys
import time

from tests.simulation.bugs import BUGS, NONE, Bug
from tests.simulation.world import simulate

SAY_EVERY_S = 10.0


def main() -> int:
    """Exit code 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seed", type=int, help="run this one and say what came of it")
    which.add_argument("--forever", action="store_true", help="seed after seed until one fails or Ctrl-C")
    parser.add_argument("--first", type=int, default=1, help="where --forever begins (default 1)")
    parser.add_argument("--bug", choices=sorted(BUGS), help="plant this bug")
    parser.add_argument("--verbose", action="store_true", help="print the whole history, not its last hundred events")
    options = parser.parse_args()
    bug = BUGS[options.bug] if options.bug else NONE
    if options.forever:
        try:
            return forever(options.first, bug)
        except KeyboardInterrupt:
            return 0
    result = simulate(options.seed, bug)
    if options.verbose:
        print("\n".join(result.history.lines()))
    elif result.broken:
        print(result.history.tail())
    print(result.summary())
    return 1 if result.broken else 0


def forever(first: int, bug: Bug) -> int:
    """One line now and then; the first broken promise ends it."""
    began_at = said_at = time.monotonic()
    for seed in itertools.count(first):
        result = simulate(seed, bug)
        if result.broken:
            print(result.report())
            return 1
        if time.monotonic() - said_at > SAY_EVERY_S:
            said_at = time.monotonic()
            rate = (seed - first + 1) / (said_at - began_at)
            print(f"seeds {first} to {seed}: every promise held ({rate:.0f} a second)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

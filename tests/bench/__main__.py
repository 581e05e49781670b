"""Run the benches that stand behind docs/performance.md, one after the other.

Run: make bench [ARGS="path start"]; without names all of them. Each prints its figure beside
its target. The path and HTTP benches need `wrk`.
"""

from __future__ import annotations

import runpy
import shutil
import sys

BENCHES = ("start", "mailbox", "breaker", "outbox", "ledger", "kafka", "http", "path")
NEEDS_WRK = frozenset({"http", "path"})


def main() -> None:
    names = sys.argv[1:] or list(BENCHES)
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise SystemExit(f"unknown bench {', '.join(unknown)}; there are {', '.join(BENCHES)}")
    for name in names:
        if name in NEEDS_WRK and shutil.which("wrk") is None:
            raise SystemExit(f"bench {name} needs wrk (package wrk) on the PATH")
        print(f"== {name}", flush=True)
        sys.argv = [f"bench_{name}"]
        runpy.run_module(f"tests.bench.bench_{name}", run_name="__main__")


if __name__ == "__main__":
    main()

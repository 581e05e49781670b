"""One run from the first look at the target to the report."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from payflow.core.arrivals import schedule
from payflow.errors import DependencyUnavailable
from payflow.loadgen.books import Auditor, Books
from payflow.loadgen.open_loop import OpenLoop
from payflow.loadgen.tally import Tally
from payflow.loadgen.traffic import Traffic
from payflow.loadgen.values import Histogram, LoadConfig, Report, Target

PACKAGES: Final = ("payflow", "aiohttp", "hdrhistogram", "msgspec", "uvloop")
# A changed value of one of these says that the process or its broker is another one.
SAME_PROCESS: Final = "process_start_time_seconds"
SAME_BROKER: Final = 'payflow_actor_restarts_total{actor="broker"}'
# Figures of the target whose growth over the run is worth keeping.
FIGURES: Final = ("process_cpu_seconds_total", "process_resident_memory_bytes")
# Letters only: digits in a row could look like a card number.
RUN_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
RUN_LENGTH: Final = 8


class Session:
    """One run. `phase` is connect, load, books or done, for whoever shows progress."""

    def __init__(self, config: LoadConfig, target: Target, new_histogram: Callable[[], Histogram]) -> None:
        self.config = config
        self.phase = "connect"
        self.tally = Tally(new_histogram)
        self.checked = (0, 0)
        self.began_at = time.perf_counter()
        letters = random.SystemRandom()
        self.run_id = "".join(letters.choice(RUN_LETTERS) for _ in range(RUN_LENGTH))
        self._target = target
        self._traffic = Traffic(self.run_id, mix=config.mix, duplicates=config.duplicates, seed=config.seed)
        times = random.Random(f"{config.seed}-times")  # noqa: S311 - a reproducible draw, no secret
        offsets = schedule(config.arrival, rate=config.rate, duration_s=config.duration_s, draw=times.random)
        self._loop = OpenLoop(
            target, self._traffic, self.tally, schedule=offsets, workers=config.connections, waiting=config.waiting
        )

    @property
    def interrupted(self) -> bool:
        """Whether the run was ended before its time."""
        return self._loop.stopped

    def stop(self) -> None:
        """End the load; the books are still compared."""
        self._loop.stop()

    async def run(self) -> Report:
        """Raises DependencyUnavailable when the target is not there at the start."""
        info = await self._greet()
        before = await self._figures()
        self.phase, self.began_at, at = "load", time.perf_counter(), datetime.now(UTC)
        took_s = await self._load()
        after, debug = await self._figures(), await self._loop_of_target()
        self.phase = "books"
        same = before.keys() == after.keys() and all(before.get(n) == after.get(n) for n in (SAME_PROCESS, SAME_BROKER))
        auditor = Auditor(
            self._target,
            self._traffic,
            timeout_s=self.config.books_timeout_s,
            same_broker=same,
            tell=lambda done, of: setattr(self, "checked", (done, of)),
        )
        books = await auditor.audit()
        self.phase = "done"
        figures = {name: {"before": before.get(name), "after": after.get(name)} for name in FIGURES}
        return self._report(at, took_s, books, {"info": info, "figures": figures, "loop": debug, "same_process": same})

    async def _load(self) -> float:
        # A collection in the middle of the run would be measured as the target's (30 ms were seen); what requests leave
        # behind dies by reference count.
        gc.collect()
        gc.disable()
        try:
            return await self._loop.run()
        finally:
            gc.enable()

    async def _greet(self) -> dict[str, Any]:
        ready = await self._target.get("/readyz")
        if not ready.status:
            raise DependencyUnavailable(f"nothing answers at {self.config.url} ({ready.failure}): is payflow serving?")
        answer = await self._target.get("/info")
        try:
            info: dict[str, Any] = msgspec.json.decode(answer.body, type=dict[str, Any])
        except msgspec.MsgspecError:
            info = {}
        if info.get("app") != "payflow":
            raise DependencyUnavailable(f"what answers at {self.config.url} is not payflow")
        if "ingest" not in info.get("roles", ()):
            raise DependencyUnavailable(f"the payflow at {self.config.url} takes no payments: it has no role ingest")
        return info

    async def _figures(self) -> dict[str, float]:
        text = (await self._target.get("/metrics")).body.decode("utf-8", "replace")
        wanted = {SAME_PROCESS, SAME_BROKER, *FIGURES}
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs if name in wanted}

    async def _loop_of_target(self) -> Any:
        if self.config.management is None:
            return None
        answer = await self._target.management("/debug/loop")
        return msgspec.json.decode(answer.body).get("loop") if answer.status == 200 else None

    def _report(self, at: datetime, took_s: float, books: Books, target: dict[str, Any]) -> Report:
        tally = self.tally
        return {
            "report": "payflow load",
            "run": self.run_id,
            "at": at.isoformat(),
            "seed": self.config.seed,
            "config": {**asdict(self.config), "arrival": str(self.config.arrival)},
            "interrupted": self.interrupted,
            "took_s": round(took_s, 3),
            "counts": {
                "intended": tally.intended,
                "started": tally.started,
                "not_started": tally.not_started,
                "started_late": tally.late,
                "accepted": sum(count for label, count in tally.statuses.items() if label.startswith("2")),
                "statuses": dict(sorted(tally.statuses.items())),
                "problems": dict(sorted(tally.problems.items())),
                "kinds": dict(sorted(tally.kinds.items())),
            },
            "rate": {"intended": self.config.rate, "answered": round(tally.latency.summary()["count"] / took_s, 1)},
            "latency_ms": tally.latency.summary(),
            "start_lag_ms": tally.start_lag.summary(),
            "latency_hdr": tally.latency.encoded(),
            "slowest": tally.slowest(),
            "seconds": tally.series(),
            "books": books.document(),
            "target": target,
            "versions": _versions(),
            "machine": _machine(),
        }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _machine() -> dict[str, Any]:
    cpus, memory = Path("/proc/cpuinfo"), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": models[0] if models else None,
        "cores": os.cpu_count(),
        "cores_of_generator": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_bytes": memory,
    }


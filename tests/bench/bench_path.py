"""What the whole path costs: payments accepted, durable, published and booked by one serve process, against a bare
aiohttp echo on the same core.

Run: .venv/bin/python tests/bench/bench_path.py [--rounds 5] [--seconds 5] [--connections 64] [--kafka HOST:PORT]
The load comes from the other core, rounds are interleaved. A payment counts when it is booked: the rate of a round is
what the ledger gained, over
the time from the first request until nothing was left to book.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.bench.bench_http import CLIENT_CORE, SERVER_CORE, cpu_s, load, serve

TARGET = 0.25
DRAIN_S = 120.0


def start_payflow(data_dir: str, kafka: str, *options: str) -> tuple[subprocess.Popen[str], int, int]:
    """A serve process pinned to the server's core, with its API and management ports."""
    command = [
        sys.executable, "-m", "payflow", "serve", "--data-dir", data_dir, "--log-format", "json",
        "--http-port", "0", "--management-port", "0", *options,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka}
    )
    os.sched_setaffinity(process.pid, {SERVER_CORE})
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event["event"] == "process.ready":
            # The embedded broker stands for a machine of its own: it shares the core of the load.
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                for child in (task / "children").read_text().split():
                    os.sched_setaffinity(int(child), {CLIENT_CORE})
            return process, event["http_port"], event["management_port"]
    raise SystemExit("payflow did not start")


def booked(port: int) -> tuple[float, float]:
    """(events booked, rows pending) as the metrics say."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    return values["payflow_ledger_events_total"], values["payflow_outbox_pending_rows"]


def round_of(port: int, management: int, pid: int, *, seconds: int, connections: int) -> tuple[float, float, str]:
    """(booked a second, CPU microseconds each, p99)."""
    before, _ = booked(management)
    cpu_before, started_at = cpu_s(pid), time.perf_counter()
    sample = load(port, pid, seconds=seconds, connections=connections)
    deadline = time.perf_counter() + DRAIN_S
    last = -1.0
    while True:
        events, _ = booked(management)
        if events != last:
            last, took_s, idle = events, time.perf_counter() - started_at, 0
        idle += 1
        if idle > 20 or time.perf_counter() > deadline:
            break
        time.sleep(0.1)
    count = events - before
    return count / took_s, (cpu_s(pid) - cpu_before) / count * 1e6, sample.slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--kafka", default="embedded")
    options = parser.parse_args()
    echo = serve("echo", uvloop=True)
    with tempfile.TemporaryDirectory() as data_dir:
        payflow, port, management = start_payflow(data_dir, options.kafka)
        try:
            assert echo.stdout is not None
            echo_port = int(echo.stdout.readline())
            load(echo_port, echo.pid, seconds=1, connections=options.connections)
            load(port, payflow.pid, seconds=1, connections=options.connections)
            time.sleep(1)
            ratios = []
            for number in range(options.rounds):
                yard = load(echo_port, echo.pid, seconds=options.seconds, connections=options.connections)
                rate, cpu_us, slow = round_of(
                    port, management, payflow.pid, seconds=options.seconds, connections=options.connections
                )
                ratios.append(rate / yard.rate)
                print(
                    f"round {number + 1}: echo {yard.rate:6.0f}/s {yard.cpu_us:5.1f} us  "
                    f"payflow {rate:6.0f}/s {cpu_us:5.1f} us "
                    f"p99 {slow}  ratio {ratios[-1]:.2f}  cpu {cpu_us / yard.cpu_us:.2f}x",
                    flush=True,
                )
            print(
                f"accepted, durable, published and booked, to echo: {statistics.median(ratios):.2f} (target {TARGET})"
            )
        finally:
            for process in (echo, payflow):
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()

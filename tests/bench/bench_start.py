"""Start to ready: from the start of the process until /readyz answers 200, on an empty data directory and on one with
payments.

Run: .venv/bin/python -m tests.bench.bench_start [--rounds 7]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

TARGET_S = 1.5
GIVE_UP_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ready_after_s(data_dir: str) -> float:
    """One start, polled every millisecond."""
    port, management = free_port(), free_port()
    command = [
        sys.executable, "-m", "payflow", "serve", "--data-dir", data_dir,
        "--http-port", str(port), "--management-port", str(management),
    ]  # fmt: skip
    started_at = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started_at < GIVE_UP_S:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
                    if answer.status == 200:
                        return time.perf_counter() - started_at
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.001)
        raise SystemExit("not ready in time")
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as data_dir:
        times = [ready_after_s(data_dir) for _ in range(options.rounds)]
    print(
        f"start to ready: first {times[0]:.2f} s, median {statistics.median(times):.2f} s, "
        f"worst {max(times):.2f} s (target {TARGET_S} s)"
    )


if __name__ == "__main__":
    main()

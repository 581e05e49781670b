"""What the HTTP front costs: requests a second against a bare aiohttp echo, both on one core, wrk on another,
interleaved rounds.

Run: .venv/bin/python tests/bench/bench_http.py [--rounds 5] [--seconds 5] [--connections 64] [--asyncio] The service
behind the front answers at once with a stored answer, so that only the front is measured. `--parts` times the pieces
instead.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import timeit
from dataclasses import dataclass
from pathlib import Path

import msgspec
from aiohttp import web

from payflow.adapters import payments_api, strict_json
from payflow.adapters.http_api import ApiServer, HttpLimits
from payflow.adapters.system import UuidIds
from payflow.core.outbox import Accepted, Submit
from payflow.core.pan import may_hold_card
from payflow.wire import id_text

SERVER_CORE = 0
CLIENT_CORE = 1
SCRIPT = Path(__file__).with_name("post_payments.lua")
BODY = (
    b'{"merchant_id":"m-1001","amount":12500,"currency":"EUR","order_id":"order-1764090000-123456",'
    b'"description":"two tickets","metadata":{"channel":"web"}}'
)
ANSWER = (
    b'{"id":"019abcde-0001-7000-8000-000000000001","merchant_id":"m-1001","order_id":"order-1764090000-123456",'
    b'"amount":12500,"currency":"EUR","status":"AUTHORIZED","captured_amount":0,"refunded_amount":0,'
    b'"description":"two tickets","metadata":{"channel":"web"},"created_at":"2026-11-25T17:00:00.000000Z",'
    b'"updated_at":"2026-11-25T17:00:00.000000Z","version":1}'
)


class Service:
    """Answers every submit at once."""

    def __init__(self) -> None:
        self.accepted = Accepted(bytes(16), 1, ANSWER, created=True, replayed=False)

    async def submit(self, request: Submit, *, request_id: str) -> Accepted:
        return self.accepted


class Health:
    def ready(self) -> tuple[bool, dict[str, str]]:
        return True, {}

    def components(self) -> dict[str, object]:
        return {}


async def echo_server() -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), status=201, content_type="application/json")

    application = web.Application()
    application.router.add_post("/payments", echo)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def front_server() -> None:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text="")

    counted: dict[tuple[str, str, int], int] = {}

    def observe(route: str, method: str, status: int, _: float) -> None:
        counted[route, method, status] = counted.get((route, method, status), 0) + 1

    ids = UuidIds()
    server = ApiServer(
        Service(),  # type: ignore[arg-type]
        health=Health(),
        roles=frozenset({"ingest"}),
        host="127.0.0.1",
        port=0,
        limits=HttpLimits(),
        metrics=metrics,
        breakers=dict,
        observe=observe,
        new_request_id=lambda: id_text(ids.new()),
        info={},
    )
    print(await server.start(), flush=True)
    await asyncio.Event().wait()


def serve(name: str, *, uvloop: bool) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--serve", name, *([] if uvloop else ["--asyncio"])]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    os.sched_setaffinity(process.pid, {SERVER_CORE})
    return process


@dataclass(frozen=True)
class Sample:
    """One run: requests a second, 99th percentile, CPU microseconds of the server a request."""

    rate: float
    slow: str
    cpu_us: float


def load(port: int, pid: int, *, seconds: int, connections: int) -> Sample:
    before = cpu_s(pid)
    command = [
        "taskset", "-c", str(CLIENT_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency",
        "-s", str(SCRIPT), f"http://127.0.0.1:{port}",
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    slow = re.search(r"99%\s+(\S+)", output)
    assert rate is not None, output
    assert slow is not None, output
    assert "Non-2xx" not in output, output
    total = re.search(r"(\d+) requests in", output)
    assert total is not None, output
    return Sample(float(rate[1]), slow[1], (cpu_s(pid) - before) / int(total[1]) * 1e6)


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(*, rounds: int, seconds: int, connections: int, uvloop: bool) -> None:
    servers = {name: serve(name, uvloop=uvloop) for name in ("echo", "front")}
    try:
        ports = {}
        for name, process in servers.items():
            assert process.stdout is not None
            ports[name] = int(process.stdout.readline())
        for name, port in ports.items():
            load(port, servers[name].pid, seconds=1, connections=connections)
        samples: dict[str, list[Sample]] = {name: [] for name in servers}
        for number in range(rounds):
            for name, port in ports.items():
                samples[name].append(load(port, servers[name].pid, seconds=seconds, connections=connections))
            last = [
                f"{name} {one[-1].rate:6.0f}/s {one[-1].cpu_us:5.1f} us p99 {one[-1].slow:>7}"
                for name, one in samples.items()
            ]
            print(f"round {number + 1}: {'  '.join(last)}")
        pairs = list(zip(samples["echo"], samples["front"], strict=True))
        print(f"rate, front to echo:        {statistics.median(front.rate / echo.rate for echo, front in pairs):.2f}")
        cpu = statistics.median(echo.cpu_us / front.cpu_us for echo, front in pairs)
        print(f"CPU a request, echo to front: {cpu:.2f}")
    finally:
        for process in servers.values():
            process.kill()
            process.wait()


def parts() -> None:
    """Microseconds of the pieces of one POST."""
    create = payments_api.CREATE
    request = create.decoder.decode(BODY)
    pieces = {
        "msgspec decode": lambda: create.decoder.decode(BODY),
        "strict decode": lambda: strict_json.decode(create.decoder, BODY),
        "strict decode, one backslash": lambda: strict_json.decode(create.decoder, ESCAPED),
        "card look at the body": lambda: may_hold_card(BODY),
        "card look at every text": lambda: payments_api._refuse_cards(request),
        "untyped msgspec decode": lambda: msgspec.json.decode(BODY),
    }
    for name, piece in pieces.items():
        best = min(timeit.repeat(piece, number=20_000, repeat=7)) / 20_000
        print(f"{name:30} {best * 1e6:6.2f} us")


ESCAPED = BODY.replace(b"two tickets", b"two\\ntickets")


def main() -> None:
    parser = argparse.ArgumentParser(description="rate of the HTTP front against a bare aiohttp echo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--asyncio", action="store_true", help="asyncio's own loop instead of uvloop")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--serve", choices=("echo", "front"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run = asyncio.run if options.asyncio else importlib.import_module("uvloop").run
        run(echo_server() if options.serve == "echo" else front_server())
    elif options.parts:
        parts()
    elif shutil.which("wrk") is None:
        sys.exit("this bench needs wrk: apt-get install wrk")
    else:
        compare(
            rounds=options.rounds, seconds=options.seconds, connections=options.connections, uvloop=not options.asyncio
        )


if __name__ == "__main__":
    main()

"""`python -m payflow serve` as a child process: start it on free ports, talk to it over HTTP, look at its log, end it.

Waiting is polling with a deadline. Whatever was started is killed by its own process group when the test is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.support.processes import is_running

REPOSITORY = Path(__file__).parents[2]
# Generous: it is only waited for when a test is about to fail.
WAIT_S = 30.0
POLL_S = 0.02
# Without it a test would inherit the configuration of whoever runs it.
OURS = ("PAYFLOW_", "KAFKA_", "EUREKA_")
# An event that is needed once the process can be talked to.
READY = "process.ready"
T = TypeVar("T")


def wait_for(look: Callable[[], T | None], what: str, *, timeout_s: float = WAIT_S) -> T:
    """Poll until `look` answers something true; `what` is the sentence of the failure."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(POLL_S)


async def wait_for_async(look: Callable[[], Awaitable[T | None]], what: str, *, timeout_s: float = WAIT_S) -> T:
    """The same for a question that has to be awaited."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The body as a value."""
        return json.loads(self.body)


class Client:
    """One keep-alive connection. Not for more than one thread."""

    def __init__(self, port: int, *, timeout_s: float = WAIT_S) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def request(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """`body` is bytes or what becomes JSON; header names are written with underscores."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            named.setdefault("Content-Type", "application/json")
        try:
            self._connection.request(method, path, data, named)
            answer = self._connection.getresponse()
            return Reply(answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()})
        except BaseException:
            self._connection.close()
            raise

    def get(self, path: str, **headers: str) -> Reply:
        """GET."""
        return self.request("GET", path, None, **headers)

    def post(self, path: str, body: object, *, key: str, **headers: str) -> Reply:
        """POST with an idempotency key."""
        return self.request("POST", path, body, Idempotency_Key=key, **headers)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: ours without what would configure payflow."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {**kept, "PYTHONPATH": str(REPOSITORY), **(extra or {})}


class Serve:
    """One `payflow serve`, in a process group of its own that also holds the embedded broker."""

    def __init__(self, data_dir: Path, *arguments: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.data_dir = data_dir
        self.log = log
        ports = ("--http-port", "0", "--management-port", "0")
        command = [sys.executable, "-m", "payflow", "serve", "--data-dir", str(data_dir), *ports, *arguments]
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=environment(env),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
        self._clients: list[Client] = []
        self._seen_bytes = 0
        self._seen: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ the log
    @property
    def pid(self) -> int:
        """Its process id, which is the id of its group as well."""
        return self.process.pid

    def text(self) -> str:
        """All that it has written."""
        return self.log.read_text()

    def events(self) -> list[dict[str, Any]]:
        """Its log, event by event; lines that are no JSON come as {"line": ...}."""
        with self.log.open("rb") as stream:
            stream.seek(self._seen_bytes)
            whole, newline, _ = stream.read().rpartition(b"\n")
        self._seen_bytes += len(whole) + len(newline)
        self._seen += [_event(line) for line in whole.decode("utf-8", "replace").splitlines()]
        return self._seen

    def named(self, name: str) -> list[dict[str, Any]]:
        """Events of one name so far."""
        return [event for event in self.events() if event.get("event") == name]

    def event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for the `count`th event of that name; fails at once when the process ends without it."""

        def look() -> dict[str, Any] | None:
            running = self.process.poll() is None
            found = self.named(name)
            if len(found) >= count:
                return found[count - 1]
            assert running, f"ended with {self.process.returncode} before {name}:\n{self.text()}"
            return None

        return wait_for(look, f"{name} x {count}; log:\n{self.log}")

    # ------------------------------------------------------------------ talking to it
    def started(self) -> Serve:
        """Wait until it is up; it may not be ready yet."""
        self.event(READY)
        return self

    def ready(self) -> Serve:
        """Wait until /readyz says 200."""
        api = self.started().api
        wait_for(lambda: api.get("/readyz").status == 200, f"/readyz is 200; log:\n{self.log}")
        return self

    @property
    def http_port(self) -> int:
        """Port of the API."""
        return int(self.event(READY)["http_port"])

    @property
    def management_port(self) -> int:
        """Port of the management site."""
        return int(self.event(READY)["management_port"])

    @property
    def api(self) -> Client:
        """A connection to the API, closed at the end of the test."""
        return self.connect(self.http_port)

    @property
    def management(self) -> Client:
        """A connection to the management site, closed at the end of the test."""
        return self.connect(self.management_port)

    def connect(self, port: int) -> Client:
        """A connection that is closed with the process."""
        self._clients.append(Client(port))
        return self._clients[-1]

    # ------------------------------------------------------------------ its end
    def signal(self, signum: signal.Signals) -> None:
        """To the process alone, not to the broker."""
        self.process.send_signal(signum)

    def end(self, *, timeout_s: float = WAIT_S) -> int:
        """Wait for the end; the exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self.text()[-4000:]}") from None

    def stop(self) -> int:
        """SIGTERM and the exit code."""
        self.signal(signal.SIGTERM)
        return self.end()

    def kill(self) -> None:
        """kill -9 of the process alone, as the kernel's memory killer does it; the broker has to notice by itself."""
        children = self.children()
        self.process.kill()
        self.process.wait(WAIT_S)
        for child in children:
            wait_for(lambda pid=child: not is_running(pid), f"child {child} ends with its parent")  # type: ignore[misc]

    def children(self) -> list[int]:
        """Process ids of its children."""
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def close(self) -> None:
        """Kill what is left of the group."""
        for client in self._clients:
            client.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(WAIT_S)


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        return {"line": line}
    return event if isinstance(event, dict) else {"line": line}


class Starter:
    """Starts processes for one test; each has a log of its own beside the data directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data_dir = folder / "data"
        self._started: list[Serve] = []

    def __call__(
        self, *arguments: str, data_dir: Path | None = None, env: Mapping[str, str] | None = None, **sets: object
    ) -> Serve:
        """Start; `section__key=value` becomes `--set section.key=value`."""
        flags = [text for name, value in sets.items() for text in ("--set", f"{name.replace('__', '.')}={value}")]
        log = self.folder / f"serve-{len(self._started) + 1}.log"
        serve = Serve(data_dir or self.data_dir, *arguments, *flags, log=log, env=env)
        self._started.append(serve)
        return serve

    def close(self) -> None:
        """Kill all."""
        for serve in self._started:
            serve.close()


@contextlib.contextmanager
def starter(folder: Path) -> Iterator[Starter]:
    """A Starter whose processes end with the block."""
    started = Starter(folder)
    try:
        yield started
    finally:
        started.close()

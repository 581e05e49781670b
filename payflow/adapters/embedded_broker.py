"""The embedded broker: librdkafka's mock cluster in a child process. Real protocol, in memory, to try and test.

Run as `python -m payflow.adapters.embedded_broker` this module is the child. The child
- stays in our process group but ignores SIGINT and SIGTERM: Ctrl-C must not take the log away from a drain;
- ends when its standard input closes, which the kernel does whatever kills the parent: no orphan after `kill -9`;
- prints one line of JSON, {"bootstrap", "broker_id"} or {"error"}; its standard error goes nowhere, because librdkafka
  writes free text to it.
Topics appear by themselves with 4 partitions; the newest 5 MiB of a partition are kept, older offsets are out of range.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Final

from payflow.core.outbox import VOLATILE_PREFIX
from payflow.errors import BrokerUnavailable, DependencyUnavailable

START_TIMEOUT_S: Final = 15.0  # a hundred times the usual start: only a machine in trouble gets there
STOP_TIMEOUT_S: Final = 2.0  # the child does nothing but exit once its standard input is closed
METADATA_TIMEOUT_S: Final = 10.0
EXTRA_MISSING: Final = (
    "the embedded broker needs the confluent-kafka package: "
    "pip install payflow[embedded], or name a real cluster in KAFKA_BOOTSTRAP_SERVERS"
)


class EmbeddedBroker:
    """A BrokerProcess: start it, await its end, stop it. Good for one start; a new broker is a new object."""

    def __init__(self) -> None:
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the child while it runs."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def check(self) -> None:
        """Raises DependencyUnavailable when the extra is not installed."""
        if importlib.util.find_spec("confluent_kafka") is None:
            raise DependencyUnavailable(EXTRA_MISSING)

    async def start(self) -> tuple[str, str]:
        """Start the child and return (bootstrap address, broker id)."""
        assert self._process is None, "an EmbeddedBroker starts once"
        self.check()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "payflow.adapters.embedded_broker", stdin=PIPE, stdout=PIPE, stderr=DEVNULL
        )
        try:
            return await self._greeting(self._process)
        except BaseException:  # also when cancelled: a child that nobody knows of must not stay
            await self.stop()
            raise

    async def _greeting(self, process: Process) -> tuple[str, str]:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                line = await process.stdout.readline()
        except TimeoutError:
            raise BrokerUnavailable(f"the embedded broker did not report within {START_TIMEOUT_S:g} s") from None
        if not line:
            raise BrokerUnavailable(f"the embedded broker ended with status {await process.wait()} before it reported")
        greeting: dict[str, str] = json.loads(line)
        if "error" in greeting:
            raise BrokerUnavailable(f"the embedded broker did not start: {greeting['error']}")
        return greeting["bootstrap"], greeting["broker_id"]

    async def wait(self) -> int:
        """Return the child's exit status when it has ended; negative is a signal."""
        assert self._process is not None, "not started"
        return await self._process.wait()

    async def stop(self) -> None:
        """End the child: close its standard input, then SIGKILL. Idempotent; also ends a child that is frozen."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.close()
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            _kill(process)
            await process.wait()
        except asyncio.CancelledError:
            _kill(process)
            raise


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()


# ------------------------------------------------------------------ the child
def main() -> int:
    """Serve until standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        from confluent_kafka import KafkaException, Producer  # noqa: PLC0415 - the optional extra, and only in the child
    except ImportError as error:
        return _report({"error": f"{EXTRA_MISSING} ({error})"}, status=1)
    try:
        cluster = Producer({"test.mock.num.brokers": 1, "log_level": 0})
        broker = next(iter(cluster.list_topics(timeout=METADATA_TIMEOUT_S).brokers.values()))
    except (KafkaException, StopIteration) as error:
        return _report({"error": repr(error)}, status=1)
    broker_id = f"{VOLATILE_PREFIX}{os.urandom(8).hex()}"
    _report({"bootstrap": f"{broker.host}:{broker.port}", "broker_id": broker_id}, status=0)
    sys.stdin.buffer.read()
    os._exit(0)  # nothing to save, and librdkafka's own way out takes its time


def _report(greeting: dict[str, str], *, status: int) -> int:
    sys.stdout.write(json.dumps(greeting) + "\n")
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    sys.exit(main())

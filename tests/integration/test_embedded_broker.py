"""The embedded broker as a process: how it starts, what it ignores, when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from payflow.adapters.embedded_broker import EmbeddedBroker
from payflow.adapters.kafka_producer import KafkaEventLog
from payflow.errors import BrokerUnavailable, DependencyUnavailable
from tests.support.processes import freeze, is_running, wait_until_gone

WAIT_S = 10.0
# Starts a broker, says its process id and waits to be killed.
PARENT = """
import asyncio
from payflow.adapters.embedded_broker import EmbeddedBroker

async def main():
    broker = EmbeddedBroker()
    await broker.start()
    print(broker.pid, flush=True)
    await broker.wait()

asyncio.run(main())
"""


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    """Not started; stopped at the end."""
    broker = EmbeddedBroker()
    yield broker
    await broker.stop()


async def test_every_start_has_its_own_address_and_id(broker: EmbeddedBroker) -> None:
    """A broker that comes back is another one: the id says so."""
    other = EmbeddedBroker()
    try:
        (address, broker_id), (other_address, other_id) = await broker.start(), await other.start()
    finally:
        await other.stop()

    assert address.startswith("127.0.0.1:")
    assert address != other_address
    assert broker_id != other_id


async def test_signals_of_the_terminal_do_not_end_it(broker: EmbeddedBroker) -> None:
    """Ctrl-C reaches the whole process group; the log has to stay until publisher and consumer have drained."""
    bootstrap, broker_id = await broker.start()
    pid = broker.pid
    assert pid is not None

    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    log = KafkaEventLog(bootstrap, topic="t", dead_letter_topic="d", client_id="c", log_id=broker_id)
    info = await log.open()
    await log.discard(timeout_s=1.0)

    assert info.log_id == broker_id
    assert os.getpgid(pid) == os.getpgid(0)


async def test_stop_ends_it_with_status_zero(broker: EmbeddedBroker) -> None:
    """Once and for all; a second stop is nothing."""
    await broker.start()

    await broker.stop()
    await broker.stop()

    assert await broker.wait() == 0
    assert broker.pid is None


async def test_stop_ends_a_frozen_one(broker: EmbeddedBroker) -> None:
    """A chaos test that forgot SIGCONT."""
    await broker.start()
    assert broker.pid is not None
    freeze(broker.pid)

    await broker.stop()

    assert await broker.wait() == -signal.SIGKILL


async def test_wait_tells_of_a_kill(broker: EmbeddedBroker) -> None:
    """What the broker actor crashes with."""
    await broker.start()
    assert broker.pid is not None

    os.kill(broker.pid, signal.SIGKILL)

    assert await broker.wait() == -signal.SIGKILL


async def test_a_cancelled_start_leaves_no_process() -> None:
    """Cancelled at every turn of the start."""
    for turns in range(6):
        broker = EmbeddedBroker()
        async with asyncio.TaskGroup() as group:
            start = group.create_task(broker.start())
            for _ in range(turns):
                await asyncio.sleep(0)
            start.cancel()

        assert start.cancelled()
        assert broker.pid is None or not is_running(broker.pid)
        await broker.stop()


def test_no_orphan_after_a_kill_of_the_parent() -> None:
    """The kernel closes the pipe whatever ends the parent."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_running(pid)

        parent.kill()

    wait_until_gone(pid)


async def test_without_the_extra_the_error_says_what_to_install(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare installation with the default configuration."""
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)

    with pytest.raises(DependencyUnavailable, match=r"pip install payflow\[embedded\]"):
        await broker.start()


async def test_a_child_that_dies_before_it_reports(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, say."""
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(BrokerUnavailable, match="status 1"):
        await broker.start()


def test_a_broken_installation_is_reported_by_the_child(tmp_path: Path) -> None:
    """The package is there but its library cannot be loaded."""
    (tmp_path / "confluent_kafka.py").write_text("raise ImportError('librdkafka.so')")

    child = subprocess.run(
        [sys.executable, "-m", "payflow.adapters.embedded_broker"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )

    assert child.returncode == 1
    assert '"error"' in child.stdout
    assert "librdkafka.so" in child.stdout

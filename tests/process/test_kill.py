"""kill -9 under load, from the outside: the client's log against databases and API, I1 to I5 of the design.

The moments are random; the seed is in the test's name and output, `PAYFLOW_KILL_SEED` tries another.
"""

from __future__ import annotations

import json
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from payflow.core.routing import partition_for
from tests.support.books import Sent, Traffic, check_api, check_books, rows, send_again, settle
from tests.support.process import Client, Serve, Starter, wait_for
from tests.support.processes import freeze

SEED = int(os.environ.get("PAYFLOW_KILL_SEED", "20261125"))
ROUNDS = 4
# Enough that no round runs dry before its kill; a killed client stops at once.
LIVES = 2000
TOKEN = "a-token-of-the-test-0123456789"
# A breaker that an outage opened looks again after a second instead of thirty.
SOON_AGAIN = {"breaker__kafka-publisher__wait_duration_in_open_state": "1s"}
ACTIONS = {"PAYFLOW_MANAGEMENT__TOKENS__TEST": TOKEN, "PAYFLOW_MANAGEMENT__ALLOW_ACTIONS": "true"}
MOCK_KEEPS_BYTES = 5 << 20
MOCK_PARTITIONS = 4


def act(serve: Serve, actor_id: str, action: str, **fields: float) -> None:
    """An operator's action."""
    done = serve.management.request(
        "POST", f"/debug/actors/{actor_id}/{action}", {"reason": "test", **fields}, Authorization=f"Bearer {TOKEN}"
    )
    assert done.status == 200, done


def broker_pid(serve: Serve) -> int:
    serve.event("broker.started")
    (pid,) = serve.children()
    return pid


def finish(serve: Serve, log: list[Sent], *, every: int = 1) -> int:
    """After the last blow: the careful client asks again, everything is booked, all stories agree, the end is clean."""
    executed = send_again(log[::every], serve.api)
    settle(serve.data_dir)
    events = check_books(log, serve.data_dir)
    check_api(log, serve.api)
    print(f"{len(log)} requests, {events} events, {executed} executed by the retry")
    assert serve.stop() == 0
    return events


@pytest.mark.parametrize("seed", [SEED])
def test_f67_kill_9_of_the_process_under_load_loses_and_doubles_nothing(serve: Starter, seed: int) -> None:
    rng = random.Random(seed)
    log: list[Sent] = []
    for number in range(ROUNDS):
        running = serve().ready()
        traffic = Traffic(running.http_port, seed=seed * 10 + number, lives=LIVES).start()
        traffic.until(rng.randrange(1, 600))

        running.kill()

        log += traffic.join()

    assert finish(serve().ready(), log) >= sum(sent.accepted for sent in log)
    assert all(sent.accepted for sent in log)


@pytest.mark.parametrize("seed", [SEED])
def test_kill_9_of_the_broker_under_load_loses_and_doubles_nothing(serve: Starter, seed: int) -> None:
    rng = random.Random(seed)
    running = serve(**SOON_AGAIN).ready()
    traffic = Traffic(running.http_port, seed=seed, lives=600).start()
    for number in range(2):
        traffic.until(rng.randrange(50, 300) + 300 * number)

        os.kill(broker_pid(running), signal.SIGKILL)

        running.event("broker.started", 2 + number)
        running.event("publisher.connected", 2 + number)

    log = traffic.join()
    assert all(sent.accepted for sent in log), "a broker that is gone is nothing to the clients"
    assert running.named("supervisor.escalated") == []
    finish(running, log)


def test_kill_9_while_the_broker_is_dead_loses_nothing(serve: Starter) -> None:
    """Both at once: what the dead broker held is nowhere but in the outbox."""
    running = serve().ready()
    traffic = Traffic(running.http_port, seed=SEED + 1, lives=LIVES).start()
    traffic.until(100)
    os.kill(broker_pid(running), signal.SIGKILL)
    traffic.until(150)
    running.kill()

    finish(serve().ready(), traffic.join())


def same_partition(api: Client, wanted: int) -> tuple[list[Sent], list[str]]:
    """Captured payments whose events all go to one partition of the mock, with what was sent for them."""
    log: list[Sent] = []
    ids: list[str] = []
    body = json.dumps({"merchant_id": "lag", "amount": 1_000_000, "currency": "EUR"}).encode()
    while len(ids) < wanted:
        made = send(api, Sent(f"lag-{len(log)}", "/payments", body), log)
        if partition_for(made.encode(), MOCK_PARTITIONS) == 0:
            send(api, Sent(f"lag-{len(log)}", f"/payments/{made}/capture", b"{}"), log)
            ids.append(made)
    return log, ids


def send(api: Client, sent: Sent, log: list[Sent]) -> str:
    reply = api.post(sent.path, sent.body, key=sent.key)
    sent.status, sent.answer = reply.status, reply.body
    assert sent.accepted, reply
    log.append(sent)
    return str(sent.payment()["id"])


def refund_until(running: Serve, wanted_bytes: int) -> list[Sent]:
    """Long refunds of payments of one partition, until their events are more than `wanted_bytes`."""
    log, ids = same_partition(running.api, 4)
    body = json.dumps({"amount": 1, "reason": "\N{MONEY BAG}" * 500}, ensure_ascii=False).encode()
    each = wanted_bytes // 2000 // len(ids)
    lots = [[Sent(f"refund-{made}-{n}", f"/payments/{made}/refund", body) for n in range(each)] for made in ids]

    def work(lot: list[Sent]) -> None:
        client = running.connect(running.http_port)
        for sent in lot:
            send(client, sent, log)

    with ThreadPoolExecutor(len(lots)) as pool:
        list(pool.map(work, lots))
    return log


def unbooked_bytes(serve: Serve, where: str) -> int:
    query = f"SELECT coalesce(sum(payload_bytes), 0) FROM payment_event WHERE booked_at_us IS NULL AND {where}"
    return int(rows(serve.data_dir / "payments.db", query)[0][0])


@pytest.mark.parametrize("blows", [False, True], ids=["resumed", "broker and process killed"])
def test_a_consumer_that_lags_by_more_than_the_mock_keeps_books_everything(serve: Starter, blows: bool) -> None:
    """The mock forgets all but the newest 5 MiB of a partition; what is published and not booked stays below that."""
    running = serve(env=ACTIONS, **SOON_AGAIN).ready()
    running.event("consumer.connected")
    act(running, "consumer", "pause", max_s=600)

    log = refund_until(running, MOCK_KEEPS_BYTES + (1 << 20))
    wait_for(lambda: unbooked_bytes(running, "state = 1") >= 1 << 20, "the publisher goes to its limit")

    assert unbooked_bytes(running, "1") > MOCK_KEEPS_BYTES
    assert unbooked_bytes(running, "state = 1") < MOCK_KEEPS_BYTES / 2
    if blows:
        os.kill(broker_pid(running), signal.SIGKILL)
        running.event("broker.started", 2)
        running.event("outbox.unpublished")
        running.kill()
        running = serve(env=ACTIONS).ready()
    else:
        act(running, "consumer", "resume")
    finish(running, log, every=10)


# ------------------------------------------------------------------ a broker that does not answer
def test_f37_a_frozen_broker_does_not_hold_up_the_end(serve: Starter) -> None:
    """Sends are in flight and nobody answers: rows stay pending, the end is in order, and the next start sends them."""
    running = serve().ready()
    traffic = Traffic(running.http_port, seed=SEED + 2, lives=LIVES).start()
    traffic.until(100)
    freeze(broker_pid(running))
    traffic.until(300)

    running.signal(signal.SIGINT)

    assert running.end() == 0
    assert running.named("shutdown.completed")[0]["abandoned"] == []
    finish(serve().ready(), traffic.join())


def test_f35_f36_a_broker_that_was_frozen_past_the_deadline_gets_everything_once(serve: Starter) -> None:
    running = serve(kafka__request_timeout="1s", kafka__delivery_timeout="1s", **SOON_AGAIN).ready()
    traffic = Traffic(running.http_port, seed=SEED + 3, lives=400).start()
    traffic.until(100)
    pid = broker_pid(running)
    freeze(pid)

    opened = running.event("breaker.opened")
    log = traffic.join()
    assert all(sent.accepted for sent in log), "a broker that does not answer is nothing to the clients"
    assert running.api.get("/readyz").status == 200
    wait_for(lambda: running.api.get("/healthz").json()["components"]["kafka"]["status"] == "DOWN", "health tells")
    os.kill(pid, signal.SIGCONT)

    running.event("breaker.closed")
    assert opened["level"] == "warning"
    finish(running, log)

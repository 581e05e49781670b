"""Traffic with a client's log, and the check that log, databases and API tell the same story (I1 to I5).

The log holds every request with its answer, or None where no answer came: the only witness the server has no say in.
"""

from __future__ import annotations

import http.client
import json
import random
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.support.process import WAIT_S, Client, Reply, wait_for


# ------------------------------------------------------------------ traffic
@dataclass(slots=True)
class Sent:
    """One request of the client's log. `status` None: nobody knows what became of it."""

    key: str
    path: str
    body: bytes
    status: int | None = None
    answer: bytes = b""

    @property
    def accepted(self) -> bool:
        """Whether the server said that it is done."""
        return self.status is not None and 200 <= self.status < 300

    def payment(self) -> dict[str, Any]:
        """The payment as the answer shows it."""
        payment: dict[str, Any] = json.loads(self.answer)
        return payment


class Traffic:
    """Clients that lead payments through their lives: a bounded number, each connection one request at a time.

    A client whose request is not answered stops, as a process does whose server is gone.
    """

    def __init__(self, port: int, *, seed: int, lives: int, clients: int = 4, filler: int = 0) -> None:
        self.log: list[Sent] = []
        self._port = port
        self._filler = "x" * filler
        self._name = f"{seed:x}"
        self._threads = [
            threading.Thread(target=self._client, args=(random.Random(seed + n), n, lives // clients), daemon=True)
            for n in range(clients)
        ]

    def start(self) -> Traffic:
        """Let all clients loose."""
        for thread in self._threads:
            thread.start()
        return self

    def join(self) -> list[Sent]:
        """Wait until they have stopped; the log."""
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "a client hangs"
        return self.log

    def until(self, accepted: int) -> None:
        """Wait until so many requests were accepted."""
        wait_for(lambda: self.accepted >= accepted or not self.running, f"{accepted} requests are accepted")

    @property
    def accepted(self) -> int:
        """Requests accepted so far."""
        return sum(sent.accepted for sent in list(self.log))

    @property
    def running(self) -> bool:
        """Whether any client still works."""
        return any(thread.is_alive() for thread in self._threads)

    def _client(self, rng: random.Random, number: int, lives: int) -> None:
        client = Client(self._port)
        for life in range(lives):
            if not self._live(client, rng, f"{self._name}-{number}-{life}"):
                break
        client.close()

    def _live(self, client: Client, rng: random.Random, name: str) -> bool:
        amount = rng.randrange(100, 10_000)
        body = {"merchant_id": f"m{rng.randrange(3)}", "amount": amount, "currency": rng.choice(["EUR", "USD"])}
        created = self._send(client, f"{name}-a", "/payments", body | {"description": f"{name} {self._filler}"})
        if not created.accepted:
            return False
        path = f"/payments/{created.payment()['id']}"
        part = amount // 2
        steps: list[tuple[str, dict[str, Any]]] = rng.choice(
            [
                [],
                [("void", {})],
                [("capture", {})],
                [("capture", {"amount": part}), ("capture", {})],
                [("capture", {}), ("refund", {"amount": part, "reason": "half"}), ("refund", {"reason": "rest"})],
            ]
        )
        return all(
            self._send(client, f"{name}-{step}", f"{path}/{verb}", fields).accepted
            for step, (verb, fields) in enumerate(steps)
        )

    def _send(self, client: Client, key: str, path: str, body: dict[str, Any]) -> Sent:
        sent = Sent(key, path, json.dumps(body).encode())
        self.log.append(sent)
        try:
            reply = client.post(path, sent.body, key=key)
        except (OSError, http.client.HTTPException):
            return sent
        if reply.status < 500:  # above, the outcome is unknown or nothing was done
            sent.answer = reply.body
            sent.status = reply.status
        return sent


def send_again(log: Iterable[Sent], client: Client) -> int:
    """What a careful client does after a crash (I5): the same key again. Returns how many were executed only now."""
    executed = 0
    for sent in log:
        reply = _post(client, sent)
        replayed = reply.headers.get("idempotent-replayed") == "true"
        if sent.status is None:
            assert 200 <= reply.status < 300, (sent, reply)
            executed += not replayed
            sent.status, sent.answer = reply.status, reply.body
            reply = _post(client, sent)
            replayed = reply.headers.get("idempotent-replayed") == "true"
        assert sent.accepted, f"the traffic is legal, so nothing is refused: {sent}"
        assert (reply.status, reply.body, replayed) == (sent.status, sent.answer, True), sent
    return executed


def _post(client: Client, sent: Sent) -> Reply:
    return client.post(sent.path, sent.body, key=sent.key)


# ------------------------------------------------------------------ books
def rows(path: Path, query: str, *values: object) -> list[Any]:
    """Read beside the owner of the file."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=WAIT_S)) as connection:
        return connection.execute(query, values).fetchall()


def settle(*data_dirs: Path, acknowledged: bool = True, timeout_s: float = WAIT_S) -> None:
    """Wait until every accepted event is published and booked; `acknowledged`: and the outbox was told so.

    The payments are in the first directory, the books in the last.
    """
    payments, ledger = data_dirs[0] / "payments.db", data_dirs[-1] / "ledger.db"

    def state() -> tuple[int, int, int]:
        counts = "count(*), coalesce(sum(state <> 1), 0), coalesce(sum(booked_at_us IS NULL), 0)"
        ((events, unsent, untold),) = rows(payments, f"SELECT {counts} FROM payment_event")
        ((booked,),) = rows(ledger, "SELECT count(*) FROM inbox")
        return events - booked, unsent, untold if acknowledged else 0

    try:
        wait_for(lambda: not any(state()), "everything is booked", timeout_s=timeout_s)
    except AssertionError as error:
        raise AssertionError(f"not booked, not published, not acknowledged: {state()}") from error


def check_books(log: Sequence[Sent], *data_dirs: Path) -> int:
    """Compare client's log, payments.db and ledger.db after `settle`; the number of events."""
    payments, ledger = data_dirs[0] / "payments.db", data_dirs[-1] / "ledger.db"
    for path in (payments, ledger):
        assert rows(path, "PRAGMA integrity_check") == [("ok",)], path
    columns = 'id, payment, version, type, amount, broker, partition, "offset"'
    events = rows(payments, f"SELECT {columns} FROM payment_event ORDER BY seq")
    inbox = rows(ledger, "SELECT event_id, payment_id, version, type, amount FROM inbox")
    _accepted_is_stored(log, events)
    # I1, I2, I3: the same events on both sides, each once.
    accepted = {(event, payment, version, amount) for event, payment, version, _, amount, *_ in events}
    booked = {(event, payment, version, amount) for event, payment, version, _, amount in inbox}
    assert len(inbox) == len(booked)
    assert booked == accepted
    assert rows(ledger, "SELECT count(*) FROM held_event") == [(0,)]
    _order_was_kept(events)
    _state_is_the_sum_of_its_events(payments)
    _entries_are_right(ledger, inbox)
    return len(events)


def _accepted_is_stored(log: Sequence[Sent], events: Sequence[Any]) -> None:
    """I1 from the outside in, I2 from the inside out: an event is there because a request asked for it, and once."""
    asked = Counter((UUID(sent.payment()["id"]).bytes, sent.payment()["version"]) for sent in log if sent.accepted)
    stored = Counter((payment, version) for _, payment, version, *_ in events)
    assert max(stored.values(), default=1) == 1
    assert max(asked.values(), default=1) == 1, "two requests got the same answer"
    assert asked.keys() - stored.keys() == set(), "accepted and lost"
    unknown = sum(sent.status is None for sent in log)
    assert len(stored.keys() - asked.keys()) <= unknown, "stored and never asked for"


def _order_was_kept(events: Sequence[Any]) -> None:
    """I4: versions without a gap in outbox order; on one broker a payment has one partition and rising offsets."""
    lives: dict[bytes, list[tuple[int, Any, int, int]]] = defaultdict(list)
    for _, payment, version, _, _, broker, partition, offset in events:
        lives[payment].append((version, broker, partition, offset))
    for life in lives.values():
        assert [version for version, *_ in life] == list(range(1, len(life) + 1))
        for (_, broker, *place), (_, next_broker, *next_place) in pairwise(life):
            if broker == next_broker:
                assert place[0] == next_place[0]
                assert place[1] < next_place[1]


def _state_is_the_sum_of_its_events(payments: Path) -> None:
    wrong = rows(
        payments,
        """
        SELECT hex(p.id), p.version, p.captured_amount, p.refunded_amount FROM payment p
        LEFT JOIN (
          SELECT payment, max(version) AS version, sum(amount * (version > 1)) AS moved
          FROM payment_event GROUP BY payment
        ) e ON e.payment = p.id
        WHERE e.version IS NOT p.version
        OR (p.status <> 'VOIDED' AND e.moved <> p.captured_amount + p.refunded_amount)
        """,
    )
    assert wrong == []


def _entries_are_right(ledger: Path, inbox: Sequence[Any]) -> None:
    """I3: captures and refunds have one balanced entry of their amount each, nothing else has one; the sums agree."""
    moved = {event: amount for event, _, _, kind, amount in inbox if kind.endswith(("captured", "refunded"))}
    entries = rows(
        ledger,
        """
        SELECT e.event_id, sum(p.amount * (p.side = 'debit')), sum(p.amount * (p.side = 'credit')), count(*)
        FROM entry e JOIN posting p ON p.payment_id = e.payment_id AND p.version = e.version GROUP BY e.event_id
        """,
    )
    assert {event: (debit, credit, lines) for event, debit, credit, lines in entries} == {
        event: (amount, amount, 2) for event, amount in moved.items()
    }
    drift = rows(
        ledger,
        """
        SELECT a.account, a.currency FROM account a LEFT JOIN posting p ON p.account_id = a.id
        GROUP BY a.id
        HAVING a.debit <> sum(p.amount * (p.side = 'debit')) OR a.credit <> sum(p.amount * (p.side = 'credit'))
        """,
    )
    assert drift == []


def check_api(log: Sequence[Sent], api: Client, ledger_api: Client | None = None, *, sample: int = 25) -> None:
    """What clients and operators are shown agrees with the log: last state of some payments, and the trial balance."""
    books = ledger_api or api
    newest: dict[str, dict[str, Any]] = {}
    for sent in filter(lambda sent: sent.accepted, log):
        payment = sent.payment()
        if payment["version"] > newest.get(payment["id"], {"version": 0})["version"]:
            newest[payment["id"]] = payment
    for payment_id in random.Random(len(log)).sample(sorted(newest), min(sample, len(newest))):
        shown = api.get(f"/payments/{payment_id}").json()
        events = shown.pop("events")
        assert shown == newest[payment_id]
        assert [event["outbox"] for event in events] == ["published"] * shown["version"]
        entries = books.get(f"/ledger/payments/{payment_id}").json()["entries"]
        moving = [event["id"] for event in events if event["type"] in {"payment.captured", "payment.refunded"}]
        assert [entry["event_id"] for entry in entries] == moving
    for balance in books.get("/ledger/trial-balance").json()["currencies"]:
        assert balance["balanced"]
        assert balance["debit"] == balance["credit"]

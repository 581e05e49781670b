"""A payments API of a few lines that is wrong on purpose: a server on a thread whose answers a test chooses.

It keeps payments, replays keys, and calls everything published and booked at once, unless it is told to misbehave.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, urlsplit

Trouble = Callable[[int], tuple[int, str] | None]


class Shaky(ThreadingHTTPServer):
    """`trouble(n)` answers the n-th write in its place; `lost` forgets the n-th payment after it was answered."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, trouble: Trouble, *, lost: int | None, forgetful: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.trouble = trouble
        self.lost = lost
        self.forgetful = forgetful
        self.lock = threading.Lock()
        self.writes = count(1)
        self.payments: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, bytes] = {}

    def handle_error(self, *_: object) -> None:
        """A client that has left is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def create(self, body: dict[str, Any]) -> bytes:
        number = len(self.payments) + 1
        payment = {"id": f"{number:032x}", "version": 1, "status": "AUTHORIZED", "amount": body["amount"]}
        payment |= {"captured_amount": 0, "refunded_amount": 0, "merchant_id": body["merchant_id"]}
        self.payments[payment["id"]] = payment
        return json.dumps(payment).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Shaky
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key, server = self.headers["Idempotency-Key"], self.server
        with server.lock:
            wrong = server.trouble(next(server.writes))
            if wrong is not None:
                self._answer(wrong[0], json.dumps({"code": wrong[1]}).encode())
                return
            known = server.answers.get(key)
            if known is None or server.forgetful:
                server.answers[key] = server.create(json.loads(body))
        self._answer(201, server.answers[key], replayed=known is not None)

    def do_GET(self) -> None:
        parts, server = urlsplit(self.path), self.server
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        kept = [p for n, p in enumerate(list(server.payments.values()), 1) if n != server.lost]
        match parts.path.split("/")[1:]:
            case ["info"]:
                found: object = {"app": "payflow", "roles": ["ingest", "consumer"]}
            case ["payments"]:
                found = {"items": [p for p in kept if p["merchant_id"] == query["merchant_id"]], "next_cursor": None}
            case ["payments", wanted]:
                shown = [p for p in kept if p["id"] == wanted]
                if not shown:
                    self._answer(404, b'{"code":"payment-not-found"}')
                    return
                event = {"id": f"e{wanted}", "type": "payment.authorized", "amount": 1, "outbox": "published"}
                found = {**shown[0], "events": [{**event, "partition": 0, "offset": 1, "booked_at": "now"}]}
            case ["ledger", "accounts"]:
                found = {"items": [], "next_cursor": None}
            case ["ledger", "trial-balance"]:
                found = {"currencies": []}
            case _:
                found = {}
        self._answer(200, json.dumps(found).encode())

    def _answer(self, status: int, body: bytes, *, replayed: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if replayed:
            self.send_header("Idempotent-Replayed", "true")
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def shaky(trouble: Trouble = lambda _: None, *, lost: int | None = None, forgetful: bool = False) -> Iterator[Shaky]:
    """Serve until the end of the block."""
    server = Shaky(trouble, lost=lost, forgetful=forgetful)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)

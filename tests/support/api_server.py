"""A running ApiServer over the fake service, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from payflow.adapters.http_api import ApiServer, HttpLimits
from tests.fakes.payments_service import PaymentsServiceFake

BODY = b'{"merchant_id":"m-1","amount":12500,"currency":"EUR","order_id":"o-1"}'
_JSON_TYPE = ("Content-Type", "application/json")


@dataclass
class HealthFake:
    """Says what the test wants."""

    is_ready: bool = True
    database: str = "UP"

    def ready(self) -> tuple[bool, Mapping[str, str]]:
        return self.is_ready, {"database": self.database}

    def components(self) -> Mapping[str, object]:
        return {"status": self.database, "components": {"db": {"status": self.database}}}


@dataclass(frozen=True)
class Reply:
    """A response as it came over the wire."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} is there {len(found)} times"
        return found[0] if found else None

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Client:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._keys = itertools.count(1)

    async def get(self, path: str, *, method: str = "GET") -> Reply:
        return await self.send(f"{method} {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode(), has_body=method != "HEAD")

    async def post(
        self,
        path: str,
        body: bytes = b"",
        *,
        key: str | None = "",
        headers: Iterable[tuple[str, str]] = (_JSON_TYPE,),
    ) -> Reply:
        """`key` "" draws a new one, None sends none."""
        lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}"]
        if key is not None:
            lines.append(f"Idempotency-Key: {key or f'key-{next(self._keys)}'}")
        lines += [f"{name}: {value}" for name, value in headers]
        return await self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    async def send(self, raw: bytes, *, has_body: bool = True) -> Reply:
        self.write(raw)
        return await self.read(has_body=has_body)

    def write(self, raw: bytes) -> None:
        self._writer.write(raw)

    async def read(self, *, has_body: bool = True) -> Reply:
        async with asyncio.timeout(10):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in head[1:-2]))
            reply = Reply(int(head[0].split()[1]), headers, b"")
            length = int(reply.header("Content-Length") or 0) if has_body else 0
            return Reply(reply.status, headers, await self._reader.readexactly(length))

    async def is_closed(self) -> bool:
        """Waits for the server to close."""
        async with asyncio.timeout(10):
            return await self._reader.read(1) == b""

    def close(self) -> None:
        self._writer.close()


@dataclass
class Api:
    """The server with all that a test may want to look at."""

    server: ApiServer
    service: PaymentsServiceFake
    health: HealthFake
    port: int = 0
    observed: list[tuple[str, str, int]] = field(default_factory=list)
    events: list[tuple[str, Mapping[str, object]]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client


@asynccontextmanager
async def running_api(
    *, roles: Iterable[str] = ("ingest", "consumer"), limits: HttpLimits | None = None, port: int = 0
) -> AsyncIterator[Api]:
    """An Api that listens on a free port, and is stopped at the end."""
    numbers = itertools.count(1)
    service, health = PaymentsServiceFake(), HealthFake()

    async def metrics(_: web.Request) -> web.StreamResponse:
        return web.Response(text="payflow_up 1\n")

    api = Api(
        ApiServer(
            service,
            health=health,
            roles=frozenset(roles),
            host="127.0.0.1",
            port=port,
            limits=limits or HttpLimits(),
            metrics=metrics,
            breakers=lambda: {"kafka-publisher": {"state": "CLOSED"}},
            observe=lambda route, method, status, _: api.observed.append((route, method, status)),
            new_request_id=lambda: f"00000000-0000-7000-8000-{next(numbers):012x}",
            info={"name": "payflow"},
            emit=lambda event, **fields: api.events.append((event, fields)),
            refused=lambda code: api.refusals.append(code),  # noqa: PLW0108 - api is made a line later
        ),
        service,
        health,
    )
    api.port = await api.server.start()
    try:
        yield api
    finally:
        for client in api.clients:
            client.close()
        await api.server.stop()


def assert_problem(reply: Reply, status: int, code: str) -> Any:
    """The reply is this problem document; its members."""
    assert (reply.status, reply.json()["code"]) == (status, code), reply.body
    document = reply.json()
    assert reply.header("Content-Type") == "application/problem+json"
    assert document["type"] == f"/problems/{code}"
    assert document["status"] == status
    assert document["request_id"] == reply.header("Request-Id")
    return document

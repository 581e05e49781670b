"""The management site over a fake service: what goes over the wire, whatever is sent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from payflow.adapters import http_management, problems
from payflow.adapters.http_management import Access, ManagementServer
from payflow.config import Secret
from tests.support.api_server import Api, Client, HealthFake, Reply, assert_problem

TOKEN = "token-of-alice-0123456789"
REASON = b'{"reason":"a test"}'


class ServiceFake:
    """Knows no actor; `tree` fails where a test wants a bug."""

    bug: Exception | None = None

    def tree(self) -> Mapping[str, object]:
        if self.bug is not None:
            raise self.bug
        return {"tree": {}}

    async def act(self, action: str, actor_id: str, **_: object) -> Mapping[str, object]:
        if actor_id != "outbox":
            raise KeyError(actor_id)
        return {"action": action}


class Site(Api):
    """Has the same clients as the API's bench."""


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    numbers = itertools.count(1)
    service: Any = ServiceFake()
    events: list[tuple[str, Mapping[str, object]]] = []

    async def metrics(_: web.Request) -> web.StreamResponse:
        return web.Response(text="payflow_up 1\n")

    server: Any = ManagementServer(
        service,
        health=HealthFake(),
        host="127.0.0.1",
        port=0,
        access=Access(True, {"alice": Secret(TOKEN)}),
        metrics=metrics,
        breakers=lambda: {"kafka-publisher": {"state": "CLOSED"}},
        info={"name": "payflow"},
        new_request_id=lambda: f"00000000-0000-7000-8000-{next(numbers):012x}",
        emit=lambda event, **fields: events.append((event, fields)),
    )
    made = Site(server, service, HealthFake(), events=events)
    made.port = await server.start()
    try:
        yield made
    finally:
        for client in made.clients:
            client.close()
        await server.stop()


@pytest_asyncio.fixture
async def client(site: Site) -> Client:
    return await site.client()


async def act(client: Client, token: bytes, actor_id: str = "outbox", body: bytes = REASON) -> Reply:
    return await client.send(
        b"POST /debug/actors/%b/pause HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b"
        % (actor_id.encode(), token, len(body), body)
    )


@pytest.mark.parametrize("token", [b"\xff\xfe", "t\u00f6ken".encode(), b"", TOKEN.encode() + b"\xff"])
async def test_a_token_of_any_bytes_is_401(site: Site, client: Client, token: bytes) -> None:
    reply = await act(client, token)

    assert_problem(reply, 401, "unauthorized")
    assert reply.header("WWW-Authenticate") == "Bearer"
    assert site.events == []


async def test_the_token_acts_and_does_not_show_itself(client: Client) -> None:
    assert (await act(client, TOKEN.encode())).status == 200
    assert TOKEN not in repr(Access(True, {"alice": Secret(TOKEN)}))


async def test_every_answer_has_a_request_id(client: Client) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/info", "/metrics", "/debug/actors", "/problems", "/nope"):
        reply = await client.get(path)
        assert reply.header("Request-Id"), path
        assert reply.header("Cache-Control") == "no-store", path


async def test_refusals_are_problem_documents_of_the_catalogue(client: Client) -> None:
    assert_problem(await act(client, TOKEN.encode(), "nobody"), 404, "actor-not-found")
    assert_problem(await act(client, TOKEN.encode(), body=b"{}"), 422, "invalid-body")
    assert_problem(await client.get("/debug/actors?format=xml"), 400, "invalid-query")
    assert_problem(await client.get("/circuit-breaker/nope"), 404, "breaker-not-found")
    reply = await client.send(b"DELETE /debug/actors HTTP/1.1\r\nHost: t\r\n\r\n")
    assert_problem(reply, 405, "method-not-allowed")
    assert "GET" in (reply.header("Allow") or "")
    assert_problem(await act(client, TOKEN.encode(), body=b"x" * 5000), 413, "body-too-large")


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"GET /livez HTTP/1.1\r\nHost : t\r\nno header\r\n\r\n", 400, "malformed-http"),
        (b"GET /livez HTTP/1.1\r\nHost: t\r\nExpect: more\r\n\r\n", 417, "expectation-failed"),
    ],
)
async def test_what_reaches_no_handler_is_a_problem_document_too(
    client: Client, raw: bytes, status: int, code: str
) -> None:
    assert_problem(await client.send(raw), status, code)


async def test_every_problem_type_explains_itself_here_too(client: Client) -> None:
    for kind in problems.CATALOGUE:
        page = await client.get(kind.type)
        assert (page.status, kind.code in page.body.decode()) == (200, True)
    assert_problem(await client.get("/problems/nope"), 404, "not-found")


async def test_a_bug_is_a_500_and_an_event_that_says_where(site: Site, client: Client) -> None:
    site.service.bug = LookupError("it broke")  # type: ignore[attr-defined]

    document = assert_problem(await client.get("/debug/actors"), 500, "internal-error")

    ((event, fields),) = site.events
    assert (event, fields["route"], fields["error_type"]) == ("request.failed", "/debug/actors", "LookupError")
    assert fields["request_id"] == document["request_id"]
    assert "in tree" in str(fields["traceback"])


async def test_a_connection_that_sends_no_header_is_closed_early(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    await site.server.stop()
    monkeypatch.setattr(http_management, "HEADER_TIMEOUT_S", 0.05)
    site.port = await site.server.start()

    async with asyncio.timeout(10):
        assert await (await site.client()).is_closed()


async def test_connections_are_limited(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.server.stop()
    monkeypatch.setattr(http_management, "MOST_CONNECTIONS", 1)
    site.port = await site.server.start()
    await site.client()

    assert_problem(await (await site.client()).read(), 503, "too-many-connections")

"""The front as a part of the process: start, roles, health, deadlines, drain, stop."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from payflow.adapters.http_api import HttpLimits
from payflow.adapters.http_connection import Gate
from payflow.errors import DependencyUnavailable
from tests.support.api_server import BODY, Api, Client, assert_problem, running_api

JSON_TYPE = ("Content-Type", "application/json")
ALWAYS = (
    "/livez",
    "/readyz",
    "/healthz",
    "/info",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/problems",
    "/circuit-breaker/status",
)


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    async with running_api() as running:
        yield running


@pytest_asyncio.fixture
async def client(api: Api) -> Client:
    return await api.client()


async def until_waiting(api: Api, count: int) -> None:
    """Let the loop turn until so many requests are in the service."""
    async with asyncio.timeout(10):
        while len(api.server._in_flight) < count:
            await asyncio.sleep(0)


# ------------------------------------------------------------------ start
async def test_a_port_that_is_taken_is_one_clear_sentence(api: Api) -> None:
    with pytest.raises(DependencyUnavailable) as raised:
        async with running_api(port=api.port):
            pass

    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1:{api.port}: another process has this port; "
        "stop it or choose another with --http-port"
    )


# ------------------------------------------------------------------ roles and pages
async def test_routes_of_another_role_say_so() -> None:
    async with running_api(roles=["consumer"]) as api:
        client = await api.client()
        assert_problem(await client.post("/payments", BODY), 404, "role-not-served")
        assert_problem(await client.get("/payments"), 404, "role-not-served")
        assert (await client.get("/ledger/trial-balance")).status == 200
        assert [(await client.get(path)).status for path in ALWAYS] == [200] * len(ALWAYS)
    async with running_api(roles=["ingest"]) as api:
        client = await api.client()
        assert_problem(await client.get("/ledger/accounts"), 404, "role-not-served")
        assert [(await client.get(path)).status for path in ALWAYS] == [200] * len(ALWAYS)


async def test_every_page_has_a_request_id_and_is_not_stored(client: Client) -> None:
    for path in ALWAYS:
        reply = await client.get(path)
        assert reply.header("Request-Id"), path
        assert reply.header("Cache-Control") == "no-store", path
        assert reply.header("Server") == "payflow", path


async def test_readiness_is_its_status(api: Api, client: Client) -> None:
    assert (await client.get("/readyz")).json() == {"ready": True, "checks": {"database": "UP"}}

    api.health.is_ready = False

    assert (await client.get("/readyz")).status == 503
    assert (await client.get("/livez")).status == 200


@pytest.mark.parametrize(("database", "status"), [("UP", 200), ("UNKNOWN", 200), ("DOWN", 503)])
async def test_health_is_503_only_while_the_database_is_down(
    api: Api, client: Client, database: str, status: int
) -> None:
    api.health.database = database

    assert (await client.get("/healthz")).status == status


async def test_a_breaker_is_shown_compactly(client: Client) -> None:
    assert (await client.get("/circuit-breaker/kafka-publisher")).body == b'{"state":"CLOSED"}'
    assert (await client.get("/circuit-breaker/status")).body == b'{"kafka-publisher":{"state":"CLOSED"}}'


async def test_a_problem_type_explains_itself(client: Client) -> None:
    for problem in (await client.get("/problems")).json()["problems"]:
        page = await client.get(problem["type"])
        assert (page.status, problem["code"] in page.body.decode()) == (200, True)
    assert_problem(await client.get("/problems/nope"), 404, "not-found")


async def test_docs_come_from_the_installed_package_alone(client: Client) -> None:
    page = (await client.get("/docs")).body.decode()

    assert "http" not in page.replace("https://", "http").split("<link")[0]
    for name, kind in (
        ("swagger-ui.css", "text/css"),
        ("swagger-ui-bundle.js", "text/javascript"),
        ("start.js", "text/javascript"),
    ):
        assert f"/docs/{name}" in page
        reply = await client.get(f"/docs/{name}")
        assert (reply.status, (reply.header("Content-Type") or "").split(";")[0]) == (200, kind)
    for name in ("swagger-editor.js", "..", "__init__.py", "%2e%2e%2fcore.py", ""):
        assert (await client.get(f"/docs/{name}")).status == 404


# ------------------------------------------------------------------ one request
async def test_an_answer_is_asked_for_with_100_continue(client: Client) -> None:
    client.write(
        b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    )
    assert (await client.read()).status == 100

    assert (await client.send(BODY)).status == 201


async def test_a_bad_head_is_refused_instead_of_100_continue(client: Client) -> None:
    head = (
        b"POST /payments HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Type: application/json\r\n"
        b"Content-Length: 70\r\n\r\n"
    )

    reply = await client.send(head)

    assert_problem(reply, 400, "idempotency-key-missing")
    assert reply.header("Connection") == "close"


async def test_a_body_that_comes_in_pieces_is_one_body(client: Client) -> None:
    client.write(
        b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    await asyncio.sleep(0)
    client.write(b"%x\r\n%b\r\n" % (20, BODY[:20]))
    await asyncio.sleep(0)
    client.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY) - 20, BODY[20:]))

    assert (await client.read()).status == 201


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.write(b"".join(b"GET %b HTTP/1.1\r\nHost: t\r\n\r\n" % path for path in (b"/livez", b"/nope", b"/info")))

    assert [(await client.read()).status for _ in range(3)] == [200, 404, 200]


async def test_a_client_that_hangs_up_changes_nothing(api: Api) -> None:
    api.service.gate = asyncio.Event()
    client = await api.client()
    client.write(
        b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
    )
    await until_waiting(api, 1)
    client.close()
    api.service.gate.set()

    async with asyncio.timeout(10):
        await api.server.requests_done()
    again = await (await api.client()).post("/payments", BODY, key="k")

    assert (again.status, again.header("Idempotent-Replayed")) == (201, "true")
    assert api.service.count == 1
    assert api.events == []


async def test_a_service_that_never_answers_is_an_unknown_outcome() -> None:
    async with running_api(limits=HttpLimits(request_timeout_s=0.05, body_read_timeout_s=0.01)) as api:
        api.service.gate = asyncio.Event()
        clients = [await api.client() for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            writes = [group.create_task(client.post("/payments", BODY)) for client in clients[:2]]
            read = group.create_task(clients[2].get("/payments"))

        for write in writes:
            assert_problem(write.result(), 503, "outcome-unknown")
        assert_problem(read.result(), 503, "unavailable")
        assert write.result().header("Retry-After") == "1"
        api.service.gate.set()
        assert (await clients[0].post("/payments", BODY)).status == 201


# ------------------------------------------------------------------ bounds of connections
async def test_a_connection_too_many_is_answered_503_and_closed_and_told_of_once() -> None:
    async with running_api(limits=HttpLimits(max_connections=10)) as api:
        kept = [await api.client() for _ in range(10)]
        for _ in range(3):
            surplus = await api.client()
            reply = await surplus.read()
            assert_problem(reply, 503, "too-many-connections")
            assert (reply.header("Connection"), reply.header("Retry-After")) == ("close", "1")
            assert await surplus.is_closed()
        assert (await kept[0].get("/livez")).status == 200
        assert [name for name, _ in api.events] == ["connections.refused"]
        assert api.refusals == ["too-many-connections"] * 3

        kept[0].close()
        async with asyncio.timeout(10):
            while len(api.events) < 2:
                await asyncio.sleep(0)

        assert api.events == [
            ("connections.refused", {"open": 10}),
            ("connections.admitted", {"open": 9, "refused_total": 3}),
        ]
        assert (await (await api.client()).get("/livez")).status == 200


@pytest.mark.parametrize(("files", "most"), [(128, 28), (50, 1), (resource.RLIM_INFINITY, 50)])
def test_connections_leave_files_for_the_databases(
    monkeypatch: pytest.MonkeyPatch, files: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    gate = Gate(50, emit=lambda *_, **__: None)

    assert sum(gate.enter() for _ in range(60)) == most


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: t\r\n"])
async def test_a_connection_that_sends_no_header_is_closed_early(sent: bytes) -> None:
    async with running_api(limits=HttpLimits(header_timeout_s=0.05)) as api:
        client = await api.client()
        client.write(sent)

        assert await client.is_closed()


async def test_after_the_first_request_keep_alive_counts() -> None:
    async with running_api(limits=HttpLimits(header_timeout_s=0.05)) as api:
        kept, silent = await api.client(), await api.client()
        assert (await kept.get("/livez")).status == 200

        assert await silent.is_closed()
        assert (await kept.get("/livez")).status == 200


# ------------------------------------------------------------------ drain and stop
async def test_after_unbind_the_port_is_closed_and_kept_connections_are_sent_away(api: Api, client: Client) -> None:
    assert (await client.get("/livez")).status == 200
    other = await api.client()
    assert (await other.get("/livez")).header("Connection") is None

    await api.server.unbind()

    reply = await client.post("/payments", BODY)
    assert_problem(reply, 503, "draining")
    assert (reply.header("Connection"), reply.header("Retry-After")) == ("close", "1")
    assert await client.is_closed()
    reply = await other.get("/livez")
    assert (reply.status, reply.header("Connection")) == (200, "close")
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await api.client()


async def test_requests_done_waits_for_the_last_answer(api: Api, client: Client) -> None:
    api.service.gate = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        post = group.create_task(client.post("/payments", BODY))
        await until_waiting(api, 1)
        await api.server.unbind()
        done = group.create_task(api.server.requests_done())
        await asyncio.sleep(0)
        assert not done.done()
        api.service.gate.set()

    reply = post.result()
    assert (reply.status, reply.header("Connection")) == (201, "close")


async def test_stop_closes_idle_connections_and_may_be_repeated(api: Api, client: Client) -> None:
    assert (await client.get("/livez")).status == 200

    await api.server.stop()
    await api.server.stop()

    assert await client.is_closed()


async def test_stop_does_not_wait_for_a_service_that_hangs(api: Api, client: Client) -> None:
    api.service.gate = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        post = group.create_task(client.is_closed())
        client.write(b"GET /payments HTTP/1.1\r\nHost: t\r\n\r\n")
        await until_waiting(api, 1)

        await api.server.stop()

    assert post.result()
    assert len(api.server._in_flight) == 0


async def test_a_front_that_was_stopped_starts_again(api: Api) -> None:
    await api.server.stop()

    api.port = await api.server.start()

    assert (await (await api.client()).post("/payments", BODY)).status == 201

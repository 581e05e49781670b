"""What goes over the wire, byte for byte: `Reply` serialises by itself, so an upgrade of aiohttp must not change any of
this.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from payflow.adapters.http_reply import Reply
from tests.support.api_server import BODY, Api, Client, running_api


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    async with running_api() as running:
        yield running


@pytest_asyncio.fixture
async def client(api: Api) -> Client:
    return await api.client()


async def raw_answer(client: Client, request: bytes) -> bytes:
    """Everything until the server closes."""
    client.write(request)
    return await client._reader.read()


async def test_a_whole_answer(client: Client) -> None:
    answer = await raw_answer(client, b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")

    date = rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"
    assert re.sub(date, b"Date: ...", answer) == (
        b"HTTP/1.1 200 OK\r\nServer: payflow\r\nCache-Control: no-store\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Request-Id: 00000000-0000-7000-8000-000000000001\r\nContent-Length: 3\r\nDate: ...\r\n"
        b"Connection: close\r\n\r\nOK\n"
    )


async def test_http_1_0_is_closed_unless_it_asks(client: Client, api: Api) -> None:
    answer = await raw_answer(client, b"GET /livez HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Connection: close" in answer

    kept = await (await api.client()).send(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert kept.header("Connection") == "keep-alive"


async def test_head_has_the_headers_of_get_and_no_body(client: Client) -> None:
    full = await client.get("/info")
    head = await client.get("/info", method="HEAD")

    assert (head.status, head.header("Content-Length")) == (200, str(len(full.body)))
    assert (await client.get("/livez")).body == b"OK\n"


async def test_metrics_are_aiohttps_own_response_with_our_headers(client: Client) -> None:
    reply = await client.get("/metrics")

    assert (reply.status, reply.body, reply.header("Server")) == (200, b"payflow_up 1\n", "payflow")
    assert (await client.get("/metrics?name=x")).status == 200


async def test_a_connection_is_kept_over_many_answers(client: Client) -> None:
    for number in range(50):
        reply = await client.post("/payments", BODY.replace(b"o-1", b"o-%d" % number))
        assert (reply.status, reply.header("Connection")) == (201, None)


async def test_a_long_list_is_written_whole(client: Client) -> None:
    for number in range(100):
        body = BODY.replace(b"o-1", b"o-%d" % number).replace(b"}", b',"description":"%b"}' % (b"\xc3\xa9" * 500))
        assert (await client.post("/payments", body)).status == 201

    reply = await client.get("/payments?limit=100")

    assert len(reply.json()["items"]) == 100
    assert len(reply.body) > 100_000


def test_a_header_value_with_a_line_end_is_a_bug() -> None:
    with pytest.raises(ValueError, match="line end"):
        Reply(200, b"", "text/plain", "id", (("Link", "a\r\nX: b"),))


async def test_a_reply_is_prepared_before_it_is_written() -> None:
    with pytest.raises(RuntimeError):
        await Reply(200, b"", "text/plain", "id").write_eof()

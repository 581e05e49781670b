"""Hostile and broken requests: each has its own answer, and none of them reaches the service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from payflow.adapters.http_api import HttpLimits
from tests.support.api_server import BODY, Api, Client, assert_problem, running_api

CARD = "4111111111111111"
NOBODY = "019ac0de-7c00-7a1b-8c2d-3e4f5a6b7c8d"
JSON_TYPE = ("Content-Type", "application/json")


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    async with running_api() as running:
        yield running
        assert running.service.submitted == [], "something bad reached the service"
        assert running.events == [], "something bad was taken for a bug"


@pytest_asyncio.fixture
async def client(api: Api) -> Client:
    return await api.client()


def with_amount(raw: str) -> bytes:
    return BODY.replace(b"12500", raw.encode())


def payment(**members: object) -> bytes:
    return json.dumps({"merchant_id": "m-1", "amount": 1, "currency": "EUR"} | members).encode()


# ------------------------------------------------------------------ amounts
@pytest.mark.parametrize(
    ("amount", "code"),
    [
        ("1.5", "not_an_integer"), ("1.0", "not_an_integer"), ("1e3", "not_an_integer"), ("1E0", "not_an_integer"),
        ("1e400", "not_an_integer"), ('"100"', "wrong_type"), ("true", "wrong_type"), ("null", "wrong_type"),
        ("[]", "wrong_type"),
        ("{}", "wrong_type"), ("0", "out_of_range"), ("-1", "out_of_range"), ("-0", "out_of_range"),
        (str(10**15 + 1), "out_of_range"),
        (str(2**64), "out_of_range"), ("9" * 400, "out_of_range"), ("9" * 60_000, "out_of_range"),
        ("-" + "9" * 5_000, "out_of_range"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
async def test_an_amount_that_is_no_integer_in_range_is_pointed_at(client: Client, amount: str, code: str) -> None:
    document = assert_problem(await client.post("/payments", with_amount(amount)), 422, "invalid-body")

    assert [(error["pointer"], error["code"]) for error in document["errors"]] == [("/amount", code)]


@pytest.mark.parametrize("amount", ["NaN", "Infinity", "-Infinity", "01", "+1", "1.", ".5", "0x10", "1_000", "nan"])
async def test_an_amount_that_is_no_json_is_malformed(client: Client, amount: str) -> None:
    assert_problem(await client.post("/payments", with_amount(amount)), 400, "malformed-json")


# ------------------------------------------------------------------ bodies that are no JSON, or more than JSON
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed-json"),
        (b"{", 400, "malformed-json"),
        (b'{"merchant_id"', 400, "malformed-json"),
        (b"hello", 400, "malformed-json"),
        (BODY + b"x", 400, "malformed-json"),
        (BODY + BODY, 400, "malformed-json"),
        (b"\xef\xbb\xbf" + BODY, 400, "malformed-json"),
        (BODY.decode().encode("utf-16"), 400, "malformed-json"),
        (BODY.replace(b"}", b",}"), 400, "malformed-json"),
        (b'{"merchant_id":"\x01"}', 400, "malformed-json"),
        (b"\0" * 1000, 400, "malformed-json"),
        (b"null", 422, "invalid-body"),
        (b"[]", 422, "invalid-body"),
        (b"{}", 422, "invalid-body"),
        (b'"' + b"a" * 65_000 + b'"', 422, "invalid-body"),
        (BODY.replace(b"12500", b'12500,"amount":12500'), 400, "duplicate-member"),
        (BODY.replace(b"12500", b'12500,"am\\u006funt":1'), 400, "duplicate-member"),
        (payment(metadata={"a": "1"}).replace(b'"1"', b'"1","a":"2"'), 400, "duplicate-member"),
        (payment(metadata={"a": "1"}).replace(b'"1"', b'"1","\\u0061":"2"'), 400, "duplicate-member"),
        (BODY.replace(b"12500", b'1.5,"amount":12500'), 400, "duplicate-member"),
        (payment(description="#").replace(b"#", b"\\ud800"), 400, "invalid-unicode"),
        (payment(description="#").replace(b"#", b"\\udc00"), 400, "invalid-unicode"),
        (payment(description="#").replace(b"#", b"\\ud800\\u0041"), 400, "invalid-unicode"),
        (payment(description="#").replace(b"#", b"\xed\xa0\x80"), 400, "invalid-unicode"),
        (payment(description="#").replace(b"#", b"\xff"), 400, "invalid-unicode"),
        (payment(description="#").replace(b"#", b"\xc0\xaf"), 400, "invalid-unicode"),
        (payment(metadata={"#": "x"}).replace(b"#", b"\\udfff"), 400, "invalid-unicode"),
        (payment(description="a\0b"), 400, "invalid-unicode"),
        (b"[" * 60_000, 400, "nesting-too-deep"),
        (b'{"a":' * 10_000, 400, "nesting-too-deep"),
        (payment(metadata={"a": [[1]]}), 400, "nesting-too-deep"),
        (payment(x=1).replace(b"1}", b"[" * 60_000), 400, "nesting-too-deep"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_each_broken_body_has_its_own_answer(client: Client, body: bytes, status: int, code: str) -> None:
    assert_problem(await client.post("/payments", body), status, code)


# ------------------------------------------------------------------ the schema
async def test_every_bad_member_is_pointed_at(client: Client) -> None:
    body = payment(
        merchant_id="m 1", currency="eur", order_id="", description="x" * 501, foo=1,
        metadata={"a/b~c": 1, "k" * 41: "x", "": "y"},
    )  # fmt: skip

    document = assert_problem(await client.post("/payments", body), 422, "invalid-body")

    assert {(error["pointer"], error["code"]) for error in document["errors"]} == {
        ("/merchant_id", "wrong_form"), ("/currency", "unknown_currency"), ("/order_id", "too_short"),
        ("/description", "too_long"),
        ("/metadata/a~1b~0c", "wrong_type"), ("/metadata", "too_long"), ("/metadata/", "too_short"),
        ("/foo", "unknown"),
    }  # fmt: skip


async def test_missing_members_are_pointed_at(client: Client) -> None:
    document = assert_problem(await client.post("/payments", b"{}"), 422, "invalid-body")

    assert [error["pointer"] for error in document["errors"]] == ["/merchant_id", "/amount", "/currency"]


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("merchant_id", "x" * 65), ("merchant_id", ""), ("merchant_id", "m-1\n"), ("merchant_id", "mé"),
        ("merchant_id", None),
        ("currency", "EURO"), ("currency", "XXX"), ("currency", "DEM"), ("currency", "EUR\n"), ("currency", ""),
        ("currency", 978),
        ("order_id", "x" * 65), ("order_id", 7), ("description", ["x"]), ("metadata", []), ("metadata", "x"),
        ("metadata", {str(number): "x" for number in range(21)}),
    ],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
async def test_each_limit_holds(client: Client, member: str, value: object) -> None:
    document = assert_problem(await client.post("/payments", payment(**{member: value})), 422, "invalid-body")

    assert [error["pointer"] for error in document["errors"]] == [f"/{member}"]


async def test_errors_are_bounded(client: Client) -> None:
    body = payment(**{f"unknown{number}": 1 for number in range(3000)})

    reply = await client.post("/payments", body)

    assert len(assert_problem(reply, 422, "invalid-body")["errors"]) == 20
    assert len(reply.body) < 4096


@pytest.mark.parametrize(
    ("action", "body", "pointer"),
    [
        ("capture", b'{"amount":0}', "/amount"), ("capture", b'{"amount":null}', "/amount"),
        ("capture", b'{"reason":"x"}', "/reason"),
        ("refund", b"{}", "/reason"), ("refund", b'{"reason":""}', "/reason"),
        ("refund", b'{"reason":null}', "/reason"),
        ("refund", b'{"reason":"%b"}' % (b"x" * 501), "/reason"), ("refund", b'{"reason":"x","amount":1e2}', "/amount"),
        ("void", b'{"amount":1}', "/amount"),
    ],
)  # fmt: skip
async def test_bodies_of_the_other_writes_are_checked(client: Client, action: str, body: bytes, pointer: str) -> None:
    document = assert_problem(await client.post(f"/payments/{NOBODY}/{action}", body), 422, "invalid-body")

    assert [error["pointer"] for error in document["errors"]] == [pointer]


async def test_a_refund_needs_a_body(client: Client) -> None:
    assert_problem(await client.post(f"/payments/{NOBODY}/refund"), 400, "malformed-json")


# ------------------------------------------------------------------ card numbers
@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"description": f"card {CARD}"}, "/description"),
        ({"description": "card 4111-1111-1111-1111 ok"}, "/description"),
        ({"description": "ref 42 4111 1111 1111 1111"}, "/description"),
        ({"description": "\uff14" + "\uff11" * 15}, "/description"),
        ({"order_id": CARD}, "/order_id"),
        ({"merchant_id": CARD}, "/merchant_id"),
        ({"metadata": {"note": CARD}}, "/metadata/note"),
        ({"metadata": {CARD: "note"}}, "/metadata"),
        ({"metadata": {"tab": "a\t" + CARD}}, "/metadata/tab"),
    ],
)
async def test_a_card_number_is_refused_without_an_echo(
    api: Api, client: Client, members: dict[str, object], pointer: str
) -> None:
    reply = await client.post("/payments", payment(**members))

    document = assert_problem(reply, 422, "card-number")
    assert [error["pointer"] for error in document["errors"]] == [pointer]
    assert b"4111" not in reply.body
    assert "\uff14".encode() not in reply.body
    assert api.events == []


async def test_a_card_number_in_a_reason_is_refused(client: Client) -> None:
    reply = await client.post(f"/payments/{NOBODY}/refund", b'{"reason":"back to 4111 1111 1111 1111"}')

    assert assert_problem(reply, 422, "card-number")["errors"][0]["pointer"] == "/reason"


async def test_no_error_echoes_a_card_number(client: Client) -> None:
    for body in (payment(**{CARD: 1}), payment(metadata={CARD: 1}), payment(currency=CARD), payment(amount=CARD)):
        reply = await client.post("/payments", body)

        assert_problem(reply, 422, "invalid-body")
        assert CARD.encode() not in reply.body
    assert CARD.encode() not in (await client.get(f"/payments?{CARD}={CARD}&status={CARD}&cursor={CARD}")).body


# ------------------------------------------------------------------ headers
@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ([], "missing"), (["a", "b"], "repeated"), (["a", "a"], "repeated"), ([""], "malformed"),
        (["x" * 256], "malformed"),
        (["a b"], "malformed"), (["é"], "malformed"), (['"a'], "malformed"), (['""'], "malformed"),
        (["a\tb"], "malformed"),
    ],
)  # fmt: skip
async def test_a_request_has_one_good_key(client: Client, keys: list[str], code: str) -> None:
    headers = [JSON_TYPE, *(("Idempotency-Key", key) for key in keys)]

    document = assert_problem(
        await client.post("/payments", BODY, key=None, headers=headers), 400, f"idempotency-key-{code}"
    )

    assert document["errors"][0]["header"] == "Idempotency-Key"


async def test_a_control_character_in_a_header_is_malformed_http(client: Client) -> None:
    reply = await client.post("/payments", BODY, key="a\x01b")

    assert_problem(reply, 400, "malformed-http")
    assert reply.header("Connection") == "close"


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "multipart/form-data", "application/json; charset=latin-1", "json", "application/jsonx"],
)
async def test_another_content_type_is_refused(client: Client, content_type: str) -> None:
    reply = await client.post("/payments", BODY, headers=(("Content-Type", content_type),))

    assert_problem(reply, 415, "unsupported-media-type")
    assert reply.header("Accept") == "application/json"


async def test_a_body_without_content_type_is_refused(client: Client) -> None:
    assert_problem(await client.post("/payments", BODY, headers=()), 415, "unsupported-media-type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "zstd"])
async def test_a_compressed_body_is_refused(client: Client, encoding: str) -> None:
    reply = await client.post("/payments", BODY, headers=(JSON_TYPE, ("Content-Encoding", encoding)))

    assert_problem(reply, 415, "unsupported-content-encoding")


async def test_a_wrong_method_is_told_the_right_ones(client: Client) -> None:
    for path, allow in (
        ("/payments", "GET, HEAD, POST"),
        (f"/payments/{NOBODY}/void", "POST"),
        ("/livez", "GET, HEAD"),
    ):
        reply = await client.get(path, method="DELETE")

        assert_problem(reply, 405, "method-not-allowed")
        assert reply.header("Allow") == allow


# ------------------------------------------------------------------ queries
@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("limit=", "limit"),
        ("limit=%31%30%30%30", "limit"),
        ("limit=1&limit=2", "limit"), ("status=authorized", "status"), ("merchant_id=a%20b", "merchant_id"),
        ("merchant_id=", "merchant_id"),
        ("from=yesterday", "from"), ("from=2026-01-01", "from"), ("from=2026-01-01T00:00:00", "from"),
        ("to=2026-13-01T00:00:00Z", "to"),
        ("from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z", "to"), ("from=0001-01-01T00:00:00%2B14:00", "from"),
        ("foo=1", "foo"),
        ("%00=1", ""), ("limit=%EF%BC%91", "limit"),
    ],
)  # fmt: skip
async def test_a_bad_parameter_is_named(client: Client, query: str, parameter: str) -> None:
    document = assert_problem(await client.get(f"/payments?{query}"), 400, "invalid-query")

    assert [error["parameter"] for error in document["errors"]] == [parameter]


async def test_a_query_that_cannot_be_read_is_refused(client: Client) -> None:
    assert_problem(await client.get("/payments?merchant_id=%ff"), 400, "invalid-query")
    assert_problem(await client.get("/payments?" + "a=1&" * 100), 400, "invalid-query")


@pytest.mark.parametrize(
    "cursor", ["", "x", "AAAA", "A" * 5000, "AAAAAHABCDEFGH", "%C3%A9", "==", "AAAAAA==", "....", "%00"]
)
async def test_a_cursor_that_is_not_ours_is_refused(client: Client, cursor: str) -> None:
    assert_problem(await client.get(f"/payments?cursor={cursor}"), 400, "invalid-cursor")


async def test_routes_without_parameters_take_none(client: Client) -> None:
    assert_problem(await client.get(f"/payments/{NOBODY}?x=1"), 400, "invalid-query")
    assert_problem(await client.post("/payments?x=1", BODY), 400, "invalid-query")
    assert_problem(await client.get("/ledger/trial-balance?limit=1"), 400, "invalid-query")


# ------------------------------------------------------------------ size, time, framing
async def test_a_body_at_the_limit_is_read_and_one_byte_more_is_not(client: Client, api: Api) -> None:
    at_limit = BODY + b" " * (65_536 - len(BODY) - 1) + b"x"
    assert_problem(await client.post("/payments", at_limit), 400, "malformed-json")

    reply = await client.post("/payments", at_limit + b" ")

    assert_problem(reply, 413, "body-too-large")
    assert reply.header("Connection") == "close"


async def test_a_large_body_is_refused_before_it_is_sent(client: Client) -> None:
    head = (
        b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        b"Content-Length: 1000000000000\r\n"
    )

    assert_problem(await client.send(head + b"\r\n"), 413, "body-too-large")


async def test_a_large_chunked_body_is_cut_off(client: Client) -> None:
    head = (
        b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    client.write(head + b"".join(b"1000\r\n" + b"x" * 0x1000 + b"\r\n" for _ in range(40)))

    assert_problem(await client.read(), 413, "body-too-large")


async def test_a_slow_body_is_given_up() -> None:
    async with running_api(limits=HttpLimits(body_read_timeout_s=0.05)) as api:
        client = await api.client()
        client.write(
            b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )

        reply = await client.read()

        assert assert_problem(reply, 408, "body-timeout")["retryable"] is True
        assert reply.header("Connection") == "close"
        assert await client.is_closed()
        assert api.service.submitted == []


async def test_a_broken_chunk_is_named(client: Client) -> None:
    client.write(
        b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    )

    reply = await client.read()

    assert (reply.status, reply.json()["code"]) in {(400, "body-incomplete"), (400, "malformed-http")}
    assert reply.header("Connection") == "close"


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nBad Header: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"X: " + b"y" * 9000 + b"\r\n\r\n",
        b"POST /payments HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /payments HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /payments HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=lambda raw: repr(raw)[:30],
)  # fmt: skip
async def test_what_is_not_http_is_refused_and_closed(client: Client, raw: bytes) -> None:
    reply = await client.send(raw)

    assert_problem(reply, 400, "malformed-http")
    assert reply.header("Connection") == "close"
    assert await client.is_closed()


async def test_an_unknown_expectation_is_refused(client: Client) -> None:
    head = (
        b"POST /payments HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nIdempotency-Key: k\r\n"
        b"Content-Length: 70\r\nExpect: 200-ok\r\n\r\n"
    )

    assert_problem(await client.send(head), 417, "expectation-failed")

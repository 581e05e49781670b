"""The payments API from outside: what each route answers when the request is a good one, and what the service's
refusals become.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from payflow.errors import OutcomeUnknown, Overloaded, StoreBusy, StoreUnavailable
from tests.support.api_server import BODY, Api, Client, assert_problem, running_api

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
NOBODY = "019ac0de-7c00-7a1b-8c2d-3e4f5a6b7c8d"


@pytest_asyncio.fixture
async def api() -> AsyncIterator[Api]:
    async with running_api() as running:
        yield running


@pytest_asyncio.fixture
async def client(api: Api) -> Client:
    return await api.client()


async def created(client: Client) -> str:
    location = (await client.post("/payments", BODY, key="create")).header("Location")
    assert location is not None
    return location


# ------------------------------------------------------------------ writes
async def test_a_payment_is_created_with_its_place(client: Client) -> None:
    reply = await client.post("/payments", BODY)

    payment = reply.json()
    assert reply.status == 201
    assert reply.header("Location") == f"/payments/{payment['id']}"
    assert reply.header("Content-Type") == "application/json"
    assert reply.header("Cache-Control") == "no-store"
    assert reply.header("Idempotent-Replayed") is None
    assert (payment["status"], payment["amount"], payment["currency"], payment["version"]) == (
        "AUTHORIZED",
        12500,
        "EUR",
        1,
    )
    assert list(payment) == [
        "id", "merchant_id", "order_id", "amount", "currency", "status", "captured_amount", "refunded_amount",
        "description",
        "metadata", "created_at", "updated_at", "version",
    ]  # fmt: skip


async def test_the_same_request_again_gets_the_same_bytes(api: Api, client: Client) -> None:
    first = await client.post("/payments", BODY, key="k-1")

    again = await client.post("/payments", BODY, key="k-1")

    assert (again.status, again.body, again.header("Location")) == (201, first.body, first.header("Location"))
    assert again.header("Idempotent-Replayed") == "true"
    assert again.header("Request-Id") != first.header("Request-Id")
    assert api.service.count == 1


async def test_a_quoted_key_is_the_same_key(client: Client) -> None:
    await client.post("/payments", BODY, key="k-1")

    assert (await client.post("/payments", BODY, key='"k-1"')).header("Idempotent-Replayed") == "true"


async def test_a_used_key_with_another_body_is_refused(api: Api, client: Client) -> None:
    await client.post("/payments", BODY, key="k-1")

    reply = await client.post("/payments", BODY.replace(b"12500", b"12501"), key="k-1")

    assert_problem(reply, 422, "idempotency-key-reused")
    assert api.service.count == 1


async def test_the_fingerprint_covers_method_path_and_raw_body(api: Api, client: Client) -> None:
    location = await created(client)
    await client.post(f"{location}/capture", b"{}", key="a")

    reply = await client.post(f"{location}/capture", b"{ }", key="a")

    assert_problem(reply, 422, "idempotency-key-reused")
    assert len({one.fingerprint for one in api.service.submitted}) == 3


async def test_an_order_that_was_paid_is_refused_with_a_link(client: Client) -> None:
    location = await created(client)

    reply = await client.post("/payments", BODY)

    assert assert_problem(reply, 409, "order-exists")["payment"] == location
    assert reply.header("Link") == f'<{location}>; rel="related"'


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_a_capture_without_amount_takes_all(client: Client, body: bytes) -> None:
    reply = await client.post(f"{await created(client)}/capture", body)

    assert reply.status == 200
    assert reply.header("Location") is None
    assert (reply.json()["status"], reply.json()["captured_amount"]) == ("CAPTURED", 12500)


async def test_an_empty_body_needs_no_content_type(client: Client) -> None:
    assert (await client.post(f"{await created(client)}/void", headers=())).json()["status"] == "VOIDED"


async def test_capture_refund_and_void_replay_too(client: Client) -> None:
    location = await created(client)
    for path, body in (
        (f"{location}/capture", b'{"amount":500}'),
        (f"{location}/refund", b'{"amount":5,"reason":"x"}'),
    ):
        first = await client.post(path, body, key="k")

        again = await client.post(path, body, key="k")

        assert (again.status, again.body, again.header("Idempotent-Replayed")) == (200, first.body, "true")


async def test_a_state_that_forbids_is_named(client: Client) -> None:
    location = await created(client)
    await client.post(f"{location}/capture")

    document = assert_problem(await client.post(f"{location}/void"), 409, "illegal-transition")

    assert (document["current_status"], document["payment"]) == ("CAPTURED", location)


async def test_over_capture_says_what_is_left(client: Client) -> None:
    location = await created(client)
    await client.post(f"{location}/capture", b'{"amount":2500}')

    document = assert_problem(await client.post(f"{location}/capture", b'{"amount":10001}'), 422, "amount-exceeds")

    assert (document["left"], document["currency"], document["current_status"]) == (10000, "EUR", "PARTIALLY_CAPTURED")


async def test_over_refund_says_what_is_left(client: Client) -> None:
    location = await created(client)
    await client.post(f"{location}/capture", b'{"amount":2500}')

    document = assert_problem(
        await client.post(f"{location}/refund", b'{"amount":2501,"reason":"x"}'), 422, "amount-exceeds"
    )

    assert document["left"] == 2500


@pytest.mark.parametrize("action", ["capture", "refund", "void"])
@pytest.mark.parametrize("payment", [NOBODY, NOBODY.upper(), "1", "x" * 5000, "..", "%2e"])
async def test_an_unknown_or_malformed_id_is_not_found(client: Client, action: str, payment: str) -> None:
    body = b'{"reason":"x"}' if action == "refund" else b""

    assert_problem(await client.post(f"/payments/{payment}/{action}", body), 404, "payment-not-found")


async def test_traceparent_is_passed_on_only_when_it_is_valid(api: Api, client: Client) -> None:
    for number, value in enumerate((TRACE, "00-" + "0" * 32 + "-00f067aa0ba902b7-01", TRACE.upper(), TRACE + "-x", "")):
        body = BODY.replace(b"o-1", b"o-%d" % number)
        headers = (("Content-Type", "application/json"), ("traceparent", value))
        assert (await client.post("/payments", body, headers=headers)).status == 201

    assert [one.traceparent for one in api.service.submitted] == [TRACE, None, None, None, None]


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", 'application/json;charset="UTF-8"']
)
async def test_spellings_of_json_are_taken(client: Client, content_type: str) -> None:
    assert (await client.post("/payments", BODY, headers=(("Content-Type", content_type),))).status == 201


async def test_null_is_as_good_as_absent_for_texts(client: Client) -> None:
    body = b'{"merchant_id":"m-1","amount":1,"currency":"JPY","order_id":null,"description":null,"metadata":null}'

    payment = (await client.post("/payments", body)).json()

    assert (payment["order_id"], payment["description"], payment["metadata"]) == (None, None, {})


async def test_text_of_any_script_comes_back_as_it_went(client: Client) -> None:
    body = (
        '{"merchant_id":"m-1","amount":1,"currency":"JPY","description":"\\ud83d\\ude00 \u00e9 \\"\\\\ 결제"}'.encode()
    )

    assert (await client.post("/payments", body)).json()["description"] == '😀 é "\\ 결제'


# ------------------------------------------------------------------ reads
async def test_a_payment_is_shown_with_its_timeline(client: Client) -> None:
    location = await created(client)
    await client.post(f"{location}/capture")

    payment = (await client.get(location)).json()

    assert [event["type"] for event in payment["events"]] == ["payment.authorized", "payment.captured"]
    assert list(payment["events"][0]) == [
        "id", "type", "at", "amount", "outbox", "partition", "offset", "published_at", "booked_at",
    ]  # fmt: skip
    assert (payment["events"][0]["outbox"], payment["events"][0]["booked_at"]) == ("pending", None)


async def test_a_list_is_walked_page_by_page(client: Client) -> None:
    for number in range(5):
        await client.post("/payments", BODY.replace(b"o-1", b"o-%d" % number))
    path, seen = "/payments?merchant_id=m-1&limit=2", []

    while path:
        reply = await client.get(path)
        page = reply.json()
        seen += [payment["order_id"] for payment in page["items"]]
        link = reply.header("Link")
        assert (link is None) == (page["next_cursor"] is None)
        path = link[1 : link.index(">")] if link else ""

    assert seen == ["o-4", "o-3", "o-2", "o-1", "o-0"]


async def test_a_list_is_filtered(client: Client) -> None:
    location = await created(client)
    await client.post("/payments", BODY.replace(b"o-1", b"o-2"))
    await client.post(f"{location}/capture")
    captured = (await client.get("/payments?status=CAPTURED")).json()["items"]

    assert [payment["order_id"] for payment in captured] == ["o-1"]
    assert (await client.get("/payments?merchant_id=other")).json() == {"items": [], "next_cursor": None}
    assert len((await client.get(f"/payments?from={captured[0]['created_at']}")).json()["items"]) == 2
    assert (await client.get(f"/payments?to={captured[0]['created_at']}")).json()["items"] == []
    assert len((await client.get("/payments?from=2020-01-01T00:00:00+09:00")).json()["items"]) == 2


async def test_the_ledger_is_shown(client: Client) -> None:
    location = await created(client)
    await client.post(f"{location}/capture", b'{"amount":700}')

    entries = (await client.get(f"/ledger{location}")).json()

    assert entries["payment_id"] == location.removeprefix("/payments/")
    assert entries["entries"][0]["postings"] == [
        {"account": "cash", "side": "debit", "amount": 700, "currency": "EUR"},
        {"account": "merchant_payable:m-1", "side": "credit", "amount": 700, "currency": "EUR"},
    ]
    assert (await client.get("/ledger/trial-balance")).json() == {
        "currencies": [{"currency": "EUR", "debit": 700, "credit": 700, "balanced": True}]
    }


async def test_accounts_are_walked_page_by_page(client: Client) -> None:
    await client.post(f"{await created(client)}/capture")

    first = (await client.get("/ledger/accounts?limit=1")).json()
    second = (await client.get(f"/ledger/accounts?limit=1&cursor={first['next_cursor']}")).json()

    assert [one["account"] for one in (*first["items"], *second["items"])] == ["cash", "merchant_payable:m-1"]
    assert second["next_cursor"] is None


async def test_unknown_things_are_not_found(client: Client) -> None:
    assert_problem(await client.get(f"/payments/{NOBODY}"), 404, "payment-not-found")
    assert_problem(await client.get("/payments/1"), 404, "payment-not-found")
    assert_problem(await client.get("/ledger/payments/1"), 404, "payment-not-found")
    assert_problem(await client.get("/circuit-breaker/nope"), 404, "breaker-not-found")
    for path in ("/", "/payment", "/payments/", "/payments//capture/", f"/payments/{NOBODY}/pay", "//", "/docs/../etc"):
        assert (await client.get(path)).status == 404, path


# ------------------------------------------------------------------ when the service cannot
@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (Overloaded(retry_after_s=1.2), "overloaded", "2"),
        (OutcomeUnknown(retry_after_s=0.0), "outcome-unknown", "1"),
        (StoreBusy(), "unavailable", "1"),
        (StoreUnavailable(), "unavailable", "1"),
    ],
)
async def test_a_service_that_cannot_is_503_with_retry_after(
    api: Api, client: Client, error: Exception, code: str, retry_after: str
) -> None:
    api.service.fail_with = error

    reply = await client.post("/payments", BODY)

    assert assert_problem(reply, 503, code)["retryable"] is True
    assert reply.header("Retry-After") == retry_after
    assert api.events == []


async def test_a_bug_is_500_without_details_and_an_event(api: Api, client: Client) -> None:
    api.service.fail_with = RuntimeError("secret: 4111111111111111")

    reply = await client.post("/payments", BODY)

    assert_problem(reply, 500, "internal-error")
    assert b"4111" not in reply.body
    ((name, fields),) = api.events
    assert (name, fields["route"], fields["error_type"]) == ("request.failed", "/payments", "RuntimeError")
    assert fields["error"] == str(api.service.fail_with)
    assert "in submit" in str(fields["traceback"])
    assert "EUR" not in str(fields["traceback"]), "no values of the payment"
    api.service.fail_with = None
    assert (await client.post("/payments", BODY)).status == 201


async def test_every_request_is_observed_with_bounded_labels(api: Api, client: Client) -> None:
    await created(client)
    await client.get(f"/payments/{NOBODY}")
    await client.get("/nope/" + "x" * 100)
    await client.get("/payments", method="PURGE")

    assert api.observed == [
        ("/payments", "POST", 201), ("/payments/{id}", "GET", 404), ("unmatched", "GET", 404),
        ("/payments", "OTHER", 405),
    ]  # fmt: skip
    assert api.refusals == ["payment-not-found", "not-found", "method-not-allowed"]


async def test_64_equal_requests_at_once_make_one_payment(api: Api) -> None:
    clients = [await api.client() for _ in range(64)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.post("/payments", BODY, key="one")) for client in clients]

    replies = [task.result() for task in tasks]
    assert {reply.status for reply in replies} == {201}
    assert len({reply.body for reply in replies}) == 1
    assert sum(reply.header("Idempotent-Replayed") is None for reply in replies) == 1
    assert api.service.count == 1


async def test_the_service_hears_the_id_that_the_client_is_told(api: Api, client: Client) -> None:
    reply = await client.post("/payments", BODY)

    assert api.service.request_ids == [reply.header("Request-Id")]

"""Random bodies over the wire: never a 5xx, always a problem document or a success, and what was accepted comes back as
it went.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payflow.adapters import problems
from tests.support.api_server import Api, Client, Reply, running_api


class Driver:
    """A loop of its own, so that one server lives through all examples."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._context = running_api()
        self.api: Api = self._runner.run(self._context.__aenter__())
        self._client: Client | None = None

    def post(self, path: str, body: bytes) -> Reply:
        return self._runner.run(self._post(path, body))

    async def _post(self, path: str, body: bytes) -> Reply:
        if self._client is None:
            self._client = await self.api.client()
        reply = await self._client.post(path, body)
        if reply.header("Connection") == "close":
            self._client = None
        return reply

    def close(self) -> None:
        self._runner.run(self._context.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver()
    yield made
    made.close()


def check(reply: Reply) -> None:
    if reply.status not in {200, 201}:
        document = reply.json()
        kind = problems.BY_CODE[document["code"]]
        assert 400 <= reply.status < 500
        assert (reply.status, document["status"], document["type"]) == (kind.status, kind.status, kind.type)
        assert reply.header("Content-Type") == problems.CONTENT_TYPE
        assert len(reply.body) < 8192


TEXTS = st.text(max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["merchant_id", "amount", "currency", "order_id", "description", "metadata", "reason"])
PATHS = st.sampled_from(
    ["/payments", *(f"/payments/019ac0de-7c00-7a1b-8c2d-3e4f5a6b7c8d/{one}" for one in ("capture", "refund", "void"))]
)


@given(PATHS, st.binary(max_size=200))
def test_any_bytes_are_answered(driver: Driver, path: str, body: bytes) -> None:
    check(driver.post(path, body))


@given(PATHS, st.dictionaries(NAMES | TEXTS, VALUES, max_size=6) | VALUES)
def test_any_json_is_answered(driver: Driver, path: str, value: object) -> None:
    check(driver.post(path, json.dumps(value).encode()))


@given(PATHS, st.text(alphabet='{}[]":,\\u0ad8e1. \n-merchant_idcuy', max_size=120))
def test_any_text_like_json_is_answered(driver: Driver, path: str, text: str) -> None:
    check(driver.post(path, text.encode()))


# Every text that is allowed: no surrogates, no U+0000. Digits are left to the tests of core/pan.py.
PLAIN = st.characters(exclude_categories=("Cs", "Nd"), exclude_characters="\0")


@settings(deadline=None)
@given(
    merchant_id=st.text(alphabet="abcXYZ._-", min_size=1, max_size=64),
    amount=st.integers(min_value=1, max_value=10**15),
    currency=st.sampled_from(["EUR", "KRW", "KWD", "CLF"]),
    description=st.none() | st.text(PLAIN, max_size=500),
    metadata=st.dictionaries(st.text(PLAIN, min_size=1, max_size=40), st.text(PLAIN, max_size=60), max_size=20),
    ensure_ascii=st.booleans(),
)
def test_what_is_accepted_comes_back_as_it_went(
    driver: Driver,
    merchant_id: str,
    amount: int,
    currency: str,
    description: str | None,
    metadata: dict[str, str],
    ensure_ascii: bool,
) -> None:
    sent = {
        "merchant_id": merchant_id, "amount": amount, "currency": currency, "description": description,
        "metadata": metadata,
    }  # fmt: skip

    reply = driver.post("/payments", json.dumps(sent, ensure_ascii=ensure_ascii).encode())

    assert reply.status == 201
    assert {name: reply.json()[name] for name in sent} == sent

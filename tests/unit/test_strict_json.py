"""strict_json against the standard library as judge, and its bounds in tokens and time."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payflow.adapters import strict_json
from payflow.adapters.http_types import CaptureRequest, PaymentRequest, RefundRequest, VoidRequest
from payflow.adapters.problems import Refused

PAYMENT = msgspec.json.Decoder(PaymentRequest)
MEMBERS = {"merchant_id": '"m"', "amount": "1", "currency": '"EUR"'}


def code_of(body: bytes) -> str | None:
    try:
        strict_json.decode(PAYMENT, body)
    except Refused as refused:
        return refused.problem.code
    except msgspec.ValidationError:
        return "schema"
    return None


def has_duplicates(body: bytes) -> bool:
    found = False

    def pairs(members: list[tuple[str, object]]) -> dict[str, object]:
        nonlocal found
        found = found or len({name for name, _ in members}) < len(members)
        return dict(members)

    json.loads(body, object_pairs_hook=pairs)
    return found


def document(members: list[tuple[str, str]]) -> bytes:
    return ("{" + ",".join(f'"{name}":{value}' for name, value in members) + "}").encode()


@given(
    st.lists(
        st.sampled_from(
            [
                ("merchant_id", '"m"'), ("amount", "1"), ("currency", '"EUR"'), ("order_id", "null"),
                ("order_id", '"o"'),
                ("description", '"a b"'), ("description", r'"\""'), ("metadata", "null"), ("metadata", "{}"),
                ("metadata", '{"a":""}'),
                ("metadata", '{"a":"x","a":"y"}'), ("metadata", r'{"a":"x","\u0061":"y"}'), ("am\\u006funt", "1"),
            ]
        ),
        max_size=8,
    )
)  # fmt: skip
def test_a_body_is_taken_exactly_when_no_member_occurs_twice(extra: list[tuple[str, str]]) -> None:
    body = document([*MEMBERS.items(), *extra])

    assert code_of(body) == ("duplicate-member" if has_duplicates(body) else None)


@given(
    st.text(max_size=40),
    st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=8), max_size=5),
    st.booleans(),
)
def test_any_text_is_taken_as_it_is(text: str, metadata: dict[str, str], ascii_only: bool) -> None:
    everything = text + "".join((*metadata, *metadata.values()))
    value = {"merchant_id": "m", "amount": 1, "currency": "EUR", "description": text, "metadata": metadata}
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    if "\0" in everything or any("\ud800" <= one <= "\udfff" for one in everything):
        assert code_of(body) == "invalid-unicode"
    else:
        decoded = strict_json.decode(PAYMENT, body)
        assert (decoded.description, decoded.metadata) == (text, metadata)


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (CaptureRequest, b'{"amount":1,"amount":2}'),
        (RefundRequest, b'{"reason":"a","reason":"b"}'),
        (RefundRequest, b'{"reason":"a","amount":1,"amount":1}'),
    ],
)
def test_each_request_type_counts_its_strings(shape: type[CaptureRequest | RefundRequest], body: bytes) -> None:
    with pytest.raises(Refused) as raised:
        strict_json.decode(msgspec.json.Decoder(shape), body)

    assert raised.value.problem.code == "duplicate-member"


def test_each_request_type_without_duplicates_is_taken() -> None:
    assert strict_json.decode(msgspec.json.Decoder(VoidRequest), b" {} ") == VoidRequest()
    assert strict_json.decode(msgspec.json.Decoder(CaptureRequest), b"{}") == CaptureRequest()
    assert strict_json.decode(msgspec.json.Decoder(RefundRequest), b'{"reason":"a","amount":1}').amount == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"\\', "malformed-json"),
        (b'{"merchant_id":"\\q"}', "malformed-json"),
        (b'{"merchant_id":"\\u12"}', "malformed-json"),
        (b'}}}}"', "malformed-json"),
        (b'{"a":{"b":{"c":1}}}', "nesting-too-deep"),
        (b'"\\ud83d\\ude00"', "schema"),
        (b"[[]]", "schema"),
        (b"[[[", "nesting-too-deep"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, code: str) -> None:
    assert code_of(body) == code


def test_only_the_first_tokens_are_looked_at() -> None:
    many = b'"a",' * strict_json.TOKENS_MAX

    assert strict_json.fault(b"[" + many + b'{"x":1,"x":2}]') is None
    assert strict_json.fault(b"[" + b'"' + b"\\\\" * 32_000 + b'"]') is None


@given(st.binary(max_size=300))
def test_fault_never_raises(body: bytes) -> None:
    strict_json.fault(body)


@given(st.text(alphabet='{}[]":,\\u0a1d8e. \n', max_size=120))
def test_text_like_json_never_raises_anything_else(text: str) -> None:
    code_of(text.encode())

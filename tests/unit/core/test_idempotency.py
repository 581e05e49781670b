"""Idempotency keys: form, scope, judgement."""

from __future__ import annotations

import pytest

from payflow.core.idempotency import (
    SCOPE_BYTES,
    Conflict,
    First,
    Replay,
    StoredKey,
    judge,
    normalise_key,
    scope_of,
)

STORED = StoredKey(b"f" * 32, b"p" * 16, 1, b"{}")


def test_a_new_key_is_first() -> None:
    assert First() == judge(b"f" * 32, None)


def test_the_same_request_is_a_replay() -> None:
    assert Replay(STORED) == judge(b"f" * 32, STORED)


def test_another_request_is_a_conflict() -> None:
    assert Conflict() == judge(b"g" * 32, STORED)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("8e03978e", "8e03978e"),
        ('"8e03978e"', "8e03978e"),
        ("a" * 255, "a" * 255),
        (f'"{"a" * 255}"', "a" * 255),
        (r'"a\"b\\c"', r'a"b\c'),
        ('a"b', 'a"b'),
        (r"a\b", r"a\b"),
        ("!~", "!~"),
    ],
)
def test_the_bare_and_the_quoted_form_are_one_key(text: str, key: str) -> None:
    assert key == normalise_key(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        '""',
        '"',
        '"a',
        '"a"b',
        '"a";x=1',
        '"a" ',
        r'"a\b"',
        '"a\\"',
        "a" * 256,
        f'"{"a" * 256}"',
        "a b",
        '"a b"',
        "a\tb",
        "a\n",
        "\x7f",
        "ä",
        '"ä"',
        "a\x00",
    ],
)
def test_malformed_keys(text: str) -> None:
    assert normalise_key(text) is None


def test_a_scope_is_short_and_always_the_same() -> None:
    assert SCOPE_BYTES == len(scope_of("m", "/payments", "k"))
    assert scope_of("m", "/payments", "k") == scope_of("m", "/payments", "k")


@pytest.mark.parametrize(
    "other",
    [("m2", "/r", "k"), ("m", "/r2", "k"), ("m", "/r", "2k"), ("m/r", "", "k"), ("", "m/r", "k"), ("m", "/", "rk")],
)
def test_a_scope_tells_merchant_route_and_key_apart(other: tuple[str, str, str]) -> None:
    assert scope_of("m", "/r", "k") != scope_of(*other)

"""Idempotency keys: which texts are one key, what a key covers, and what a known key means for a request.

A key is looked at only after the payment was found, and is used up only by a command that took effect.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from payflow.core.value import value

# 128 of SHA-256's 256 bits: a foreign key can be hit only by a second preimage, and the table that is keyed by it stays
# narrow.
SCOPE_BYTES: Final = 16
FINGERPRINT_BYTES: Final = 32

# RFC 8941 string; its escapes are \" and \\.
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_ESCAPE: Final = re.compile(r"\\(.)")
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


@value
class StoredKey:
    """A key that was used: by which request, and the answer it got."""

    fingerprint: bytes
    payment_id: bytes
    version: int
    answer: bytes


@dataclass(frozen=True, slots=True)
class First:
    """The key is new: execute."""


@value
class Replay:
    """The same request again: give the stored answer."""

    stored: StoredKey


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another request with a used key: refuse."""


Judgement = First | Replay | Conflict
_FIRST: Final = First()
_CONFLICT: Final = Conflict()


def judge(fingerprint: bytes, stored: StoredKey | None) -> Judgement:
    """What a request with this fingerprint is, given what is stored under its scope."""
    if stored is None:
        return _FIRST
    if stored.fingerprint == fingerprint:
        return Replay(stored)
    return _CONFLICT


def normalise_key(text: str) -> str | None:
    """The key that a header value stands for, or None when it is malformed.

    The bare and the quoted form are the same key.
    """
    if text.startswith('"'):
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            return None
        text = _ESCAPE.sub(r"\1", quoted[1])
    return text if _KEY.fullmatch(text) else None


def scope_of(merchant_id: str, route: str, key: str) -> bytes:
    """What a key covers: one merchant, one route template.

    Parts are prefixed with their length, so no two triples share their bytes.
    """
    merchant_bytes, route_bytes = merchant_id.encode(), route.encode()
    prefix = b"%d:%d:" % (len(merchant_bytes), len(route_bytes))
    return sha256(prefix + merchant_bytes + route_bytes + key.encode()).digest()[:SCOPE_BYTES]

"""Query strings and cursors of the lists: everything unknown, repeated or out of range is refused by name.

A cursor is base64url over the place of the last item and four bytes of checksum, so a cut or edited one is told apart
from the end of the list. It is no secret and no capability; it holds a place, not the filters.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import crc32
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import parse_qsl, urlencode

from payflow.adapters import problems
from payflow.adapters.problems import FieldError, Refused
from payflow.core.payment import Status
from payflow.ports import PaymentQuery

LIMIT_MAX: Final = 100
LIMIT_DEFAULT: Final = 20
_PARAMETERS_MAX: Final = 12
_CURSOR_MAX: Final = 400
_MERCHANT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LIMIT: Final = re.compile(r"[0-9]{1,3}")
_NAME: Final = re.compile(r"[A-Za-z_]{1,40}")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


# ------------------------------------------------------------------ cursors
def seal(place: bytes) -> str:
    return urlsafe_b64encode(crc32(place).to_bytes(4, "big") + place).rstrip(b"=").decode("ascii")


def unseal(cursor: str) -> bytes:
    """The place. Raises Refused."""
    try:
        raw = urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)) if len(cursor) <= _CURSOR_MAX else b""
    except ValueError:
        raw = b""
    place = raw[4:]
    # The last comparison refuses spellings that decode to the same bytes: one place has one cursor.
    if not place or raw[:4] != crc32(place).to_bytes(4, "big") or seal(place) != cursor:
        raise Refused(problems.INVALID_CURSOR, errors=[_bad("cursor", "invalid", "is not a cursor of this API")])
    return place


def payment_cursor(created_at_us: int, payment_id: bytes) -> str:
    return seal(b"p" + created_at_us.to_bytes(8, "big") + payment_id)


def account_cursor(account: str, currency: str) -> str:
    return seal(b"a" + currency.encode() + account.encode())


def _place_of_payment(cursor: str) -> tuple[int, bytes]:
    place = unseal(cursor)
    if len(place) != 25 or place[:1] != b"p":
        raise Refused(problems.INVALID_CURSOR, errors=[_bad("cursor", "invalid", "is a cursor of another list")])
    return int.from_bytes(place[1:9], "big"), place[9:]


def _place_of_account(cursor: str) -> tuple[str, str]:
    place = unseal(cursor)
    if len(place) < 5 or place[:1] != b"a":
        raise Refused(problems.INVALID_CURSOR, errors=[_bad("cursor", "invalid", "is a cursor of another list")])
    return place[4:].decode(), place[1:4].decode()


# ------------------------------------------------------------------ queries
def refuse_query(query: str) -> None:
    """For routes without parameters."""
    _read(query, {})


def payment_query(query: str) -> PaymentQuery:
    """`from` is included, `to` is not."""
    values = _read(query, _PAYMENT_PARAMETERS)
    cursor = values.get("cursor")
    found = PaymentQuery(
        merchant_id=values.get("merchant_id"),
        status=Status(values["status"]) if "status" in values else None,
        from_us=_microseconds(values["from"]) if "from" in values else None,
        to_us=_microseconds(values["to"]) if "to" in values else None,
        after=None if cursor is None else _place_of_payment(cursor),
        limit=int(values.get("limit", LIMIT_DEFAULT)),
    )
    if found.from_us is not None and found.to_us is not None and found.from_us >= found.to_us:
        raise Refused(problems.INVALID_QUERY, errors=[_bad("to", "out_of_range", "must be later than from")])
    return found


def account_query(query: str) -> tuple[tuple[str, str] | None, int]:
    """(after, limit)."""
    values = _read(query, {"cursor": _any, "limit": _limit})
    cursor = values.get("cursor")
    return None if cursor is None else _place_of_account(cursor), int(values.get("limit", LIMIT_DEFAULT))


def next_link(path: str, query: str, cursor: str) -> str:
    """RFC 8288: the same filters from the next place on. The query was read before, so it holds nothing but known
    parameters.
    """
    values = dict(parse_qsl(query)) | {"cursor": cursor}
    return f'<{path}?{urlencode(values)}>; rel="next"'


def _bad(parameter: str, code: str, detail: str) -> FieldError:
    return FieldError(code, detail, parameter=parameter)


def _read(query: str, known: Mapping[str, Callable[[str], FieldError | None]]) -> dict[str, str]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=_PARAMETERS_MAX)
    except ValueError:
        raise Refused(problems.INVALID_QUERY, "The query string has too many parameters or is not UTF-8.") from None
    values: dict[str, str] = {}
    errors: list[FieldError] = []
    for name, value in pairs:
        if name not in known:
            errors.append(_bad(name if _NAME.fullmatch(name) else "", "unknown", "is not a parameter of this route"))
        elif name in values:
            errors.append(_bad(name, "repeated", "may be given once"))
        else:
            values[name] = value
            error = known[name](value)
            if error is not None:
                errors.append(error)
    if errors:
        raise Refused(problems.INVALID_QUERY, errors=errors)
    return values


def _any(_: str) -> None:
    return None


def _merchant(value: str) -> FieldError | None:
    return None if _MERCHANT.fullmatch(value) else _bad("merchant_id", "wrong_form", "1 to 64 of A-Z a-z 0-9 . _ -")


def _status(value: str) -> FieldError | None:
    return None if value in Status.__members__ else _bad("status", "unknown_value", "one of " + ", ".join(Status))


def _limit(value: str) -> FieldError | None:
    good = _LIMIT.fullmatch(value) is not None and 1 <= int(value) <= LIMIT_MAX
    return None if good else _bad("limit", "out_of_range", f"1 to {LIMIT_MAX}")


def _time(name: str) -> Callable[[str], FieldError | None]:
    def check(value: str) -> FieldError | None:
        try:
            _microseconds(value)
        except ValueError:
            return _bad(name, "wrong_form", "RFC 3339 with an offset, for example 2026-01-31T12:00:00Z")
        return None

    return check


def _microseconds(text: str) -> int:
    """Raises ValueError. A plus that a client forgot to escape arrives as a space and is taken for what it was."""
    text = text.replace(" ", "+")
    if _TIME.fullmatch(text) is None:
        raise ValueError(text)
    try:
        return (datetime.fromisoformat(text.upper()).astimezone(UTC) - _EPOCH) // _MICROSECOND
    except OverflowError as error:
        raise ValueError(text) from error


_PAYMENT_PARAMETERS: Final[Mapping[str, Callable[[str], FieldError | None]]] = {
    "merchant_id": _merchant, "status": _status, "from": _time("from"), "to": _time("to"), "cursor": _any,
    "limit": _limit,
}  # fmt: skip

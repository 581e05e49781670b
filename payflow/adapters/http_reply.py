"""A whole response, serialised once and written in one piece.

aiohttp's Response also does cookies, compression, charsets and chunks; none of that is used here, and it costs 6 of the
20 microseconds that aiohttp spends on a small request. This class keeps to the two calls that the server makes on what
a handler returns, `prepare` and `write_eof`, and to the public writer. tests/integration/test_http_api_wire.py pins
what goes over the wire, for the day aiohttp is upgraded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter

_LINES: Final = {
    status.value: (f"{status.value} {status.phrase}\r\nServer: payflow\r\nCache-Control: no-store\r\nContent-Type: ")
    for status in HTTPStatus
}
_KEEP_ALIVE: Final = "Connection: keep-alive\r\n"
_CLOSE: Final = "Connection: close\r\n"


class Reply(web.StreamResponse):
    """Status, body and headers of one response."""

    def __init__(
        self, status: int, body: bytes, content_type: str, request_id: str, extra: Iterable[tuple[str, str]] = ()
    ) -> None:
        super().__init__(status=status)
        more = ""
        for name, value in extra:
            more += f"{name}: {_clean(value)}\r\n"
        self._head = (
            f"{_LINES[status]}{content_type}\r\nRequest-Id: {request_id}\r\n{more}Content-Length: {len(body)}\r\nDate: "
        )
        self._whole_body = body
        self._request: web.BaseRequest | None = None

    def unasked(self) -> bytes:
        """The whole of it for a client that is sent away before it has asked for anything."""
        return f"HTTP/1.1 {self._head}{_date()}\r\n{_CLOSE}\r\n".encode("latin-1") + self._whole_body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        self._request = request
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        request = self._request
        if request is None or data:
            raise RuntimeError("a reply is prepared first and has its whole body")
        self._request = None
        start, keep_alive = ("HTTP/1.1 ", "") if request.version == HttpVersion11 else ("HTTP/1.0 ", _KEEP_ALIVE)
        end = keep_alive if self._keep_alive else _CLOSE
        head = f"{start}{self._head}{_date()}\r\n{end}\r\n".encode("latin-1")
        await request.writer.write(head if request.method == "HEAD" else head + self._whole_body)


def complete(response: web.StreamResponse, request_id: str) -> web.StreamResponse:
    """A response that was made elsewhere, with the headers that all have."""
    if not isinstance(response, Reply) and not response.prepared:
        response.headers.update({"Request-Id": request_id, hdrs.CACHE_CONTROL: "no-store", hdrs.SERVER: "payflow"})
    return response


def _clean(value: str) -> str:
    if "\r" in value or "\n" in value:
        raise ValueError("a header value must not hold a line end")
    return value


class _Date:
    """The Date header, made once a second."""

    second = -1
    text = ""


def _date() -> str:
    now = int(time.time())
    if now != _Date.second:
        _Date.second, _Date.text = now, formatdate(now, usegmt=True)
    return _Date.text

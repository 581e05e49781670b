"""Reads a POST off the wire within bounds: header rules first, then the body, in bounded size and time."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import HttpVersion11, StreamReader, hdrs, web

from payflow.adapters import problems
from payflow.adapters.http_query import refuse_query
from payflow.adapters.payments_api import JSON, idempotency_key, valid_traceparent
from payflow.adapters.problems import Refused

_IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_TRACEPARENT: Final = "traceparent"


def admit(request: web.BaseRequest, query: str) -> tuple[str, str | None]:
    """(key, traceparent). Refuses what can be refused by the headers alone, before the body is asked for."""
    if query:
        refuse_query(query)
    headers = request.headers
    if hdrs.CONTENT_ENCODING in headers:
        _refuse_encoding(headers[hdrs.CONTENT_ENCODING])
    content_type = headers.get(hdrs.CONTENT_TYPE)
    if content_type != JSON and not (content_type is None and not request.body_exists):
        _refuse_content_type(content_type)
    trace = headers.get(_TRACEPARENT)
    return idempotency_key(headers.getall(_IDEMPOTENCY_KEY, ())), None if trace is None else valid_traceparent(trace)


def body_at_once(content: StreamReader, body_bytes: int) -> bytes | None:
    """The body, if all of it came with the headers. The usual case: no timer, no task switch."""
    if not content.is_eof():
        return None
    body = content.read_nowait()
    if len(body) > body_bytes:
        raise _too_large(body_bytes)
    return body


async def read_body(request: web.BaseRequest, *, body_bytes: int, timeout_s: float) -> bytes:
    """The body as it comes, within its bounds. Asks for it first where the client waits to be asked."""
    length = request.content_length
    if length is not None and length > body_bytes:
        raise _too_large(body_bytes)
    if hdrs.EXPECT in request.headers:
        await _continue(request)
    try:
        async with asyncio.timeout(timeout_s):
            return await _collect(request.content, body_bytes)
    except TimeoutError:
        raise Refused(problems.BODY_TIMEOUT, close=True) from None
    except (web.RequestPayloadError, ConnectionError):
        raise Refused(problems.BODY_INCOMPLETE, close=True) from None


async def _collect(content: StreamReader, body_bytes: int) -> bytes:
    body = bytearray()
    while chunk := await content.readany():
        body += chunk
        if len(body) > body_bytes:
            raise _too_large(body_bytes)
    return bytes(body)


async def _continue(request: web.BaseRequest) -> None:
    if request.version != HttpVersion11:
        return
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise Refused(problems.EXPECTATION_FAILED, close=True)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # The interim answer does not count as the beginning of the real one (aiohttp's own handler does the same).
    request.writer.output_size = 0


def _too_large(body_bytes: int) -> Refused:
    return Refused(problems.BODY_TOO_LARGE, f"A body may have {body_bytes} bytes.", close=True)


def _refuse_encoding(encoding: str) -> None:
    if encoding.strip().lower() != "identity":
        raise Refused(problems.UNSUPPORTED_CONTENT_ENCODING, headers={"Accept-Encoding": "identity"})


def _refuse_content_type(content_type: str | None) -> None:
    kind, _, parameters = (content_type or "").partition(";")
    charset = parameters.replace('"', "").replace(" ", "").strip(";").lower()
    if kind.strip().lower() != JSON or charset not in {"", "charset=utf-8"}:
        raise Refused(problems.UNSUPPORTED_MEDIA_TYPE, headers={"Accept": JSON})

"""Reads a POST off the wire within bounds: header rules first, then the body, in bounded size and time."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import HttpVersion11, StreamReader, hdrs, web

from payflow.adapters import problems
from payflow.adapters.http_query import refuse_query
from payflow.adapters.payments_api import JSON, WriteCall, idempotency_key, traceparent
from payflow.adapters.problems import Refused

_IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_TRACEPARENT: Final = "traceparent"


async def read_write_call(
    request: web.Request, *, path: str, query: str, payment_id: bytes, body_bytes: int, timeout_s: float
) -> WriteCall:
    """Everything that can be refused by the headers alone is refused before the body is asked for."""
    if query:
        refuse_query(query)
    headers = request.headers
    _refuse_encoding(headers.get(hdrs.CONTENT_ENCODING))
    length = request.content_length
    if length is not None and length > body_bytes:
        raise _too_large(body_bytes)
    content_type = headers.get(hdrs.CONTENT_TYPE)
    if content_type != JSON and not (content_type is None and not request.body_exists):
        _refuse_content_type(content_type)
    key = idempotency_key(headers.getall(_IDEMPOTENCY_KEY, ()))
    if hdrs.EXPECT in headers:
        await _continue(request)
    return WriteCall(
        path,
        payment_id,
        key,
        traceparent(headers.get(_TRACEPARENT)),
        await _body(request.content, body_bytes=body_bytes, timeout_s=timeout_s),
    )


async def _body(content: StreamReader, *, body_bytes: int, timeout_s: float) -> bytes:
    try:
        if content.is_eof():  # the usual case: it came with the headers, and no timer is needed
            body = content.read_nowait()
        else:
            async with asyncio.timeout(timeout_s):
                body = await _collect(content, body_bytes)
    except TimeoutError:
        raise Refused(problems.BODY_TIMEOUT, close=True) from None
    except (web.RequestPayloadError, ConnectionError):
        raise Refused(problems.BODY_INCOMPLETE, close=True) from None
    if len(body) > body_bytes:
        raise _too_large(body_bytes)
    return body


async def _collect(content: StreamReader, body_bytes: int) -> bytes:
    body = bytearray()
    while chunk := await content.readany():
        body += chunk
        if len(body) > body_bytes:
            break
    return bytes(body)


async def _continue(request: web.Request) -> None:
    if request.version != HttpVersion11:
        return
    if request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise Refused(problems.EXPECTATION_FAILED, close=True)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # The interim answer does not count as the beginning of the real one (aiohttp's own handler does the same).
    request.writer.output_size = 0


def _too_large(body_bytes: int) -> Refused:
    return Refused(problems.BODY_TOO_LARGE, f"A body may have {body_bytes} bytes.", close=True)


def _refuse_encoding(encoding: str | None) -> None:
    if encoding is not None and encoding.strip().lower() != "identity":
        raise Refused(problems.UNSUPPORTED_CONTENT_ENCODING, headers={"Accept-Encoding": "identity"})


def _refuse_content_type(content_type: str | None) -> None:
    kind, _, parameters = (content_type or "").partition(";")
    charset = parameters.replace('"', "").replace(" ", "").strip(";").lower()
    if kind.strip().lower() != JSON or charset not in {"", "charset=utf-8"}:
        raise Refused(problems.UNSUPPORTED_MEDIA_TYPE, headers={"Accept": JSON})

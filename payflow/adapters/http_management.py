"""The management site: health, metrics, the debug endpoint and the few actions of an operator.

Loopback only, off the payments port. GETs are open and do work only when asked. A POST needs a bearer token (401),
actions switched on (403) and a reason (422), in that order; the caller's name is the token's name.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Protocol
from uuid import UUID

import msgspec
from aiohttp import hdrs, web

from payflow.adapters import problem_pages, problems
from payflow.adapters.http_connection import Connection, Gate
from payflow.adapters.http_failures import refusal_of, report
from payflow.adapters.http_reply import Reply, complete
from payflow.adapters.payments_api import retry_after
from payflow.adapters.problems import FieldError, ProblemType, Refused
from payflow.errors import DependencyUnavailable, PayflowError
from payflow.ports import Health, ManagementService

BODY_BYTES: Final = 4096
STATE_TIMEOUT_S: Final = 0.5
LIST_LIMIT: Final = 500
# A browser, a scraper, a few shells: more are a mistake, and must not take the files of the payments port.
MOST_CONNECTIONS: Final = 100
HEADER_TIMEOUT_S: Final = 10.0
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Token(Protocol):
    """A secret that is only ever compared, in constant time and for any text."""

    def matches(self, candidate: str, /) -> bool: ...


@dataclass(frozen=True, slots=True)
class Access:
    """Who may act: `tokens` maps a name to its secret."""

    allow_actions: bool
    tokens: Mapping[str, Token]

    def name_of(self, authorization: str | None) -> str | None:
        """Whose token this is; every token is compared, so that time does not tell which one was close."""
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        found = None
        for name, token in self.tokens.items():
            if token.matches(secret.strip()):
                found = name
        return found


class ActionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of an action. `max_s` bounds a pause in seconds."""

    reason: str
    max_s: float | None = None


class RequeueBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of a requeue: which rows, and why."""

    seqs: Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]], msgspec.Meta(min_length=1, max_length=100)]
    reason: str


class ManagementServer:
    """Implements `ports.HttpFront` for operators."""

    def __init__(
        self,
        service: ManagementService,
        *,
        health: Health,
        host: str,
        port: int,
        access: Access,
        metrics: Handler,
        breakers: Callable[[], Mapping[str, Mapping[str, object]]],
        info: Mapping[str, object],
        new_request_id: Callable[[], str],
        emit: Callable[..., None],
    ) -> None:
        self._service = service
        self._health = health
        self._host = host
        self._port = port
        self._access = access
        self._metrics = metrics
        self._breakers = breakers
        self._info = info
        self._new_request_id = new_request_id
        self._emit = emit
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def start(self) -> int:
        """Bind and serve; returns the port."""
        app = web.Application(middlewares=[self._answered], client_max_size=BODY_BYTES)
        routes = self._routes()
        for route in routes:
            route.kwargs["expect_handler"] = self._expectation
        app.add_routes(routes)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        assert self._runner.server is not None
        loop = asyncio.get_running_loop()
        connection = partial(
            Connection,
            self._runner.server,
            loop=loop,
            answer=self._unreadable,
            gate=Gate(MOST_CONNECTIONS, emit=self._emit),
            header_timeout_s=HEADER_TIMEOUT_S,
        )
        try:
            self._listener = await loop.create_server(connection, self._host, self._port)
        except OSError as error:
            await self.stop()
            raise DependencyUnavailable(_why_not_bound(self._host, self._port, error)) from error
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def unbind(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()

    async def requests_done(self) -> None:
        """Management requests are short; `stop` waits for them."""

    async def stop(self) -> None:
        """Close everything. Idempotent."""
        await self.unbind()
        runner, self._runner, self._listener = self._runner, None, None
        if runner is not None:
            await runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.get("/livez", self._livez),
            web.get("/readyz", self._readyz),
            web.get("/healthz", self._healthz),
            web.get("/info", self._show_info),
            web.get("/metrics", self._metrics),
            web.get("/circuit-breaker/status", self._breaker_status),
            web.get("/circuit-breaker/{name}", self._breaker),
            web.get("/problems", self._problem_types),
            web.get("/problems/{code}", self._problem_type),
            web.get("/debug/actors", self._tree),
            web.get("/debug/actors/{id}", self._actor),
            web.get("/debug/actors/{id}/mailbox", self._mailbox),
            web.get("/debug/actors/{id}/stack", self._stack),
            web.get("/debug/deadletters", self._dead_letters),
            web.get("/debug/loop", self._loop),
            web.get("/debug/journey/{payment_id}", self._journey),
            web.post("/debug/actors/{id}/{action:pause|resume|restart}", self._act),
            web.post("/outbox/requeue", self._requeue),
        ]

    # ------------------------------------------------------------------ health
    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        ready, parts = self._health.ready()
        return _json({"ready": ready, "checks": parts}, status=200 if ready else 503)

    async def _healthz(self, _request: web.Request) -> web.Response:
        body = self._health.components()
        return _json(body, status=503 if body.get("status") == "DOWN" else 200)

    async def _show_info(self, _request: web.Request) -> web.Response:
        return _json(self._info)

    async def _breaker_status(self, _request: web.Request) -> web.Response:
        return _json(self._breakers())

    async def _breaker(self, request: web.Request) -> web.Response:
        body = self._breakers().get(request.match_info["name"])
        if body is None:
            raise Refused(problems.BREAKER_NOT_FOUND)
        return _json(body)

    async def _problem_types(self, _request: web.Request) -> web.Response:
        return web.Response(body=problem_pages.index(), content_type="application/json")

    async def _problem_type(self, request: web.Request) -> web.Response:
        kind = problems.BY_CODE.get(request.match_info["code"])
        if kind is None:
            raise Refused(problems.NOT_FOUND)
        return web.Response(text=problem_pages.text(kind))

    # ------------------------------------------------------------------ debug
    async def _tree(self, request: web.Request) -> web.Response:
        wanted = request.query.get("format", "json")
        if wanted == "text":
            return web.Response(text=self._service.tree_text())
        if wanted != "json":
            raise _bad_query("format", "json or text")
        return _json(self._service.tree())

    async def _actor(self, request: web.Request) -> web.Response:
        return _json(await self._known(self._service.actor(request.match_info["id"], timeout_s=STATE_TIMEOUT_S)))

    async def _mailbox(self, request: web.Request) -> web.Response:
        limit = _limit(request, default=20)
        try:
            return _json(self._service.mailbox(request.match_info["id"], limit=limit))
        except KeyError as error:
            raise _unknown_actor() from error

    async def _stack(self, request: web.Request) -> web.Response:
        try:
            frames = self._service.stack(request.match_info["id"])
        except KeyError as error:
            raise _unknown_actor() from error
        return _json({"id": request.match_info["id"], "frames": frames})

    async def _dead_letters(self, request: web.Request) -> web.Response:
        return _json({"items": self._service.dead_letters(limit=_limit(request, default=100))})

    async def _loop(self, _request: web.Request) -> web.Response:
        return _json(self._service.loop())

    async def _journey(self, request: web.Request) -> web.Response:
        try:
            payment_id = UUID(request.match_info["payment_id"]).bytes
        except ValueError as error:
            raise Refused(problems.PAYMENT_NOT_FOUND) from error
        journey = await self._service.journey(payment_id)
        if journey is None:
            raise Refused(problems.PAYMENT_NOT_FOUND)
        return _json(journey)

    # ------------------------------------------------------------------ actions
    async def _act(self, request: web.Request) -> web.Response:
        by = self._allowed(request)
        try:
            body = msgspec.json.decode(await request.read(), type=ActionBody)
        except msgspec.MsgspecError as error:
            raise Refused(problems.INVALID_BODY, 'The body is {"reason": "...", "max_s": seconds?}.') from error
        reason = _reason(body.reason)
        action = request.match_info["action"]
        if body.max_s is not None and not 0 < body.max_s <= 3600:
            raise Refused(problems.INVALID_BODY, "max_s is above 0 and at most 3600.")
        acting = self._service.act(action, request.match_info["id"], by=by, reason=reason, max_s=body.max_s)
        return await self._done(action, self._known(acting))

    async def _requeue(self, request: web.Request) -> web.Response:
        by = self._allowed(request)
        try:
            body = msgspec.json.decode(await request.read(), type=RequeueBody)
        except msgspec.MsgspecError as error:
            detail = 'The body is {"seqs": [1 to 100 numbers], "reason": "..."}.'
            raise Refused(problems.INVALID_BODY, detail) from error
        requeuing = self._service.requeue(sorted(set(body.seqs)), by=by, reason=_reason(body.reason))
        return await self._done("requeue", requeuing)

    def _allowed(self, request: web.Request) -> str:
        """Name of the caller, or a refusal."""
        by = self._access.name_of(request.headers.get("Authorization"))
        if by is None:
            raise Refused(problems.UNAUTHORIZED, headers={hdrs.WWW_AUTHENTICATE: "Bearer"})
        if not self._access.allow_actions:
            raise Refused(problems.ACTIONS_OFF)
        return by

    async def _done(self, action: str, acting: Awaitable[Mapping[str, object]]) -> web.Response:
        try:
            return _json(await acting)
        except ValueError as error:
            raise Refused(problems.NOT_POSSIBLE, str(error)) from error
        except PayflowError as error:
            raise Refused(problems.NOT_DONE, f"{action} was not done: {error}") from error

    # ------------------------------------------------------------------ every answer
    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every answer has a Request-Id, and every refusal is a problem document."""
        request_id = self._new_request_id()
        try:
            response = await handler(request)
        except Refused as refused:
            response = _reply(refused, request_id)
        except web.HTTPException as error:
            response = _reply(_refusal_of(error), request_id)
        except web.RequestPayloadError:
            response = _reply(Refused(problems.BODY_INCOMPLETE, close=True), request_id)
        except Exception as error:  # noqa: BLE001 - a bug becomes a 500 and an event, never a broken connection
            refusal = refusal_of(error, writes=False)
            if refusal.problem is problems.INTERNAL_ERROR:
                report(self._emit, error, request_id=request_id, route=_template(request))
            response = _reply(refusal, request_id)
        return complete(response, request_id)

    async def _expectation(self, request: web.Request) -> web.StreamResponse | None:
        if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
            return self._unreadable(problems.EXPECTATION_FAILED)
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
        return None

    def _unreadable(self, kind: ProblemType) -> Reply:
        """The answer to what does not reach a handler."""
        headers = retry_after(1.0) if kind is problems.TOO_MANY_CONNECTIONS else None
        return _reply(Refused(kind, headers=headers, close=True), self._new_request_id())

    async def _known(self, answer: Awaitable[Mapping[str, object]]) -> Mapping[str, object]:
        try:
            return await answer
        except KeyError as error:
            raise _unknown_actor() from error


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        advice = "stop it or choose another with --management-port"
        return f"cannot listen on {host}:{port}: another process has this port; {advice}"
    return f"cannot listen on {host}:{port} for management: {os.strerror(error.errno) if error.errno else error}"


def _template(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "unmatched" if resource is None else resource.canonical


def _unknown_actor() -> Refused:
    return Refused(problems.ACTOR_NOT_FOUND)


def _bad_query(parameter: str, allowed: str) -> Refused:
    errors = [FieldError("out_of_range", allowed, parameter=parameter)]
    return Refused(problems.INVALID_QUERY, f"{parameter} is {allowed}.", errors=errors)


def _reason(text: str) -> str:
    if not text.strip() or len(text) > 500:
        raise Refused(problems.REASON_MISSING)
    return text.strip()


def _limit(request: web.Request, *, default: int) -> int:
    try:
        limit = int(request.query.get("limit", default))
    except ValueError:
        limit = 0
    if not 1 <= limit <= LIST_LIMIT:
        raise _bad_query("limit", f"1 to {LIST_LIMIT}")
    return limit


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=_encode(body), status=status, content_type="application/json")


def _refusal_of(error: web.HTTPException) -> Refused:
    """What aiohttp itself refuses."""
    if error.status == 404:
        return Refused(problems.NOT_FOUND)
    if error.status == 405:
        return Refused(problems.METHOD_NOT_ALLOWED, headers={hdrs.ALLOW: error.headers[hdrs.ALLOW]})
    if error.status == 413:
        return Refused(problems.BODY_TOO_LARGE, f"The body of an action has at most {BODY_BYTES} bytes.", close=True)
    return Refused(problems.MALFORMED_HTTP, close=True)


def _reply(refused: Refused, request_id: str) -> Reply:
    body = problems.document(refused, request_id)
    reply = Reply(refused.problem.status, body, problems.CONTENT_TYPE, request_id, refused.headers.items())
    if refused.close:
        reply.force_close()
    return reply

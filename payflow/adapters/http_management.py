"""The management site: health, metrics, the debug endpoint and the few actions of an operator.

Loopback only, off the payments port. GETs are open and do work only when asked. A POST needs a bearer token (401),
actions switched on (403) and a reason (422), in that order; the caller's name is the token's name.
"""

from __future__ import annotations

import errno
import hmac
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec
from aiohttp import web

from payflow.errors import DependencyUnavailable, PayflowError
from payflow.ports import Health, ManagementService

BODY_BYTES: Final = 4096
STATE_TIMEOUT_S: Final = 0.5
LIST_LIMIT: Final = 500
_encode: Final = msgspec.json.Encoder(enc_hook=str).encode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may act: `tokens` maps a name to its secret."""

    allow_actions: bool
    tokens: Mapping[str, str]

    def name_of(self, authorization: str | None) -> str | None:
        """Whose token this is, compared in constant time."""
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        found = None
        for name, token in self.tokens.items():
            if hmac.compare_digest(token.encode(), secret.strip().encode()):
                found = name
        return found


class ActionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of an action. `max_s` bounds a pause in seconds."""

    reason: str
    max_s: float | None = None


class Refusal(Exception):
    """Answered as a problem document."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail


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
    ) -> None:
        self._service = service
        self._health = health
        self._host = host
        self._port = port
        self._access = access
        self._metrics = metrics
        self._breakers = breakers
        self._info = info
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None

    async def start(self) -> int:
        """Bind and serve; returns the port."""
        app = web.Application(middlewares=[_problems], client_max_size=BODY_BYTES)
        app.add_routes(self._routes())
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        self._site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await self._site.start()
        except OSError as error:
            await self.stop()
            raise DependencyUnavailable(_why_not_bound(self._host, self._port, error)) from error
        return int(self._runner.addresses[0][1])

    async def unbind(self) -> None:
        """Stop listening."""
        if self._site is not None:
            await self._site.stop()
            self._site = None

    async def requests_done(self) -> None:
        """Management requests are short; `stop` waits for them."""

    async def stop(self) -> None:
        """Close everything. Idempotent."""
        runner, self._runner, self._site = self._runner, None, None
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
            web.get("/debug/actors", self._tree),
            web.get("/debug/actors/{id}", self._actor),
            web.get("/debug/actors/{id}/mailbox", self._mailbox),
            web.get("/debug/actors/{id}/stack", self._stack),
            web.get("/debug/deadletters", self._dead_letters),
            web.get("/debug/loop", self._loop),
            web.get("/debug/journey/{payment_id}", self._journey),
            web.post("/debug/actors/{id}/{action:pause|resume|restart}", self._act),
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
            raise Refusal(404, "not-found", "there is no breaker of that name; /circuit-breaker/status lists them")
        return _json(body)

    # ------------------------------------------------------------------ debug
    async def _tree(self, request: web.Request) -> web.Response:
        wanted = request.query.get("format", "json")
        if wanted == "text":
            return web.Response(text=self._service.tree_text())
        if wanted != "json":
            raise Refusal(400, "invalid-query", "format is json or text")
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
            raise Refusal(404, "not-found", "there is no such payment") from error
        journey = await self._service.journey(payment_id)
        if journey is None:
            raise Refusal(404, "not-found", "there is no such payment")
        return _json(journey)

    # ------------------------------------------------------------------ actions
    async def _act(self, request: web.Request) -> web.Response:
        by = self._access.name_of(request.headers.get("Authorization"))
        if by is None:
            raise Refusal(401, "unauthorized", "an action needs a bearer token of this process")
        if not self._access.allow_actions:
            raise Refusal(403, "actions-off", "actions are off; management.allow_actions switches them on")
        try:
            body = msgspec.json.decode(await request.read(), type=ActionBody)
        except msgspec.MsgspecError as error:
            raise Refusal(422, "invalid-body", 'the body is {"reason": "...", "max_s": seconds?}') from error
        if not body.reason.strip() or len(body.reason) > 500:
            raise Refusal(422, "reason-missing", "a reason of 1 to 500 characters is needed")
        action = request.match_info["action"]
        if body.max_s is not None and not 0 < body.max_s <= 3600:
            raise Refusal(422, "invalid-body", "max_s is above 0 and at most 3600")
        acting = self._service.act(
            action, request.match_info["id"], by=by, reason=body.reason.strip(), max_s=body.max_s
        )
        try:
            return _json(await self._known(acting))
        except ValueError as error:
            raise Refusal(409, "not-possible", str(error)) from error
        except PayflowError as error:
            raise Refusal(503, "not-done", f"{action} was not done: {error}") from error

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


def _unknown_actor() -> Refusal:
    return Refusal(404, "not-found", "there is no actor of that id; /debug/actors lists them")


def _limit(request: web.Request, *, default: int) -> int:
    try:
        limit = int(request.query.get("limit", default))
    except ValueError:
        limit = 0
    if not 1 <= limit <= LIST_LIMIT:
        raise Refusal(400, "invalid-query", f"limit is 1 to {LIST_LIMIT}")
    return limit


def _json(body: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        body=_encode(body), status=status, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _problem(status: int, code: str, detail: str) -> web.Response:
    body = {"type": f"/problems/{code}", "code": code, "title": detail, "status": status, "detail": detail}
    headers = {"Cache-Control": "no-store"} | ({"WWW-Authenticate": "Bearer"} if status == 401 else {})
    return web.Response(body=_encode(body), status=status, content_type="application/problem+json", headers=headers)


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return _problem(refusal.status, refusal.code, refusal.detail)
    except web.HTTPException as error:
        return _problem(error.status, error.reason.lower().replace(" ", "-"), error.reason)

"""HTTP front of the payments app: aiohttp's low-level server with a route table of its own.

It reads requests within bounds of size and time, hands their parts to `payments_api`, and writes answers and problem
documents. It decides nothing about a payment. Invariants: every response has a Request-Id and is an answer or a problem
document; every wait has a deadline; after `unbind` a kept connection gets one more response and is closed.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Final, Protocol

from aiohttp import hdrs, web

from payflow.adapters import problems
from payflow.adapters.http_connection import METRICS_PATH, Connection, Gate, make_request
from payflow.adapters.http_failures import refusal_of, report
from payflow.adapters.http_inflight import InFlight
from payflow.adapters.http_pages import Breakers, Pages
from payflow.adapters.http_read import admit, body_at_once, read_body
from payflow.adapters.http_reply import Reply, complete
from payflow.adapters.http_routes import UNMATCHED, Resource, Route, find
from payflow.adapters.openapi import openapi_document
from payflow.adapters.payments_api import Answer, PaymentsApi, retry_after
from payflow.adapters.problems import ProblemType, Refused
from payflow.errors import DependencyUnavailable
from payflow.ports import Health, PaymentsService
from payflow.wire import id_bytes

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# What is still in flight when the front is stopped has this long, twice: until it is cancelled, and to end then.
STOP_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one request and one connection.

    `request_timeout_s` is the last resort behind the deadline that the service keeps itself, so it should be longer.
    """

    body_bytes: int = 65_536
    body_read_timeout_s: float = 5.0
    header_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    max_connections: int = 1000
    backlog: int = 1024
    request_timeout_s: float = 6.0


class Emit(Protocol):
    """Writes one event to the log."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


Observe = Callable[[str, str, int, float], None]
Metrics = Callable[[web.Request], Awaitable[web.StreamResponse]]
Read = Callable[[str, str], Awaitable[Answer]]


def _ignore(*_: object, **__: object) -> None:
    return None


class ApiServer:
    """Implements ports.HttpFront.

    `observe(route, method, status, duration_s)` is told of every response, `refused(code)` of every problem document;
    both see bounded sets of words. `emit` hears of bugs alone: no request is logged here.
    """

    def __init__(  # noqa: PLR0913 - what a front needs from the rest of the process, each by its name
        self,
        service: PaymentsService,
        *,
        health: Health,
        roles: frozenset[str],
        host: str,
        port: int,
        limits: HttpLimits,
        metrics: Metrics,
        breakers: Breakers,
        observe: Observe,
        new_request_id: Callable[[], str],
        info: Mapping[str, object],
        emit: Emit = _ignore,
        refused: Callable[[str], None] = _ignore,
    ) -> None:
        self._api = PaymentsApi(service)
        self._roles = roles
        self._host = host
        self._port = port
        self._limits = limits
        self._metrics = metrics
        self._observe = observe
        self._new_request_id = new_request_id
        self._emit = emit
        self._refused = refused
        self._reads = _reads(self._api, Pages(health=health, breakers=breakers, info=info, openapi=openapi_document))
        self._draining = False
        self._in_flight = InFlight(limits.body_read_timeout_s + limits.request_timeout_s)
        self._manager: web.Server | None = None
        self._listener: asyncio.Server | None = None

    # ---------------------------------------------------------------- life
    async def start(self) -> int:
        """Bind and serve; the port. Raises DependencyUnavailable."""
        assert self._listener is None
        loop, limits = asyncio.get_running_loop(), self._limits
        self._draining = False
        self._manager = web.Server(self._serve, request_factory=make_request)
        connection = partial(
            Connection,
            self._manager,
            loop=loop,
            answer=self._unreadable,
            gate=Gate(limits.max_connections, emit=self._emit),
            header_timeout_s=limits.header_timeout_s,
            keepalive_timeout=limits.keep_alive_s,
        )
        try:
            self._listener = await loop.create_server(connection, self._host, self._port, backlog=limits.backlog)
        except OSError as error:
            raise DependencyUnavailable(_why_not_bound(self._host, self._port, error)) from error
        port: int = self._listener.sockets[0].getsockname()[1]
        return port

    async def unbind(self) -> None:
        """Stop listening; kept connections get 503 and Connection: close from now on."""
        self._draining = True
        if self._listener is not None:
            self._listener.close()

    async def requests_done(self) -> None:
        """Return when no request is being answered."""
        await self._in_flight.wait_idle()

    async def stop(self) -> None:
        """Close everything. Whoever wants the last answers to be given waits for `requests_done` first."""
        await self.unbind()
        if self._manager is not None:
            self._manager.pre_shutdown()
            await self._manager.shutdown(STOP_TIMEOUT_S)
        self._in_flight.close()
        self._manager = self._listener = None

    # ---------------------------------------------------------------- one request
    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request, whatever happens."""
        started = perf_counter()
        request_id = self._new_request_id()
        path, _, query = request.raw_path.partition("?")
        resource, argument = find(path)
        method = request.method
        route = None if resource is None else resource.routes.get(method)
        task = self._in_flight.enter()
        try:
            if route is None:
                response: web.StreamResponse = self._problem(_no_route(resource), request_id)
            else:
                response = await self._respond(request, route, path, query, argument, request_id)
        except Refused as refused:
            response = self._problem(refused, request_id)
        except asyncio.CancelledError:
            if not self._in_flight.is_expired(task):
                raise
            task.uncancel()
            response = self._failure(TimeoutError(), route, request_id)
        except Exception as error:  # noqa: BLE001 - a bug becomes a 500 and an event, never a broken connection
            response = self._failure(error, route, request_id)
        finally:
            self._in_flight.leave(task)
        # A body that was refused unread may still be on its way; what follows it must not be taken for it.
        if self._draining or not request.content.is_eof():
            response.force_close()
        label = UNMATCHED if resource is None else resource.template
        self._observe(label, method if method in _METHODS else "OTHER", response.status, perf_counter() - started)
        return response

    async def _respond(
        self, request: web.BaseRequest, route: Route, path: str, query: str, argument: str, request_id: str
    ) -> web.StreamResponse:
        if route.role is not None:
            self._refuse_role(route.role)
        if route.writing is not None:
            payment_id = _payment_id(argument) if argument else b""
            limits = self._limits
            key, trace = admit(request, query)
            body = body_at_once(request.content, limits.body_bytes)
            if body is None:
                body = await read_body(request, body_bytes=limits.body_bytes, timeout_s=limits.body_read_timeout_s)
            answer = await self._api.write(
                route.writing, path, payment_id, key=key, trace=trace, body=body, request_id=request_id
            )
        elif path == METRICS_PATH:
            assert isinstance(request, web.Request)
            return complete(await self._metrics(request), request_id)
        else:
            answer = await self._reads[route.operation](argument, query)
        return Reply(answer.status, answer.body, answer.content_type, request_id, answer.headers)

    def _refuse_role(self, role: str) -> None:
        if role not in self._roles:
            raise Refused(problems.ROLE_NOT_SERVED)
        if self._draining:
            raise Refused(problems.DRAINING, headers={hdrs.RETRY_AFTER: "1"}, close=True)

    def _problem(self, refused: Refused, request_id: str) -> Reply:
        kind = refused.problem
        self._refused(kind.code)
        body = problems.document(refused, request_id)
        response = Reply(kind.status, body, problems.CONTENT_TYPE, request_id, refused.headers.items())
        if refused.close:
            response.force_close()
        return response

    def _failure(self, error: Exception, route: Route | None, request_id: str) -> Reply:
        refused = refusal_of(error, writes=route is not None and route.writing is not None)
        if refused.problem is problems.INTERNAL_ERROR:
            template = UNMATCHED if route is None else route.template
            report(self._emit, error, request_id=request_id, route=template)
        return self._problem(refused, request_id)

    def _unreadable(self, kind: ProblemType) -> Reply:
        """The answer to what the HTTP parser refused, or to a connection too many."""
        self._observe(UNMATCHED, "OTHER", kind.status, 0.0)
        headers = retry_after(1.0) if kind is problems.TOO_MANY_CONNECTIONS else None
        return self._problem(Refused(kind, headers=headers, close=True), self._new_request_id())


def _reads(api: PaymentsApi, pages: Pages) -> Mapping[str, Read]:
    """Every operation that writes nothing: (argument of the path, query) -> answer."""

    def page(answer: Callable[[str], Awaitable[Answer]]) -> Read:
        return lambda argument, _: answer(argument)

    return {
        "list_payments": lambda _, query: api.payments(query),
        "get_payment": lambda argument, query: api.payment(_payment_id(argument), query),
        "get_ledger_of_payment": lambda argument, query: api.ledger_of_payment(_payment_id(argument), query),
        "list_accounts": lambda _, query: api.accounts(query),
        "get_trial_balance": lambda _, query: api.trial_balance(query),
        "list_breakers": page(pages.list_breakers),
        "get_breaker": page(pages.get_breaker),
        "get_liveness": page(pages.get_liveness),
        "get_readiness": page(pages.get_readiness),
        "get_health": page(pages.get_health),
        "get_info": page(pages.get_info),
        "get_openapi": page(pages.get_openapi),
        "list_problems": page(pages.list_problems),
        "get_problem": page(pages.get_problem),
        "get_docs": page(pages.get_docs),
        "get_docs_file": page(pages.get_docs_file),
    }


def _payment_id(text: str) -> bytes:
    payment_id = id_bytes(text)
    if payment_id is None:
        raise Refused(problems.PAYMENT_NOT_FOUND)
    return payment_id


def _no_route(resource: Resource | None) -> Refused:
    if resource is None:
        return Refused(problems.NOT_FOUND)
    return Refused(problems.METHOD_NOT_ALLOWED, headers={hdrs.ALLOW: resource.allow})


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    place = f"cannot listen on {host}:{port}"
    if error.errno == errno.EADDRINUSE:
        return f"{place}: another process has this port; stop it or choose another with --http-port"
    if error.errno == errno.EACCES:
        return f"{place}: this user may not take the port; choose one from 1024 up with --http-port"
    return f"{place}: {error.strerror or error}"

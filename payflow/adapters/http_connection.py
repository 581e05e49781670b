"""aiohttp's connection within bounds: how many there are, how long the first header takes, and problem documents for
what its parser refuses.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web

from payflow.adapters import problems
from payflow.adapters.http_reply import Reply
from payflow.adapters.problems import ProblemType

# How long what a refused client still sends is read and thrown away, so that a reset does not overtake the answer.
LINGER_S: Final = 1.0
METRICS_PATH: Final = "/metrics"
# Open files that the process needs beside its connections: databases, Kafka, listeners.
FILES_RESERVED: Final = 100


class Gate:
    """Counts the open connections of one front; `emit` hears when it begins and when it stops to refuse."""

    def __init__(self, most: int, *, emit: Callable[..., None]) -> None:
        self._most = min(most, _most_files())
        self._emit = emit
        self._open = self._refused = 0
        self._refusing = False

    def enter(self) -> bool:
        """Whether there is room for one more, which is then counted."""
        if self._open < self._most:
            self._open += 1
            return True
        self._refused += 1
        if not self._refusing:
            self._refusing = True
            self._emit("connections.refused", open=self._open)
        return False

    def leave(self) -> None:
        """One that had entered is closed. A tenth must be free before the end is told, so that it is told once."""
        self._open -= 1
        if self._refusing and self._open <= self._most * 9 // 10:
            self._refusing = False
            self._emit("connections.admitted", open=self._open, refused_total=self._refused)


class Connection(web.RequestHandler):
    """aiohttp would answer broken HTTP with plain text, and write a traceback to the log for each."""

    __slots__ = ("_answer", "_entered", "_gate", "_header_timeout_s", "_header_timer")

    def __init__(
        self,
        manager: web.Server,
        *,
        answer: Callable[[ProblemType], Reply],
        gate: Gate,
        header_timeout_s: float,
        **options: Any,
    ) -> None:
        super().__init__(manager, lingering_time=LINGER_S, auto_decompress=False, **(options | {"access_log": None}))
        self._answer = answer
        self._gate = gate
        self._entered = False
        self._header_timeout_s = header_timeout_s
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._entered = self._gate.enter()
        if not self._entered:
            self._force_close = True  # whatever it sends is not looked at
            surplus = cast("asyncio.WriteTransport", transport)  # uvloop's is one, but does not inherit from it
            surplus.write(self._answer(problems.TOO_MANY_CONNECTIONS).unasked())
            surplus.close()
            return
        super().connection_made(transport)
        self._header_timer = self._loop.call_later(self._header_timeout_s, self._close_silent)

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._entered:
            return
        self._entered = False
        self._gate.leave()
        if self._header_timer is not None:
            self._header_timer.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun, there is no room for a problem document")
        return self._answer(problems.MALFORMED_HTTP if status == 400 else problems.INTERNAL_ERROR)

    def _close_silent(self) -> None:
        """Between requests keep-alive counts; before the first one it would be a long time for nothing."""
        if self._request_count == 0:
            self.force_close()


def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """The low-level server's request, which is 1 us cheaper, and a full one where a handler from elsewhere wants it."""
    kind = web.Request if message.path.startswith(METRICS_PATH) else web.BaseRequest
    return kind(message, payload, protocol, writer, task, task.get_loop())


def _most_files() -> int:
    """Connections beyond the limit of open files would not be refused but left waiting, with everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 30 if soft == resource.RLIM_INFINITY else max(1, soft - FILES_RESERVED)

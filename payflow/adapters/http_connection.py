"""aiohttp's connection, with problem documents for what its parser refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiohttp import web

from payflow.adapters import problems
from payflow.adapters.problems import ProblemType

# How long what a refused client still sends is read and thrown away, so that a reset does not overtake the answer.
LINGER_S: Final = 1.0
METRICS_PATH: Final = "/metrics"


class Connection(web.RequestHandler):
    """aiohttp would answer broken HTTP with plain text, and write a traceback to the log for each."""

    __slots__ = ("_answer",)

    def __init__(
        self, manager: web.Server, *, answer: Callable[[ProblemType], web.StreamResponse], **options: Any
    ) -> None:
        super().__init__(manager, lingering_time=LINGER_S, auto_decompress=False, **(options | {"access_log": None}))
        self._answer = answer

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


def make_request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    """The low-level server's request, which is 1 us cheaper, and a full one where a handler from elsewhere wants it."""
    kind = web.Request if message.path.startswith(METRICS_PATH) else web.BaseRequest
    return kind(message, payload, protocol, writer, task, task.get_loop())

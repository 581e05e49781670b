"""Routes that every process serves: health, info, circuit breakers, problem types, the OpenAPI document and its pages.

/docs shows swagger-ui from the files that the package `swagger-ui-py` installs. Its Python code is never imported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec

from payflow.adapters import problem_pages, problems
from payflow.adapters.payments_api import JSON, Answer
from payflow.adapters.problems import Refused
from payflow.ports import Health

Breakers = Callable[[], Mapping[str, Mapping[str, object]]]

_TEXT: Final = "text/plain; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
_SCRIPT: Final = "text/javascript; charset=utf-8"
# Files of the package that the page needs, and ours.
_SWAGGER_FILES: Final = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": _SCRIPT,
    "favicon-32x32.png": "image/png",
}
_PAGE: Final = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>payflow API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png">
<div id="swagger-ui">The API description is at <a href="/openapi.json">/openapi.json</a>;
this page needs JavaScript.</div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</html>
"""
_START: Final = b"""SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, tryItOutEnabled: true,
  displayRequestDuration: true
});
"""
# Everything comes from this server; swagger-ui sets style attributes and draws its icons from data: URLs.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS: Final = (
    ("Content-Security-Policy", _POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)
_NOSNIFF: Final = (("X-Content-Type-Options", "nosniff"),)


class Pages:
    """One method a route: (argument of the path) -> answer."""

    def __init__(
        self, *, health: Health, breakers: Breakers, info: Mapping[str, object], openapi: Callable[[], bytes]
    ) -> None:
        self._health = health
        self._breakers = breakers
        self._info = info
        self._openapi = openapi
        self._encode = msgspec.json.Encoder().encode

    async def get_liveness(self, _: str) -> Answer:
        return Answer(200, b"OK\n", content_type=_TEXT)

    async def get_readiness(self, _: str) -> Answer:
        ready, checks = self._health.ready()
        return Answer(200 if ready else 503, self._encode({"ready": ready, "checks": checks}))

    async def get_health(self, _: str) -> Answer:
        body = self._health.components()
        return Answer(503 if _database_is_down(body) else 200, self._encode(body))

    async def get_info(self, _: str) -> Answer:
        return Answer(200, self._encode(self._info))

    async def list_breakers(self, _: str) -> Answer:
        return Answer(200, self._encode(self._breakers()))

    async def get_breaker(self, name: str) -> Answer:
        found = self._breakers().get(name)
        if found is None:
            raise Refused(problems.BREAKER_NOT_FOUND)
        return Answer(200, self._encode(found))

    async def list_problems(self, _: str) -> Answer:
        return Answer(200, problem_pages.index())

    async def get_problem(self, code: str) -> Answer:
        kind = problems.BY_CODE.get(code)
        if kind is None:
            raise Refused(problems.NOT_FOUND)
        return Answer(200, problem_pages.text(kind).encode(), _NOSNIFF, _TEXT)

    async def get_openapi(self, _: str) -> Answer:
        return Answer(200, self._openapi(), content_type=JSON)

    async def get_docs(self, _: str) -> Answer:
        return Answer(200, _PAGE, _PAGE_HEADERS, _HTML)

    async def get_docs_file(self, name: str) -> Answer:
        if name == "start.js":
            return Answer(200, _START, _NOSNIFF, _SCRIPT)
        content_type, folder = _SWAGGER_FILES.get(name), swagger_folder()
        if content_type is None or folder is None:
            raise Refused(problems.NOT_FOUND)
        body = await asyncio.to_thread((folder / name).read_bytes)
        return Answer(200, body, _NOSNIFF, content_type)


def swagger_folder() -> Path | None:
    """Where the package keeps swagger-ui; found without importing it."""
    spec = find_spec("swagger_ui")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "static"


def _database_is_down(body: Mapping[str, object]) -> bool:
    components = body.get("components")
    database = components.get("db") if isinstance(components, Mapping) else None
    return isinstance(database, Mapping) and database.get("status") == "DOWN"

"""The load generator's HTTP client: a bounded number of connections, no proxies, no redirects, no hidden retries.

What the network does comes back as an `Answer` without a status: unreachable (nothing was sent), timeout or broken
(whether the write happened is unknown).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from payflow.loadgen.values import BROKEN, TIMEOUT, UNREACHABLE, Answer

_JSON: Final = {"Content-Type": "application/json"}


class HttpTarget:
    """Implements `loadgen.values.Target`; used as an async context manager."""

    def __init__(self, url: str, *, management: str | None, connections: int, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._management = None if management is None else management.rstrip("/")
        self._connections = connections
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpTarget:
        # One connection more than asked for keeps the look at health and metrics out of the requests' way.
        connector = aiohttp.TCPConnector(limit=self._connections + 1, keepalive_timeout=75.0)
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, path: str, body: bytes, key: str) -> Answer:
        """One write."""
        return await self._ask("POST", self._url + path, data=body, headers={**_JSON, "Idempotency-Key": key})

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> Answer:
        """One read."""
        return await self._ask("GET", self._url + path, params=query)

    async def management(self, path: str) -> Answer:
        """One read from the management port."""
        if self._management is None:
            return Answer(0, failure=UNREACHABLE)
        return await self._ask("GET", self._management + path)

    async def _ask(self, method: str, url: str, **options: Any) -> Answer:
        assert self._session is not None
        try:
            async with self._session.request(method, url, allow_redirects=False, **options) as response:
                body = await response.read()
                return Answer(response.status, body, response.headers.get("Idempotent-Replayed") == "true")
        except aiohttp.ClientConnectorError:
            return Answer(0, failure=UNREACHABLE)
        except TimeoutError:
            return Answer(0, failure=TIMEOUT)
        except (aiohttp.ClientError, OSError):
            return Answer(0, failure=BROKEN)


def is_loopback(url: str) -> bool:
    """Whether the host is this machine by its name alone; nothing is resolved. Raises ValueError for no HTTP URL."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("must be http://HOST:PORT")
    if parts.path.strip("/") or parts.port == 0:  # reading a port that is none raises by itself
        raise ValueError("must be http://HOST:PORT without a path")
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        return False

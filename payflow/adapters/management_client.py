"""The management port as a client sees it: short requests to a server on this machine, for operator commands."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

from payflow.errors import DependencyUnavailable

TIMEOUT_S: Final = 20.0


class ManagementClient:
    """Every failure is DependencyUnavailable with one sentence."""

    def __init__(self, host: str, port: int) -> None:
        self._place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        # A proxy of the environment is for other machines.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> bytes:
        """Body of a 200."""
        return self._send(urllib.request.Request(f"http://{self._place}{path}"))

    def post(self, path: str, body: Mapping[str, object], *, token: str) -> dict[str, Any]:
        """Answer to an action."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"http://{self._place}{path}", json.dumps(body).encode(), headers
        )
        answer: dict[str, Any] = json.loads(self._send(request))
        return answer

    def _send(self, request: urllib.request.Request) -> bytes:
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            raise DependencyUnavailable(f"the server on {self._place} refused: {_detail(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise DependencyUnavailable(
                f"no payflow answers on {self._place} ({reason}): start it, or name its port with --management-port"
            ) from error


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"status {error.code}"

"""Route table of the payments app: which path answers which methods, for which role, and how a path is looked up.

The server, /openapi.json and the tests read the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from payflow.adapters.payments_api import CAPTURE, CREATE, REFUND, VOID, Writing

INGEST: Final = "ingest"
CONSUMER: Final = "consumer"


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path. `operation` names the handler; `role` None is served by every process."""

    method: str
    template: str
    operation: str
    role: str | None = None
    writing: Writing | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """One path template with all its methods. GET answers HEAD too. `allow` is the value of the Allow header."""

    template: str
    routes: Mapping[str, Route]
    allow: str


ROUTES: Final = (
    Route("POST", "/payments", "create_payment", INGEST, CREATE),
    Route("GET", "/payments", "list_payments", INGEST),
    Route("GET", "/payments/{id}", "get_payment", INGEST),
    Route("POST", "/payments/{id}/capture", "capture_payment", INGEST, CAPTURE),
    Route("POST", "/payments/{id}/refund", "refund_payment", INGEST, REFUND),
    Route("POST", "/payments/{id}/void", "void_payment", INGEST, VOID),
    Route("GET", "/ledger/payments/{id}", "get_ledger_of_payment", CONSUMER),
    Route("GET", "/ledger/accounts", "list_accounts", CONSUMER),
    Route("GET", "/ledger/trial-balance", "get_trial_balance", CONSUMER),
    Route("GET", "/circuit-breaker/status", "list_breakers"),
    Route("GET", "/circuit-breaker/{name}", "get_breaker"),
    Route("GET", "/livez", "get_liveness"),
    Route("GET", "/readyz", "get_readiness"),
    Route("GET", "/healthz", "get_health"),
    Route("GET", "/info", "get_info"),
    Route("GET", "/metrics", "get_metrics"),
    Route("GET", "/openapi.json", "get_openapi"),
    Route("GET", "/problems", "list_problems"),
    Route("GET", "/problems/{code}", "get_problem"),
    Route("GET", "/docs", "get_docs"),
    Route("GET", "/docs/{file}", "get_docs_file"),
)
UNMATCHED: Final = "unmatched"


def _resources() -> Mapping[str, Resource]:
    found: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        methods = found.setdefault(route.template, {})
        methods[route.method] = route
        if route.method == "GET":
            methods["HEAD"] = route
    return {template: Resource(template, methods, ", ".join(sorted(methods))) for template, methods in found.items()}


RESOURCES: Final = _resources()
_FIXED: Final = {template: resource for template, resource in RESOURCES.items() if "{" not in template}
# Templates that end in their one argument, by what is before it.
_LAST: Final = {
    template.rpartition("/")[0]: resource for template, resource in RESOURCES.items() if template.endswith("}")
}
_PAYMENT: Final = "/payments/"
# Templates that end in an action on a payment, by the action.
_ACTIONS: Final = {
    template.rpartition("/")[2]: resource
    for template, resource in RESOURCES.items()
    if template.startswith(_PAYMENT + "{id}/")
}


def find(path: str) -> tuple[Resource | None, str]:
    """The resource of a concrete path and the one argument in it. Percent-encoded spellings of our paths are not our
    paths.
    """
    resource = _FIXED.get(path)
    if resource is not None:
        return resource, ""
    prefix, _, last = path.rpartition("/")
    resource = _LAST.get(prefix)
    if resource is not None:
        return resource, last
    if prefix.startswith(_PAYMENT) and last in _ACTIONS and "/" not in (payment := prefix.removeprefix(_PAYMENT)):
        return _ACTIONS[last], payment
    return None, ""

"""From an exception of the service to the problem document that tells the client what is known, and no more."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Final

from payflow.adapters import problems
from payflow.adapters.payments_api import retry_after
from payflow.adapters.problems import Refused
from payflow.errors import (
    ActorError,
    MailboxClosed,
    MailboxFull,
    OutcomeUnknown,
    Overloaded,
    StoreBusy,
    StoreOutcomeUnknown,
    StoreUnavailable,
)

_RETRY_S: Final = 1.0


def report(emit: Callable[..., None], error: Exception, *, request_id: str, route: str) -> None:
    """Tell of a bug, with where it happened; local variables, which would hold payloads, stay out of it."""
    emit(
        "request.failed",
        request_id=request_id,
        route=route,
        error_type=type(error).__name__,
        error=str(error),
        traceback="".join(traceback.format_exception(error)),
    )


def refusal_of(error: Exception, *, writes: bool) -> Refused:
    """A write that may have been queued is never called a failure: its outcome is unknown."""
    match error:
        case Overloaded():
            return Refused(problems.OVERLOADED, headers=retry_after(error.retry_after_s))
        case OutcomeUnknown():
            return Refused(problems.OUTCOME_UNKNOWN, headers=retry_after(error.retry_after_s))
        case MailboxFull():
            return Refused(problems.OVERLOADED, headers=retry_after(_RETRY_S))
        case StoreBusy() | StoreUnavailable() | MailboxClosed():
            return Refused(problems.UNAVAILABLE, headers=retry_after(_RETRY_S))
        case ActorError() | TimeoutError() | StoreOutcomeUnknown():
            kind = problems.OUTCOME_UNKNOWN if writes else problems.UNAVAILABLE
            return Refused(kind, headers=retry_after(_RETRY_S))
        case _:
            return Refused(problems.INTERNAL_ERROR)

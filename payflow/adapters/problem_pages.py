"""The catalogue of problems for readers: /problems as JSON, /problems/{code} as text, docs/problems.md."""

from __future__ import annotations

import msgspec

from payflow.adapters.problems import CATALOGUE, CONTENT_TYPE, ProblemType

_HEAD = f"""# Problem types

<!-- generated: payflow.adapters.problem_pages.markdown(); tests/unit/test_openapi.py compares -->

Every refusal is `{CONTENT_TYPE}` (RFC 9457) with `type`, `code`, `title`, `status`, `detail`, `retryable` and
`request_id`. `errors` has a `code`, a `detail` and a `pointer` (RFC 6901) to each bad member, or the name of a
`parameter` or `header`. `type` is a path on the same server that explains the problem. Program against `code`: it never
changes its meaning.

| status | code | retryable | what it means | what to do |
|---|---|---|---|---|
"""


def index() -> bytes:
    """The catalogue as JSON."""
    rows = [
        {"type": one.type, "code": one.code, "status": one.status, "title": one.title, "retryable": one.retryable}
        for one in CATALOGUE
    ]
    return msgspec.json.encode({"problems": rows})


def text(kind: ProblemType) -> str:
    """What a person reads who follows `type`."""
    facts = f"status: {kind.status}\ncode: {kind.code}\nretryable: {_yes_no(kind)}"
    return f"{kind.title}\n\n{facts}\n\n{kind.detail}\n\n{kind.advice}\n"


def markdown() -> str:
    """The whole of docs/problems.md."""
    rows = (
        f"| {kind.status} | `{kind.code}` | {_yes_no(kind)} | {kind.title}. {kind.detail} | {kind.advice} |\n"
        for kind in CATALOGUE
    )
    return _HEAD + "".join(rows)


def _yes_no(kind: ProblemType) -> str:
    return "yes" if kind.retryable else "no"

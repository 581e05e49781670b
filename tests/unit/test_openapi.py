"""The description of the API: complete, self-consistent, and true of the types. docs/problems.md is the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import msgspec
import pytest

from payflow.adapters import problem_pages, problems
from payflow.adapters.http_api import _reads
from payflow.adapters.http_routes import ROUTES, find
from payflow.adapters.openapi import DOCS, openapi_document

DOCUMENT: dict[str, Any] = msgspec.json.decode(openapi_document())
OPERATIONS = {(path, method): one for path, methods in DOCUMENT["paths"].items() for method, one in methods.items()}
# Whatever the path, so not listed with an operation.
ANYWHERE = {"malformed-http", "not-found", "method-not-allowed", "too-many-connections"}
OF_THE_API = {kind.code for kind in problems.CATALOGUE if not kind.management}
KNOWN_WORDS = {
    "title", "description", "type", "properties", "required", "additionalProperties", "examples", "pattern", "format",
    "enum", "anyOf",
    "minimum", "maximum", "minLength", "maxLength", "maxProperties", "propertyNames", "items", "$ref", "default",
}  # fmt: skip
TYPES = {"string": str, "integer": int, "object": dict, "array": list, "boolean": bool, "null": type(None)}


def resolved(node: Any) -> Any:
    while isinstance(node, dict) and "$ref" in node:
        found: Any = DOCUMENT
        for part in node["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        node = found
    return node


def walk(node: Any) -> Iterator[Any]:
    yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def flaws(value: Any, schema: Any, at: str = "") -> list[str]:
    """What JSON Schema has against the value; only the words that our schemas use."""
    schema = resolved(schema)
    assert set(schema) <= KNOWN_WORDS, f"{at}: teach this test {set(schema) - KNOWN_WORDS}"
    if "anyOf" in schema:
        return [] if any(not flaws(value, one, at) for one in schema["anyOf"]) else [f"{at}: none of anyOf"]
    found = []
    if "type" in schema and type(value) is not TYPES[schema["type"]]:
        return [f"{at}: not {schema['type']}"]
    if isinstance(value, str):
        found += [f"{at}: length"] * (not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 10**9))
        found += [f"{at}: pattern"] * (re.search(schema.get("pattern", ""), value) is None)
    if isinstance(value, int):
        found += [f"{at}: range"] * (not schema.get("minimum", value) <= value <= schema.get("maximum", value))
    found += [f"{at}: enum"] * (value not in schema.get("enum", [value]))
    if isinstance(value, list):
        found += [flaw for one in value for flaw in flaws(one, schema["items"], f"{at}[]")]
    if isinstance(value, dict):
        found += [f"{at}: {name} is missing" for name in schema.get("required", []) if name not in value]
        rest = schema.get("additionalProperties", True)
        for name, member in value.items():
            if name in schema.get("properties", {}):
                found += flaws(member, schema["properties"][name], f"{at}/{name}")
            elif rest is False:
                found.append(f"{at}/{name}: unknown")
            elif isinstance(rest, dict):
                found += flaws(member, rest, f"{at}/{name}")
    return found


def test_every_route_is_described_and_answered() -> None:
    assert {(route.template, route.method.lower()) for route in ROUTES} == set(OPERATIONS)
    assert {route.operation for route in ROUTES} == set(DOCS)
    reads = {route.operation for route in ROUTES if route.writing is None}
    assert reads == set(_reads(MagicMock(), MagicMock())) | {"get_metrics"}


def test_every_template_finds_its_own_resource() -> None:
    for route in ROUTES:
        resource, _ = find(re.sub(r"\{.*?\}", "x", route.template))
        assert resource is not None
        assert resource.template == route.template


def test_every_reference_leads_somewhere() -> None:
    for node in walk(DOCUMENT):
        if isinstance(node, dict) and "$ref" in node:
            assert resolved(node)


def test_every_problem_is_listed_where_it_can_occur() -> None:
    listed = {
        name
        for operation in OPERATIONS.values()
        for response in operation["responses"].values()
        for name in response["content"].get("application/problem+json", {}).get("examples", {})
    }

    assert listed | ANYWHERE == OF_THE_API
    assert set(DOCUMENT["components"]["examples"]) == OF_THE_API


def test_every_problem_is_listed_under_its_own_status() -> None:
    for operation in OPERATIONS.values():
        for status, response in operation["responses"].items():
            for name in response["content"].get("application/problem+json", {}).get("examples", {}):
                assert problems.BY_CODE[name].status == int(status)


def test_every_example_is_valid() -> None:
    count = 0
    for node in walk(DOCUMENT["paths"]):
        if isinstance(node, dict) and "schema" in node and "examples" in node:
            for example in node["examples"].values():
                assert flaws(resolved(example)["value"], node["schema"]) == []
                count += 1

    assert count > 100


def test_examples_inside_the_schemas_are_valid() -> None:
    for node in walk(DOCUMENT["components"]["schemas"]):
        if isinstance(node, dict) and isinstance(node.get("examples"), list):
            for example in node["examples"]:
                assert flaws(example, node) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"amount": 1, "currency": "EUR"}, {"merchant_id": "m", "amount": 0, "currency": "EUR"},
        {"merchant_id": "m 1", "amount": 1, "currency": "EUR"},
        {"merchant_id": "m", "amount": 1, "currency": "EUR", "x": 1},
        {"merchant_id": "m", "amount": 1.5, "currency": "EUR"}, {"merchant_id": "m", "amount": 1, "currency": "eur"},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_code_refuses(bad: dict[str, object]) -> None:
    assert flaws(bad, {"$ref": "#/components/schemas/PaymentRequest"})


def test_every_operation_says_what_it_takes() -> None:
    for (path, method), operation in OPERATIONS.items():
        names = {resolved(one)["name"] for one in operation["parameters"]}
        assert set(re.findall(r"\{(\w+)\}", path)) <= names
        assert ("requestBody" in operation) is (method == "post")
        assert ("Idempotency-Key" in names) is (method == "post")
        assert operation["summary"]


def test_the_document_is_openapi_3_1_without_a_foreign_host() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    assert b"http://" not in openapi_document()
    assert b"https://" not in openapi_document()


def test_codes_are_words_with_hyphens_and_statuses_are_errors() -> None:
    for kind in problems.CATALOGUE:
        assert re.fullmatch(r"[a-z][a-z0-9-]+", kind.code)
        assert 400 <= kind.status < 600
        assert kind.type == f"/problems/{kind.code}"
        assert kind.retryable is (kind.status >= 500 or kind.status == 408)
    assert len(problems.BY_CODE) == len(problems.CATALOGUE)


def test_docs_problems_md_is_the_catalogue() -> None:
    path = Path(__file__).parents[2] / "docs" / "problems.md"

    # To write it anew: python -c 'from payflow.adapters.problem_pages import markdown; print(markdown(), end="")'
    assert path.read_text() == problem_pages.markdown()

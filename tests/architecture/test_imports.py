"""Layers, checked on the syntax tree: what a module may import, where an import may stand, which calls are banned.

The order is core <- (errors, ports, messages, wire, config) <- runtime <- actors; adapters beside the runtime;
composition on top.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "payflow"
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))

RUNTIME = {
    "envelope", "parking", "supervision", "mailbox", "mailbox_stats", "actor", "spec", "instance", "slot", "stacks",
    "inspection", "supervisor",
    "watchdog", "phases", "shutdown", "guard",
}  # fmt: skip
CONTRACTS = {"errors", "messages", "ports", "wire", "config"}
COMPOSITION = {"app", "figures", "health", "inspector", "telemetry", "metrics"}

# Parts that actors are made of: no Actor in them, so an actor may import them.
ACTOR_PARTS = {
    f"payflow.actors.{name}"
    for name in ("auditor", "consumer_values", "dead_letters", "lag", "producers", "records", "storing")
}  # fmt: skip

# layer -> (layers of payflow it may import, foreign packages it may import)
ALLOWED = {
    "core": ({"core", "errors"}, set()),
    "errors": (set(), set()),
    "contracts": ({"core", "contracts", "errors"}, {"msgspec"}),
    "loadgen": ({"core", "contracts", "errors", "loadgen"}, {"msgspec"}),
    "runtime": ({"core", "errors", "runtime"}, set()),
    "adapters": ({"core", "contracts", "errors", "adapters", "package"}, {"msgspec"}),
    "actors": ({"core", "contracts", "errors", "runtime", "actors"}, {"msgspec"}),
    "composition": (
        {"core", "contracts", "errors", "runtime", "adapters", "actors", "composition", "package"},
        {"msgspec", "structlog", "prometheus_async", "prometheus_client"},
    ),
    "cli": (
        {"core", "contracts", "errors", "runtime", "adapters", "actors", "composition", "cli", "package", "loadgen"},
        {"msgspec", "click", "rich"},
    ),
    "package": (set(), set()),
}
# One foreign library a file; a family of files that together are one adapter shares it.
FOREIGN = {
    "http_": "aiohttp", "sqlite_": "aiosqlite", "kafka_": "aiokafka", "_aiokafka": "aiokafka",
    "embedded_broker": "confluent_kafka", "system": "uuid_utils", "hdr_": "hdrh",
}  # fmt: skip
CORE_BANNED = {"asyncio", "time", "random", "logging", "os", "socket", "threading", "sqlite3"}
# Extras that are not always installed, and start-up costs that only one command needs.
LATE_IMPORTS = {"payflow/adapters/embedded_broker.py", "payflow/cli/__init__.py"}
TASKS_ALLOWED = {"payflow/supervisor.py", "payflow/actor.py"}


def layer_of(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1 or module == "payflow.__init__":
        return "package"
    head = parts[1]
    if head in {"core", "adapters", "actors", "cli"}:
        return head
    if head == "errors":
        return "errors"
    if head == "loadgen":  # its words and its port to the target are a contract, as ports.py is
        return "contracts" if module == "payflow.loadgen.values" else "loadgen"
    if head == "__main__":
        return "cli"
    for layer, names in (("runtime", RUNTIME), ("contracts", CONTRACTS), ("composition", COMPOSITION)):
        if head in names:
            return layer
    raise AssertionError(f"{module} belongs to no layer: name it in this test")


def imports_of(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            found += [
                f"{node.module}.{alias.name}" if node.module == "payflow" else node.module for alias in node.names
            ]
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_module_imports_only_what_its_layer_may(path: Path) -> None:
    """Who may know whom is decided here, not in review."""
    tree = ast.parse((ROOT / path).read_text())
    layer = layer_of(".".join(path.with_suffix("").parts))
    layers, foreign = ALLOWED[layer]
    if layer == "adapters":
        foreign = foreign | {library for prefix, library in FOREIGN.items() if path.stem.startswith(prefix)}

    for name in imports_of(tree):
        top = name.split(".")[0]
        if top == "payflow":
            assert layer_of(name.removesuffix(".__version__")) in layers, f"{path} may not import {name}"
            same_actors = layer == "actors" and layer_of(name) == "actors" and name not in ACTOR_PARTS
            assert not same_actors, f"{path}: actors know each other through references and messages only"
        elif top in sys.stdlib_module_names:
            assert not (layer == "core" and top in CORE_BANNED), f"{path} may not import {name}"
        else:
            assert top in foreign, f"{path} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_module_makes_no_banned_call_and_no_late_import(path: Path) -> None:
    """wait_for swallows a cancel on 3.11, gather leaves siblings behind, a bare task has no owner."""
    tree = ast.parse((ROOT / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and str(path) not in LATE_IMPORTS:
            late = [inner for inner in ast.walk(node) if isinstance(inner, (ast.Import, ast.ImportFrom))]
            assert not late, f"{path}:{late[0].lineno} imports inside a function" if late else ""
        if not isinstance(node, ast.Attribute):
            continue
        assert node.attr not in {"wait_for", "gather"}, f"{path}:{node.lineno} uses {node.attr}"
        if node.attr in {"create_task", "ensure_future"} and str(path) not in TASKS_ALLOWED:
            owner = ast.unparse(node.value)
            assert "group" in owner, f"{path}:{node.lineno} makes a task without an owner"


def test_modules_import_without_a_cycle() -> None:
    """A cycle is two modules that should be one, or three."""
    graph = {}
    for path in MODULES:
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        found = {item for item in imports_of(ast.parse((ROOT / path).read_text())) if item.startswith("payflow.")}
        graph[name] = {item for item in found if item != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in done:
            for item in graph.get(name, ()):
                visit(item, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())

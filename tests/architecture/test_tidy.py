"""Sizes and habits that a review should not have to look for (the numbers are those of CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = sorted((ROOT / "payflow").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MODULE_LINES = 450
FUNCTION_LINES = 70
PARAMETERS = 9
NESTING = 4
HEAD_LINES = 15
TEST_FILE_LINES = 800
# A composition root names every part once: its constructor calls are its content.
PARAMETERS_ALLOWED = {
    "Figures.__init__": 11,
    "ApiServer.__init__": 13,
    "ManagementServer.__init__": 10,
    "Publisher.__init__": 10,
    "Consumer.__init__": 10,
}
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            found += functions(node, f"{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            found.append((prefix + node.name, node))
            found += functions(node, f"{prefix}{node.name}.")
    return found


def depth_of(node: ast.AST) -> int:
    below = 0
    for child in ast.iter_child_nodes(node):
        chained = isinstance(node, ast.If) and isinstance(child, ast.If) and child in node.orelse
        below = max(below, depth_of(child) + (isinstance(child, BLOCKS) and not chained))
    return below


@pytest.mark.parametrize("path", SOURCE, ids=ids)
def test_module_keeps_the_sizes(path: Path) -> None:
    """What does not fit is looking for a simpler design, or for a second room."""
    text = path.read_text()
    tree = ast.parse(text)
    head = len((ast.get_docstring(tree) or "").splitlines())

    assert head, "a module says at its head what it is for"
    assert head <= HEAD_LINES
    assert len(text.splitlines()) - head <= MODULE_LINES
    for name, node in functions(tree):
        assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, name
        arguments = [
            a for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs) if a.arg not in {"self", "cls"}
        ]
        assert len(arguments) <= PARAMETERS_ALLOWED.get(name, PARAMETERS), name
        assert depth_of(node) <= NESTING, name


@pytest.mark.parametrize("path", SOURCE, ids=ids)
def test_module_has_no_loose_ends(path: Path) -> None:
    """No note to self without an issue number, no print outside the command line."""
    text = path.read_text()
    for line in text.splitlines():
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            assert re.search(r"#\d+", line), line
    if "cli" not in path.parts:
        assert not re.search(r"(?<![\w.])print\(", text)


@pytest.mark.parametrize("path", TESTS, ids=ids)
def test_test_file_can_be_read_in_one_go(path: Path) -> None:
    """A test file nobody opens protects nothing."""
    assert len(path.read_text().splitlines()) <= TEST_FILE_LINES


@pytest.mark.parametrize("path", [path for path in TESTS if path.parent.name != "bench"], ids=ids)
def test_test_never_sleeps_to_wait(path: Path) -> None:
    """Virtual time, ticks, or polling with a deadline in tests/support; a pause proves nothing."""
    if path.parent.name == "support" or path.name == Path(__file__).name:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep":
            pytest.fail(f"{path.name}:{node.lineno} sleeps")

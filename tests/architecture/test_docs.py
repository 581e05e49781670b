"""Documents, compared with the code: what a page names exists, and what the code names is on its page.

Tables are read as they stand: the first cell of a row is the name, in backticks. No page is written here; a comparison
that fails shows what the page should say.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml

from payflow.app import App
from payflow.cli import COMMANDS, main
from payflow.config import Sources, load
from payflow.core.outbox import Backlog
from payflow.core.payment import state_diagram
from payflow.metrics import Metrics
from payflow.shutdown import BUDGET_S, DEFAULT_PHASES, ProcessControl
from payflow.telemetry import LEVELS
from tests.unit.runtime.test_actor_cases import CASES, ID_IN_NAME, LEFT_OUT

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
# Printed by the program, each compared with it by a test of its own.
GENERATED = {"config.md", "problems.md", "api.md"}
WRITTEN = [page for page in PAGES if page.name not in GENERATED]
SOURCE = sorted((ROOT / "payflow").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Files that leave this machine, beside the pages.
SHIPPED = [ROOT / "Makefile", ROOT / "pyproject.toml", *sorted((ROOT / "config").glob("*.toml")), *ROOT.glob("*.lock")]

EMITTERS = {"emit", "_emit", "_tell"}
EVENT_NAME = re.compile(r"[a-z]+\.[a-z_]+")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|home|root|Users|mnt|private|var/lib)/\w")
REGISTRY_HOST = re.compile(
    r"pypi\.org|pythonhosted|(?<!emit-)index-url|npmjs\.|crates\.io|proxy\.golang|repo\d?\.maven|jfrog|artifactory|nexus|docker\.io|ghcr\.io|quay\.io"
)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rows(page: Path) -> Iterator[list[str]]:
    """The cells of every table row of a page whose first cell is one name in backticks."""
    for line in page.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and re.fullmatch(r"`[^`]+`", cells[0]):
            yield [cells[0].strip("`"), *cells[1:]]


def words(cell: str) -> set[str]:
    """The names in backticks of a cell."""
    return set(re.findall(r"`([^`]+)`", cell))


# ------------------------------------------------------------------ events
Fields = tuple[set[str], bool]  # those that stand in the call, and whether there are more by `**`


@cache
def emitted() -> dict[str, Fields]:
    """Pattern of the event's name -> its fields."""
    found: dict[str, Fields] = {}
    for path in SOURCE:
        if "cli" in path.parts:
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func).split(".")[-1] in EMITTERS:
                fields = {keyword.arg for keyword in node.keywords if keyword.arg}
                open_ended = any(keyword.arg is None for keyword in node.keywords)
                if ast.unparse(node.func) == "self.ctx.emit":
                    fields.add("actor")
                for name in event_names(node.args[0], tree):
                    found[name] = fields, open_ended
            elif isinstance(node, ast.Dict) and path.name == "telemetry.py":
                entries = zip(node.keys, node.values, strict=True)
                pairs = {ast.unparse(key).strip("'"): value for key, value in entries if key}
                if "event" in pairs:  # an event that the log writes about itself
                    fields = set(pairs) - {"event", "level", "at"}
                    found |= dict.fromkeys(event_names(pairs["event"], tree), (fields, False))
    return found


def event_names(node: ast.expr, tree: ast.Module) -> list[str]:
    """Literals of an expression, those of a table of the module that it names, and f-strings as patterns."""
    if isinstance(node, ast.JoinedStr):
        parts = [re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[a-z_]+" for part in node.values]
        return ["".join(parts)]
    names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    tables = [
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) in names and statement.value
    ]
    literals = [inner.value for root in (node, *tables) for inner in ast.walk(root) if isinstance(inner, ast.Constant)]
    return [re.escape(value) for value in literals if isinstance(value, str) and EVENT_NAME.fullmatch(value)]


@cache
def documented_events() -> dict[str, tuple[str, set[str]]]:
    return {name: (level, words(fields)) for name, level, fields, *_ in rows(DOCS / "events.md")}


def test_every_event_has_its_row_and_no_other() -> None:
    """At three in the morning the page is all there is."""
    patterns, names = set(emitted()), set(documented_events())

    assert set() == {pattern for pattern in patterns if not any(re.fullmatch(pattern, name) for name in names)}
    assert set() == {name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)}


def test_events_have_the_documented_fields() -> None:
    """A field that is renamed breaks somebody's search."""
    for pattern, (fields, open_ended) in emitted().items():
        for name, (_, documented) in documented_events().items():
            if re.fullmatch(pattern, name):
                assert fields <= documented if open_ended else fields == documented, name


def test_events_have_the_documented_level() -> None:
    """`process.ended` has two levels; the log's own event is always an error."""
    for name, (level, _) in documented_events().items():
        expected = "error" if name == "log.dropped" else LEVELS.get(name, "info")
        assert level.split(",")[0] == expected, name


# ------------------------------------------------------------------ metrics
@pytest.fixture
async def families(tmp_path: Path) -> dict[str, tuple[str, set[str]]]:
    """Name as scraped -> (type, labels) of everything the payments process registers; nothing is started."""
    loaded = load(Sources(profile=None, config_dir=ROOT / "config", environ={}, flags=(), files=(), secrets_dir=None))
    control = ProcessControl(asyncio.get_running_loop(), emit=silent, budget_s=BUDGET_S, phases=DEFAULT_PHASES)
    telemetry: Any = SimpleNamespace(emit=silent, writer=SimpleNamespace(dropped_total=0))
    app = App(loaded.settings, control, telemetry=telemetry)
    app._gauges.backlog = Backlog(pending=0, parked=0, held_keys=0, oldest_pending_at_us=None)
    metrics = Metrics(app._figures)
    try:
        collected = list(metrics.collect())
    finally:
        metrics.close()
    found = {}
    for family in collected:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = set(getattr(family, "_labelnames", ())) or {key for sample in family.samples for key in sample.labels}
        found[name] = family.type, labels
    return found


def silent(_event: str, /, **_fields: object) -> None:
    return None


async def test_every_metric_has_its_row_and_no_other(families: dict[str, tuple[str, set[str]]]) -> None:
    """With the type and the labels that a query needs."""
    documented = {name: (kind, words(labels)) for name, kind, labels, *_ in rows(DOCS / "metrics.md")}

    assert families == documented


# ------------------------------------------------------------------ other pages that repeat the code
def test_the_state_diagram_is_drawn_from_the_table() -> None:
    """`payflow.core.payment.state_diagram()` is what the page has to show."""
    assert f"```mermaid\n{state_diagram()}```" in (DOCS / "payment-states.md").read_text()


def test_every_management_route_is_on_the_debug_page() -> None:
    """As the adapter writes it, so that a route cannot be added in silence."""
    page = (DOCS / "debug.md").read_text().replace("\\|", "|")
    source = (ROOT / "payflow" / "adapters" / "http_management.py").read_text()

    routes = re.findall(r'web\.(get|post)\("([^"]+)"', source)

    assert routes
    for method, path in routes:
        assert f"`{method.upper()} {path}`" in page


def cases_table() -> str:
    """The cases of the runtime, each with the files that test it."""
    found: dict[str, list[str]] = {}
    for file in TESTS:
        for area, number in ID_IN_NAME.findall(file.read_text()):
            found.setdefault(f"{area.upper()}-{number}", []).append(ids(file))
    lines = ["| case | rule | test |", "|---|---|---|"]
    for case in yaml.safe_load(CASES.read_text())["cases"]:
        files = sorted(set(found.get(case["id"], [])))
        where = ", ".join(f"`{file}`" for file in files) or LEFT_OUT[case["id"]].split(" (")[0].split(";")[0]
        lines.append(f"| {case['id']} | {case['title'].replace('|', ',')} | {where} |")
    return "\n".join(lines)


def test_the_cases_of_the_runtime_are_on_their_page() -> None:
    """Which rule is held by which test."""
    page = (DOCS / "actors.md").read_text()
    shown = re.search(r"<!-- cases.*?-->\n(.*)\n<!-- end of cases -->", page, re.DOTALL)

    assert shown is not None
    assert cases_table() == shown[1]


# ------------------------------------------------------------------ what a page names exists
def anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_internal_links_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading in it."""
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("http://", "https://", "/")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", WRITTEN, ids=ids)
def test_files_and_tests_that_a_page_names_exist(page: Path) -> None:
    """A mechanism without its file, or a promise without its test, is a wish."""
    text = page.read_text()
    tests = set(re.findall(r"def (test_\w+)", "".join(file.read_text() for file in TESTS)))

    for name in re.findall(r"`((?:payflow|tests|docs|config)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(test_\w+)`", text):
        assert name in tests, name


@pytest.mark.parametrize("page", WRITTEN, ids=ids)
def test_keys_and_events_that_a_page_names_exist(page: Path) -> None:
    """`section.key` of the configuration, or `noun.verb` of the log."""
    reference = (DOCS / "config.md").read_text()
    keys = set(re.findall(r"^\| `([a-z][\w.-]*)` \|", reference, re.MULTILINE))
    known = keys | set(documented_events())
    heads = {name.split(".")[0] for name in known if "." in name}

    for name in re.findall(r"`([a-z]+\.[a-z_-]+)`", text_of(page)):
        head, _, tail = name.partition(".")
        if head in heads - {"payment"} and tail not in {"db", "py", "md", "toml", "kafka-publisher"}:
            assert name in known, name


def text_of(page: Path) -> str:
    return FENCE.sub("", page.read_text())


@pytest.mark.parametrize("page", WRITTEN, ids=ids)
def test_commands_that_a_page_shows_work(page: Path) -> None:
    """Targets of the Makefile, commands of the program, flags of these commands."""
    text = page.read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = "\n".join(re.findall(r"`[^`\n]+`", text) + re.findall(r"^\$ .*$", text, re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z][a-z-]*)", code)) <= targets
    for line in re.findall(r"^\$ .*$", text, re.MULTILINE):
        command = re.search(rf"(?:payflow|make) ({'|'.join(COMMANDS)}|run)\b(.*)", line.partition(" #")[0])
        if command is None:
            continue
        name = "serve" if command[1] == "run" else command[1]
        assert set(re.findall(r"--[a-z][a-z-]+", command[2])) <= flags_of(name)
    assert set(re.findall(r"\bpayflow (serve|config|registry|gateway)\b", code)) <= {*COMMANDS}


def flags_of(command: str) -> set[str]:
    """Of a command and of what is below it."""
    context = click.Context(main)
    found = main.get_command(context, command)
    assert found is not None
    below = list(found.commands.values()) if isinstance(found, click.Group) else [found]
    return {flag for one in below for parameter in one.params for flag in parameter.opts}


def test_the_quick_start_is_two_commands() -> None:
    """Start it, test it: nobody should have to read further to see it work."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Quick start")[2].partition("\n## ")[0]

    assert re.findall(r"^\$ (make \w+)", section, re.MULTILINE) == ["make run", "make test"]


@pytest.mark.parametrize("file", [*PAGES, *SHIPPED], ids=ids)
def test_nothing_names_a_machine_or_a_package_registry(file: Path) -> None:
    """What is true on one machine only is true nowhere."""
    for line in file.read_text().splitlines():
        assert not MACHINE_PATH.search(line), line
        assert not REGISTRY_HOST.search(line), line

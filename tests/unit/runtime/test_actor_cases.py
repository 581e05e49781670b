"""Every case of tests/cases/actor_cases.yaml has exactly one test that carries its id in its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).parents[2]
CASES = TESTS / "cases" / "actor_cases.yaml"
ID_IN_NAME = re.compile(r"^(?:async )?def test_(mb|lc|sv|db)_(\d\d)_", re.MULTILINE)

# Cases without a test here, each with the reason.
LEFT_OUT = {
    "DB-03": "traces are postponed",
    "DB-07": "/debug/waits is not needed now",
    "DB-08": "about ports and tokens: it is tested with the management HTTP adapter, not with the runtime",
}

# Decided in a pure core or carried out by a whole process: tested on more than one level, at least once.
SEVERAL_LEVELS = {f"SV-{number}" for number in (12, 13, 14, 15, 16, 17, 20, 21, 27, 28, 29, 30, 31, 32, 33, 34)}


def cases_tested() -> dict[str, list[str]]:
    """Return the files that hold a test for each case id."""
    found: dict[str, list[str]] = {}
    for file in sorted(TESTS.rglob("test_*.py")):
        for area, number in ID_IN_NAME.findall(file.read_text(encoding="utf-8")):
            found.setdefault(f"{area.upper()}-{number}", []).append(file.name)
    return found


def case_ids() -> list[str]:
    return [case["id"] for case in yaml.safe_load(CASES.read_text(encoding="utf-8"))["cases"]]


@pytest.mark.parametrize("case_id", case_ids())
def test_every_case_has_exactly_one_test(case_id: str) -> None:
    """The id of the case is part of the name of the test."""
    found = cases_tested().get(case_id, [])

    if case_id in SEVERAL_LEVELS:
        assert found
    else:
        assert (0 if case_id in LEFT_OUT else 1) == len(found), found


def test_no_test_names_a_case_that_does_not_exist() -> None:
    """A renamed case takes its test along."""
    assert set() == set(cases_tested()) - set(case_ids())
    assert set() == set(LEFT_OUT) - set(case_ids())

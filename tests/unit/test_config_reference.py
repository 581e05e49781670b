"""The printed reference is true: the files in the repository are what the code prints, and what they say works."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from payflow.config import Settings, Sources, default_toml, load, reference_markdown
from payflow.config.schema import ROOT, Key, keys

REPOSITORY = Path(__file__).parents[2]
KEYS = [key for key in keys(ROOT) if not key.secret]


def dotted(key: Key) -> str:
    return key.dotted


def test_default_toml_is_what_the_code_prints() -> None:
    """Mend with: payflow config reference > config/default.toml"""
    assert default_toml() == (REPOSITORY / "config/default.toml").read_text()


def test_docs_config_is_what_the_code_prints() -> None:
    """Mend with: payflow config reference --format markdown > docs/config.md"""
    assert reference_markdown() == (REPOSITORY / "docs/config.md").read_text()


def test_default_toml_names_every_key_and_changes_nothing() -> None:
    result = load(Sources(files=(REPOSITORY / "config/default.toml",)))

    assert Settings() == result.settings
    assert result.warnings == ()
    assert {"file"} == {value.origin.layer for value in result.values}


@pytest.mark.parametrize("profile", sorted((REPOSITORY / "config").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_valid(profile: Path) -> None:
    assert load(Sources(files=(profile,))).warnings == ()


@pytest.mark.parametrize("key", KEYS, ids=dotted)
def test_every_key_is_documented_and_has_a_variable_that_sets_it(key: Key) -> None:
    assert key.kind.doc.endswith(".")
    assert key.env in reference_markdown() or key.path[:2] == ("breaker", "kafka-publisher")

    text = tomllib.loads(f"value = {key.kind.render(key.default)}")["value"]
    written = ",".join(text) if isinstance(text, list) else str(text)
    result = load(Sources(environ={key.env: written}))

    assert Settings() == result.settings
    assert key.env in {value.origin.source for value in result.values}


def test_secrets_have_a_variable_too() -> None:
    (secret,) = (key for key in keys(ROOT) if key.secret)

    assert secret.env == "PAYFLOW_MANAGEMENT__TOKENS__*"

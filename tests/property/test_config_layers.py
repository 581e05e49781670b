"""Laws of the layers, for any keys and values: the last layer wins, no unknown key passes, no error is left out.

Rules over several keys would refuse some of the generated mixtures, so their keys are left out; unit tests cover them.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from payflow.config import ConfigError, Flag, Sources, load
from payflow.config.checks import ERRORS
from payflow.config.kinds import Choice, Duration, Integer, Kind, Percent, Size
from payflow.config.kinds import Flag as Switch
from payflow.config.schema import ROOT, Key, keys
from payflow.config.units import render_duration, render_size

RULED = {name for rule in ERRORS for name in rule.keys}
# `breaker.key` is left out because `breaker.NAME.key` wins over it from any layer, the minimum because it is capped.
FREE = [
    key
    for key in keys(ROOT)
    if isinstance(key.kind, Choice | Duration | Integer | Percent | Size | Switch)
    and key.dotted not in RULED
    and key.path[:-1] != ("breaker",)
    and key.path[-1] not in ("minimum_number_of_calls", "sliding_window_size")
]
Layered = list[dict[str, object]]
BY_NAME = {key.dotted: key for key in FREE}

# How long a file takes is the disk's affair.
files_are_written = settings(deadline=None)


def literal(kind: Kind) -> st.SearchStrategy[object]:
    """Good values of a kind, as TOML has them."""
    match kind:
        case Choice():
            return st.sampled_from(kind.options)
        case Integer():
            return st.integers(kind.least, kind.most)
        case Size():
            return st.integers(kind.least, kind.most).map(render_size)
        case Duration():
            return st.integers(round(kind.least_s * 1000), 10**9).map(lambda ms: render_duration(ms / 1000))
        case Percent():
            return st.integers(1, 100)
        case _:
            return st.booleans()


layers = st.lists(
    st.lists(st.sampled_from(FREE), max_size=8, unique_by=lambda key: key.dotted).flatmap(
        lambda chosen: st.fixed_dictionaries({key.dotted: literal(key.kind) for key in chosen})
    ),
    min_size=5,
    max_size=5,
)
# No double underscore: it separates names in the environment and in secrets files.
names = st.from_regex(r"[a-z]{1,4}(_[a-z]{1,4}){0,2}", fullmatch=True).filter(lambda name: name not in ROOT.children)


def as_text(value: object) -> str:
    return json.dumps(value).strip('"')


def as_sources(directory: Path, layered: Layered) -> Sources:
    """Spread five layers over: two files, secrets, environment, flags."""
    first, second, secrets, environ, flags = layered
    (directory / "secrets").mkdir()
    for name, value in secrets.items():
        (directory / "secrets" / name.replace(".", "__")).write_text(as_text(value))
    return Sources(
        files=(write(directory / "first.toml", first), write(directory / "second.toml", second)),
        secrets_dir=directory / "secrets",
        environ={BY_NAME[name].env: as_text(value) for name, value in environ.items()},
        flags=tuple(Flag(name, as_text(value), "--set") for name, value in flags.items()),
    )


def write(path: Path, values: Mapping[str, object]) -> Path:
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return path


def effective(sources: Sources) -> dict[str, object]:
    return {value.key.dotted: value.value for value in load(sources).values}


@files_are_written
@given(layers)
def test_last_layer_that_sets_a_key_wins_and_the_rest_are_defaults(layered: Layered) -> None:
    with tempfile.TemporaryDirectory() as directory:
        found = effective(as_sources(Path(directory), layered))

    merged = {name: value for layer in layered for name, value in layer.items()}
    expected = effective(Sources()) | {
        name: BY_NAME[name].kind.parse(value, text=False) for name, value in merged.items()
    }
    assert expected == found


@files_are_written
@given(layers)
def test_origin_names_the_layer_whose_value_counts(layered: Layered) -> None:
    with tempfile.TemporaryDirectory() as directory:
        result = load(as_sources(Path(directory), layered))

    ordered = ("file", "file", "secrets", "environment", "flag")
    expected = {name: layer for layer, values in zip(ordered, layered, strict=True) for name in values}
    assert expected == {
        value.key.dotted: value.origin.layer for value in result.values if value.origin.layer != "default"
    }


@files_are_written
@given(layers)
def test_what_is_shown_loads_as_itself(layered: Layered) -> None:
    """`payflow config show > file` and `--config file` give the same settings."""
    with tempfile.TemporaryDirectory() as directory:
        first = load(as_sources(Path(directory), layered))
        shown = Path(directory) / "shown.toml"
        shown.write_text("".join(f"{v.key.dotted} = {v.key.kind.render(v.value)}\n" for v in first.values))
        second = load(Sources(files=(shown,)))

    assert first.settings == second.settings


@files_are_written
@given(names, st.sampled_from(["file", "secrets", "environment", "flag"]))
def test_unknown_key_is_refused_in_every_layer(name: str, layer: str) -> None:
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        match layer:
            case "file":
                sources = Sources(files=(write(directory / "x.toml", {f"http.x{name}": 1}),))
            case "secrets":
                (directory / f"http__x{name}").write_text("1")
                sources = Sources(secrets_dir=directory)
            case "environment":
                sources = Sources(environ={f"PAYFLOW_HTTP__X{name.upper()}": "1"})
            case _:
                sources = Sources(flags=(Flag(f"http.x{name}", "1", "--set"),))
        found = refused(sources)

    assert [(layer, f"http.x{name}")] == found


@files_are_written
@given(layers, st.lists(names, max_size=3, unique=True))
def test_no_error_is_left_out(layered: Layered, unknown: list[str]) -> None:
    """Every value is replaced by one that no kind takes; each is reported, next to each unknown section."""
    spoilt: Layered = [dict.fromkeys(layer, "?") for layer in layered]
    with tempfile.TemporaryDirectory() as directory:
        sources = as_sources(Path(directory), spoilt)
        extra = write(Path(directory) / "extra.toml", {f"{name}.key": 1 for name in unknown})
        found = refused(dataclasses.replace(sources, files=(*sources.files, extra)))

    assert sorted([name for layer in layered for name in layer] + unknown) == sorted(name for _, name in found)


def refused(sources: Sources) -> list[tuple[str, str]]:
    try:
        load(sources)
    except ConfigError as error:
        return [(problem.origin.layer.value, problem.key) for problem in error.problems]
    return []


def test_the_free_keys_are_most_keys() -> None:
    """A guard against a filter that leaves nothing to test."""
    documented: list[Key] = [key for key in keys(ROOT) if key.path[:-1] != ("breaker",)]

    assert len(FREE) > len(documented) / 2

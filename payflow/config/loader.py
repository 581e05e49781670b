"""Loading: entries of all layers become one `Settings`, or one error that lists every problem there is.

A later layer wins key by key, so a file that sets one key of a table leaves the others alone. For a breaker,
`breaker.NAME.key` of any layer goes before `breaker.key` of any layer: what is said of one is not undone by what is
said of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from payflow.config.checks import ERRORS, WARNINGS, check, secret_warnings, short_tokens
from payflow.config.layers import DEFAULT, Entry, Origin, Problem, Sources, read_layers
from payflow.config.schema import ANY, ROOT, SECTIONS, Key, KeyPath, keys
from payflow.config.sections import BREAKERS, BreakerSettings, Settings
from payflow.errors import PayflowError


class ConfigError(PayflowError):
    """The configuration cannot be used. Carries all problems; ends with exit code 78."""

    def __init__(self, problems: tuple[Problem, ...], warnings: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.warnings = warnings


class Value(NamedTuple):
    """An effective value. `key` is the key it stands for, `origin` where it was set."""

    key: Key
    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, each effective value with its origin in the order of the reference, and what is worth a warning."""

    settings: Settings
    values: tuple[Value, ...]
    warnings: tuple[Problem, ...]


def load(sources: Sources) -> Loaded:
    """Read, merge, type and check; raise ConfigError with every problem at once."""
    reading = read_layers(sources)
    problems, warnings = reading.problems, reading.warnings
    given, bad = _parse(reading.entries, problems)
    values = _effective(given)
    warnings += _cap_minimum(values)
    settings = _build(values)
    origins = {value.key.dotted: value.origin for value in values.values()}
    problems += check(ERRORS, settings, origins, bad)
    warnings += check(WARNINGS, settings, origins, bad)
    warnings += short_tokens(settings, origins)
    warnings += secret_warnings(values)
    if problems:
        problems.sort(key=lambda problem: problem.origin.layer.rank)
        raise ConfigError(tuple(problems), tuple(warnings))
    return Loaded(settings, tuple(values.values()), tuple(warnings))


def _parse(entries: list[Entry], problems: list[Problem]) -> tuple[dict[KeyPath, Value], set[str]]:
    """Type every entry, also one that a later layer hides: it would be wrong the day that layer goes."""
    given: dict[KeyPath, Value] = {}
    bad: set[str] = set()
    for entry in entries:
        key = entry.key
        try:
            given[key.path] = Value(key, key.kind.parse(entry.raw, text=entry.text), entry.origin)
        except ValueError as error:
            problems.append(Problem(entry.origin, key.dotted, str(error)))
            bad.add(key.dotted)
    return given, bad


def _effective(given: Mapping[KeyPath, Value]) -> dict[KeyPath, Value]:
    """One value for each key that counts: `breaker.key` is folded into every `breaker.NAME.key`."""
    values: dict[KeyPath, Value] = {}
    for key in keys(ROOT):
        match key.path:
            case ("breaker", _):
                continue
            case ("breaker", _, name):
                found = given.get(key.path) or given.get(("breaker", name)) or Value(key, key.default, DEFAULT)
                values[key.path] = found._replace(key=key)
            case ("management", "tokens", _):
                values |= {path: given[path] for path in sorted(given) if path[:-1] == key.path[:-1]}
            case _:
                values[key.path] = given.get(key.path) or Value(key, key.default, DEFAULT)
    return values


def _cap_minimum(values: dict[KeyPath, Value]) -> list[Problem]:
    """A count window never holds more calls than its size, so a higher minimum would never be reached."""
    warnings = []
    for name in BREAKERS:
        path = ("breaker", name, "minimum_number_of_calls")
        size = values["breaker", name, "sliding_window_size"].value
        minimum = values[path]
        if minimum.value > size:
            message = f"is {minimum.value}, above sliding_window_size, and is capped at {size}"
            warnings.append(Problem(minimum.origin, minimum.key.dotted, message))
            values[path] = minimum._replace(value=size)
    return warnings


def _build(values: Mapping[KeyPath, Value]) -> Settings:
    tables: dict[KeyPath, dict[str, Any]] = {}
    for path, value in values.items():
        attribute = path[-1] if value.key.attribute == ANY else value.key.attribute
        tables.setdefault(path[:-1], {})[attribute] = value.value
    tokens = MappingProxyType(tables.get(("management", "tokens"), {}))
    tables["management",]["tokens"] = tokens
    breakers = MappingProxyType({name: BreakerSettings(**tables["breaker", name]) for name in BREAKERS})
    sections = {name: section(**tables[name,]) for name, section in SECTIONS.items()}
    return Settings(**tables[()], **sections, breaker=breakers)

"""The tree of keys, read off the typed sections: which exist, what each takes, what a wrong name was meant to be."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from payflow.config.kinds import Duration, Kind, SecretText, Size
from payflow.config.sections import BREAKERS, BreakerSettings, Settings

KeyPath = tuple[str, ...]
# Stands for a name that the operator chooses; such a table takes any well-formed name.
ANY: Final = "*"
ENV_PREFIX: Final = "PAYFLOW_"
ENV_SEPARATOR: Final = "__"
# Variables with a name of their own, for the two addresses that other tools set as well.
ENV_ALIASES: Final = {
    "KAFKA_BOOTSTRAP_SERVERS": ("kafka", "bootstrap_servers"),
    "EUREKA_SERVER_URL": ("heartbeat", "server_url"),
}
_CHOSEN_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}", re.ASCII)
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_CLOSE: Final = 0.7


@dataclass(frozen=True, slots=True)
class Key:
    """One key. Secrets have no default: None."""

    path: KeyPath
    attribute: str
    kind: Kind
    default: Any

    @property
    def dotted(self) -> str:
        """The key as in TOML and `--set`."""
        return ".".join(self.path)

    @property
    def env(self) -> str:
        """The environment variable that sets it."""
        return ENV_PREFIX + ENV_SEPARATOR.join(part.upper().replace("-", "_") for part in self.path)

    @property
    def secret(self) -> bool:
        """Whether no output may show the value."""
        return isinstance(self.kind, SecretText)

    def at(self, path: KeyPath) -> Key:
        """The same key under the name that the operator chose."""
        return dataclasses.replace(self, path=path)


@dataclass(frozen=True, slots=True)
class Table:
    """A table of keys; `doc` is for the reference."""

    path: KeyPath
    doc: str
    children: dict[str, Key | Table]


class UnknownNameError(ValueError):
    """No such key or table; the text is the rest of the sentence "<name> ..."."""


def fold(name: str) -> str:
    """Bring `waitDuration`, `wait-duration` and `WAIT_DURATION` to one form."""
    return _HUMP.sub("_", name).replace("-", "_").lower()


def step(table: Table, name: str, *, exact: bool) -> Key | Table:
    """Return the child of that name or raise UnknownNameError; unless `exact`, case and dashes do not matter."""
    for candidate, child in table.children.items():
        if name == candidate or (not exact and fold(name) == fold(candidate)):
            return child
    opened = table.children.get(ANY)
    if isinstance(opened, Key):
        chosen = name if exact else name.lower()
        if _CHOSEN_NAME.fullmatch(chosen):
            return opened.at((*table.path, chosen))
        raise UnknownNameError("is not a name: write up to 40 of a-z, 0-9, - and _, a letter or digit first")
    raise UnknownNameError("is not a known key" + _hint(table, name))


def keys(table: Table) -> Iterator[Key]:
    """All keys below a table, in the order of the reference."""
    for child in table.children.values():
        if isinstance(child, Key):
            yield child
        else:
            yield from keys(child)


def _hint(table: Table, name: str) -> str:
    near = {fold(child): child for child in table.children}
    if found := difflib.get_close_matches(fold(name), near, n=1, cutoff=_CLOSE):
        return _did_you_mean((*table.path, near[found[0]]))
    # The right word in the wrong table, such as `http.data_dir`.
    for key in keys(ROOT):
        if key.path[-1] == fold(name):
            return _did_you_mean(key.path)
    return ""


def _did_you_mean(path: KeyPath) -> str:
    return f"; did you mean {'.'.join(path)}?"


def _kinds(hint: Any) -> list[Kind]:
    return [extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Kind)]


def _name(attribute: str, kind: Kind) -> str:
    """Take the unit off: the one rule between an attribute and its key."""
    if isinstance(kind, Duration):
        return attribute.removesuffix("_s")
    return attribute.removesuffix("_bytes") if isinstance(kind, Size) else attribute


def _section(section: Any, path: KeyPath) -> Table:
    children: dict[str, Key | Table] = {}
    hints = get_type_hints(section, include_extras=True)
    for item in dataclasses.fields(section):
        (kind,) = _kinds(hints[item.name])
        name = _name(item.name, kind)
        if isinstance(kind, SecretText):
            opened = Key((*path, name, ANY), ANY, kind, None)
            children[name] = Table((*path, name), kind.doc, {ANY: opened})
        else:
            children[name] = Key((*path, name), item.name, kind, item.default)
    return Table(path, (section.__doc__ or "").strip(), children)


def _root() -> Table:
    children: dict[str, Key | Table] = {}
    for item in dataclasses.fields(Settings):
        path = (item.name,)
        if kinds := _kinds(_SETTINGS[item.name]):
            children[item.name] = Key(path, item.name, kinds[0], item.default)
        elif item.name == "breaker":
            table = _section(BreakerSettings, path)
            for name in BREAKERS:
                table.children[name] = _section(BreakerSettings, (*path, name))
            children[item.name] = table
        else:
            children[item.name] = _section(_SETTINGS[item.name], path)
    return Table((), "", children)


_SETTINGS: Final = get_type_hints(Settings, include_extras=True)
# The sections that are one class each; `breaker` is one class for each breaker.
SECTIONS: Final = {name: hint for name, hint in _SETTINGS.items() if isinstance(hint, type)}
ROOT: Final = _root()

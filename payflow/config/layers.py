"""The layers, lowest first: profile file, `--config` files, secrets files, environment, flags. Each yields entries.

An entry is one key with what the layer holds for it, not yet read. What cannot become an entry (a file that is not
there, a name that nobody knows) is a problem; reading goes on, so that all problems are reported at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from payflow.config.schema import (
    ENV_ALIASES,
    ENV_PREFIX,
    ENV_SEPARATOR,
    ROOT,
    Key,
    KeyPath,
    Table,
    UnknownNameError,
    fold,
    keys,
    step,
)

# A configuration is small; the bounds stop a wrong path (a log, a device) before it fills the memory.
LARGEST_FILE_BYTES: Final = 1 << 20
LARGEST_SECRET_BYTES: Final = 1 << 16
_PROFILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*", re.ASCII)
# config/default.toml is generated for people; a profile of that name would look as if it were read always.
_REFERENCE: Final = "default"


class Layer(StrEnum):
    """Where a value comes from, lowest first."""

    DEFAULT = "default"
    PROFILE = "profile"
    FILE = "file"
    SECRETS = "secrets"
    ENVIRONMENT = "environment"
    FLAG = "flag"

    @property
    def rank(self) -> int:
        """Place in the order of the layers."""
        return list(Layer).index(self)


@dataclass(frozen=True, slots=True)
class Origin:
    """A layer and the file, variable or flag within it."""

    layer: Layer
    source: str = ""

    def __str__(self) -> str:
        return f"{self.layer} {self.source}".rstrip()


DEFAULT: Final = Origin(Layer.DEFAULT)


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: where it stands, which key it is about (may be empty), and what is wrong."""

    origin: Origin
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.key} {self.message}" if self.key else f"{self.origin}: {self.message}"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one layer holds for one key. `text`: the layer knows no types."""

    key: Key
    raw: object
    origin: Origin
    text: bool


@dataclass(frozen=True, slots=True)
class Flag:
    """A value from the command line: dotted key, text, and the flag as the user knows it."""

    key: str
    value: str
    flag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where to look. Empty sources are the defaults; nothing is read from the process behind the caller's back."""

    profile: str | None = None
    config_dir: Path = Path("config")
    files: tuple[Path, ...] = ()
    secrets_dir: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()


@dataclass(slots=True)
class Reading:
    """What was found, in the order of the layers: a later entry for a key wins."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def read_layers(sources: Sources) -> Reading:
    """Read every layer; no error ends it early."""
    reading = Reading()
    if sources.profile is not None:
        _read_profile(reading, sources.profile, sources.config_dir)
    for path in sources.files:
        _read_toml(reading, path, Origin(Layer.FILE, str(path)))
    if sources.secrets_dir is not None:
        _read_secrets(reading, sources.secrets_dir)
    _read_environment(reading, sources.environ)
    for flag in sources.flags:
        _add_text(reading, tuple(flag.key.split(".")), flag.value, Origin(Layer.FLAG, flag.flag), exact=True)
    return reading


# ------------------------------------------------------------------ files
def _read_profile(reading: Reading, name: str, config_dir: Path) -> None:
    path = config_dir / f"{name}.toml"
    origin = Origin(Layer.PROFILE, name)
    if not _PROFILE_NAME.fullmatch(name):
        reading.problems.append(Problem(origin, "", "not the name of a profile: letters, digits, - and _ only"))
    elif name == _REFERENCE:
        reading.problems.append(Problem(origin, "", f"{path} is the reference of all keys and is never read"))
    elif not path.is_file():
        known = sorted(file.stem for file in config_dir.glob("*.toml") if file.stem != _REFERENCE)
        listing = f"profiles there: {', '.join(known)}" if known else "there is no profile"
        reading.problems.append(Problem(origin, "", f"{path} does not exist; {listing}"))
    else:
        _read_toml(reading, path, Origin(Layer.PROFILE, str(path)))


def _read_toml(reading: Reading, path: Path, origin: Origin) -> None:
    try:
        table = tomllib.loads(_read_bounded(path, LARGEST_FILE_BYTES))
    except OSError as error:
        reading.problems.append(Problem(origin, "", f"cannot be read: {error.strerror or error}"))
    except ValueError as error:  # not TOML, not UTF-8, too large
        reading.problems.append(Problem(origin, "", f"is not a configuration file: {error}"))
    else:
        _add_table(reading, ROOT, table, origin)


def _read_secrets(reading: Reading, directory: Path) -> None:
    try:
        # Hidden names are Kubernetes' own (`..data`), directories are no secrets.
        files = sorted(file for file in directory.iterdir() if not file.name.startswith(".") and file.is_file())
    except OSError as error:
        problem = Problem(Origin(Layer.SECRETS, str(directory)), "", f"cannot be read: {error.strerror or error}")
        reading.problems.append(problem)
        return
    for file in files:
        origin = Origin(Layer.SECRETS, str(file))
        if ENV_SEPARATOR not in file.name and fold(file.name) not in ROOT.children:
            message = f"ignored: the name is no section{ENV_SEPARATOR}key"
            reading.warnings.append(Problem(origin, "", message))
            continue
        try:
            content = _read_bounded(file, LARGEST_SECRET_BYTES)
        except OSError as error:
            reading.problems.append(Problem(origin, "", f"cannot be read: {error.strerror or error}"))
        except ValueError:  # its text would show bytes of the secret
            reading.problems.append(Problem(origin, "", "is no text in UTF-8, or too large for a secret"))
        else:
            _add_text(reading, tuple(file.name.split(ENV_SEPARATOR)), content, origin, exact=False)


def _read_bounded(path: Path, largest_bytes: int) -> str:
    with path.open("rb") as file:
        content = file.read(largest_bytes + 1)
    if len(content) > largest_bytes:
        raise ValueError(f"larger than {largest_bytes} bytes")
    return content.decode()


# ------------------------------------------------------------------ environment
def _read_environment(reading: Reading, environ: Mapping[str, str]) -> None:
    for name, path in ENV_ALIASES.items():
        if name in environ:
            _add_text(reading, path, environ[name], Origin(Layer.ENVIRONMENT, name), exact=True)
    for name in sorted(environ):
        if not name.startswith(ENV_PREFIX):
            continue
        rest = name.removeprefix(ENV_PREFIX)
        origin = Origin(Layer.ENVIRONMENT, name)
        if ENV_SEPARATOR in rest or fold(rest) in ROOT.children:
            _add_text(reading, tuple(rest.split(ENV_SEPARATOR)), environ[name], origin, exact=False)
        elif meant := _FLAT_NAMES.get(rest):
            # No error: Kubernetes sets PAYFLOW_HTTP_PORT for a service named payflow-http.
            reading.warnings.append(Problem(origin, "", f"ignored; did you mean {meant}?"))


_FLAT_NAMES: Final = {
    key.env.removeprefix(ENV_PREFIX).replace(ENV_SEPARATOR, "_"): key.env for key in keys(ROOT)
}


# ------------------------------------------------------------------ entries
def _add_table(reading: Reading, table: Table, raw: Mapping[str, Any], origin: Origin) -> None:
    for name, value in raw.items():
        try:
            child = step(table, name, exact=True)
        except UnknownNameError as unknown:
            reading.problems.append(Problem(origin, _dotted((*table.path, name)), str(unknown)))
            continue
        if isinstance(child, Key):
            reading.entries.append(Entry(child, value, origin, text=False))
        elif isinstance(value, dict):
            _add_table(reading, child, value, origin)
        else:
            reading.problems.append(Problem(origin, _dotted(child.path), _table_wanted(child)))


def _add_text(reading: Reading, path: KeyPath, raw: str, origin: Origin, *, exact: bool) -> None:
    node: Table | Key = ROOT
    for position, name in enumerate(path):
        if isinstance(node, Key):
            reading.problems.append(Problem(origin, node.dotted, "is a value and has no keys of its own"))
            return
        try:
            node = step(node, name, exact=exact)
        except UnknownNameError as unknown:
            written = path[: position + 1] if exact else tuple(part.lower() for part in path[: position + 1])
            reading.problems.append(Problem(origin, _dotted(written), str(unknown)))
            return
    if isinstance(node, Key):
        reading.entries.append(Entry(node, raw, origin, text=True))
    else:
        reading.problems.append(Problem(origin, _dotted(node.path), _table_wanted(node)))


def _table_wanted(table: Table) -> str:
    example = next(keys(table))
    return f"is a table, not a value; one of its keys is {example.dotted}"


def _dotted(path: KeyPath) -> str:
    return ".".join(path)

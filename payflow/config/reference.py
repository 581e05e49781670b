"""The reference of all keys, printed from the schema: config/default.toml and docs/config.md. Tests hold both true."""

from __future__ import annotations

import textwrap
from typing import Final

from payflow.config.schema import ROOT, Key, Table, keys
from payflow.config.sections import BREAKERS

_WIDTH: Final = 100

_TOML_HEAD: Final = """\
# payflow: every configuration key with its default. Written by `payflow config reference`, never read:
# copy what you change into config/NAME.toml (`--profile NAME`) or a file of your own (`--config FILE`).
"""

_MARKDOWN_HEAD: Final = """\
# Configuration

Written by `payflow config reference --format markdown`; a test compares.

## Layers

A later layer wins, key by key: a file that sets one key of a table leaves the other keys alone.

| layer | from |
|---|---|
| default | the types in `payflow/config/sections.py`; below and in `config/default.toml`, which is never read |
| profile | `config/NAME.toml`, chosen with `--profile NAME` or `PAYFLOW_PROFILE` |
| file | `--config FILE`, repeatable; the later file wins |
| secrets | files named `section__key` in `--secrets-dir DIR` or `PAYFLOW_SECRETS_DIR` |
| environment | `PAYFLOW_SECTION__KEY`; before it `KAFKA_BOOTSTRAP_SERVERS` and `EUREKA_SERVER_URL` |
| flag | `--set section.key=value`, repeatable; a flag of its own, such as `--http-port`, wins over `--set` |

- Every error of every layer is reported at once, with its place; the exit code is 78 and nothing is started.
- A key that nobody knows is an error. The directory of the profiles is `config`, or `PAYFLOW_CONFIG_DIR`.
- Durations carry a unit: `us`, `ms`, `s`, `m`, `h`, `d`, also together, as in `"1h30m"`.
- Sizes carry a unit: `B`, `KiB`, `MiB`, `GiB`, `kB`, `MB`, `GB`.
- In the environment, secrets files and flags a list is separated by commas, and true and false may be yes and no,
  on and off, 1 and 0. In the names of variables and secrets files a dash is an underscore.
- `breaker.NAME.key` of any layer wins over `breaker.key` of any layer: what is said of one is not undone by what is
  said of all. Names: BREAKER_NAMES.
- Management tokens belong in secrets files or the environment; elsewhere they are accepted with a warning.

```console
$ payflow config check --profile dev          # all problems, or "configuration is valid"
$ payflow config show --origin --profile dev  # each effective value and where it was set, secrets masked
$ PAYFLOW_BREAKER__KAFKA_PUBLISHER__WAIT_DURATION_IN_OPEN_STATE=10s payflow serve --set log.level=debug
```

## Keys
"""


def default_toml() -> str:
    """Every key with its default as a commented TOML file, which, if it were read, would change nothing."""
    parts = [_TOML_HEAD]
    parts += [_toml_key(child) for child in ROOT.children.values() if isinstance(child, Key)]
    parts += [_toml_table(child) for child in ROOT.children.values() if isinstance(child, Table)]
    return "\n".join(parts)


def reference_markdown() -> str:
    """The page docs/config.md."""
    parts = [_MARKDOWN_HEAD.replace("BREAKER_NAMES", ", ".join(f"`{name}`" for name in BREAKERS))]
    parts += [_markdown_rows([child]) for child in ROOT.children.values() if isinstance(child, Key)]
    for child in ROOT.children.values():
        if isinstance(child, Table):
            listed = [key for key in keys(child) if not _is_of_one_breaker(key)]
            parts += [f"### `{child.path[0]}`\n\n{child.doc}\n", _markdown_rows(listed)]
    return "\n".join(parts)


def _is_of_one_breaker(key: Key) -> bool:
    return key.path[0] == "breaker" and len(key.path) == 3


def _toml_table(table: Table) -> str:
    own = [child for child in table.children.values() if isinstance(child, Key)]
    lines = [f"# {'-' * (_WIDTH - 2)}\n{_comment(table.doc)}[{table.path[0]}]\n"]
    lines += [_toml_key(key) for key in own]
    if table.path == ("breaker",):
        lines += [_toml_breaker(name, own[-1]) for name in BREAKERS]
    elif "tokens" in table.children:
        lines.append(_toml_tokens(table.children["tokens"]))
    return "\n".join(lines)


def _toml_key(key: Key) -> str:
    notes = _comment(key.kind.doc) + _comment(f"{key.env}: {key.kind.brief}")
    return f"{notes}{key.path[-1]} = {key.kind.render(key.default)}\n"


def _toml_breaker(name: str, example: Key) -> str:
    return (
        f"# Any key of [breaker], for this breaker alone.\n[breaker.{name}]\n"
        f"# {example.path[-1]} = {example.kind.render(example.default)}\n"
    )


def _toml_tokens(table: Key | Table) -> str:
    key = next(keys(table)) if isinstance(table, Table) else table
    return (
        f"{_comment(key.kind.doc)}# Keep them in secrets files: management__tokens__alice; "
        f'{key.env.replace("*", "ALICE")}\n[management.tokens]\n# alice = "..."\n'
    )


def _comment(text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent="# ", subsequent_indent="# ") + "\n"


def _markdown_rows(listed: list[Key]) -> str:
    rows = ["| key | default | meaning | accepts | environment |", "|---|---|---|---|---|"]
    rows += [_markdown_row(key) for key in listed]
    return "\n".join(rows) + "\n"


def _markdown_row(key: Key) -> str:
    name, variable = key.dotted.replace("*", "NAME"), key.env.replace("*", "NAME")
    default = "none" if key.default is None else f"`{key.kind.render(key.default)}`"
    return f"| `{name}` | {default} | {key.kind.doc} | {key.kind.brief} | `{variable}` |"

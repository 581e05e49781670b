"""`payflow config`, and what every command shares: the flags that choose and change the configuration, and loading it.

Errors go to standard error, one a line, with exit code 78; what was asked for goes to standard output, as a table on a
terminal and as plain TOML lines or JSON elsewhere.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from payflow.config import ConfigError, Flag, Loaded, Problem, Sources, Value, default_toml, load, reference_markdown

BAD_CONFIGURATION: Final = 78
P = ParamSpec("P")
R = TypeVar("R")


# ------------------------------------------------------------------ shared by commands
def _assignment(ctx: click.Context, param: click.Parameter, given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{text!r} is not of the form section.key=value", ctx, param)
        pairs.append((key.strip(), value))
    return tuple(pairs)


_PATH: Final = click.Path(path_type=Path)
_OPTIONS: Final = (
    click.option(
        "--profile", metavar="NAME", envvar="PAYFLOW_PROFILE", show_envvar=True, help="Read config/NAME.toml."
    ),
    click.option(
        "--config", "files", metavar="FILE", type=_PATH, multiple=True, help="Read a TOML file; repeatable, later wins."
    ),
    click.option(
        "--set",
        "assignments",
        metavar="SECTION.KEY=VALUE",
        multiple=True,
        callback=_assignment,
        help="Set one key; repeatable, later wins. Above files, secrets and environment.",
    ),
    click.option("--data-dir", metavar="DIR", help="Directory of the databases (storage.data_dir)."),
    click.option(
        "--log-format",
        type=click.Choice(["console", "json", "auto"]),
        help="Form of the logs on standard error (log.format).",
    ),
    click.option(
        "--secrets-dir",
        metavar="DIR",
        type=_PATH,
        envvar="PAYFLOW_SECRETS_DIR",
        show_envvar=True,
        help="Read secrets from files named section__key.",
    ),
    click.option(
        "--config-dir",
        metavar="DIR",
        type=_PATH,
        envvar="PAYFLOW_CONFIG_DIR",
        show_envvar=True,
        default=Path("config"),
        help="Where profiles are.",
    ),
)
# Flags with a name of their own, by parameter; they win over --set.
FLAG_KEYS: Final = {
    "data_dir": "storage.data_dir",
    "log_format": "log.format",
    "roles": "roles",
    "http_port": "http.port",
    "management_port": "management.port",
    "host": "registry.host",
    "port": "registry.port",
}


def configuration_options(command: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command with the flags that every command has which reads the configuration."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def load_or_exit(
    *,
    profile: str | None,
    files: tuple[Path, ...],
    assignments: tuple[tuple[str, str], ...],
    secrets_dir: Path | None,
    config_dir: Path,
    **named: str | int | None,
) -> Loaded:
    """Load the configuration from the flags of `configuration_options` and those in FLAG_KEYS, or end with 78."""
    flags = [Flag(key, value, "--set") for key, value in assignments]
    flags += [
        Flag(FLAG_KEYS[name], str(value), f"--{name.replace('_', '-')}")
        for name, value in named.items()
        if value is not None
    ]
    sources = Sources(
        profile=profile,
        config_dir=config_dir,
        files=files,
        secrets_dir=secrets_dir,
        environ=os.environ,
        flags=tuple(flags),
    )
    try:
        loaded = load(sources)
    except ConfigError as error:
        _refuse(error)
    _tell("warning", "yellow", loaded.warnings)
    return loaded


def _refuse(error: ConfigError) -> NoReturn:
    _tell("warning", "yellow", error.warnings)
    _tell("error", "red", error.problems)
    sys.exit(BAD_CONFIGURATION)


def tell_error(sentence: str) -> None:
    """One line on standard error, as problems of the configuration are told."""
    _tell("error", "red", (sentence,))


def _tell(label: str, colour: str, problems: tuple[Problem | str, ...]) -> None:
    # Click leaves colours out where there is no terminal; NO_COLOR is ours to honour.
    styled = False if os.environ.get("NO_COLOR") else None
    for problem in problems:
        click.echo(f"{click.style(label, fg=colour, bold=True)}: {problem}", err=True, color=styled)


# ------------------------------------------------------------------ payflow config
@click.group(short_help="Show, check and explain the configuration.")
def config() -> None:
    """Show, check and explain the configuration.

    Layers, lowest first: defaults, config/NAME.toml of the profile, --config files, secrets files, environment
    (PAYFLOW_SECTION__KEY), flags. A later layer wins, key by key.
    """


@config.command(short_help="Print each effective value, and where it was set.")
@configuration_options
@click.option("--origin", is_flag=True, help="Also print the layer, and the file, variable or flag, of each value.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(*, origin: bool, as_json: bool, **flags: Any) -> None:
    """Print each effective value. Secrets are masked.

    \b
    payflow config show --origin --profile dev
    payflow config show --json | jq '."kafka.topic"'
    payflow config show | grep breaker
    """
    values = load_or_exit(**flags).values
    console = Console(highlight=False)
    if as_json:
        click.echo(json.dumps(_as_json(values, origin=origin), indent=2, ensure_ascii=False))
    elif console.is_terminal:
        console.print(_as_table(values, origin=origin))
    else:
        click.echo("\n".join(_as_toml(values, origin=origin)))


@config.command(short_help="Print every problem, or that there is none.")
@configuration_options
def check(**flags: Any) -> None:
    """Check the configuration and start nothing. Prints every problem at once and exits 78, or 0 when there is none.

    \b
    payflow config check --profile dev
    payflow config check --config /etc/payflow.toml --set kafka.partitions=12
    """
    load_or_exit(**flags)
    click.echo("configuration is valid")


@config.command(short_help="Print every key with its meaning.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["toml", "markdown"]),
    default="toml",
    show_default=True,
    help="A commented TOML file, or the page docs/config.md.",
)
def reference(*, form: str) -> None:
    """Print every key with its meaning, default and environment variable.

    \b
    payflow config reference > config/default.toml
    payflow config reference --format markdown > docs/config.md
    """
    click.echo(default_toml() if form == "toml" else reference_markdown(), nl=False)


def _rendered(value: Value) -> str:
    return value.key.kind.render(value.value)


def _as_toml(values: tuple[Value, ...], *, origin: bool) -> list[str]:
    lines = [f"{value.key.dotted} = {_rendered(value)}" for value in values]
    if not origin:
        return lines
    width = max(len(line) for line in lines)
    return [f"{line:{width}}  # {value.origin}" for line, value in zip(lines, values, strict=True)]


def _as_json(values: tuple[Value, ...], *, origin: bool) -> dict[str, Any]:
    plain = {value.key.dotted: json.loads(_rendered(value)) for value in values}
    if not origin:
        return plain
    return {
        value.key.dotted: {
            "value": plain[value.key.dotted],
            "layer": value.origin.layer.value,
            "source": value.origin.source,
        }
        for value in values
    }


def _as_table(values: tuple[Value, ...], *, origin: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("key", "value", *(("origin",) if origin else ())):
        table.add_column(heading, overflow="fold")
    for value in values:
        style = "" if value.origin.layer == "default" else "bold cyan"
        cells = [value.key.dotted, _rendered(value), *((str(value.origin),) if origin else ())]
        table.add_row(*(Text(cell, style) for cell in cells))
    return table

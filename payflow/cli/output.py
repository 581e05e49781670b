"""What operator commands share: one sentence for a refusal, JSON, and progress on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click
import msgspec

from payflow.cli.config import tell_error
from payflow.errors import DependencyUnavailable

USAGE: Final = 2
UNAVAILABLE: Final = 69
_EVERY_S: Final = 0.2

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Misused(Exception):
    """An argument that cannot be meant; ends with exit code 2 and its sentence."""


@contextmanager
def refusals() -> Iterator[None]:
    """End with one sentence on standard error: 69 for what is not there, 2 for what cannot be meant."""
    try:
        yield
    except DependencyUnavailable as error:
        tell_error(str(error))
        sys.exit(UNAVAILABLE)
    except Misused as error:
        tell_error(str(error))
        sys.exit(USAGE)


def print_json(value: Any) -> None:
    """One document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2).decode())


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A line that is written over, on standard error, where that is a terminal; nothing elsewhere."""
    shown = sys.stderr.isatty()
    last = 0.0

    def show(text: str) -> None:
        nonlocal last
        if shown and time.monotonic() - last >= _EVERY_S:
            last = time.monotonic()
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    try:
        yield show
    finally:
        if shown and last:
            click.echo("\r\x1b[K", err=True, nl=False)

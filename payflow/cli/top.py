"""`payflow top`: the tree of actors of a running server, live."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from payflow.adapters.management_client import ManagementClient
from payflow.cli.config import configuration_options, load_or_exit
from payflow.cli.output import json_option, refusals
from payflow.errors import DependencyUnavailable

_COLOURS: Final = {
    r"\brunning\b": "green",
    r"\b(starting|backing_off|paused|draining|stopping)\b.*": "yellow",
    r"\b(failed|stopped)\b.*": "red",
}


@click.command(short_help="Show the tree of actors live.")
@configuration_options
@click.option("--management-port", type=click.IntRange(1, 65_535), help="Port of the running server (management.port).")
@click.option(
    "--every", "every_s", type=click.FloatRange(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS",
    help="Time between two looks.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print one picture and end, as without a terminal.")
@json_option
def top(*, every_s: float, once: bool, as_json: bool, **flags: Any) -> None:
    """Show the tree of actors of a running server: states, mailboxes, restarts. Ctrl-C ends it.

    \b
    payflow top
    payflow top --every 0.2 --management-port 9081
    payflow top --once
    payflow top --json | jq .tree.children[].state

    Exits with 0 after Ctrl-C, 69 when no server answers at the start.
    """
    management = load_or_exit(**flags).settings.management
    client = ManagementClient(management.host, management.port)
    with refusals():
        if as_json:
            click.echo(client.get("/debug/actors").decode())
            return
        frame = client.get("/debug/actors?format=text").decode()
    console = Console(highlight=False)
    if once or not console.is_terminal:
        click.echo(frame, nl=False)
        return
    try:
        _watch(client, console, frame, every_s)
    except KeyboardInterrupt:
        sys.exit(0)


def _watch(client: ManagementClient, console: Console, frame: str, every_s: float) -> None:
    """A server that goes away leaves its last picture, and comes back into it."""
    with Live(_drawn(frame), console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(every_s)
            try:
                frame, trouble = client.get("/debug/actors?format=text").decode(), ""
            except DependencyUnavailable as error:
                trouble = f"\n{error}"
            live.update(_drawn(frame).append(trouble, "bold red"), refresh=True)


def _drawn(frame: str) -> Text:
    drawn = Text(frame, no_wrap=True)
    for pattern, colour in _COLOURS.items():
        drawn.highlight_regex(pattern, colour)
    return drawn

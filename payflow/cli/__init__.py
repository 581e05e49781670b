"""The command line. `main` is the program; each command group is one module of this package.

A command's module is imported when the command is asked for: `payflow --help` and `payflow config` need not wait for
the HTTP server, the Kafka client and the database.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

from payflow import __version__

# Name -> (module whose attribute of that name is the command, its line in `payflow --help`).
COMMANDS: Final = {
    "serve": ("payflow.cli.serve", "Take payments, publish them to Kafka and book them."),
    "reconcile": ("payflow.cli.reconcile", "Compare payments, events and ledger; reads only."),
    "backup": ("payflow.cli.backup", "Copy both databases while they are in use."),
    "restore": ("payflow.cli.backup", "Put a backup into an empty data directory."),
    "outbox": ("payflow.cli.outbox", "Look at outgoing events, and publish some again."),
    "audit": ("payflow.cli.outbox", "Print what operators did."),
    "dlq": ("payflow.cli.dlq", "Look at records that no retry can book."),
    "top": ("payflow.cli.top", "Show the tree of actors live."),
    "config": ("payflow.cli.config", "Show, check and explain the configuration."),
    "load": ("payflow.cli.load", "Send requests at a given rate, and check the books afterwards."),
}
INTERRUPTED: Final = 130


class LazyGroup(click.Group):
    """A group that knows its commands' names and loads a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Order of the table, not of the alphabet: what is wanted first comes first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a known command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an interrupt that no runtime took is 130, as shells expect."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExit codes: 0 clean, 1 failure, 2 usage, 69 a port, database or lock is not available,\n"
    "70 bug, 71 shutdown budget exceeded, 78 bad configuration, 130 interrupted before the start.",
)
@click.version_option(__version__, prog_name="payflow", message="%(prog)s %(version)s")
def main() -> None:
    """Payments over HTTP into a durable outbox, Kafka and a double-entry ledger, in one process.

    \b
    payflow serve                        start everything, with an embedded broker for trying
    payflow serve --profile dev          the same with config/dev.toml
    payflow config show --origin         what is configured, and where each value was set
    payflow COMMAND --help               flags and examples of one command
    """

"""`payflow serve`: the payments app."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from payflow.app import serve as run_until_stopped
from payflow.cli.config import configuration_options, load_or_exit
from payflow.config import ROLES

_PORT: Final = click.IntRange(0, 65_535)


def _roles(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
    wrong = [word for word in (given or "").split(",") if word.strip() not in ROLES]
    if given is not None and wrong:
        raise click.BadParameter(f"{wrong[0].strip()!r} is no role; choose from {', '.join(ROLES)}", ctx, param)
    return given


@click.command(short_help="Take payments, publish them to Kafka and book them.")
@configuration_options
@click.option(
    "--roles", metavar=",".join(ROLES), callback=_roles, help="Parts that run in this process, separated by commas."
)
@click.option("--http-port", type=_PORT, help="Port of the API (http.port); 0 takes any free one.")
@click.option("--management-port", type=_PORT, help="Management port (management.port); 0 takes any free one.")
def serve(**flags: Any) -> None:
    """Take payments over HTTP, publish them to Kafka and book them in the ledger.

    Without further configuration it listens on 127.0.0.1:8080, keeps its databases in ./data and brings its own
    broker, which is for trying only. SIGINT or SIGTERM ends it in order; a second one hurries.

    \b
    payflow serve
    payflow serve --http-port 0 --data-dir /tmp/payflow --log-format console
    KAFKA_BOOTSTRAP_SERVERS=kafka:9092 payflow serve --roles ingest
    payflow serve --profile dev --set breaker.kafka-publisher.wait_duration_in_open_state=5s

    Exits with 69 when a port, database or lock is not available, 78 on a bad configuration (see payflow config check).
    """
    sys.exit(run_until_stopped(load_or_exit(**flags).settings))

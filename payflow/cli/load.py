"""`payflow load`: requests at a given rate against a running payflow, and the check of its books."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from payflow.adapters.hdr_histogram import HdrLatencies
from payflow.adapters.http_load import HttpTarget, is_loopback
from payflow.cli.load_view import report_lines, watch
from payflow.config.units import parse_duration
from payflow.core.arrivals import Arrival, Mix, parse_mix
from payflow.errors import DependencyUnavailable
from payflow.loadgen.session import Session
from payflow.loadgen.values import LoadConfig, Report

WRONG: Final = 1
USAGE: Final = 2
NOT_THERE: Final = 69
INTERRUPTED: Final = 130
LONGEST_S: Final = 24 * 3600.0
SEEDS: Final = 2**32
MOST_DUPLICATES: Final = 0.9
MOST_RATE: Final = 100_000.0


def _duration(ctx: click.Context, param: click.Parameter, given: str) -> float:
    try:
        seconds = parse_duration(given)
    except ValueError:
        raise click.BadParameter(f"{given!r} is no duration; write 60s, 500ms or 5m", ctx, param) from None
    if not 0 < seconds <= LONGEST_S:
        raise click.BadParameter("is above 0s and at most 24h", ctx, param)
    return seconds


def _mix(ctx: click.Context, param: click.Parameter, given: str) -> Mix:
    try:
        return parse_mix(given)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _url(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
    if given is None:
        return None
    try:
        ours = is_loopback(given)
    except ValueError as error:
        raise click.BadParameter(f"{given!r} {error}", ctx, param) from None
    if not ours and not ctx.params.get("own"):
        raise click.BadParameter(
            f"{given} is not this machine; load on a server of somebody else is an attack. "
            "If it is yours, say so with --i-own-this-target",
            ctx,
            param,
        )
    return given.rstrip("/")


def _out(ctx: click.Context, param: click.Parameter, given: Path) -> Path:
    if given != Path("-") and (given.is_dir() or not given.resolve().parent.is_dir()):
        raise click.BadParameter(f"{given} is a directory, or is in none", ctx, param)
    return given


def _share(ctx: click.Context, param: click.Parameter, given: float) -> float:
    if not 0 <= given <= MOST_DUPLICATES:
        raise click.BadParameter(f"is a share from 0 to {MOST_DUPLICATES:g}", ctx, param)
    return given


def _rate(ctx: click.Context, param: click.Parameter, given: float) -> float:
    if not 0 < given <= MOST_RATE:  # as a range of click it would let NaN pass
        raise click.BadParameter(f"is above 0 and at most {MOST_RATE:g}", ctx, param)
    return given


@click.command(short_help="Send requests at a given rate, and check the books afterwards.")
@click.argument("url", default="http://127.0.0.1:8080", callback=_url)
@click.option("--rate", type=float, required=True, callback=_rate, help="Requests a second, all kinds.")
@click.option("--duration", "duration_s", default="60s", show_default=True, callback=_duration, help="How long.")
@click.option(
    "--arrival",
    type=click.Choice([kind.value for kind in Arrival]),
    default="constant",
    show_default=True,
    help="How requests are spread over time.",
)
@click.option(
    "--mix", default="", metavar="capture=0.5,refund=0.1", callback=_mix,
    help="Shares of the payments that are captured, then refunded, or voided (void=0.1).",
)
@click.option("--duplicates", type=float, callback=_share, default=0.0, help="Share of requests that are sent again.")
@click.option(
    "--connections", type=click.IntRange(1, 4096), default=64, show_default=True, help="At most so many at once."
)
@click.option(
    "--waiting", type=click.IntRange(1, 1_000_000), default=10_000, show_default=True,
    help="Requests that may wait for a connection; those beyond are counted as not started.",
)
@click.option("--seed", type=click.IntRange(0, SEEDS - 1), help="Of all draws; drawn and reported when absent.")
@click.option("--timeout", "timeout_s", default="10s", show_default=True, callback=_duration, help="Of one request.")
@click.option(
    "--books-timeout", "books_timeout_s", default="2m", show_default=True, callback=_duration,
    help="How long to wait for everything to be published and booked.",
)
@click.option("--management", metavar="URL", callback=_url, help="Its management port: adds its loop to the report.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, callback=_out, help="The report, JSON; - prints it."
)
@click.option("--i-own-this-target", "own", is_flag=True, is_eager=True, help="Allow a target that is not loopback.")
def load(*, own: bool, out: Path, seed: int | None, arrival: str, **options: Any) -> None:
    """Send requests to a running payflow at their intended times whatever the answers do (open loop), measure latency
    from the intended start, and compare the books afterwards: accepted == published == booked, none twice.

    \b
    payflow load --rate 400 --duration 30s --out report.json
    payflow load --rate 1000 --arrival poisson --mix capture=0.5,refund=0.1 --duplicates 0.02 --out report.json
    payflow load http://127.0.0.1:8081 --rate 50 --duration 5m --seed 7 --out -

    Ctrl-C ends the load early, with books and report; a second one ends at once. Exits with 0 when the books are
    right, 1 when not, 2 on a usage error, 69 when the target is not there.
    """
    del own  # its callback-time use is in _url
    seed = random.SystemRandom().randrange(SEEDS) if seed is None else seed
    config = LoadConfig(seed=seed, arrival=Arrival(arrival), **options)
    try:
        report = asyncio.Runner(loop_factory=_loop_factory()).run(_session(config))
    except DependencyUnavailable as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(NOT_THERE)
    except asyncio.CancelledError:
        click.echo("interrupted: no report", err=True)
        sys.exit(INTERRUPTED)
    _write(out, report)
    click.echo("\n".join(report_lines(report)), err=out == Path("-"))
    sys.exit(_exit_code(report))


async def _session(config: LoadConfig) -> Report:
    target = HttpTarget(
        config.url, management=config.management, connections=config.connections, timeout_s=config.timeout_s
    )
    session = Session(config, target, HdrLatencies)
    ended: Report | DependencyUnavailable
    async with target, asyncio.TaskGroup() as group:
        _on_signals(session, asyncio.current_task())
        watching = group.create_task(watch(session))
        try:
            ended = await session.run()
        except DependencyUnavailable as error:  # kept, for a group would wrap it
            ended = error
        watching.cancel()
    if isinstance(ended, DependencyUnavailable):
        raise ended
    return ended


def _on_signals(session: Session, running: asyncio.Task[Any] | None) -> None:
    """The first ends the load, the second everything."""
    assert running is not None

    def on_signal() -> None:
        if session.interrupted or session.phase != "load":
            running.cancel()
        session.stop()

    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, on_signal)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


def _write(out: Path, report: Report) -> None:
    text = json.dumps(report, indent=2) + "\n"
    if out == Path("-"):
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text)
    except OSError as error:
        click.echo(f"error: the report could not be written to {out}: {error.strerror}", err=True)


def _exit_code(report: Report) -> int:
    books = report["books"]
    if not books["reachable"]:
        return NOT_THERE
    return 0 if books["right"] else WRONG

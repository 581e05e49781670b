"""What `payflow load` shows: progress while it runs, and the end in a dozen lines.

On a terminal one line is redrawn twice a second; elsewhere a plain line comes every few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Final

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from payflow.loadgen.session import Session
from payflow.loadgen.values import Report

REDRAW_S: Final = 0.5
LINE_S: Final = 5.0


async def watch(session: Session) -> None:
    """Show progress on standard error until cancelled."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_S)
            click.echo(progress(session), err=True)
    with Live(Text(progress(session)), console=console, auto_refresh=False, transient=True) as live:
        while True:
            await asyncio.sleep(REDRAW_S)
            live.update(Text(progress(session), "bold"), refresh=True)


def progress(session: Session) -> str:
    """One line."""
    if session.phase == "books":
        done, of = session.checked
        return f"books: {done:,} of {of:,} payments compared"
    tally, config = session.tally, session.config
    seconds = time.perf_counter() - session.began_at
    newest = tally.newest()
    slow = f"last second p99 {newest['p99_ms']} max {newest['max_ms']} ms" if newest else ""
    statuses = " ".join(f"{label}:{count}" for label, count in sorted(tally.statuses.items()))
    return (
        f"{min(seconds, config.duration_s):.0f}/{config.duration_s:g} s  due {tally.intended}  "
        f"in flight {tally.in_flight}  not started {tally.not_started}  {statuses}  {slow}"
    )


def report_lines(report: Report) -> Iterator[str]:
    """The end, for people."""
    counts, latency, lag, books = report["counts"], report["latency_ms"], report["start_lag_ms"], report["books"]
    yield f"run {report['run']}, seed {report['seed']}" + (", ended early" if report["interrupted"] else "")
    yield (
        f"requests   {counts['intended']} intended, {counts['started']} started ({counts['started_late']} late), "
        f"{counts['not_started']} not started; {report['rate']['answered']:g} answered a second"
    )
    yield "answers    " + ", ".join(f"{label}: {count}" for label, count in counts["statuses"].items())
    if counts["problems"]:
        yield "problems   " + ", ".join(f"{code}: {count}" for code, count in counts["problems"].items())
    for name, values in (("latency", latency), ("start lag", lag)):
        if values["count"]:
            shown = "  ".join(f"{key} {values[key]:.2f}" for key in ("p50", "p90", "p99", "p99.9", "max"))
            yield f"{name:10} {shown} ms"
    yield (
        f"books      {books['accepted']} accepted, {books['published']} published, {books['booked']} booked, "
        f"{books['twice']} twice; {books['replayed']} replayed; "
        f"{books['settled']} of {books['unknown']} unknown settled"
    )
    if not books["reachable"]:
        yield "           the target is not there any more: the books could not be read to the end"
    for kind, count in books["differences"].items():
        yield f"  {kind}: {count}, for example {books['examples'][kind][0]}"
    yield f"books are  {'right' if books['right'] else 'WRONG'}"

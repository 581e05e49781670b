"""`payflow reconcile`: payments, events and books compared, read-only, beside a running server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from payflow.adapters.sqlite_reports import (
    LEDGER_FILE,
    PAYMENTS_FILE,
    LedgerReport,
    PaymentsReport,
    is_booked,
    snapshot_of,
)
from payflow.cli.config import configuration_options, load_or_exit
from payflow.cli.output import json_option, progress, refusals
from payflow.config import Settings
from payflow.core.reconcile import Reconciliation
from payflow.core.reconcile_values import Difference, Stand, by_payment
from payflow.wire import id_text

DIFFERS: Final = 1
_ON_THE_WAY: Final = (Stand.PENDING, Stand.PUBLISHED, Stand.HELD, Stand.PARKED)
_EVERY_PAYMENTS: Final = 1000


@click.command(short_help="Compare payments, events and ledger.")
@configuration_options
@click.option(
    "--ledger", "ledger_dir", metavar="DIR", type=click.Path(path_type=Path),
    help="Directory of ledger.db, when the consumer role has one of its own.",
)  # fmt: skip
@json_option
def reconcile(*, ledger_dir: Path | None, as_json: bool, **flags: Any) -> None:
    """Compare what was committed with what was booked. Reads only, also beside a running server.

    Every committed event is booked or on its way, nothing is booked that was not committed, versions have no gap, and
    the sums of each payment, account and currency agree. What is on its way is counted, not a difference.

    \b
    payflow reconcile
    payflow reconcile --data-dir /srv/payflow --json | jq .differences
    payflow reconcile --data-dir /srv/ingest --ledger /srv/consumer

    Exits with 0 when everything agrees, 1 when something differs, 69 when a database cannot be read.
    """
    settings = load_or_exit(**flags).settings
    payments_path = settings.storage.data_dir / "payments.db"
    ledger_path = (ledger_dir or settings.storage.data_dir) / "ledger.db"
    with (
        refusals(),
        snapshot_of(ledger_path, LEDGER_FILE) as ledger,  # first: see core/reconcile.py
        snapshot_of(payments_path, PAYMENTS_FILE) as payments,
    ):
        books = LedgerReport(ledger)
        comparison = Reconciliation(books.positions(settings.kafka.topic), partial(is_booked, ledger_path))
        found = _compared(comparison, PaymentsReport(payments), books)
        topic = _topic(settings)
        if as_json:
            _print_json(found, comparison, topic)
        else:
            _print_text(found, comparison, topic)
    sys.exit(DIFFERS if comparison.differences else 0)


def _compared(comparison: Reconciliation, payments: PaymentsReport, ledger: LedgerReport) -> Iterator[Difference]:
    total = payments.count_events()
    streams = (payments.sums(), payments.committed(), ledger.booked(), ledger.held(), ledger.lines())
    with progress() as show:
        for number, books in enumerate(by_payment(*streams)):
            yield from comparison.add(books)
            if number % _EVERY_PAYMENTS == 0:
                show(f"{comparison.events:,} of {total:,} events compared, {comparison.differences} differences")
    yield from comparison.finish(ledger.accounts())


def _topic(settings: Settings) -> Mapping[str, str]:
    """Why the log is not compared."""
    if settings.kafka.bootstrap_servers == "embedded":
        reason = "the embedded broker keeps its log in memory only, a comparison with it would prove nothing"
    else:
        reason = "this version does not read the topic of a cluster yet: outbox and ledger were compared, not the topic"
    return {"status": "skipped", "reason": reason}


# ------------------------------------------------------------------ output
def _plain(difference: Difference) -> dict[str, object]:
    return {
        "kind": difference.kind.value,
        "payment_id": None if difference.payment_id is None else id_text(difference.payment_id),
        "version": difference.version,
        "text": difference.text,
    }


def _print_json(found: Iterator[Difference], comparison: Reconciliation, topic: Mapping[str, str]) -> None:
    """Differences as they are found, so that a million of them needs no memory."""
    click.echo('{"differences": [', nl=False)
    for number, difference in enumerate(found):
        click.echo(f"{',' if number else ''}\n  {json.dumps(_plain(difference), ensure_ascii=False)}", nl=False)
    summary = {
        "agrees": not comparison.differences,
        "difference_count": comparison.differences,
        "payments": comparison.payments,
        "events": comparison.events,
        "entries": comparison.entries,
        "stands": {stand.value: count for stand, count in comparison.stands.items()},
        "currencies": [
            {
                "currency": currency,
                "type": event_type.value,
                "committed": totals.committed,
                "booked": totals.booked,
                "on_the_way": totals.on_the_way,
            }
            for (currency, event_type), totals in sorted(comparison.currencies.items())
        ],
        "topic": topic,
    }
    click.echo("],\n" + json.dumps(summary, indent=2, ensure_ascii=False).removeprefix("{\n"))


def _print_text(found: Iterator[Difference], comparison: Reconciliation, topic: Mapping[str, str]) -> None:
    for difference in found:
        place = "" if difference.payment_id is None else f" payment {id_text(difference.payment_id)}"
        place += "" if difference.version is None else f" version {difference.version}:"
        click.echo(f"{difference.kind.value}{place} {difference.text}")
    stands = comparison.stands
    click.echo(f"{comparison.payments:,} payments, {comparison.events:,} events, {comparison.entries:,} entries")
    click.echo(f"booked        {stands[Stand.BOOKED]:>12,}")
    for stand in _ON_THE_WAY:
        what = "waits for an operator" if stand is Stand.PARKED else "on its way"
        if stands[stand]:
            click.echo(f"{stand.value:13} {stands[stand]:>12,}  {what}")
    for (currency, event_type), totals in sorted(comparison.currencies.items()):
        on_the_way = f", {totals.on_the_way} on the way" if totals.on_the_way else ""
        click.echo(f"{currency} {event_type.value}: committed {totals.committed}, booked {totals.booked}{on_the_way}")
    click.echo(f"topic: {topic['status']}, {topic['reason']}")
    count = comparison.differences
    click.echo("everything agrees" if not count else f"{count} difference{'s' if count > 1 else ''}")

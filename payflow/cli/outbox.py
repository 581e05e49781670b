"""`payflow outbox` and `payflow audit`: outgoing events and operators' actions.

Looking reads payments.db beside its owner. Changing goes through the management port of the running server; a stopped
server's files are never written from here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from payflow.adapters.management_client import ManagementClient
from payflow.adapters.sqlite_reports import PAYMENTS_FILE, AuditRow, OutboxRow, PaymentsReport, snapshot_of
from payflow.cli.config import configuration_options, load_or_exit
from payflow.cli.output import Misused, json_option, print_json, refusals
from payflow.config import Settings
from payflow.core.outbox import RowState
from payflow.wire import id_bytes, id_text, time_text

# As many as the management port takes at once.
REQUEUE_SEQS: Final = 100
_PORT: Final = click.IntRange(1, 65_535)
_LIMIT: Final = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many rows at most."
)


@click.group(short_help="Look at outgoing events, and publish some again.")
def outbox() -> None:
    """Look at outgoing events, and put some back to be published again.

    \b
    payflow outbox list                       what waits: pending and parked rows
    payflow outbox show 1017 --payload
    payflow outbox requeue 1017 --reason "topic takes large records now"
    """


# ------------------------------------------------------------------ looking
@outbox.command("list", short_help="Print rows of the outbox.")
@configuration_options
@click.option(
    "--state", type=click.Choice(["pending", "parked", "published", "all"]), default="parked", show_default=True,
    help="Rows in this state.",
)  # fmt: skip
@click.option("--payment", metavar="ID", help="Rows of one payment.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Go on after this row.")
@_LIMIT
@json_option
def list_rows(
    *, state: str, payment: str | None, after: int, limit: int, as_json: bool, **flags: Any
) -> None:
    """Print rows of the outbox in sequence. Reads only, also beside a running server.

    \b
    payflow outbox list                       parked rows, and why they are parked
    payflow outbox list --state pending --limit 10
    payflow outbox list --state all --payment 01a213b6-19e9-7635-ac67-f635ed10e626 --json
    """
    with refusals(), _payments(flags) as report:
        payment_id = None if payment is None else id_bytes(payment)
        if payment is not None and payment_id is None:
            raise Misused(f"{payment!r} is not the id of a payment")
        rows = list(report.rows(state, payment_id=payment_id, after_seq=after, limit=limit))
    if as_json:
        print_json({"items": [_plain(row) for row in rows]})
        return
    for row in rows:
        error = f"  {row.error}" if row.error is not None else ""
        click.echo(
            f"{row.seq:>10}  {row.state.name.lower():9}  {time_text(row.at_us)}  {id_text(row.payment_id)}  "
            f"v{row.version} {row.type.value}{error}"
        )
    if not rows:
        click.echo("no such rows", err=True)


@outbox.command(short_help="Print all that is known of a row.")
@configuration_options
@click.argument("seq", type=click.IntRange(1))
@click.option("--payload", is_flag=True, help="Also print the record's value, which holds amounts and the merchant.")
@json_option
def show(*, seq: int, payload: bool, as_json: bool, **flags: Any) -> None:
    """Print all that is known of row SEQ. Reads only, also beside a running server.

    \b
    payflow outbox show 1017
    payflow outbox show 1017 --payload --json | jq .payload.amount
    """
    with refusals(), _payments(flags) as report:
        row, kept = report.row(seq), report.payload(seq)
        if row is None:
            raise Misused(f"there is no row {seq} in the outbox")
    shown = _plain(row) | {"payload_kept": kept is not None}
    if kept is not None:
        shown |= {"traceparent": kept[1]} | ({"payload": json.loads(kept[0])} if payload else {})
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        click.echo(f"{name:13} {value if value is not None else '-'}")


@click.command(short_help="Print what operators did.")
@configuration_options
@click.option("--action", help="Only this action: pause, resume, restart, requeue.")
@click.option("--before", type=click.IntRange(1), metavar="ID", help="Go on before this entry.")
@_LIMIT
@json_option
def audit(*, action: str | None, before: int | None, limit: int, as_json: bool, **flags: Any) -> None:
    """Print actions of operators, newest first. Reads only, also beside a running server.

    \b
    payflow audit
    payflow audit --action requeue --json
    """
    with refusals(), _payments(flags) as report:
        entries = report.audit(before=before, action=action, limit=limit)
    if as_json:
        print_json({"items": [_plain_entry(entry) for entry in entries]})
        return
    for entry in entries:
        what = f"{entry.action} {entry.target}"
        click.echo(f"{entry.id:>6}  {time_text(entry.at_us)}  {entry.actor}  {what}  {entry.reason}  {entry.detail}")
    if not entries:
        click.echo("no such entries", err=True)


# ------------------------------------------------------------------ changing
@outbox.command(short_help="Have rows published again by the running server.")
@configuration_options
@click.argument("seqs", metavar="[SEQ]...", type=click.IntRange(1), nargs=-1)
@click.option("--parked", is_flag=True, help="All rows that are parked now, instead of naming them.")
@click.option("--reason", required=True, help="Why; it is kept in the audit.")
@click.option("--as", "name", metavar="NAME", help="Whose token of management.tokens is used; not needed for one.")
@click.option(
    "--token-file", metavar="FILE", type=click.Path(path_type=Path), help="Read the token here instead."
)
@click.option("--management-port", type=_PORT, help="Port of the running server (management.port).")
@json_option
def requeue(
    *, seqs: tuple[int, ...], parked: bool, reason: str, name: str | None, token_file: Path | None, as_json: bool,
    **flags: Any,
) -> None:  # fmt: skip
    """Make parked or published rows pending again, so that they are published once more.

    The running server does it, after it wrote it into its audit; a server that is stopped is not changed. The ledger
    drops what it has booked already, so a row too many does no harm.

    \b
    payflow outbox requeue 1017 1018 --reason "topic takes large records now"
    payflow outbox requeue --parked --reason "max.message.bytes raised" --as alice --secrets-dir /etc/payflow/secrets
    """
    settings = load_or_exit(**flags).settings
    with refusals():
        if bool(seqs) is parked:
            raise Misused("name rows, or all of them with --parked; not both and not neither")
        token = _token(settings, name, token_file)
        client = ManagementClient(settings.management.host, settings.management.port)
        wanted = list(seqs) if seqs else _parked(settings)
        done = [
            client.post("/outbox/requeue", {"seqs": part, "reason": reason}, token=token) for part in _parts(wanted)
        ]
    changed = sum(answer["requeued"] for answer in done)
    if as_json:
        print_json({"asked": len(wanted), "requeued": changed, "by": done[0]["by"] if done else None})
        return
    click.echo(f"{changed} of {len(wanted)} rows will be published again")
    if changed < len(wanted):
        click.echo("the others are pending already, are not there, or their payload has left after its retention")


def _parked(settings: Settings) -> list[int]:
    with snapshot_of(settings.storage.data_dir / "payments.db", PAYMENTS_FILE) as connection:
        rows = PaymentsReport(connection).rows("parked", payment_id=None, after_seq=0, limit=1_000_000)
        return [row.seq for row in rows]


def _parts(seqs: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(seqs), REQUEUE_SEQS):
        yield list(seqs[start : start + REQUEUE_SEQS])


def _token(settings: Settings, name: str | None, token_file: Path | None) -> str:
    if token_file is not None:
        try:
            return token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Misused(f"the token cannot be read from {token_file}: {error}") from error
    tokens = settings.management.tokens
    chosen = name if name is not None else next(iter(tokens)) if len(tokens) == 1 else None
    if chosen is None or chosen not in tokens:
        names = f"; there are {', '.join(sorted(tokens))}" if tokens else ""
        raise Misused(f"a token is needed: --as NAME with management.tokens.NAME configured, or --token-file{names}")
    return tokens[chosen].reveal()


# ------------------------------------------------------------------ values
@contextmanager
def _payments(flags: dict[str, Any]) -> Iterator[PaymentsReport]:
    settings = load_or_exit(**flags).settings
    with snapshot_of(settings.storage.data_dir / "payments.db", PAYMENTS_FILE) as connection:
        yield PaymentsReport(connection)


def _plain(row: OutboxRow) -> dict[str, object]:
    plain: dict[str, object] = {}
    for name, value in asdict(row).items():
        if name.endswith("_us"):
            plain[name.removesuffix("_us")] = None if value is None else time_text(value)
        elif isinstance(value, RowState):
            plain[name] = value.name.lower()
        else:
            plain[name] = id_text(value) if isinstance(value, bytes) else value
    return plain


def _plain_entry(entry: AuditRow) -> dict[str, object]:
    plain = asdict(entry)
    at_us = plain.pop("at_us")
    return plain | {"at": time_text(at_us), "detail": json.loads(entry.detail)}

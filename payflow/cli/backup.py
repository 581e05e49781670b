"""`payflow backup` and `payflow restore`: both databases as one, online, and back into an empty place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from payflow.adapters.sqlite_copy import FILES, LEDGER, PAYMENTS, back_up
from payflow.adapters.sqlite_copy import restore as copy_back
from payflow.cli.config import configuration_options, load_or_exit
from payflow.cli.output import json_option, print_json, progress, refusals

ROLE_FILES: Final = {"ingest": PAYMENTS, "consumer": LEDGER}
_role_option: Final = click.option(
    "--role",
    type=click.Choice(list(ROLE_FILES)),
    help="Only the database of this role, where the other one lives elsewhere.",
)


@click.command(short_help="Copy both databases while they are in use.")
@configuration_options
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@_role_option
@json_option
def backup(*, destination: Path, role: str | None, as_json: bool, **flags: Any) -> None:
    """Copy both databases into the new directory DEST, also while a server uses them.

    DEST appears when the copies are whole, checked and on the disk. Both are of one moment: whatever is booked in the
    copy is committed in it.

    \b
    payflow backup /backup/payflow-2026-11-25
    payflow backup /backup/today --data-dir /srv/payflow --json
    payflow backup /backup/ingest --role ingest

    Exits with 69 when DEST exists, or a database cannot be read.
    """
    data_dir = load_or_exit(**flags).settings.storage.data_dir
    with refusals(), progress() as show:
        sizes = back_up(data_dir, destination.absolute(), names=_names(role), progress=_shown(show))
    _report("backed up", destination, sizes, as_json=as_json)


@click.command(short_help="Put a backup into an empty data directory.")
@configuration_options
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@_role_option
@json_option
def restore(*, source: Path, role: str | None, as_json: bool, **flags: Any) -> None:
    """Copy the backup SRC into the data directory. Overwrites nothing and works only while no server runs on it.

    \b
    payflow restore /backup/payflow-2026-11-25
    payflow restore /backup/today --data-dir /srv/payflow
    payflow reconcile                    always look afterwards

    Exits with 69 when a database is there already, a server owns it, or the backup is not sound.
    """
    data_dir = load_or_exit(**flags).settings.storage.data_dir
    with refusals(), progress() as show:
        sizes = copy_back(source, data_dir, names=_names(role), progress=_shown(show))
    _report("restored", data_dir, sizes, as_json=as_json)


def _names(role: str | None) -> tuple[str, ...]:
    return tuple(FILES) if role is None else (ROLE_FILES[role],)


def _shown(show: Any) -> Any:
    return lambda name, done, total: show(f"{name}: {done * 100 // max(total, 1)} % of {total * 4 // 1024:,} MiB")


def _report(what: str, where: Path, sizes: Mapping[str, int], *, as_json: bool) -> None:
    if as_json:
        print_json({"directory": str(where), "files": sizes})
        return
    for name, size in sizes.items():
        click.echo(f"{what} {name}, {size:,} bytes")
    click.echo(f"in {where}")

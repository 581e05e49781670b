"""Backup and restore: whole copies of both databases through SQLite's own backup, each of one snapshot.

A copy is made in a directory or file beside its final name, checked, fsynced and renamed: what stands under the name is
whole. Both snapshots are held before the first page is copied, the ledger's first, so every event that is booked in the
copy is committed in it; and a mark "booked" that the ledger of the copy does not know yet is taken back in the copy.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final

from payflow.adapters.sqlite_open import FileSpec, one_sentence, refuse_owned, take_owner_lock
from payflow.adapters.sqlite_reports import LEDGER_FILE, PAYMENTS_FILE, snapshot_of
from payflow.errors import DependencyUnavailable

LEDGER: Final = "ledger.db"
PAYMENTS: Final = "payments.db"
# In the order in which snapshots are taken.
FILES: Final[dict[str, FileSpec]] = {LEDGER: LEDGER_FILE, PAYMENTS: PAYMENTS_FILE}
# 4 MiB between two looks at the progress.
_PAGES: Final = 1024

# File name, pages copied, pages in all.
Progress = Callable[[str, int, int], None]

_TAKE_BACK: Final = (
    "UPDATE payment_event SET booked_at_us = NULL WHERE booked_at_us IS NOT NULL "
    "AND NOT EXISTS (SELECT 1 FROM ledger.inbox WHERE inbox.event_id = payment_event.id)"
)


def back_up(data_dir: Path, destination: Path, *, names: tuple[str, ...], progress: Progress) -> dict[str, int]:
    """Copy the databases of `data_dir` into the new directory `destination`; bytes of each file.

    Works beside a running owner. Raises DependencyUnavailable with one sentence, and then leaves nothing behind.
    """
    _refuse_existing(destination)
    partial = destination.with_name(f"{destination.name}.partial")
    with ExitStack() as stack:
        sources = {
            name: stack.enter_context(snapshot_of(data_dir / name, spec))
            for name, spec in FILES.items()
            if name in names
        }
        with one_sentence(destination):
            partial.mkdir()
        with _removed_on_failure(partial), one_sentence(partial):
            for name, source in sources.items():
                _copy(source, partial / name, name, progress)
            if len(names) == len(FILES):
                _take_back_marks(partial)
            for name in names:
                _check(partial / name)
            _sync(partial)
            partial.rename(destination)
            _sync(destination.parent)
    return {name: (destination / name).stat().st_size for name in names}


def restore(source_dir: Path, data_dir: Path, *, names: tuple[str, ...], progress: Progress) -> dict[str, int]:
    """Copy a backup into `data_dir`, where none of its databases may be; bytes of each file.

    Raises DependencyUnavailable with one sentence, and then has changed no database.
    """
    with ExitStack() as stack:
        sources = {
            name: stack.enter_context(snapshot_of(source_dir / name, spec))
            for name, spec in FILES.items()
            if name in names
        }
        for name in names:
            _refuse_overwriting(data_dir / name)
        with one_sentence(data_dir):
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in names:
            stack.callback(os.close, take_owner_lock((data_dir / name).resolve()))
            _refuse_overwriting(data_dir / name, owned_by_us=True)
        with one_sentence(data_dir):
            unborn = {name: data_dir / f"{name}.restoring" for name in names}
            for name, path in unborn.items():
                stack.callback(path.unlink, missing_ok=True)
                path.unlink(missing_ok=True)
                _copy(sources[name], path, name, progress)
                _check(path)
            # The ledger first: payments without their ledger would look as if nothing had been booked.
            for name in FILES:
                if name in names:
                    unborn[name].rename(data_dir / name)
            _sync(data_dir)
    return {name: (data_dir / name).stat().st_size for name in names}


def _refuse_existing(destination: Path) -> None:
    for path in (destination, destination.with_name(f"{destination.name}.partial")):
        if path.exists():
            raise DependencyUnavailable(f"{path} exists already; a backup never overwrites, choose another name")


def _refuse_overwriting(path: Path, *, owned_by_us: bool = False) -> None:
    if not owned_by_us:
        refuse_owned(path)
    for there in (path, Path(f"{path}-wal")):
        if there.exists():
            raise DependencyUnavailable(f"{there} exists already; restore never overwrites, move it away first")


def _copy(source: sqlite3.Connection, path: Path, name: str, progress: Progress) -> None:
    """One snapshot into a new file that needs no `-wal` beside it."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with closing(sqlite3.connect(path, isolation_level=None)) as target:
        # The source's transaction keeps its snapshot: what is written meanwhile does not make this start again.
        source.backup(
            target, pages=_PAGES, sleep=0, progress=lambda _, left, total: progress(name, total - left, total)
        )
        target.execute("PRAGMA journal_mode = DELETE").fetchone()


def _take_back_marks(folder: Path) -> None:
    """The payments' snapshot is the younger one: what was booked between the two is not in the ledger of the copy."""
    with closing(sqlite3.connect(folder / PAYMENTS, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS ledger", (f"{folder / LEDGER}",))
        connection.execute(_TAKE_BACK)


def _check(path: Path) -> None:
    """What was written is a sound database, and on the disk."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != ("ok",):
        what = " ".join(found[0].split())
        raise DependencyUnavailable(f"{path} is not sound ({what}); the database that was copied is damaged")
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _removed_on_failure(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise

"""One SQLite file: the single connection that writes it, and readers beside it. Shared by the outbox and the ledger.

Invariants: one read-write connection a file, guarded by `flock` (two writers would also meet SQLite's WAL-reset race before 3.51.3); WAL and
synchronous=FULL are read back, not assumed; a transaction is one function and one hop to aiosqlite's thread, so a cancelled caller can neither
split nor leak it; a database is built beside its final name and renamed, so an empty file is never one of ours and is never taken for a new one.
It knows no table: migrations and queries come from its users.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import aiosqlite

from payflow.errors import (
    DependencyUnavailable,
    PayflowError,
    StoreBusy,
    StoreOutcomeUnknown,
    StoreRejected,
    StoreUnavailable,
)

T = TypeVar("T")

# Statements one connection keeps prepared; the largest user has about 40.
_CACHED_STATEMENTS: Final = 256
# Page cache of the writer, in KiB. More did not help: the cost of random keys is dirty pages (spec/outbox-kafka.md 4.4).
_CACHE_KIB: Final = 65_536
# A WAL that grew under a long reader shrinks back to this many bytes.
_JOURNAL_SIZE_LIMIT_BYTES: Final = 67_108_864
_PRIMARY_CODE: Final = 0xFF
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_REJECTED: Final = frozenset(
    {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_RANGE, sqlite3.SQLITE_ERROR}
)


@dataclass(frozen=True, slots=True)
class _Opened:
    """What an open file consists of. Closing it leaves nothing behind but the files."""

    connection: sqlite3.Connection
    lock_fd: int

    def close(self) -> None:
        try:
            self.connection.close()
        finally:
            os.close(self.lock_fd)


class SqliteFile:
    """Owner and only writer of one database file."""

    def __init__(
        self,
        path: Path | str,
        *,
        application_id: int,
        migrations: Sequence[str],
        busy_timeout_s: float,
        checkpoint_pages: int,
    ) -> None:
        assert 0 < application_id < 2**31
        assert migrations
        assert busy_timeout_s >= 0
        assert checkpoint_pages >= 1
        self._path = Path(path)
        self._application_id = application_id
        self._migrations = tuple(migrations)
        self._busy_timeout_s = busy_timeout_s
        self._checkpoint_pages = checkpoint_pages
        self._opened: _Opened | None = None
        self._db: aiosqlite.Connection | None = None
        self._reopen_first = False

    async def open_writer(self) -> None:
        """Lock, check, migrate. Raises DependencyUnavailable, after which nothing is held and nothing was created or changed."""
        assert self._db is None
        opening = asyncio.get_running_loop().run_in_executor(None, self._open_blocking)
        try:
            opened = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_abandoned)
            raise
        db = aiosqlite.Connection(lambda: opened.connection, iter_chunk_size=64)
        try:
            await db
        except BaseException:
            opened.close()
            raise
        self._opened, self._db, self._reopen_first = opened, db, False

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """`fn` inside BEGIN IMMEDIATE and COMMIT, in one hop. An exception rolls back; what SQLite raises arrives as one of the Store errors."""
        return await _hop(self._db, partial(self._transaction, fn))

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """`fn` on the writer's connection without a transaction."""
        return await _hop(self._db, partial(self._query, fn))

    async def close(self) -> None:
        """Checkpoint, close, release the lock. Idempotent. Runs to its end on the thread even when the caller is cancelled."""
        db, opened = self._db, self._opened
        self._db = self._opened = None
        if db is None or opened is None:
            return
        try:
            await _hop(db, partial(self._finish, opened))
        finally:
            await db.close()

    # ---------------------------------------------------------------- on the connection's thread
    def _transaction(self, fn: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
        if self._reopen_first:
            raise StoreUnavailable(f"{self._path} has to be reopened after an unknown outcome")
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = fn(connection)
        except BaseException as error:
            self._roll_back(connection)
            raise self._translated(error) from error
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._commit_failed(connection, error) from error
        return result

    def _query(self, fn: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
        try:
            return fn(connection)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        if not connection.in_transaction:
            return
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._reopen_first = True

    def _commit_failed(self, connection: sqlite3.Connection, error: sqlite3.Error) -> BaseException:
        # SQLite keeps the transaction open when COMMIT changed nothing (busy, a deferred constraint).
        if connection.in_transaction:
            self._roll_back(connection)
            return self._translated(error)
        # A full disk is a short write of a WAL frame: its checksum does not hold, no commit mark was made, SQLite has rolled back. Every other
        # failure may have come after the commit mark.
        if _primary_code(error) == sqlite3.SQLITE_FULL:
            return self._translated(error)
        self._reopen_first = True
        return StoreOutcomeUnknown(f"COMMIT of {self._path} failed: {error}")

    def _translated(self, error: BaseException) -> BaseException:
        translated = store_error(self._path, error)
        if isinstance(translated, StoreOutcomeUnknown):
            self._reopen_first = True
        return translated

    def _finish(self, opened: _Opened, connection: sqlite3.Connection) -> None:
        try:
            if not self._reopen_first:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            # The WAL stays; whoever opens the file next reads it. Nothing is lost.
            self._reopen_first = True
        finally:
            opened.close()

    # ---------------------------------------------------------------- opening
    def _open_blocking(self) -> _Opened:
        path = self._path.resolve()
        lock_fd = _take_owner_lock(path)
        try:
            if not path.exists():
                self._create(path)
            self._refuse_strangers(path)
            connection = _connect(path, "rw", self._busy_timeout_s)
            try:
                self._prepare(path, connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            os.close(lock_fd)
            raise DependencyUnavailable(_open_failure(path, error)) from error
        except OSError as error:
            os.close(lock_fd)
            raise DependencyUnavailable(f"{path} cannot be used: {error.strerror or error}") from error
        except BaseException:
            os.close(lock_fd)
            raise
        return _Opened(connection, lock_fd)

    def _create(self, path: Path) -> None:
        """Build the database beside its name, then rename it: whatever is found under the name is whole."""
        if Path(f"{path}-wal").exists():
            raise DependencyUnavailable(f"{path} is missing although {path}-wal is there; restore the database or move the rest away")
        unborn = Path(f"{path}.new")
        for leftover in (unborn, Path(f"{unborn}-journal")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(unborn, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            connection = _connect(unborn, "rw", self._busy_timeout_s)
            try:
                connection.execute("PRAGMA synchronous = FULL")
                self._migrate(connection, 0)
            finally:
                connection.close()
            unborn.rename(path)
        except BaseException:
            unborn.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)

    def _refuse_strangers(self, path: Path) -> None:
        """Look before touching, through a read-only connection: closing a plain file descriptor would drop SQLite's own locks on the file."""
        if path.stat().st_size == 0:
            raise DependencyUnavailable(f"{path} is empty, which no database of ours ever is; restore it from a backup")
        connection = _connect(path, "ro", self._busy_timeout_s)
        try:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        finally:
            connection.close()
        if application_id != self._application_id:
            raise DependencyUnavailable(
                f"{path} belongs to another program (application id {application_id:#x}, expected {self._application_id:#x})"
            )
        if version > len(self._migrations):
            raise DependencyUnavailable(
                f"{path} has schema version {version}, newer than this program knows ({len(self._migrations)}); start the newer program"
            )

    def _prepare(self, path: Path, connection: sqlite3.Connection) -> None:
        pragmas = {
            "journal_mode": "wal",
            "synchronous": 2,
            "wal_autocheckpoint": self._checkpoint_pages,
            "journal_size_limit": _JOURNAL_SIZE_LIMIT_BYTES,
            "cache_size": -_CACHE_KIB,
            "temp_store": 2,
            "mmap_size": 0,
            "trusted_schema": 0,
            "foreign_keys": 1,
        }
        for name, value in pragmas.items():
            connection.execute(f"PRAGMA {name} = {value}")
            row = connection.execute(f"PRAGMA {name}").fetchone()
            if row is not None and row[0] != value:
                raise DependencyUnavailable(f"{path} refuses PRAGMA {name} = {value}: it stays at {row[0]}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        self._migrate(connection, version)
        # What a failed fsync left only in the page cache reaches the database file, with its own fsync, before anything is built on it.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        _touch_every_root_page(connection)

    def _migrate(self, connection: sqlite3.Connection, version: int) -> None:
        """All missing steps in one transaction. Also with none missing: setting the id shows that the file can be written."""
        steps = "\n".join(self._migrations[version:])
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{steps}\nPRAGMA user_version = {len(self._migrations)};\n"
                f"PRAGMA application_id = {self._application_id};\nCOMMIT;"
            )
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


class SqliteReader:
    """One read-only connection to a file that some SqliteFile owns. Every read is a short transaction of its own."""

    def __init__(self, path: Path | str, busy_timeout_s: float) -> None:
        assert busy_timeout_s >= 0
        self._path = Path(path)
        self._busy_timeout_s = busy_timeout_s
        self._db: aiosqlite.Connection | None = None

    async def open(self) -> None:
        """Raises DependencyUnavailable when the file is not there or is no database; never creates one."""
        assert self._db is None
        opening = asyncio.get_running_loop().run_in_executor(None, self._open_blocking)
        try:
            connection = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_abandoned)
            raise
        db = aiosqlite.Connection(lambda: connection, iter_chunk_size=64)
        try:
            await db
        except BaseException:
            connection.close()
            raise
        self._db = db

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """`fn` on one snapshot, in one hop. Raises StoreBusy or StoreUnavailable."""
        return await _hop(self._db, partial(self._snapshot, fn))

    async def close(self) -> None:
        """Idempotent."""
        db, self._db = self._db, None
        if db is not None:
            await db.close()

    def _snapshot(self, fn: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
        try:
            connection.execute("BEGIN")
            return fn(connection)
        except sqlite3.Error as error:
            if _primary_code(error) in _BUSY:
                raise StoreBusy(f"{self._path} is busy: {error}") from error
            raise StoreUnavailable(f"{self._path} cannot be read: {error}") from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _open_blocking(self) -> sqlite3.Connection:
        path = self._path.resolve()
        try:
            connection = _connect(path, "ro", self._busy_timeout_s)
        except sqlite3.Error as error:
            raise DependencyUnavailable(_open_failure(path, error)) from error
        try:
            for pragma in ("query_only = ON", "wal_autocheckpoint = 0", "mmap_size = 0", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.Error as error:
            connection.close()
            raise DependencyUnavailable(_open_failure(path, error)) from error
        return connection


async def _hop(db: aiosqlite.Connection | None, fn: Callable[[sqlite3.Connection], T]) -> T:
    """Run `fn` on aiosqlite's thread. The only use of its private `_execute`: the public calls are one hop a statement, 0.12 to 0.15 ms each.

    aiosqlite is pinned, and tests/integration/test_sqlite_file.py fails when an upgrade changes what this relies on.
    """
    if db is None:
        raise StoreUnavailable("the database is not open")
    result: T = await db._execute(fn, db._conn)  # type: ignore[no-untyped-call]  # noqa: SLF001
    return result


def store_error(path: Path, error: BaseException) -> BaseException:
    """The Store error for what SQLite or the binding of values raised before COMMIT; anything else is returned as it is."""
    if isinstance(error, OverflowError | UnicodeEncodeError | sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return StoreRejected(f"a value cannot be stored: {error}")
    if not isinstance(error, sqlite3.Error):
        return error
    code = _primary_code(error)
    kind: type[PayflowError] = StoreUnavailable
    if code in _BUSY:
        kind = StoreBusy
    elif code in _REJECTED:
        kind = StoreRejected
    elif code == sqlite3.SQLITE_IOERR:
        kind = StoreOutcomeUnknown
    return kind(f"{path}: {error}")


def _primary_code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY_CODE


def _connect(path: Path, mode: str, busy_timeout_s: float) -> sqlite3.Connection:
    # One thread at a time uses it: the executor's while it is opened, aiosqlite's from then on.
    return sqlite3.connect(
        f"{path.as_uri()}?mode={mode}",
        uri=True,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=_CACHED_STATEMENTS,
    )


def _take_owner_lock(path: Path) -> int:
    """Descriptor of the lock file, which holds our pid and is never removed. Freed by the kernel when the process ends, however it ends."""
    lock_path = Path(f"{path}.lock")
    try:
        lock_fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DependencyUnavailable(f"{path} cannot be used: {lock_path}: {error.strerror or error}") from error
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock_fd)
        raise DependencyUnavailable(f"{path} is in use by process {holder} (owner lock {lock_path})") from error
    except OSError as error:
        os.close(lock_fd)
        raise DependencyUnavailable(f"{path} cannot be locked: {lock_path}: {error.strerror or error}") from error
    return lock_fd


def _touch_every_root_page(connection: sqlite3.Connection) -> None:
    """Read the first page of every table and index. A whole check would read the file; this finds the damage that would stop the first write."""
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()  # noqa: S608


def _sync_directory(directory: Path) -> None:
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def _close_abandoned(opening: asyncio.Future[_Opened] | asyncio.Future[sqlite3.Connection]) -> None:
    """The caller was cancelled while the file was being opened: close what came of it."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


_OPEN_FAILURES: Final = {
    sqlite3.SQLITE_NOTADB: "is not a SQLite database; it was left as it is, restore it from a backup",
    sqlite3.SQLITE_CORRUPT: "is damaged; it was left as it is, restore it from a backup",
    sqlite3.SQLITE_READONLY: "cannot be written: the file or its directory is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: the directory or the rights are missing",
    sqlite3.SQLITE_PERM: "cannot be opened: the rights are missing",
    sqlite3.SQLITE_FULL: "cannot be written: no space is left",
    sqlite3.SQLITE_BUSY: "is locked by another program for longer than the busy timeout",
}


def _open_failure(path: Path, error: sqlite3.Error) -> str:
    reason = _OPEN_FAILURES.get(_primary_code(error) or 0)
    return f"{path} {reason} ({error})" if reason else f"{path} cannot be opened: {error}"

"""Opening a SQLite file: owner lock, birth, checks, migrations, pragmas. Blocking; sqlite_file.py runs it off the loop.

A database is built beside its final name and renamed, so whatever is found under the name is whole: an empty file is
never one of ours and never taken for a new one. A file that is refused stays as it is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from payflow.errors import DependencyUnavailable

# Statements one connection keeps prepared; the largest user has about 40.
_CACHED_STATEMENTS: Final = 256
# Page cache of the writer, in KiB. More did not help: random keys cost dirty pages.
_CACHE_KIB: Final = 65_536
# A WAL that grew under a long reader shrinks back to this many bytes.
_JOURNAL_SIZE_LIMIT_BYTES: Final = 67_108_864
_PRIMARY_CODE: Final = 0xFF
# A file below this is checked whole at each opening.
_CHECKED_WHOLE_BYTES: Final = 64 << 20

_FAILURES: Final = {
    sqlite3.SQLITE_NOTADB: "is not a SQLite database; it was left as it is, restore it from a backup",
    sqlite3.SQLITE_CORRUPT: "is damaged; it was left as it is, restore it from a backup",
    sqlite3.SQLITE_READONLY: "cannot be written: the file or its directory is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: the file, its directory or the rights are missing",
    sqlite3.SQLITE_PERM: "cannot be opened: the rights are missing",
    sqlite3.SQLITE_FULL: "cannot be written: no space is left",
    sqlite3.SQLITE_BUSY: "is locked by another program for longer than the busy timeout",
}


@dataclass(frozen=True, slots=True)
class FileSpec:
    """What makes a file one of ours. A schema's version is the number of its migrations."""

    application_id: int
    migrations: tuple[str, ...]
    busy_timeout_s: float
    checkpoint_pages: int

    def __post_init__(self) -> None:
        assert 0 < self.application_id < 2**31
        assert self.migrations
        assert self.busy_timeout_s >= 0
        assert self.checkpoint_pages >= 1


@dataclass(frozen=True, slots=True)
class OwnedFile:
    """The open file and the lock on it. Closing leaves nothing behind but the files."""

    connection: sqlite3.Connection
    lock_fd: int

    def close(self) -> None:
        try:
            self.connection.close()
        finally:
            os.close(self.lock_fd)


def primary_code(error: sqlite3.Error) -> int | None:
    """SQLite's result code without its extension; None for an error of the Python module."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY_CODE


def open_owned(path: Path, spec: FileSpec) -> OwnedFile:
    """Lock, create or check, migrate.

    Raises DependencyUnavailable with one sentence; then nothing is held and no file of ours was changed.
    """
    path = path.resolve()
    lock_fd = take_owner_lock(path)
    try:
        with one_sentence(path):
            if not path.exists():
                _create(path, spec)
            refuse_strangers(path, spec)
            connection = _connect(path, "rw", spec.busy_timeout_s)
            try:
                _prepare(path, connection, spec)
            except BaseException:
                connection.close()
                raise
    except BaseException:
        os.close(lock_fd)
        raise
    return OwnedFile(connection, lock_fd)


def open_read_only(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection that neither writes nor checkpoints.

    Raises DependencyUnavailable when there is no such database; never creates one.
    """
    path = path.resolve()
    with one_sentence(path):
        connection = _connect(path, "ro", busy_timeout_s)
        try:
            for pragma in ("query_only = ON", "wal_autocheckpoint = 0", "mmap_size = 0", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def one_sentence(path: Path) -> Iterator[None]:
    """What SQLite or the file system refuses within the block becomes DependencyUnavailable with one sentence."""
    try:
        yield
    except sqlite3.Error as error:
        code = primary_code(error) or sqlite3.SQLITE_OK
        # SQLite calls it an I/O error when its shared-memory file finds no room.
        if code == sqlite3.SQLITE_IOERR and shutil.disk_usage(path.parent).free == 0:
            code = sqlite3.SQLITE_FULL
        reason = _FAILURES.get(code, "cannot be opened")
        raise DependencyUnavailable(f"{path} {reason} ({error})") from error
    except OSError as error:
        raise DependencyUnavailable(f"{path} cannot be used: {error.strerror or error}") from error


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


def take_owner_lock(path: Path) -> int:
    """Descriptor of the lock file, which holds our pid and is never removed.

    The kernel frees it when the process ends, however it ends.
    """
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
        owned = _owned(path, lock_path, lock_fd)
        os.close(lock_fd)
        raise owned from error
    except OSError as error:
        os.close(lock_fd)
        raise DependencyUnavailable(f"{path} cannot be locked: {lock_path}: {error.strerror or error}") from error
    return lock_fd


def _owned(path: Path, lock_path: Path, lock_fd: int) -> DependencyUnavailable:
    holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    return DependencyUnavailable(f"{path} is in use by process {holder} (owner lock {lock_path})")


def refuse_owned(path: Path) -> None:
    """Raise DependencyUnavailable when a process owns the file; makes no lock file and keeps no lock."""
    lock_path = Path(f"{path.resolve()}.lock")
    with one_sentence(path), suppress(FileNotFoundError):
        lock_fd = os.open(lock_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _owned(path, lock_path, lock_fd) from error
        finally:
            os.close(lock_fd)


def _create(path: Path, spec: FileSpec) -> None:
    if Path(f"{path}-wal").exists():
        raise DependencyUnavailable(
            f"{path} is missing although {path}-wal is there; restore the database or move the rest away"
        )
    unborn = Path(f"{path}.new")
    for leftover in (unborn, Path(f"{unborn}-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(unborn, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(_connect(unborn, "rw", spec.busy_timeout_s)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            _migrate(connection, 0, spec)
        unborn.rename(path)
    except BaseException:
        unborn.unlink(missing_ok=True)
        raise
    directory_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory_fd)
    finally:
        os.close(directory_fd)


def refuse_strangers(path: Path, spec: FileSpec) -> None:
    """Look before touching.

    Through SQLite: closing a plain descriptor would drop the locks that our own readers hold on the file.
    """
    if path.stat().st_size == 0:
        raise DependencyUnavailable(f"{path} is empty, which no database of ours ever is; restore it from a backup")
    with closing(_connect(path, "ro", spec.busy_timeout_s)) as connection:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != spec.application_id:
        raise DependencyUnavailable(
            f"{path} belongs to another program (application id {application_id:#x}, expected {spec.application_id:#x})"
        )
    known = len(spec.migrations)
    if version > known:
        raise DependencyUnavailable(
            f"{path} has schema version {version}, newer than this program knows ({known}); start the newer program"
        )


def _prepare(path: Path, connection: sqlite3.Connection, spec: FileSpec) -> None:
    pragmas = {
        "journal_mode": "wal",
        "synchronous": 2,
        "wal_autocheckpoint": spec.checkpoint_pages,
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
        # A build without a feature has no row for it.
        if row is not None and row[0] != value:
            raise DependencyUnavailable(f"{path} refuses PRAGMA {name} = {value}: it stays at {row[0]}")
    _refuse_damage(path, connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    _migrate(connection, version, spec)
    # What a failed fsync left only in the page cache reaches the database, with its own fsync, before anything builds
    # on it.
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def _refuse_damage(path: Path, connection: sqlite3.Connection) -> None:
    """Every page of a small file (0.2 s at the limit); of a large one the roots of tables and indexes, where damage
    stops every write.
    """
    if path.stat().st_size < _CHECKED_WHOLE_BYTES:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise DependencyUnavailable(f"{path} {_FAILURES[sqlite3.SQLITE_CORRUPT]} ({' '.join(found.split())})")
        return
    roots = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE rootpage > 0").fetchall()
    for kind, name, table, sql in roots:
        which = "NOT INDEXED" if kind == "table" else f'INDEXED BY "{name}"'
        _, where, condition = (sql or "").partition(" WHERE ") if kind == "index" else ("", "", "")
        connection.execute(f'SELECT 1 FROM "{table}" {which}{where}{condition} LIMIT 1').fetchone()


def _migrate(connection: sqlite3.Connection, version: int, spec: FileSpec) -> None:
    """All missing steps in one transaction.

    Also with none missing: setting the id shows that the file can be written.
    """
    steps = "\n".join(spec.migrations[version:])
    try:
        connection.executescript(
            f"BEGIN IMMEDIATE;\n{steps}\nPRAGMA user_version = {len(spec.migrations)};\n"
            f"PRAGMA application_id = {spec.application_id};\nCOMMIT;"
        )
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise

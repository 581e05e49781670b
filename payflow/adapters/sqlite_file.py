"""One SQLite file: the single connection that writes it, and readers beside it. Shared by the outbox and the ledger.

Invariants: one read-write connection a file, guarded by a lock (two would also meet SQLite's WAL-reset race before
3.51.3); WAL and synchronous=FULL are read back, not assumed; a transaction is one function and one hop to aiosqlite's
thread, so a cancelled caller can neither split it nor leak it. It knows no table: migrations and queries come from its
users. How a file is opened: sqlite_open.py.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import aiosqlite

from payflow.adapters.sqlite_open import FileSpec, OwnedFile, open_owned, open_read_only, primary_code
from payflow.errors import PayflowError, StoreBusy, StoreDamaged, StoreOutcomeUnknown, StoreRejected, StoreUnavailable

T = TypeVar("T")
Opened = TypeVar("Opened", OwnedFile, sqlite3.Connection)

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_REJECTED: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_ERROR,
    }
)


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
        self._path = Path(path)
        self._spec = FileSpec(application_id, tuple(migrations), busy_timeout_s, checkpoint_pages)
        self._owned: OwnedFile | None = None
        self._db: aiosqlite.Connection | None = None
        self._reopen_first = False

    async def open_writer(self) -> None:
        """Lock, check, migrate. Raises DependencyUnavailable with one sentence, after which nothing is held."""
        assert self._db is None
        owned = await _off_loop(partial(open_owned, self._path, self._spec))
        try:
            self._db = await _thread_of(owned.connection)
        except BaseException:
            owned.close()
            raise
        self._owned, self._reopen_first = owned, False

    async def run(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """`fn` inside BEGIN IMMEDIATE and COMMIT, in one hop.

        An exception rolls back; what SQLite or the binding of values raises arrives as one of the Store errors.
        """
        return await _hop(self._db, partial(self._transaction, fn))

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """`fn` on the writer's connection without a transaction."""
        return await _hop(self._db, partial(self._query, fn))

    async def close(self) -> None:
        """Checkpoint, close, release the lock.

        Idempotent. Runs to its end on the thread even when the caller is cancelled.
        """
        db, owned = self._db, self._owned
        self._db = self._owned = None
        if db is None or owned is None:
            return
        try:
            await _hop(db, partial(self._finish, owned))
        finally:
            await db.close()

    # ---------------------------------------------------------------- on the connection's thread
    def _transaction(self, fn: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
        if self._reopen_first:
            # Never a transient error: whoever meets it reopens, also when the first one was lost with its caller.
            raise StoreOutcomeUnknown(f"{self._path} has to be reopened after an unknown outcome")
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = fn(connection)
        except BaseException as error:
            if not self._rolled_back(connection):
                raise StoreOutcomeUnknown(f"{self._path} could not be rolled back after: {error}") from error
            translated = self._translated(error)
            if translated is error:
                raise
            raise translated from error
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

    def _rolled_back(self, connection: sqlite3.Connection) -> bool:
        """False when the transaction is still there: the connection is of no use any more."""
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._reopen_first = True
        return not self._reopen_first

    def _commit_failed(self, connection: sqlite3.Connection, error: sqlite3.Error) -> BaseException:
        # SQLite keeps the transaction open when COMMIT changed nothing (busy, a deferred constraint).
        if connection.in_transaction and self._rolled_back(connection):
            return self._translated(error)
        # A full disk is a short write of a WAL frame: its checksum does not hold, no commit mark was made, SQLite has
        # rolled back. Every other failure may have come after the commit mark.
        if primary_code(error) == sqlite3.SQLITE_FULL:
            return self._translated(error)
        self._reopen_first = True
        return StoreOutcomeUnknown(f"COMMIT of {self._path} failed: {error}")

    def _translated(self, error: BaseException) -> BaseException:
        translated = store_error(self._path, error)
        if isinstance(translated, StoreOutcomeUnknown | StoreDamaged):
            self._reopen_first = True
        return translated

    def _finish(self, owned: OwnedFile, connection: sqlite3.Connection) -> None:
        try:
            if not self._reopen_first:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            # The WAL stays, and whoever opens the file next reads it: nothing is lost.
            self._reopen_first = True
        finally:
            owned.close()


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
        connection = await _off_loop(partial(open_read_only, self._path, self._busy_timeout_s))
        try:
            self._db = await _thread_of(connection)
        except BaseException:
            connection.close()
            raise

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
            if primary_code(error) in _BUSY:
                raise StoreBusy(f"{self._path} is busy: {error}") from error
            raise StoreUnavailable(f"{self._path} cannot be read: {error}") from error
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def store_error(path: Path, error: BaseException) -> BaseException:
    """The Store error for what SQLite or the binding of values raised before COMMIT; others come back as they are."""
    if isinstance(error, OverflowError | UnicodeEncodeError | sqlite3.InterfaceError | sqlite3.ProgrammingError):
        return StoreRejected(f"a value cannot be stored: {error}")
    if not isinstance(error, sqlite3.Error):
        return error
    code = primary_code(error)
    kind: type[PayflowError] = StoreUnavailable
    if code in _BUSY:
        kind = StoreBusy
    elif code in _REJECTED:
        kind = StoreRejected
    elif code in _DAMAGED:
        kind = StoreDamaged
    elif code == sqlite3.SQLITE_IOERR:
        kind = StoreOutcomeUnknown
    return kind(f"{path}: {error}")


# ------------------------------------------------------------------ threads
async def _hop(db: aiosqlite.Connection | None, fn: Callable[[sqlite3.Connection], T]) -> T:
    """Run `fn` on aiosqlite's thread. The only use of its private `_execute`.

    Its public calls are a hop a statement, 0.12 to 0.15 ms each. aiosqlite is pinned, and
    tests/integration/test_sqlite_file.py fails when an upgrade changes what this relies on.
    """
    if db is None:
        raise StoreUnavailable("the database is not open")
    result: T = await db._execute(fn, db._conn)  # type: ignore[no-untyped-call]  # noqa: SLF001
    return result


async def _thread_of(connection: sqlite3.Connection) -> aiosqlite.Connection:
    """An aiosqlite connection, with its thread, around a connection that is open already: its own opening cannot fail
    then.
    """
    return await aiosqlite.Connection(lambda: connection, iter_chunk_size=64)


async def _off_loop(opening: Callable[[], Opened]) -> Opened:
    """Run `opening` on a thread. When the caller is cancelled meanwhile, what comes of it is closed."""
    future = asyncio.get_running_loop().run_in_executor(None, opening)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_close_result)
        raise


def _close_result(future: asyncio.Future[Opened]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()

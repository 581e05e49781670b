"""One SQLite file on a real disk: ownership, birth, refusals, durability settings, transactions, errors."""

from __future__ import annotations

import asyncio
import fcntl
import inspect
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiosqlite
import pytest

from payflow.adapters import sqlite_open
from payflow.adapters.sqlite_file import SqliteFile, SqliteReader, store_error
from payflow.errors import (
    DependencyUnavailable,
    StoreBusy,
    StoreDamaged,
    StoreOutcomeUnknown,
    StoreRejected,
    StoreUnavailable,
)

APPLICATION_ID = 0x54455354
FIRST = "CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;"
SECOND = "CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT; INSERT INTO more SELECT id FROM item;"
NOBODY = 65534


def _file(path: Path, *, application_id: int = APPLICATION_ID, migrations: tuple[str, ...] = (FIRST,)) -> SqliteFile:
    return SqliteFile(
        path, application_id=application_id, migrations=migrations, busy_timeout_s=0.05, checkpoint_pages=1000
    )


def _insert(number: int) -> Callable[[sqlite3.Connection], None]:
    def insert(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO item VALUES (?, 'x')", (number,))

    return insert


def _numbers(connection: sqlite3.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT id FROM item ORDER BY id")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "test.db"


@pytest.fixture
async def file(path: Path) -> AsyncIterator[SqliteFile]:
    file = _file(path)
    await file.open_writer()
    yield file
    await file.close()


async def _filled(path: Path, *numbers: int) -> None:
    file = _file(path)
    await file.open_writer()
    for number in numbers:
        await file.run(_insert(number))
    await file.close()


async def _refusal(file: SqliteFile | SqliteReader) -> str:
    with pytest.raises(DependencyUnavailable) as refused:
        await (file.open_writer() if isinstance(file, SqliteFile) else file.open())
    text = str(refused.value)
    assert "\n" not in text
    return text


# ------------------------------------------------------------------ durability
@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("mmap_size", 0),
        ("wal_autocheckpoint", 1000),
        ("foreign_keys", 1),
        ("trusted_schema", 0),
        ("application_id", APPLICATION_ID),
        ("user_version", 1),
        ("busy_timeout", 50),
    ],
)
async def test_the_live_connection_has_the_settings(file: SqliteFile, pragma: str, value: object) -> None:
    (found,) = await file.read(lambda connection: connection.execute(f"PRAGMA {pragma}").fetchone())

    assert value == found


async def test_what_was_committed_is_there_after_reopening(path: Path) -> None:
    await _filled(path, 1, 2)

    file = _file(path)
    await file.open_writer()

    assert [1, 2] == await file.read(_numbers)
    await file.close()


async def test_closing_leaves_the_database_and_the_lock_file_only(path: Path, file: SqliteFile) -> None:
    await file.run(_insert(1))

    await file.close()
    await file.close()

    assert {"test.db", "test.db.lock"} == {entry.name for entry in path.parent.iterdir()}
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------ ownership
async def test_a_second_owner_is_told_who_holds_the_file(path: Path, file: SqliteFile) -> None:
    text = await _refusal(_file(path))

    assert f"{path} is in use by process {os.getpid()}" in text
    await file.run(_insert(1))


async def test_a_lock_file_without_an_owner_is_taken_over(path: Path) -> None:
    Path(f"{path}.lock").write_text("999999\n")

    file = _file(path)
    await file.open_writer()

    assert f"{os.getpid()}\n" == Path(f"{path}.lock").read_text()
    await file.close()


async def test_the_same_file_under_another_name_has_the_same_owner(path: Path, file: SqliteFile) -> None:
    link = path.parent / "other.db"
    link.symlink_to(path)

    assert "is in use" in await _refusal(_file(link))


async def test_a_refused_file_is_not_held(path: Path) -> None:
    await _filled(path)
    await _refusal(_file(path, application_id=7))

    await _filled(path, 1)


# ------------------------------------------------------------------ files that are refused
async def test_a_file_that_is_no_database_stays_as_it_is(path: Path) -> None:
    path.write_bytes(b"these are notes, not a database" * 100)
    before = path.read_bytes()

    text = await _refusal(_file(path))

    assert f"{path} is not a SQLite database" in text
    assert before == path.read_bytes()


async def test_a_damaged_file_stays_as_it_is(path: Path) -> None:
    await _filled(path, 1)
    damaged = bytearray(path.read_bytes())
    damaged[100:4096] = b"\xff" * 3996
    path.write_bytes(damaged)

    text = await _refusal(_file(path))

    assert f"{path} is damaged" in text
    assert bytes(damaged) == path.read_bytes()


async def test_damage_of_a_table_is_found_at_the_start(path: Path) -> None:
    await _filled(path, 1)
    damaged = bytearray(path.read_bytes())
    damaged[4096:8192] = b"\xff" * 4096
    path.write_bytes(damaged)

    assert "is damaged" in await _refusal(_file(path))


INDEXED = FIRST + """
CREATE INDEX by_name ON item (name);
CREATE INDEX by_some ON item (name, id) WHERE name <> 'y';
CREATE TABLE pair (a TEXT, b TEXT UNIQUE, PRIMARY KEY (a, b)) STRICT, WITHOUT ROWID;
"""


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("root", ["item", "by_name", "by_some", "pair", "sqlite_autoindex_pair_1"])
async def test_damage_of_any_root_is_found_at_the_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, root: str, whole: bool
) -> None:
    """Also in a file that is too large to be read whole, and in one that is not damaged nothing is found."""
    monkeypatch.setattr(sqlite_open, "_CHECKED_WHOLE_BYTES", 1 << 30 if whole else 0)
    file = _file(path, migrations=(INDEXED,))
    for _ in range(2):
        await file.open_writer()
        (page, size) = await file.read(
            lambda connection: (
                connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (root,)).fetchone()[0],
                connection.execute("PRAGMA page_size").fetchone()[0],
            )
        )
        await file.close()
    damaged = bytearray(path.read_bytes())
    damaged[(page - 1) * size : page * size] = b"\xff" * size
    path.write_bytes(damaged)

    assert "is damaged; it was left as it is" in await _refusal(file)
    assert bytes(damaged) == path.read_bytes()


async def test_an_empty_file_is_not_taken_for_a_new_database(path: Path) -> None:
    path.touch()

    assert "is empty" in await _refusal(_file(path))
    assert 0 == path.stat().st_size


async def test_a_wal_without_its_database_is_not_built_over(path: Path) -> None:
    Path(f"{path}-wal").write_bytes(b"frames")

    assert "is missing" in await _refusal(_file(path))
    assert not path.exists()


async def test_a_file_of_another_program_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE theirs (x)")
    foreign.close()
    before = path.read_bytes()

    assert "belongs to another program" in await _refusal(_file(path))
    assert before == path.read_bytes()


@pytest.mark.parametrize("missing", ["no/such/directory/test.db", "plain/test.db"])
async def test_a_directory_that_is_not_there_is_named(tmp_path: Path, missing: str) -> None:
    (tmp_path / "plain").touch()

    assert str(tmp_path / missing) in await _refusal(_file(tmp_path / missing))


@contextmanager
def _without_rights() -> Iterator[None]:
    """Rights do not bind root, so root steps down to a user who has none."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter and nobody else may write to; pytest's own are closed to others."""
    place = Path(tempfile.mkdtemp(prefix="payflow-public-"))
    place.chmod(0o755)
    yield place
    place.chmod(0o700)
    shutil.rmtree(place)


async def test_a_read_only_directory_is_refused(public: Path) -> None:
    public.chmod(0o555)

    with _without_rights():
        text = await _refusal(_file(public / "test.db"))

    assert "Permission denied" in text


async def test_a_read_only_file_is_refused(public: Path) -> None:
    await _filled(public / "test.db")
    public.chmod(0o777)
    (public / "test.db").chmod(0o444)
    (public / "test.db.lock").chmod(0o666)

    with _without_rights():
        text = await _refusal(_file(public / "test.db"))

    assert f"{public / 'test.db'} cannot be written" in text


async def test_a_reader_never_creates_a_file(path: Path) -> None:
    assert f"{path} cannot be opened" in await _refusal(SqliteReader(path, 0.0))
    assert not path.exists()


async def test_a_reader_refuses_what_is_no_database(path: Path) -> None:
    path.write_bytes(b"notes" * 1000)

    assert "is not a SQLite database" in await _refusal(SqliteReader(path, 0.0))


# ------------------------------------------------------------------ schema
async def test_an_older_schema_is_migrated_with_its_data(path: Path) -> None:
    await _filled(path, 1, 2)

    file = _file(path, migrations=(FIRST, SECOND))
    await file.open_writer()

    rows = await file.read(lambda connection: connection.execute("SELECT id FROM more").fetchall())
    assert [(1,), (2,)] == rows
    await file.close()


async def test_a_newer_schema_is_refused(path: Path) -> None:
    newer = _file(path, migrations=(FIRST, SECOND))
    await newer.open_writer()
    await newer.close()

    assert "has schema version 2, newer than this program knows (1)" in await _refusal(_file(path))


async def test_a_migration_that_fails_leaves_the_old_schema_whole(path: Path) -> None:
    await _filled(path, 1)

    await _refusal(_file(path, migrations=(FIRST, SECOND, "CREATE TABLE third (x); this is no SQL;")))

    file = _file(path)
    await file.open_writer()
    tables = await file.read(lambda connection: connection.execute("SELECT name FROM sqlite_schema").fetchall())
    assert [("item",)] == tables
    await file.close()


async def test_a_birth_that_fails_leaves_nothing(path: Path) -> None:
    await _refusal(_file(path, migrations=(FIRST, "no SQL;")))

    assert ["test.db.lock"] == [entry.name for entry in path.parent.iterdir()]


async def test_what_an_interrupted_birth_left_is_cleared(path: Path) -> None:
    Path(f"{path}.new").write_bytes(b"half a database")

    await _filled(path, 1)

    assert {"test.db", "test.db.lock"} == {entry.name for entry in path.parent.iterdir()}


# ------------------------------------------------------------------ transactions
async def test_an_exception_rolls_back_and_comes_out_as_it_is(file: SqliteFile) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        _insert(1)(connection)
        raise LookupError("ours")

    with pytest.raises(LookupError, match="ours"):
        await file.run(fail)

    assert [] == await file.read(_numbers)
    await file.run(_insert(1))


@pytest.mark.parametrize("value", [2**63, "\ud800", object(), None])
async def test_a_value_that_cannot_be_stored_is_rejected_and_rolled_back(file: SqliteFile, value: object) -> None:
    def store(connection: sqlite3.Connection) -> None:
        _insert(1)(connection)
        connection.execute("INSERT INTO item VALUES (2, ?)", (value,))

    with pytest.raises(StoreRejected):
        await file.run(store)

    assert [] == await file.read(_numbers)


async def test_a_locked_database_is_busy_and_nothing_is_written(path: Path, file: SqliteFile) -> None:
    outsider = sqlite3.connect(path, isolation_level=None)
    outsider.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusy):
        await file.run(_insert(1))

    outsider.execute("ROLLBACK")
    outsider.close()
    await file.run(_insert(2))
    assert [2] == await file.read(_numbers)


async def test_a_full_database_is_unavailable_until_there_is_room(file: SqliteFile) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO item VALUES (1, ?)", ("x" * 100_000,))

    await file.read(lambda connection: connection.execute("PRAGMA max_page_count = 5").fetchall())
    with pytest.raises(StoreUnavailable):
        await file.run(fill)

    await file.read(lambda connection: connection.execute("PRAGMA max_page_count = 1000").fetchall())
    await file.run(fill)
    assert [1] == await file.read(_numbers)


async def test_a_failed_commit_that_changed_nothing_is_a_rejection(file: SqliteFile) -> None:
    def violate(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE child (id INTEGER REFERENCES item DEFERRABLE INITIALLY DEFERRED) STRICT")
        connection.execute("INSERT INTO child VALUES (99)")

    with pytest.raises(StoreRejected):
        await file.run(violate)

    await file.run(_insert(1))


class _Failing(sqlite3.Connection):
    """A connection whose COMMIT ends with a result code; `after` it took effect, or instead."""

    code = sqlite3.SQLITE_IOERR_FSYNC
    after = True

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        if sql != "COMMIT":
            return super().execute(sql, *parameters)  # type: ignore[arg-type]
        super().execute("COMMIT" if self.after else "ROLLBACK")
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = self.code
        raise error


async def _failing(path: Path, monkeypatch: pytest.MonkeyPatch, *, code: int, after: bool) -> SqliteFile:
    await _filled(path)
    file = _file(path)
    connect = sqlite3.connect
    kind = type("Failing", (_Failing,), {"code": code, "after": after})
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=kind))
        await file.open_writer()
    return file


@pytest.mark.parametrize("after", [True, False])
async def test_an_error_at_commit_is_unknown_until_the_file_is_reopened(
    path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    file = await _failing(path, monkeypatch, code=sqlite3.SQLITE_IOERR_FSYNC, after=after)

    with pytest.raises(StoreOutcomeUnknown):
        await file.run(_insert(1))
    with pytest.raises(StoreOutcomeUnknown, match="reopened"):
        await file.run(_insert(2))

    await file.close()
    await file.open_writer()
    assert ([1] if after else []) == await file.read(_numbers)
    await file.close()


class _Stuck(sqlite3.Connection):
    """A connection that cannot roll back."""

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        if sql == "ROLLBACK":
            raise sqlite3.OperationalError("cannot roll back")
        return super().execute(sql, *parameters)  # type: ignore[arg-type]


async def test_a_failed_rollback_is_an_unknown_outcome_and_reopening_mends_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StoreRejected and then StoreUnavailable for ever: nobody would have opened the file anew."""
    await _filled(path, 1)
    file = _file(path)
    connect = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **kwargs, factory=_Stuck))
        await file.open_writer()

    with pytest.raises(StoreOutcomeUnknown, match="rolled back"):
        await file.run(_insert(1))

    await file.close()
    await file.open_writer()
    await file.run(_insert(2))
    assert [1, 2] == await file.read(_numbers)
    await file.close()


async def test_an_error_of_the_function_is_not_its_own_cause(file: SqliteFile) -> None:
    def fail(_: sqlite3.Connection) -> None:
        raise LookupError("a bug")

    with pytest.raises(LookupError) as raised:
        await file.run(fail)

    assert raised.value.__cause__ is None


async def test_damage_at_run_time_is_an_error_of_its_own_and_reopening_refuses_the_file(path: Path) -> None:
    """As StoreUnavailable it would be probed each second, and the probe, which writes elsewhere, would call it well."""
    file = _file(path)
    await file.open_writer()
    await file.run(_insert(1))
    await file.read(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
    damaged = bytearray(path.read_bytes())
    damaged[4096:8192] = b"\xff" * 4096
    path.write_bytes(damaged)
    await file.read(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall())

    with pytest.raises(StoreDamaged):
        await file.run(_insert(2))

    await file.close()
    assert "is damaged" in await _refusal(file)


async def test_a_full_disk_at_commit_is_no_unknown_outcome(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await _failing(path, monkeypatch, code=sqlite3.SQLITE_FULL, after=False)

    with pytest.raises(StoreUnavailable):
        await file.run(_insert(1))

    assert [] == await file.read(_numbers)
    await file.close()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_BUSY, StoreBusy),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StoreBusy),
        (sqlite3.SQLITE_LOCKED, StoreBusy),
        (sqlite3.SQLITE_FULL, StoreUnavailable),
        (sqlite3.SQLITE_READONLY, StoreUnavailable),
        (sqlite3.SQLITE_CORRUPT, StoreDamaged),
        (sqlite3.SQLITE_CORRUPT_INDEX, StoreDamaged),
        (sqlite3.SQLITE_NOTADB, StoreDamaged),
        (sqlite3.SQLITE_IOERR_WRITE, StoreOutcomeUnknown),
        (sqlite3.SQLITE_IOERR_READ, StoreOutcomeUnknown),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, StoreRejected),
        (sqlite3.SQLITE_TOOBIG, StoreRejected),
    ],
)
def test_result_codes_have_their_error(path: Path, code: int, kind: type[Exception]) -> None:
    error = sqlite3.OperationalError("from SQLite")
    error.sqlite_errorcode = code

    translated = store_error(path, error)

    assert kind is type(translated)
    assert f"{path}: from SQLite" == str(translated)


async def test_a_file_that_is_not_open_is_unavailable(path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await _file(path).run(_insert(1))
    with pytest.raises(StoreUnavailable):
        await SqliteReader(path, 0.0).read(_numbers)


# ------------------------------------------------------------------ cancellation
async def test_a_cancelled_caller_does_not_stop_or_leak_the_transaction(file: SqliteFile) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        _insert(1)(connection)
        started.set()
        assert go_on.wait(10)

    caller = asyncio.ensure_future(file.run(slow))
    await asyncio.to_thread(started.wait)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()

    await file.run(_insert(2))
    assert [1, 2] == await file.read(_numbers)


async def test_an_opening_that_is_cancelled_releases_the_lock(path: Path) -> None:
    await _filled(path)
    opening = asyncio.ensure_future(_file(path).open_writer())
    # One turn of the loop: the thread has been asked to open, and its answer has not been taken.
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    # Its callback, which closes what was opened, was queued before this returns.
    await asyncio.get_running_loop().shutdown_default_executor()
    for _ in range(3):
        await asyncio.sleep(0)

    with open(f"{path}.lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ------------------------------------------------------------------ readers
async def test_a_reader_sees_commits_and_cannot_write(path: Path, file: SqliteFile) -> None:
    reader = SqliteReader(path, 0.0)
    await reader.open()
    await file.run(_insert(1))

    assert [1] == await reader.read(_numbers)
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await reader.read(_insert(2))
    assert [1] == await reader.read(_numbers)
    assert (0,) == await reader.read(lambda connection: connection.execute("PRAGMA wal_autocheckpoint").fetchone())
    await reader.close()
    await reader.close()


async def test_a_read_is_one_snapshot(path: Path, file: SqliteFile) -> None:
    reader = SqliteReader(path, 0.0)
    await reader.open()
    first, written = threading.Event(), threading.Event()

    def twice(connection: sqlite3.Connection) -> tuple[list[int], list[int]]:
        before = _numbers(connection)
        first.set()
        assert written.wait(10)
        return before, _numbers(connection)

    reading = asyncio.ensure_future(reader.read(twice))
    await asyncio.to_thread(first.wait)
    await file.run(_insert(1))
    written.set()

    assert ([], []) == await reading
    await reader.close()


async def test_readers_may_stay_open_while_the_writer_is_reopened(path: Path, file: SqliteFile) -> None:
    reader = SqliteReader(path, 0.0)
    await reader.open()
    await file.run(_insert(1))

    await file.close()
    await file.open_writer()
    await file.run(_insert(2))

    assert [1, 2] == await reader.read(_numbers)
    await reader.close()


# ------------------------------------------------------------------ what we rely on
async def test_aiosqlite_still_runs_a_function_on_its_thread() -> None:
    """`_execute`, `_conn` and the constructor are private or undocumented: an upgrade that changes them fails here."""
    assert ["self", "fn", "args", "kwargs"] == list(inspect.signature(aiosqlite.Connection._execute).parameters)
    raw = sqlite3.connect(":memory:", check_same_thread=False)
    connection = await aiosqlite.Connection(lambda: raw, iter_chunk_size=64)

    assert connection._conn is raw
    assert threading.get_ident() != await connection._execute(threading.get_ident)  # type: ignore[no-untyped-call]
    await connection.close()

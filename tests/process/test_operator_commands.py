"""Commands of an operator beside a real server: what they find, what they change, and what they refuse."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from payflow.adapters.embedded_broker import EmbeddedBroker
from payflow.adapters.kafka_producer import KafkaEventLog
from payflow.ports import LogRecord
from tests.support.books import Sent, Traffic, check_books, rows, send_again, settle
from tests.support.lives import whole_life
from tests.support.process import REPOSITORY, WAIT_S, Serve, Starter, environment, starter

TOKEN = "token-of-alice-0123456789"
ALICE = {"PAYFLOW_MANAGEMENT__TOKENS__ALICE": TOKEN}
ALLOWED = ALICE | {"PAYFLOW_MANAGEMENT__ALLOW_ACTIONS": "true"}
COMMANDS = ["reconcile", "backup", "restore", "outbox list", "outbox show", "outbox requeue", "audit", "top"]
COMMANDS += ["dlq list", "dlq show"]
LOOKING = [["reconcile"], ["outbox", "list"], ["outbox", "show", "1"], ["audit"], ["backup", "{new}"]]


def payflow(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "payflow", *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment(env), capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def refused(done: subprocess.CompletedProcess[str], code: int = 69) -> str:
    """The one sentence of a refusal."""
    assert (done.returncode, done.stdout) == (code, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def told(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    """The JSON that a command printed."""
    assert (done.returncode, done.stderr) == (code, ""), done
    return json.loads(done.stdout)


def files(folder: Path) -> dict[str, str]:
    """Every file with its content, but for those that SQLite keeps for readers."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.endswith(("-wal", "-shm"))
    }


def change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@dataclass
class Stopped:
    """A server that ran, and stopped."""

    data_dir: Path
    log: list[Sent]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stopped]:
    with starter(tmp_path_factory.mktemp("stopped")) as start:
        running = start().ready()
        log = whole_life(running.api)
        settle(running.data_dir)
        assert running.stop() == 0
        yield Stopped(running.data_dir, log)


@pytest.fixture
def data_dir(stopped: Stopped, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(stopped.data_dir, tmp_path / "copy"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """A server in which actions are on."""
    with starter(tmp_path_factory.mktemp("running")) as start:
        serve = start(env=ALLOWED).ready()
        whole_life(serve.api)
        settle(serve.data_dir)
        yield serve


# ------------------------------------------------------------------ help
@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    done = payflow(*command.split(), "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert f"  payflow {command}" in done.stdout
    assert "--json" in done.stdout


# ------------------------------------------------------------------ reconcile
def test_reconcile_agrees_beside_a_running_server_under_load(serve: Starter) -> None:
    running = serve().ready()
    traffic = Traffic(running.http_port, seed=5, lives=160).start()
    traffic.until(50)

    during = [told(payflow("reconcile", "--data-dir", running.data_dir, "--json")) for _ in range(3)]

    log = traffic.join()
    settle(running.data_dir)
    after = told(payflow("reconcile", "--data-dir", running.data_dir, "--json"))
    assert [books["agrees"] for books in (*during, after)] == [True] * 4
    assert all(sum(books["stands"].values()) == books["events"] for books in during)
    assert after["events"] == after["stands"]["booked"] == check_books(log, running.data_dir)
    assert after["topic"]["status"] == "skipped"
    assert "embedded" in after["topic"]["reason"]
    assert running.stop() == 0


def test_reconcile_tells_what_is_on_its_way(serve: Starter) -> None:
    """Nobody listens where the broker should be: everything waits, nothing is wrong."""
    running = serve("--roles", "ingest", kafka__bootstrap_servers="127.0.0.1:1").ready()
    whole_life(running.api)
    folder = serve.folder / "books"
    nothing_booked = serve("--roles", "consumer", data_dir=folder, kafka__bootstrap_servers="127.0.0.1:1").started()
    books = ("--data-dir", running.data_dir, "--ledger", nothing_booked.data_dir)
    cluster = ("--set", "kafka.bootstrap_servers=127.0.0.1:1")

    shown = told(payflow("reconcile", *books, *cluster, "--json"))
    text = payflow("reconcile", *books, *cluster)

    assert (shown["agrees"], shown["stands"]["pending"], shown["stands"]["booked"]) == (True, 3, 0)
    assert {totals["type"]: totals["on_the_way"] for totals in shown["currencies"]} == {
        "payment.captured": 1000,
        "payment.refunded": 300,
    }
    assert "does not read the topic" in shown["topic"]["reason"]
    assert text.returncode == 0
    assert "everything agrees" in text.stdout
    assert "on its way" in text.stdout


@pytest.mark.parametrize(
    ("file", "statement", "kind"),
    [
        ("ledger.db", "DELETE FROM inbox WHERE version = 3", "not_booked"),
        ("payments.db", "DELETE FROM payment_event WHERE version = 3", "not_committed"),
        ("ledger.db", "UPDATE inbox SET amount = 999 WHERE version = 2", "different_event"),
        ("payments.db", "UPDATE payment SET captured_amount = 999", "payment_sums"),
        ("ledger.db", "UPDATE posting SET amount = 1 WHERE version = 2 AND side = 'debit'", "entry"),
        ("ledger.db", "UPDATE account SET debit = debit + 1", "account_sums"),
    ],
)
def test_reconcile_finds_what_differs(data_dir: Path, file: str, statement: str, kind: str) -> None:
    change(data_dir / file, statement)

    shown = told(payflow("reconcile", "--data-dir", data_dir, "--json"), 1)
    text = payflow("reconcile", "--data-dir", data_dir)

    assert kind in {difference["kind"] for difference in shown["differences"]}
    assert shown["difference_count"] == len(shown["differences"])
    assert text.returncode == 1
    assert sum(line.startswith(kind) for line in text.stdout.splitlines()) >= 1


# ------------------------------------------------------------------ backup and restore
def test_a_backup_taken_under_load_restores_and_reconciles(serve: Starter, tmp_path: Path) -> None:
    running = serve().ready()
    traffic = Traffic(running.http_port, seed=6, lives=400).start()
    traffic.until(200)
    backup, restored = tmp_path / "backup", tmp_path / "restored"

    made = told(payflow("backup", backup, "--data-dir", running.data_dir, "--json"))
    assert traffic.running, "the backup was taken under load"
    running.kill()
    traffic.join()
    assert set(made["files"]) == {path.name for path in backup.iterdir()} == {"ledger.db", "payments.db"}
    assert told(payflow("reconcile", "--data-dir", backup, "--json"))["agrees"]

    told(payflow("restore", backup, "--data-dir", restored, "--json"))

    before = told(payflow("reconcile", "--data-dir", restored, "--json"))
    assert before["agrees"]
    assert before["events"] >= 200
    again = serve(data_dir=restored).ready()
    settle(restored)
    after = told(payflow("reconcile", "--data-dir", restored, "--json"))
    assert (after["agrees"], after["stands"]["booked"]) == (True, before["events"])
    log = whole_life(again.api)
    settle(restored)
    assert send_again(log, again.api) == 0
    assert again.stop() == 0


def test_a_backup_of_one_role(stopped: Stopped, tmp_path: Path) -> None:
    told(payflow("backup", tmp_path / "b", "--role", "ingest", "--data-dir", stopped.data_dir, "--json"))

    assert [path.name for path in (tmp_path / "b").iterdir()] == ["payments.db"]
    assert "ledger.db" in refused(payflow("restore", tmp_path / "b", "--data-dir", tmp_path / "r"))
    assert not (tmp_path / "r").exists()
    assert payflow("restore", tmp_path / "b", "--role", "ingest", "--data-dir", tmp_path / "r").returncode == 0


def test_a_backup_never_overwrites(stopped: Stopped, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()

    sentence = refused(payflow("backup", tmp_path / "there", "--data-dir", stopped.data_dir))

    assert "never overwrites" in sentence
    assert list((tmp_path / "there").iterdir()) == []


def test_a_backup_of_a_damaged_file_leaves_nothing(data_dir: Path, tmp_path: Path) -> None:
    with (data_dir / "payments.db").open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 3))

    refused(payflow("backup", tmp_path / "b", "--data-dir", data_dir))

    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_restore_never_overwrites_and_not_below_a_running_server(
    running: Serve, stopped: Stopped, data_dir: Path
) -> None:
    before = files(data_dir)

    assert "never overwrites" in refused(payflow("restore", stopped.data_dir, "--data-dir", data_dir))
    owned = refused(payflow("restore", stopped.data_dir, "--data-dir", running.data_dir))

    assert f"in use by process {running.pid}" in owned
    assert files(data_dir) == before
    assert running.api.get("/readyz").status == 200


# ------------------------------------------------------------------ what is not ours
def missing(path: Path) -> None:
    path.unlink()


def no_database(path: Path) -> None:
    path.write_text("something else" * 100)


def other_program(path: Path) -> None:
    path.unlink()
    change(path, "CREATE TABLE theirs (x)", "PRAGMA application_id = 7")


def newer_schema(path: Path) -> None:
    change(path, "PRAGMA user_version = 99")


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (missing, "No such file"),
    (no_database, "is not a SQLite database"),
    (other_program, "belongs to another program"),
    (newer_schema, "newer than this program knows"),
]


@pytest.mark.parametrize("arguments", LOOKING, ids=" ".join)
@pytest.mark.parametrize(("spoil", "words"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_a_file_that_is_not_ours_is_refused_and_left(
    data_dir: Path, spoil: Callable[[Path], None], words: str, arguments: list[str]
) -> None:
    spoil(data_dir / "payments.db")
    before = files(data_dir)
    filled = [text.format(new=data_dir.parent / "new") for text in arguments]

    assert words in refused(payflow(*filled, "--data-dir", data_dir))
    assert files(data_dir) == before
    assert not (data_dir.parent / "new").exists()


@pytest.mark.parametrize(("spoil", "words"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_a_backup_that_is_not_ours_is_not_restored(
    data_dir: Path, tmp_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(data_dir / "ledger.db")

    assert words in refused(payflow("restore", data_dir, "--data-dir", tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("outbox", "show", "999"),
        ("outbox", "list", "--payment", "nothing"),
        ("outbox", "requeue", "--reason", "x"),
        ("outbox", "requeue", "1", "--parked", "--reason", "x"),
        ("outbox", "requeue", "1", "--reason", "x"),
        ("outbox", "requeue", "1", "--reason", "x", "--token-file", "/nowhere"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_meant_is_2(stopped: Stopped, arguments: tuple[str, ...]) -> None:
    refused(payflow(*arguments, "--data-dir", stopped.data_dir), 2)


# ------------------------------------------------------------------ outbox and audit
def test_rows_are_listed_and_shown_beside_a_running_server(running: Serve) -> None:
    where = ("--data-dir", running.data_dir)
    payment = running.api.get("/payments?limit=1").json()["items"][0]["id"]

    listed = told(payflow("outbox", "list", "--state", "all", "--payment", payment, *where, "--json"))["items"]
    shown = told(payflow("outbox", "show", listed[1]["seq"], "--payload", *where, "--json"))
    plain = payflow("outbox", "show", listed[1]["seq"], *where)

    assert [(row["version"], row["state"]) for row in listed] == [(1, "published"), (2, "published"), (3, "published")]
    assert told(payflow("outbox", "list", *where, "--json")) == {"items": []}
    assert len(payflow("outbox", "list", "--state", "published", "--limit", "2", *where).stdout.splitlines()) == 2
    assert (shown["type"], shown["payload"]["amount"], shown["payload"]["payment_id"]) == (
        "payment.captured",
        1000,
        payment,
    )
    assert "payment.captured" in plain.stdout
    assert "merchant" not in plain.stdout


def test_a_parked_row_is_put_back_by_the_running_server_and_audited(serve: Starter) -> None:
    """Parked by hand while it is stopped: no broker of ours refuses a record for good."""
    first = serve(env=ALLOWED).ready()
    log = whole_life(first.api)
    settle(first.data_dir)
    assert first.stop() == 0
    change(
        first.data_dir / "payments.db",
        "INSERT INTO held_key (seq, payment, since_us, error) SELECT seq, payment, 1, 'too large' FROM payment_event "
        "WHERE version = 2",
        "UPDATE payment_event SET state = 2, booked_at_us = NULL WHERE version = 2",
    )
    running = serve(env=ALLOWED).ready()
    where = ("--data-dir", running.data_dir, "--management-port", running.management_port)
    (parked,) = told(payflow("outbox", "list", "--data-dir", running.data_dir, "--json"))["items"]
    assert (parked["state"], parked["error"]) == ("parked", "too large")

    done = payflow("outbox", "requeue", "--parked", "--reason", "size raised", *where, "--json", env=ALICE)

    assert told(done) == {"asked": 1, "requeued": 1, "by": "alice"}
    settle(running.data_dir)
    check_books(log, running.data_dir)
    assert rows(running.data_dir / "payments.db", "SELECT * FROM held_key") == []
    (entry,) = told(payflow("audit", "--data-dir", running.data_dir, "--json"))["items"]
    assert (entry["actor"], entry["action"], entry["target"]) == ("alice", "requeue", "outbox")
    assert (entry["reason"], entry["detail"]) == ("size raised", {"seqs": [parked["seq"]]})
    assert "size raised" in payflow("audit", "--data-dir", running.data_dir).stdout
    assert told(payflow("audit", "--action", "pause", "--data-dir", running.data_dir, "--json")) == {"items": []}
    assert TOKEN not in running.text() + done.stdout + done.stderr
    assert running.stop() == 0


def test_a_requeue_without_server_token_or_right_changes_nothing(
    running: Serve, stopped: Stopped, serve: Starter, tmp_path: Path
) -> None:
    before = files(stopped.data_dir)
    wrong = tmp_path / "token"
    wrong.write_text("not-the-token")
    requeue = ("outbox", "requeue", 1, "--reason", "x")
    off = serve(env=ALICE).ready()

    nobody = payflow(*requeue, "--data-dir", stopped.data_dir, "--management-port", 1, env=ALICE)
    stranger = payflow(*requeue, "--management-port", running.management_port, "--token-file", wrong)
    switched_off = payflow(*requeue, "--management-port", off.management_port, env=ALICE)
    blank = payflow(*requeue[:-1], " ", "--management-port", running.management_port, env=ALICE)

    assert "no payflow answers" in refused(nobody)
    assert "token" in refused(stranger)
    assert "allow_actions" in refused(switched_off)
    assert "reason" in refused(blank)
    assert files(stopped.data_dir) == before
    for server in (running, off):
        assert rows(server.data_dir / "payments.db", "SELECT * FROM audit") == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        {},
        {"seqs": [], "reason": "x"},
        {"seqs": [0], "reason": "x"},
        {"seqs": ["1"], "reason": "x"},
        {"seqs": [2**63], "reason": "x"},
        {"seqs": [1], "reason": ""},
        {"seqs": [1]},
        {"seqs": list(range(1, 102)), "reason": "x"},
        {"seqs": [1], "reason": "x", "more": 1},
    ],
)
def test_a_requeue_with_a_wrong_body_is_422(running: Serve, body: object) -> None:
    reply = running.management.request("POST", "/outbox/requeue", body, Authorization=f"Bearer {TOKEN}")

    assert reply.status == 422
    assert rows(running.data_dir / "payments.db", "SELECT * FROM audit") == []


def test_a_process_without_outbox_requeues_nothing(serve: Starter) -> None:
    consumer = serve("--roles", "consumer", env=ALLOWED, kafka__bootstrap_servers="127.0.0.1:1").started()

    done = payflow("outbox", "requeue", 1, "--reason", "x", "--management-port", consumer.management_port, env=ALICE)

    assert "no outbox" in refused(done)


# ------------------------------------------------------------------ top
def test_top_prints_one_picture_without_a_terminal(running: Serve) -> None:
    port = ("--management-port", running.management_port)

    assert payflow("top", *port).stdout.startswith("root ")
    assert "publisher" in payflow("top", "--once", *port).stdout
    assert told(payflow("top", "--json", *port))["tree"]["id"] == "root"
    assert "no payflow answers" in refused(payflow("top", "--management-port", 1))


def test_top_is_live_on_a_terminal_and_control_c_ends_it_with_0(running: Serve) -> None:
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "payflow", "top", "--every", "0.1", "--management-port"]
    env = environment({"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"})
    with subprocess.Popen(
        [*command, str(running.management_port)], cwd=REPOSITORY, env=env, stdin=end, stdout=end, stderr=end
    ) as watching:
        os.close(end)
        seen = b""
        while seen.count(b"publisher") < 3:
            seen += os.read(terminal, 65_536)
        watching.send_signal(signal.SIGINT)
        try:
            while os.read(terminal, 65_536):
                pass
        except OSError:  # the other end is closed
            pass
        assert watching.wait(WAIT_S) == 0
    os.close(terminal)
    assert b"Traceback" not in seen


# ------------------------------------------------------------------ dead letters
async def test_dead_letters_of_a_cluster_are_listed_and_shown() -> None:
    """An embedded broker that stands alone is a cluster to the command."""
    broker = EmbeddedBroker()
    bootstrap, broker_id = await broker.start()
    try:
        log = KafkaEventLog(
            bootstrap, topic="t.dlq", dead_letter_topic="t.dlq", partitions=4, client_id="test", log_id=broker_id
        )
        await log.open()
        for number in range(3):
            headers = [("payflow_reason", f"reason {number}"), ("payflow_source_topic", "t")]
            headers += [("payflow_source_partition", "2"), ("payflow_source_offset", f"{number}")]
            letter = LogRecord(b"k\x1b[2J", b"\xff{", tuple((n, v.encode()) for n, v in headers), 1_764_000_000_000)
            await log.append("t.dlq", 0, [letter])
        await log.discard(timeout_s=1.0)
        cluster = ("--set", f"kafka.bootstrap_servers={bootstrap}", "--set", "kafka.dead_letter_topic=t.dlq")

        async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return await asyncio.to_thread(payflow, *arguments, *cluster)

        listed = told(await run("dlq", "list", "--json"))["items"]
        later = told(await run("dlq", "list", "--json", "--after", "0:0", "--limit", "1"))["items"]
        shown = told(await run("dlq", "show", "0:2", "--payload", "--json"))
        text = await run("dlq", "list")

        assert [(item["place"], item["reason"], item["source"]) for item in listed] == [
            (f"0:{number}", f"reason {number}", f"t:2:{number}") for number in range(3)
        ]
        assert [item["place"] for item in later] == ["0:1"]
        assert (shown["headers"]["payflow_reason"], shown["value"], shown["value_bytes"]) == ("reason 2", "\\xff{", 2)
        assert len(text.stdout.splitlines()) == 3
        assert "\x1b" not in text.stdout
        assert "no dead letter" in refused(await run("dlq", "show", "0:3"), 2)
        assert "no partition 9" in refused(await run("dlq", "show", "9:0"), 2)
    finally:
        await broker.stop()


def test_dead_letters_that_cannot_be_read_are_refused() -> None:
    assert "in its memory only" in refused(payflow("dlq", "list"))
    assert "cannot be read" in refused(payflow("dlq", "list", "--set", "kafka.bootstrap_servers=127.0.0.1:1"))
    assert payflow("dlq", "show", "x").returncode == 2

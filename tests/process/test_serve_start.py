"""How a process starts, refuses to start, ends, and finds everything again. All from the outside.

A refusal is exit code 69 (something outside is missing) or 78 (bad configuration) with one sentence that names what to
do, and leaves every file as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.books import check_api, check_books, rows, settle
from tests.support.lives import whole_life
from tests.support.process import Serve, Starter, environment, starter, wait_for
from tests.support.processes import is_running

DATABASES = ("payments.db", "ledger.db")
# Without a broker behind it: whoever connects is refused.
CLOSED_PORT = "127.0.0.1:1"
CTRL_C_S = 5.0  # the issue's own figure


# ------------------------------------------------------------------ helpers
def refused(serve: Serve) -> str:
    """The one sentence of a refusal with 69; the log has to be JSON, line by line."""
    assert serve.end() == 69, serve.text()
    assert [event for event in serve.events() if "line" in event] == []
    last = serve.events()[-1]
    assert (last["event"], last["level"], last["exit_code"]) == ("process.ended", "error", 69)
    assert serve.named("process.ready") == []
    sentence = last["error"]
    assert isinstance(sentence, str)
    assert "\n" not in sentence
    assert "Traceback" not in serve.text()
    return sentence


def fingerprints(folder: Path) -> dict[str, str]:
    """Content of the databases; locks and shared memory do not count."""
    files = (path for path in folder.iterdir() if path.suffix == ".db")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that was used and closed; to be copied."""
    with starter(tmp_path_factory.mktemp("closed")) as start:
        running = start().ready()
        whole_life(running.api)
        settle(running.data_dir)
        assert running.stop() == 0
        return running.data_dir


@pytest.fixture
def used(closed: Path, serve: Starter) -> Path:
    """The data directory of `serve`, used and closed."""
    shutil.copytree(closed, serve.data_dir)
    return serve.data_dir


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory. Only root may mount; a root that may not is told so by a failure."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"root cannot mount a tmpfs here, so a full disk cannot be tested: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# ------------------------------------------------------------------ a good start
def test_a_payment_lives_its_whole_life_and_a_second_start_finds_everything(serve: Starter) -> None:
    first = serve("--log-format", "json").ready()
    log = whole_life(first.api)
    settle(first.data_dir)
    check_books(log, first.data_dir)
    assert first.data_dir.stat().st_mode & 0o777 == 0o700
    assert [(first.data_dir / name).stat().st_mode & 0o077 for name in DATABASES] == [0, 0]
    shown = first.api.get(f"/payments/{log[0].payment()['id']}").body
    tree = first.management.get("/debug/actors?format=text").body.decode()

    assert first.stop() == 0

    second = serve("--log-format", "json").ready()
    assert second.api.get(f"/payments/{log[0].payment()['id']}").body == shown
    check_books(log, second.data_dir)
    check_api(log, second.api)
    assert second.stop() == 0
    assert [line for event in first.events() + second.events() if (line := event.get("line"))] == []
    for actor in ("management", "broker", "outbox", "publisher", "consumer", "intake"):
        assert actor in tree


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_with_0_in_time(
    serve: Starter, tmp_path: Path, signum: signal.Signals, loop: str
) -> None:
    running = serve(env=without_uvloop(tmp_path) if loop == "asyncio" else None).ready()
    assert running.api.get("/info").json()["loop"] == loop
    whole_life(running.api)
    broker = running.children()

    running.signal(signum)

    assert running.end(timeout_s=CTRL_C_S) == 0
    assert [pid for pid in broker if is_running(pid)] == []
    completed = running.named("shutdown.completed")[0]
    assert (completed["reason"], completed["abandoned"]) == (signum.name, [])


def without_uvloop(folder: Path) -> dict[str, str]:
    """An environment in which uvloop is not installed."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text('import sys\nsys.modules["uvloop"] = None\n')
    return {"PYTHONPATH": os.pathsep.join([str(site), environment()["PYTHONPATH"]])}


def test_ctrl_c_on_a_terminal_reaches_the_whole_group_and_ends_with_0(serve: Starter) -> None:
    """A terminal sends SIGINT to the broker's child as well; a drain must not lose its broker to it."""
    running = serve().ready()
    log = whole_life(running.api)

    os.killpg(running.pid, signal.SIGINT)

    assert running.end(timeout_s=CTRL_C_S) == 0
    again = serve().ready()
    settle(again.data_dir)
    check_books(log, again.data_dir)


def test_a_second_signal_hurries_and_nothing_is_lost(serve: Starter) -> None:
    running = serve().ready()
    log = whole_life(running.api)

    running.signal(signal.SIGTERM)
    running.event("shutdown.begun")
    running.signal(signal.SIGTERM)

    assert running.end() in (0, 71)
    again = serve().ready()
    settle(again.data_dir)
    check_books(log, again.data_dir)


@pytest.mark.parametrize("form", ["console", "auto"])
def test_the_log_has_one_event_a_line(serve: Starter, form: str) -> None:
    running = serve("--log-format", form)
    wait_for(lambda: "process.ready" in running.text() or running.process.poll() is not None, "it is up")
    assert running.stop() == 0
    lines = running.text().splitlines()
    if form == "console":
        assert all("actor" in line or "." in line.split("]", 1)[1].split()[0] for line in lines)
        assert "\x1b" not in running.text()
    else:
        assert all({"event", "level", "at"} <= json.loads(line).keys() for line in lines)


# ------------------------------------------------------------------ Kafka is not there
def test_f33_without_a_broker_payments_are_accepted_and_health_tells_the_truth(serve: Starter) -> None:
    running = serve(env={"KAFKA_BOOTSTRAP_SERVERS": CLOSED_PORT}).ready()
    log = whole_life(running.api)
    api = running.api

    assert api.get("/readyz").status == 200
    assert api.get("/livez").status == 200
    health = api.get("/healthz")
    assert (health.status, health.json()["status"]) == (200, "UP")
    assert health.json()["components"]["kafka"]["status"] == "DOWN"
    said = running.event("publisher.not_connected")
    assert said["level"] == "warning"
    assert "127.0.0.1" in said["error"]
    running.event("consumer.not_connected")
    events = api.get(f"/payments/{log[0].payment()['id']}").json()["events"]
    assert {event["outbox"] for event in events} == {"pending"}
    running.signal(signal.SIGINT)
    assert running.end(timeout_s=CTRL_C_S) == 0

    # The outbox kept them for the broker that comes.
    later = serve().ready()
    settle(later.data_dir)
    check_books(log, later.data_dir)


# ------------------------------------------------------------------ one role
def test_ingest_alone_serves_payments_and_no_ledger(serve: Starter) -> None:
    running = serve("--roles", "ingest", env={"KAFKA_BOOTSTRAP_SERVERS": CLOSED_PORT}).ready()
    log = whole_life(running.api)

    assert running.api.get(f"/payments/{log[0].payment()['id']}").status == 200
    for path in ("/ledger/trial-balance", "/ledger/accounts", f"/ledger/payments/{log[0].payment()['id']}"):
        assert problem(running, "GET", path) == (404, "role-not-served")
    assert not (running.data_dir / "ledger.db").exists()
    assert running.management.get("/debug/actors/consumer").status == 404
    assert running.stop() == 0


def test_consumer_alone_serves_the_ledger_and_is_ready_once_it_reads(serve: Starter) -> None:
    running = serve("--roles", "consumer", env={"KAFKA_BOOTSTRAP_SERVERS": CLOSED_PORT}).started()

    running.event("consumer.not_connected")
    assert running.api.get("/readyz").status == 503
    assert running.api.get("/livez").status == 200
    assert running.api.get("/ledger/trial-balance").json() == {"currencies": []}
    assert problem(running, "GET", "/payments") == (404, "role-not-served")
    assert problem(running, "POST", "/payments", payment()) == (404, "role-not-served")
    assert not (running.data_dir / "payments.db").exists()
    assert running.stop() == 0


def problem(serve: Serve, method: str, path: str, body: object = None) -> tuple[int, str]:
    answer = serve.api.request(method, path, body, Idempotency_Key="k")
    assert answer.headers["content-type"].startswith("application/problem+json")
    return answer.status, answer.json()["code"]


# ------------------------------------------------------------------ 69: ports
@pytest.mark.parametrize("flag", ["--http-port", "--management-port"])
def test_a_port_that_is_taken_is_69_and_names_port_and_flag(serve: Starter, flag: str) -> None:
    with taken_port() as port:
        sentence = refused(serve(flag, str(port)))

    assert f"127.0.0.1:{port}" in sentence
    assert flag in sentence
    assert serve().ready().stop() == 0  # the port was all: the same directory serves


def test_the_reason_of_an_end_is_said_at_every_log_level(serve: Starter) -> None:
    with taken_port() as port:
        assert str(port) in refused(serve("--http-port", str(port), log__level="error"))


# ------------------------------------------------------------------ 69: data directory
def test_a_read_only_data_directory_is_69(serve: Starter, tmp_path: Path) -> None:
    with mounted(tmp_path / "ro", "ro") as folder:
        sentence = refused(serve(data_dir=folder))

        assert str(folder) in sentence
        assert "Read-only" in sentence
        assert list(folder.iterdir()) == []


def test_a_data_directory_that_became_read_only_is_69(serve: Starter, closed: Path, tmp_path: Path) -> None:
    """The files are there and cannot be written."""
    with mounted(tmp_path / "ro", "size=8m") as folder:
        shutil.copytree(closed, folder, dirs_exist_ok=True)
        before = fingerprints(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)

        sentence = refused(serve(data_dir=folder))

        assert str(folder) in sentence
        assert "ead-only" in sentence
        assert fingerprints(folder) == before


def test_a_file_in_place_of_the_data_directory_is_69(serve: Starter, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")

    sentence = refused(serve())

    assert str(tmp_path / "data") in sentence
    assert (tmp_path / "data").read_text() == "mine"


def test_a_full_disk_is_69_and_leaves_no_half_database(serve: Starter, tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=64k") as folder:
        (folder / "filler").write_bytes(b"x" * 60 * 1024)

        sentence = refused(serve(data_dir=folder))

        assert str(folder) in sentence
        assert "no space" in sentence
        assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock") == ["filler"]


def test_a_full_disk_at_the_second_start_is_69_and_loses_nothing(serve: Starter, tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=1m") as folder:
        running = serve(data_dir=folder).ready()
        log = whole_life(running.api)
        settle(folder)
        assert running.stop() == 0
        before = fingerprints(folder)
        fill(folder / "filler")

        assert str(folder) in refused(serve(data_dir=folder))

        assert fingerprints(folder) == before
        (folder / "filler").unlink()
        again = serve(data_dir=folder).ready()
        check_books(log, folder)
        assert again.stop() == 0


def test_f18_a_disk_that_fills_up_refuses_payments_and_comes_back_by_itself(serve: Starter, tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "size=2m") as folder:
        running = serve(data_dir=folder).ready()
        log = whole_life(running.api)
        settle(folder)
        fill(folder / "filler")
        api = running.api

        refusals = [api.post("/payments", payment(), key=f"full-{number}") for number in range(200)]

        last = refusals[-1]
        assert (last.status, last.headers["retry-after"]) == (503, "1")
        assert {answer.status for answer in refusals} <= {201, 503}
        assert api.get("/readyz").status == 503
        assert api.get("/livez").status == 200
        assert (api.get("/healthz").status, api.get("/healthz").json()["components"]["db"]["status"]) == (503, "DOWN")
        assert running.named("outbox.unwritable")[0]["level"] == "error"
        assert running.named("actor.crashed") == []

        (folder / "filler").unlink()

        running.ready()
        assert api.post("/payments", payment(), key="full-199").status == 201
        settle(folder)
        ((stored,),) = rows(folder / "payments.db", "SELECT count(*) FROM payment")
        assert stored == 1 + 1 + sum(answer.status == 201 for answer in refusals)
        assert log
        assert running.stop() == 0


def fill(path: Path) -> None:
    """Take all the space that is left."""
    with path.open("wb", buffering=0) as stream:
        for size in (4096, 512, 1):
            try:
                while stream.write(b"x" * size):
                    pass
            except OSError:
                continue


def payment() -> dict[str, Any]:
    return {"merchant_id": "full", "amount": 100, "currency": "EUR", "description": "d" * 400}


# ------------------------------------------------------------------ 69: databases
def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:8192] = b"\xff" * 8092
    path.write_bytes(content)


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database\n" * 500)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 3 * 4096 + 17])


def stranger(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (a)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


SPOILT = {
    damage: "is damaged",
    garbage: "is not a SQLite database",
    empty: "is empty",
    truncate: "is damaged",
    stranger: "belongs to another program",
    newer: "schema version 99",
}


@pytest.mark.parametrize("name", DATABASES)
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_f24_f25_a_database_that_is_not_ours_or_not_whole_is_69_and_stays_as_it_is(
    serve: Starter, used: Path, spoil: Callable[[Path], None], name: str
) -> None:
    path = used / name
    spoil(path)
    before = path.read_bytes()

    sentence = refused(serve())

    assert str(path) in sentence
    assert SPOILT[spoil] in sentence
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", DATABASES)
def test_damage_under_a_running_process_ends_it_with_the_sentence(serve: Starter, name: str) -> None:
    """It must not flap between unwritable and writable for ever."""
    running = serve().ready()
    running.event("consumer.connected")
    whole_life(running.api)
    settle(running.data_dir)
    path = running.data_dir / name
    with closing(sqlite3.connect(path, isolation_level=None)) as outsider:
        pages = {page for (page,) in outsider.execute("SELECT rootpage FROM sqlite_schema WHERE rootpage > 1")}
        outsider.execute("PRAGMA wal_checkpoint(FULL)").fetchall()
        with path.open("r+b") as file:
            for page in pages:
                file.seek((page - 1) * 4096)
                file.write(b"\xff" * 4096)
        outsider.execute("PRAGMA user_version = 1")  # a commit from outside: what the process has cached is void

    running.api.post("/payments", payment(), key="one-more")

    assert running.end() not in {0, None}
    last = running.events()[-1]
    assert last["event"] == "process.ended"
    assert "is damaged; it was left as it is" in json.dumps(last)


def test_each_database_in_place_of_the_other_is_69(serve: Starter, used: Path) -> None:
    folder = used
    (folder / "payments.db").rename(folder / "x")
    (folder / "ledger.db").rename(folder / "payments.db")
    (folder / "x").rename(folder / "ledger.db")

    assert "belongs to another program" in refused(serve())


def test_f26_a_data_directory_that_another_process_has_is_69_with_its_pid(serve: Starter) -> None:
    owner = serve().ready()
    log = whole_life(owner.api)

    sentence = refused(serve())

    assert f"process {owner.pid} " in sentence
    assert str(owner.data_dir) in sentence
    log += whole_life(owner.api)
    settle(owner.data_dir)
    check_books(log, owner.data_dir)
    assert owner.stop() == 0


def test_the_ledger_alone_can_be_in_the_way(serve: Starter) -> None:
    """Roles in two processes that share a directory by mistake of the second."""
    kafka = {"KAFKA_BOOTSTRAP_SERVERS": CLOSED_PORT}
    owner = serve("--roles", "consumer", env=kafka).started()

    sentence = refused(serve(env=kafka))

    assert "ledger.db" in sentence
    assert f"process {owner.pid} " in sentence


# ------------------------------------------------------------------ limits
def test_a_connection_too_many_hears_so_and_management_goes_on(serve: Starter) -> None:
    """On the event loop that is really used."""
    running = serve(http__max_connections="3").ready()
    api = ("127.0.0.1", running.event("process.ready")["http_port"])
    kept = [socket.create_connection(api, timeout=10) for _ in range(3)]

    with closing(socket.create_connection(api, timeout=10)) as surplus:
        answer = surplus.makefile("rb").read()

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"too-many-connections"' in answer
    assert running.management.get("/readyz").status == 200
    assert b'payflow_intake_rejected_total{reason="too-many-connections"}' in running.management.get("/metrics").body
    for connection in kept:
        connection.close()
    running.event("connections.admitted")
    assert len(running.named("connections.refused")) == 1


# ------------------------------------------------------------------ 78
@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (("--set", "http.prot=1"), {}, "did you mean http.port?"),
        (("--config", "nowhere.toml"), {}, "nowhere.toml"),
        ((), {"KAFKA_BOOTSTRAP_SERVERS": "not a server"}, "KAFKA_BOOTSTRAP_SERVERS"),
        ((), {"PAYFLOW_MANAGEMENT__HOST": "0.0.0.0"}, "loopback"),
        (("--roles", "ingest"), {}, "embedded"),
        (("--roles", "consumer"), {}, "embedded"),
    ],
)
def test_bad_configuration_is_78_before_anything_starts(
    serve: Starter, arguments: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    running = serve(*arguments, env=env)

    assert running.end() == 78
    lines = running.text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert said in lines[0]
    assert not running.data_dir.exists()

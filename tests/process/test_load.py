"""`payflow load` as people run it: against a real server, a target that misbehaves, and none."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.process import REPOSITORY, Starter, environment, wait_for
from tests.support.shaky_target import shaky

COMMAND = [sys.executable, "-m", "payflow", "load"]


def load(*arguments: str, out: Path | str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end; `path` is searched for modules first."""
    env = environment()
    if path is not None:
        env["PYTHONPATH"] = f"{path}:{env['PYTHONPATH']}"
    command = [*COMMAND, *arguments, "--out", str(out)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ------------------------------------------------------------------ against a real server
def test_books_of_a_real_server_are_right(serve: Starter, tmp_path: Path) -> None:
    server, out = serve().ready(), tmp_path / "report.json"
    url, management = (f"http://127.0.0.1:{port}" for port in (server.http_port, server.management_port))
    mix = ("--mix", "capture=0.5,refund=0.2,void=0.2", "--duplicates", "0.1", "--arrival", "poisson", "--seed", "5")
    done = load(url, "--rate", "150", "--duration", "2s", "--management", management, *mix, out=out)
    report = report_of(out)
    counts, books = report["counts"], report["books"]

    assert done.returncode == 0, done.stdout + done.stderr
    assert "books are  right" in done.stdout
    assert set(counts["statuses"]) == {"200", "201"}
    assert counts["kinds"].keys() == {"payment", "capture", "refund", "void", "duplicate"}
    assert counts["intended"] == counts["started"] == counts["accepted"] == sum(counts["statuses"].values())
    assert books["right"] and books["differences"] == {}
    assert books["accepted"] == counts["started"] - counts["kinds"]["duplicate"]
    assert books["accepted"] == books["published"] == books["booked"]
    assert books["replayed"] == counts["kinds"]["duplicate"]
    assert sum(second["intended"] for second in report["seconds"]) == counts["intended"]
    latency = report["latency_ms"]
    assert latency["count"] == counts["started"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"]
    assert report["slowest"][0]["latency_ms"] == latency["max"]
    assert report["seed"] == 5 and report["interrupted"] is False
    assert report["target"]["loop"]["samples"] > 0


def test_ctrl_c_ends_the_load_with_books_and_report(serve: Starter, tmp_path: Path) -> None:
    server, out = serve().ready(), tmp_path / "report.json"
    arguments = [f"http://127.0.0.1:{server.http_port}", "--rate", "100", "--duration", "10m", "--out", str(out)]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        wait_for(lambda: b"load-" in server.api.get("/payments").body, "payments arrive")
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    report = report_of(out)

    assert running.returncode == 0, stderr
    assert "ended early" in stdout
    assert report["interrupted"] is True
    assert report["books"]["right"] is True
    assert 0 < report["counts"]["started"] < 60_000


# ------------------------------------------------------------------ targets that misbehave
def test_answers_of_503_are_counted_and_the_books_are_still_right(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    with shaky(lambda n: (503, "overloaded") if n % 5 == 0 else None) as target:
        done = load(target.url, "--rate", "100", "--duration", "1s", out=out)
    report = report_of(out)

    assert done.returncode == 0, done.stdout + done.stderr
    assert report["counts"]["statuses"] == {"201": 80, "503": 20}
    assert report["counts"]["problems"] == {"overloaded": 20}
    assert report["books"]["accepted"] == 80


def test_unknown_outcome_is_asked_again_with_the_same_key(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    with shaky(lambda n: (503, "outcome-unknown") if n in {3, 7} else None) as target:
        done = load(target.url, "--rate", "50", "--duration", "1s", out=out)
    books = report_of(out)["books"]

    assert done.returncode == 0, done.stdout + done.stderr
    assert (books["unknown"], books["settled"], books["accepted"]) == (2, 2, 50)


def test_payment_that_was_accepted_and_is_gone_is_exit_code_1(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    with shaky(lost=4) as target:
        done = load(target.url, "--rate", "50", "--duration", "1s", out=out)
    books = report_of(out)["books"]

    assert done.returncode == 1
    assert "books are  WRONG" in done.stdout
    assert books["differences"] == {"missing": 1, "not_listed": 1}
    assert (books["accepted"], books["published"]) == (50, 49)


def test_key_that_is_executed_again_is_exit_code_1(tmp_path: Path) -> None:
    """A duplicate has to get the first answer, byte for byte; here it makes a second payment."""
    out = tmp_path / "report.json"
    with shaky(forgetful=True) as target:
        done = load(target.url, "--rate", "100", "--duration", "1s", "--duplicates", "0.2", "--seed", "1", out=out)
    books = report_of(out)["books"]

    assert done.returncode == 1
    assert books["differences"].keys() == {"replay", "never_accepted"}


def test_what_cannot_start_is_counted(tmp_path: Path) -> None:
    """One connection, a target that takes its time, room for two that wait: the rest is reported, not dropped."""
    out = tmp_path / "report.json"
    limits = ("--connections", "1", "--waiting", "2")
    with shaky() as target:
        target.lock.acquire()  # nothing is answered until the generator's own deadline
        done = load(target.url, "--rate", "100", "--duration", "500ms", "--timeout", "200ms", "--books-timeout", "1ms",
                    *limits, out=out)  # fmt: skip
        target.lock.release()
    counts = report_of(out)["counts"]

    assert done.returncode != 0
    assert counts["intended"] == 50 == counts["started"] + counts["not_started"]
    assert counts["not_started"] > 40
    assert counts["statuses"] == {"timeout": counts["started"]}
    assert counts["started_late"] >= 1


def test_target_that_goes_away_in_the_middle_is_69_with_a_report(serve: Starter, tmp_path: Path) -> None:
    """What was accepted cannot be compared any more; the report still says what was seen."""
    server, out = serve().ready(), tmp_path / "report.json"
    arguments = [f"http://127.0.0.1:{server.http_port}", "--rate", "50", "--duration", "3s", "--out", str(out)]
    command = [*COMMAND, *arguments, "--books-timeout", "300ms"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True) as running:
        wait_for(lambda: b"load-" in server.api.get("/payments").body, "payments arrive")
        server.kill()
        stdout, _ = running.communicate(timeout=30)
    report = report_of(out)

    assert running.returncode == 69
    assert "the target is not there any more" in stdout
    assert report["counts"]["started"] == 150
    assert report["counts"]["statuses"]["unreachable"] > 0
    assert report["books"]["reachable"] is False and report["books"]["right"] is False


# ------------------------------------------------------------------ refusals
def test_target_that_is_not_there_is_69(tmp_path: Path) -> None:
    done = load(f"http://127.0.0.1:{free_port()}", "--rate", "1", out=tmp_path / "report.json")

    assert done.returncode == 69
    assert "nothing answers at http://127.0.0.1:" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("option", [(), ("--management",)])
@pytest.mark.parametrize("url", ["http://192.0.2.1:8080", "http://payments.example", "http://localhost.example:8080"])
def test_target_that_is_not_this_machine_is_refused(url: str, option: tuple[str, ...], tmp_path: Path) -> None:
    done = load(*option, url, "--rate", "1", out=tmp_path / "report.json")

    assert done.returncode == 2
    assert "--i-own-this-target" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--rate", "1", "--duration", "60"),
        ("--rate", "1", "--duration", "0s"),
        ("--rate", "1", "--mix", "refund=0.5"),
        ("--rate", "1", "--duplicates", "1"),
        ("--rate", "1", "ftp://127.0.0.1"),
        ("--rate", "1", "http://127.0.0.1/payments"),
        ("--rate", "1", "http://127.0.0.1:99999"),
    ],
)
def test_usage_error_is_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = load(*arguments, out=tmp_path / "report.json")

    assert done.returncode == 2, done.stderr
    assert "Error: " in done.stderr


def test_report_that_could_not_be_written_is_refused_before_the_load(tmp_path: Path) -> None:
    done = load("--rate", "1", out=tmp_path / "no" / "report.json")

    assert done.returncode == 2


def test_missing_extra_is_69_and_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'hdrh' else find(n, *a)\n"
    )
    done = load("--rate", "1", out=tmp_path / "report.json", path=tmp_path)

    assert done.returncode == 69
    assert "pip install payflow[load]" in done.stderr

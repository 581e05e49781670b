"""The program as people and scripts meet it: what it prints where, and the exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ESCAPE = "\x1b["


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would configure payflow or its colours."""
    ours = ("PAYFLOW_", "KAFKA_", "EUREKA_", "NO_COLOR", "FORCE_COLOR")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | extra


def payflow(*arguments: str, cwd: Path = REPOSITORY, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "payflow", *arguments]
    path = {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        command, cwd=cwd, env=environment(**path, **extra), capture_output=True, text=True, timeout=30, check=False
    )


def on_a_terminal(*arguments: str, **extra: str) -> str:
    """What a person sees: both streams are one terminal."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "payflow", *arguments]
    env = environment(TERM="xterm-256color", COLUMNS="160", **extra)
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        seen = b""
        # A terminal whose other end is closed answers EIO on Linux, not the end of file.
        try:
            while chunk := os.read(terminal, 65_536):
                seen += chunk
        except OSError:
            pass
        process.wait(timeout=30)
    os.close(terminal)
    return seen.decode()


# ------------------------------------------------------------------ help and usage
def test_version() -> None:
    done = payflow("--version")

    assert (done.returncode, done.stdout) == (0, "payflow 0.1.0\n")


@pytest.mark.parametrize("command", [(), ("config",), ("config", "show"), ("config", "check"), ("config", "reference")])
def test_help_shows_how_to_use_it(command: tuple[str, ...]) -> None:
    done = payflow(*command, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: python -m payflow" in done.stdout or "Usage: payflow" in done.stdout
    assert "payflow config" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("sreve",),
        ("config", "show", "--nope"),
        ("config", "check", "--set", "http.port"),
        ("config", "check", "--set", "=1"),
        ("config", "check", "--log-format", "xml"),
    ],
)
def test_usage_error_is_2_and_goes_to_standard_error(arguments: tuple[str, ...]) -> None:
    done = payflow(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage:" in done.stderr


# ------------------------------------------------------------------ config check
def test_valid_configuration_is_0() -> None:
    done = payflow("config", "check", "--profile", "dev")

    assert (done.returncode, done.stdout, done.stderr) == (0, "configuration is valid\n", "")


def test_bad_configuration_is_78_with_one_line_for_each_problem() -> None:
    done = payflow("config", "check", "--set", "http.prot=1", "--data-dir", "", PAYFLOW_KAFKA__PARTITIONS="0")

    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.splitlines() == [
        (
            "error: environment PAYFLOW_KAFKA__PARTITIONS: "
            'kafka.partitions must be a whole number from 1 to 10000, not "0"'
        ),
        "error: flag --set: http.prot is not a known key; did you mean http.port?",
        'error: flag --data-dir: storage.data_dir must be the path of a directory, not ""',
    ]


def test_warning_goes_to_standard_error_and_is_no_failure() -> None:
    done = payflow("config", "check", PAYFLOW_HTTP_PORT="1")

    assert (done.returncode, done.stdout) == (0, "configuration is valid\n")
    assert done.stderr == "warning: environment PAYFLOW_HTTP_PORT: ignored; did you mean PAYFLOW_HTTP__PORT?\n"


def test_profile_secrets_and_directory_can_come_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("[http]\nport = 1\n")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "management__tokens__alice").write_text("0123456789abcdef")
    chosen = {
        "PAYFLOW_PROFILE": "site",
        "PAYFLOW_CONFIG_DIR": str(tmp_path),
        "PAYFLOW_SECRETS_DIR": str(tmp_path / "secrets"),
    }

    shown = json.loads(payflow("config", "show", "--json", **chosen).stdout)

    assert (shown["http.port"], shown["management.tokens.alice"]) == (1, "********")


# ------------------------------------------------------------------ config show
def test_show_prints_toml_that_loads_as_itself(tmp_path: Path) -> None:
    first = payflow("config", "show", "--origin", "--set", "http.port=1")
    (tmp_path / "shown.toml").write_text(first.stdout)

    second = payflow("config", "show", "--config", str(tmp_path / "shown.toml"))

    assert tomllib.loads(first.stdout) == tomllib.loads(second.stdout)
    assert tomllib.loads(second.stdout)["http"]["port"] == 1


def test_show_origin_names_layer_and_place() -> None:
    done = payflow("config", "show", "--origin", "--json", "--profile", "dev", PAYFLOW_LOG__LEVEL="error")
    shown = json.loads(done.stdout)

    assert shown["log.level"] == {"value": "error", "layer": "environment", "source": "PAYFLOW_LOG__LEVEL"}
    assert shown["log.format"] == {"value": "console", "layer": "profile", "source": "config/dev.toml"}
    assert shown["http.port"] == {"value": 8080, "layer": "default", "source": ""}


@pytest.mark.parametrize("form", [(), ("--origin",), ("--json",), ("--json", "--origin")])
def test_secrets_are_masked_in_every_form(form: tuple[str, ...]) -> None:
    done = payflow("config", "show", *form, PAYFLOW_MANAGEMENT__TOKENS__ALICE="correct horse battery")

    assert "management.tokens.alice" in done.stdout
    assert "horse" not in done.stdout + done.stderr


# ------------------------------------------------------------------ colours
def test_table_and_colours_are_for_a_terminal_only() -> None:
    assert ESCAPE in on_a_terminal("config", "show", "--origin", "--set", "http.port=1")
    assert ESCAPE in on_a_terminal("config", "check", "--set", "http.port=x")
    assert ESCAPE not in payflow("config", "show", "--origin", "--set", "http.port=1").stdout
    assert ESCAPE not in payflow("config", "check", "--set", "http.port=x").stderr


def test_no_color_is_honoured_on_a_terminal() -> None:
    assert "\x1b[3" not in on_a_terminal("config", "show", "--set", "http.port=1", NO_COLOR="1")
    assert ESCAPE not in on_a_terminal("config", "check", "--set", "http.port=x", NO_COLOR="1")


# ------------------------------------------------------------------ config reference
def test_reference_is_the_file_in_the_repository() -> None:
    assert (REPOSITORY / "config/default.toml").read_text() == payflow("config", "reference").stdout
    assert (REPOSITORY / "docs/config.md").read_text() == payflow("config", "reference", "--format", "markdown").stdout


# ------------------------------------------------------------------ serve
def test_serve_refuses_a_bad_configuration_before_anything_is_started(tmp_path: Path) -> None:
    data = tmp_path / "data"

    done = payflow("serve", "--roles", "ingest", "--data-dir", str(data), "--set", "log.level=loud")

    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 2
    assert not data.exists()


@pytest.mark.parametrize(
    "arguments",
    [("--http-port", "65536"), ("--management-port", "x"), ("--roles", "ingest,x"), ("--roles", "")],
)
def test_serve_with_an_impossible_flag_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert payflow("serve", *arguments).returncode == 2


def test_serve_help_names_the_flags_that_scripts_rely_on() -> None:
    done = payflow("serve", "--help")

    flags = ("--profile", "--config", "--set", "--data-dir", "--log-format", "--roles", "--http-port")
    assert [flag for flag in (*flags, "--management-port") if flag not in done.stdout] == []

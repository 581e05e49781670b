"""Every kind of error: what it says, where it says it stands, and that none hides another."""

from __future__ import annotations

from pathlib import Path

import pytest

from payflow.config import ConfigError, Flag, Sources, load

DURATION = 'a duration of at least 1ms with its unit, such as "30s", "500ms" or "72h"'
URL = 'an http or https URL such as "http://127.0.0.1:8761/eureka/", or empty'


def problems(sources: Sources) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(sources)
    assert "\n".join(map(str, caught.value.problems)) == str(caught.value)
    return [str(problem) for problem in caught.value.problems]


def of_toml(tmp_path: Path, text: str) -> list[str]:
    """The problems of one file, without the place that they all share."""
    file = tmp_path / "some.toml"
    file.write_text(text)
    start = f"file {file}: "
    found = problems(Sources(files=(file,)))
    assert all(problem.startswith(start) for problem in found)
    return [problem.removeprefix(start) for problem in found]


# ------------------------------------------------------------------ names
@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[http]\nprot = 1", "http.prot is not a known key; did you mean http.port?"),
        ("[htpp]\nport = 1", "htpp is not a known key; did you mean http?"),
        ("[http]\nzebra = 1", "http.zebra is not a known key"),
        ('[http]\ndata_dir = "x"', "http.data_dir is not a known key; did you mean storage.data_dir?"),
        (
            "[breaker]\nfailureRateThreshold = 50",
            "breaker.failureRateThreshold is not a known key; did you mean breaker.failure_rate_threshold?",
        ),
        (
            "[breaker.kafka-publsher]\nfailure_rate_threshold = 50",
            "breaker.kafka-publsher is not a known key; did you mean breaker.kafka-publisher?",
        ),
        ("http = 8080", "http is a table, not a value; one of its keys is http.host"),
        (
            '[management.tokens]\n"Mr. X" = "0123456789abcdef"',
            "management.tokens.Mr. X is not a name: write up to 40 of a-z, 0-9, - and _, a letter or digit first",
        ),
    ],
)
def test_wrong_name_in_a_file(tmp_path: Path, toml: str, expected: str) -> None:
    assert [expected] == of_toml(tmp_path, toml)


def test_wrong_name_in_the_environment() -> None:
    assert problems(
        Sources(environ={"PAYFLOW_HTTP__PROT": "1"})
    ) == ["environment PAYFLOW_HTTP__PROT: http.prot is not a known key; did you mean http.port?"]


def test_name_that_goes_below_a_value() -> None:
    (problem,) = problems(Sources(flags=(Flag("http.port.number", "1", "--set"),)))

    assert problem == "flag --set: http.port is a value and has no keys of its own"


def test_name_that_stops_at_a_table() -> None:
    (problem,) = problems(Sources(flags=(Flag("http", "1", "--set"),)))

    assert problem == "flag --set: http is a table, not a value; one of its keys is http.host"


def test_wrong_name_of_a_secrets_file(tmp_path: Path) -> None:
    (tmp_path / "management__token__alice").write_text("x")

    (problem,) = problems(Sources(secrets_dir=tmp_path))

    assert problem.endswith("management.token is not a known key; did you mean management.tokens?")


# ------------------------------------------------------------------ values
@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[http]\nport = 65536", "http.port must be a whole number from 0 to 65535, not 65536"),
        ('[http]\nport = "80"', 'http.port must be a whole number from 0 to 65535, not "80"'),
        ("[http]\nport = true", "http.port must be a whole number from 0 to 65535, not true"),
        ("[http.port]\nx = 1", "http.port must be a whole number from 0 to 65535, not a table"),
        (
            "[http]\nrequest_timeout = 5",
            f"http.request_timeout must be {DURATION}, not 5",
        ),
        (
            '[http]\nrequest_timeout = "0s"',
            f'http.request_timeout must be {DURATION}, not "0s"',
        ),
        ('[http]\nrequest_timeout = "9999d"', 'http.request_timeout must be at most 3650d, not "9999d"'),
        (
            '[kafka]\npublish_pace = "soon"',
            f'kafka.publish_pace must be "0s" for none, or {DURATION}, not "soon"',
        ),
        (
            '[http]\nbody_limit = "1TB"',
            'http.body_limit must be a size from 1KiB to 16MiB with its unit, such as "64KiB", not "1TB"',
        ),
        ('[log]\nformat = "xml"', 'log.format must be one of auto, console, json, not "xml"'),
        ('roles = ["ingest", "x"]', 'roles must be one or more of ingest, consumer, not ["ingest", "x"]'),
        ("roles = []", "roles must be one or more of ingest, consumer, not []"),
        ("[management]\nallow_actions = 1", "management.allow_actions must be true or false, not 1"),
        (
            '[management]\nhost = "0.0.0.0"',
            'management.host must be a loopback address such as 127.0.0.1, ::1 or localhost, not "0.0.0.0"',
        ),
        ('[http]\nhost = "a b"', 'http.host must be a host name or an IP address, not "a b"'),
        ('[storage]\ndata_dir = ""', 'storage.data_dir must be the path of a directory, not ""'),
        ('[kafka]\ntopic = "a/b"', 'kafka.topic must be a Kafka topic name, not "a/b"'),
        (
            '[kafka]\nbootstrap_servers = "kafka"',
            'kafka.bootstrap_servers must be "embedded" or host:port pairs separated by commas, not "kafka"',
        ),
        (
            '[heartbeat]\nserver_url = "registry:8761"',
            f'heartbeat.server_url must be {URL}, not "registry:8761"',
        ),
        (
            "[breaker]\nfailure_rate_threshold = nan",
            "breaker.failure_rate_threshold must be a percentage above 0 and at most 100, not nan",
        ),
        (
            f'[log]\nlevel = "{"x" * 99}"',
            f'log.level must be one of debug, info, warning, error, not "{"x" * 56}...',
        ),
    ],
)
def test_wrong_value_in_a_file(tmp_path: Path, toml: str, expected: str) -> None:
    assert [expected] == of_toml(tmp_path, toml)


@pytest.mark.parametrize("text", ["", "a:", ":1", "a:0", "a:65536", "a:1,,b:1", "::1:9092", "[::1:9092", "a:\u0661"])
def test_servers_that_are_none(text: str) -> None:
    (problem,) = problems(Sources(environ={"KAFKA_BOOTSTRAP_SERVERS": text}))

    assert problem.startswith("environment KAFKA_BOOTSTRAP_SERVERS: kafka.bootstrap_servers must be ")


def test_refused_secret_is_not_repeated(tmp_path: Path) -> None:
    (problem,) = of_toml(tmp_path, "[management.tokens]\nalice = 1234567890")

    assert problem == "management.tokens.alice must be text that is not empty"


def test_value_that_a_later_layer_hides_is_refused_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("[http]\nport = -1")

    (problem,) = problems(Sources(files=(file,), flags=(Flag("http.port", "1", "--set"),)))

    assert problem.startswith(f"file {file}: http.port ")


# ------------------------------------------------------------------ files
def test_profile_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    for name in ("default", "dev", "prod"):
        (tmp_path / f"{name}.toml").touch()

    (problem,) = problems(Sources(profile="pord", config_dir=tmp_path))

    assert f"profile pord: {tmp_path}/pord.toml does not exist; profiles there: dev, prod" == problem


def test_default_is_no_profile(tmp_path: Path) -> None:
    (problem,) = problems(Sources(profile="default", config_dir=tmp_path))

    assert "is never read" in problem


def test_profile_is_a_name_and_no_path(tmp_path: Path) -> None:
    (problem,) = problems(Sources(profile="../dev", config_dir=tmp_path))

    assert problem == "profile ../dev: not the name of a profile: letters, digits, - and _ only"


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert [f"file {tmp_path}/x.toml: cannot be read: No such file or directory"] == problems(
        Sources(files=(tmp_path / "x.toml",))
    )


@pytest.mark.parametrize("content", [b"[http", b"\xff", b"#" * (1 << 20) + b"#"])
def test_file_that_is_no_configuration(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(content)

    (problem,) = problems(Sources(files=(tmp_path / "x.toml",)))

    assert problem.startswith(f"file {tmp_path}/x.toml: is not a configuration file: ")


def test_secrets_directory_that_is_not_there(tmp_path: Path) -> None:
    (problem,) = problems(Sources(secrets_dir=tmp_path / "x"))

    assert f"secrets {tmp_path}/x: cannot be read: No such file or directory" == problem


def test_secret_that_is_no_text_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "management__tokens__alice").write_bytes(b"hush\xff")

    (problem,) = problems(Sources(secrets_dir=tmp_path))

    assert problem.endswith(": is no text in UTF-8, or too large for a secret")


# ------------------------------------------------------------------ more than one key
@pytest.mark.parametrize(
    ("toml", "start"),
    [
        ('roles = ["ingest"]', 'kafka.bootstrap_servers "embedded" needs both roles in this process, not ingest alone'),
        ("[http]\nport = 9080", "management.port is 9080 as well as http.port"),
        ('[kafka]\ntopic = "payment.events.dlq"', "kafka.dead_letter_topic must differ from kafka.topic"),
        ('[kafka]\ndelivery_timeout = "9s"', "kafka.delivery_timeout must be at least kafka.request_timeout (10s)"),
        (
            '[telemetry]\nloop_check_interval = "1s"',
            "telemetry.loop_check_interval must be shorter than telemetry.loop_lag_threshold (250ms)",
        ),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, toml: str, start: str) -> None:
    (problem,) = of_toml(tmp_path, toml)

    assert problem.startswith(start)


def test_both_ports_may_be_any_free_one() -> None:
    load(Sources(flags=(Flag("http.port", "0", "--http-port"), Flag("management.port", "0", "--management-port"))))


def test_one_role_is_fine_with_a_real_cluster() -> None:
    load(Sources(environ={"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "PAYFLOW_ROLES": "consumer"}))


def test_api_may_be_open_to_the_network() -> None:
    load(Sources(environ={"PAYFLOW_HTTP__HOST": "0.0.0.0"}))


def test_rule_is_not_asked_about_a_value_that_is_wrong_already(tmp_path: Path) -> None:
    """The request timeout falls back to its default of 10 s, which must not make 9 s look wrong."""
    found = of_toml(tmp_path, '[kafka]\nrequest_timeout = "x"\ndelivery_timeout = "9s"')

    assert len(found) == 1


# ------------------------------------------------------------------ all at once
def test_problems_of_all_layers_are_reported_at_once(tmp_path: Path) -> None:
    file, secrets = tmp_path / "some.toml", tmp_path / "secrets"
    secrets.mkdir()
    file.write_text('[http]\nport = -1\nprot = 1\n[log]\nlevel = "loud"')
    (secrets / "http__backlog").write_text("many")
    sources = Sources(
        profile="nope",
        config_dir=tmp_path,
        files=(file, tmp_path / "missing.toml"),
        secrets_dir=secrets,
        environ={"PAYFLOW_KAFKA__TOPIC": "a b", "PAYFLOW_ROLES": "ingest"},
        flags=(Flag("registry.port", "x", "--port"),),
    )

    found = problems(sources)

    places = [problem.split(" ")[0] for problem in found]
    assert ["profile", *["file"] * 4, "secrets", "environment", "environment", "flag"] == places

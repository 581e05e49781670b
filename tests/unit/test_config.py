"""What the layers make of each other: which value wins, what type it has, and where it says it came from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from payflow.config import ConfigError, Flag, Layer, Loaded, Secret, Settings, Sources, load
from payflow.core.breaker import BreakerConfig


def loaded(tmp_path: Path, *, toml: str = "", **environ: str) -> Loaded:
    file = tmp_path / "some.toml"
    file.write_text(toml)
    return load(Sources(files=(file,), environ=environ))


def origin_of(result: Loaded, dotted: str) -> tuple[str, str]:
    (origin,) = (value.origin for value in result.values if value.key.dotted == dotted)
    return origin.layer, origin.source


# ------------------------------------------------------------------ defaults and types
def test_no_source_at_all_gives_the_defaults_without_a_warning() -> None:
    result = load(Sources())

    assert Settings() == result.settings
    assert result.warnings == ()
    assert {Layer.DEFAULT} == {value.origin.layer for value in result.values}


def test_attributes_carry_the_unit_that_the_key_takes_as_text(tmp_path: Path) -> None:
    settings = loaded(tmp_path, toml='[http]\nrequest_timeout = "250ms"\nbody_limit = "1MiB"\n').settings

    assert settings.http.request_timeout_s == 0.25
    assert settings.http.body_limit_bytes == 1 << 20


def test_settings_cannot_be_changed() -> None:
    settings = load(Sources()).settings

    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.http.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.breaker["kafka-publisher"] = settings.breaker["kafka-publisher"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("PAYFLOW_HTTP__PORT", "0", 0),
        ("PAYFLOW_HTTP__HOST", "::1", "::1"),
        ("PAYFLOW_MANAGEMENT__ALLOW_ACTIONS", "yes", True),
        ("PAYFLOW_MANAGEMENT__ALLOW_ACTIONS", "0", False),
        ("PAYFLOW_ROLES", "consumer, ingest", ("ingest", "consumer")),
        ("PAYFLOW_STORAGE__PUBLISHED_RETENTION", "14d", 14 * 86_400.0),
        ("PAYFLOW_STORAGE__DATA_DIR", "/var/lib/payflow", Path("/var/lib/payflow")),
        ("PAYFLOW_KAFKA__PUBLISH_PACE", "0s", 0.0),
        ("PAYFLOW_KAFKA__BOOTSTRAP_SERVERS", "one:9092, [::1]:9093", "one:9092,[::1]:9093"),
        ("PAYFLOW_LOG__LEVEL", "WARNING", "warning"),
        ("PAYFLOW_HEARTBEAT__SERVER_URL", "http://127.0.0.1:8761/eureka", "http://127.0.0.1:8761/eureka/"),
        ("PAYFLOW_BREAKER__KAFKA_PUBLISHER__FAILURE_RATE_THRESHOLD", "37.5%", 37.5),
    ],
)
def test_text_becomes_the_type_of_its_key(variable: str, text: str, expected: object) -> None:
    result = load(Sources(environ={variable: text}))

    (value,) = (value.value for value in result.values if value.origin.source == variable)
    assert expected == value


# ------------------------------------------------------------------ precedence
def test_each_layer_wins_over_the_one_below(tmp_path: Path) -> None:
    profiles, secrets = tmp_path / "config", tmp_path / "secrets"
    profiles.mkdir()
    secrets.mkdir()
    (profiles / "prod.toml").write_text("[http]\nport = 1\n")
    (tmp_path / "a.toml").write_text("[http]\nport = 2\n")
    (tmp_path / "b.toml").write_text("[http]\nport = 3\n")
    (secrets / "http__port").write_text("4\n")
    steps = [
        {"profile": "prod"},
        {"files": (tmp_path / "a.toml",)},
        {"files": (tmp_path / "a.toml", tmp_path / "b.toml")},
        {"secrets_dir": secrets},
        {"environ": {"PAYFLOW_HTTP__PORT": "5"}},
        {"flags": (Flag("http.port", "6", "--set"),)},
        {"flags": (Flag("http.port", "6", "--set"), Flag("http.port", "7", "--http-port"))},
    ]

    sources, ports = Sources(config_dir=profiles), []
    for step in steps:
        sources = dataclasses.replace(sources, **step)
        ports.append(load(sources).settings.http.port)

    assert ports == [1, 2, 3, 4, 5, 6, 7]


def test_a_layer_that_sets_one_key_of_a_table_leaves_the_other_keys_alone(tmp_path: Path) -> None:
    """The trap of shallow merges: the second file must not reset the first one's keys to the defaults."""
    base = "[breaker.kafka-publisher]\nfailure_rate_threshold = 60\nsliding_window_size = 40"
    (tmp_path / "base.toml").write_text(base)
    (tmp_path / "over.toml").write_text("[breaker.kafka-publisher]\nfailure_rate_threshold = 70")

    breaker = load(Sources(files=(tmp_path / "base.toml", tmp_path / "over.toml"))).settings.breaker["kafka-publisher"]

    assert (breaker.failure_rate_threshold, breaker.sliding_window_size) == (70.0, 40)


def test_default_toml_in_the_profile_directory_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "default.toml").write_text("this is not TOML")
    (tmp_path / "dev.toml").write_text("")

    assert Settings() == load(Sources(profile="dev", config_dir=tmp_path)).settings


# ------------------------------------------------------------------ breakers
def test_breaker_settings_have_the_fields_and_defaults_of_the_core() -> None:
    assert BreakerConfig() == Settings().breaker["kafka-publisher"].to_core()


def test_breaker_key_without_a_name_is_the_default_for_all(tmp_path: Path) -> None:
    result = loaded(tmp_path, toml='[breaker]\nwait_duration_in_open_state = "7s"\n')

    assert result.settings.breaker["kafka-publisher"].wait_duration_in_open_state_s == 7.0


def test_named_breaker_wins_over_the_default_for_all_also_from_a_lower_layer(tmp_path: Path) -> None:
    toml = '[breaker.kafka-publisher]\nwait_duration_in_open_state = "7s"\n'

    result = loaded(tmp_path, toml=toml, PAYFLOW_BREAKER__WAIT_DURATION_IN_OPEN_STATE="9s")

    assert result.settings.breaker["kafka-publisher"].wait_duration_in_open_state_s == 7.0


def test_underscore_in_the_environment_matches_the_dash_of_a_breaker() -> None:
    name = "PAYFLOW_BREAKER__KAFKA_PUBLISHER__WAIT_DURATION_IN_OPEN_STATE"

    result = load(Sources(environ={name: "30ms"}))

    assert result.settings.breaker["kafka-publisher"].wait_duration_in_open_state_s == 0.03
    assert ("environment", name) == origin_of(result, "breaker.kafka-publisher.wait_duration_in_open_state")


def test_minimum_above_the_window_is_capped_with_a_warning(tmp_path: Path) -> None:
    result = loaded(tmp_path, toml="[breaker]\nsliding_window_size = 4\nminimum_number_of_calls = 9\n")

    assert result.settings.breaker["kafka-publisher"].minimum_number_of_calls == 4
    assert [warning.key for warning in result.warnings] == ["breaker.kafka-publisher.minimum_number_of_calls"]


# ------------------------------------------------------------------ environment
def test_addresses_are_read_from_the_variables_that_other_tools_set() -> None:
    environ = {"KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "EUREKA_SERVER_URL": "http://registry:8761/eureka/"}

    settings = load(Sources(environ=environ)).settings

    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.heartbeat.server_url == "http://registry:8761/eureka/"


def test_our_own_variable_wins_over_the_shared_one() -> None:
    environ = {"KAFKA_BOOTSTRAP_SERVERS": "a:1", "PAYFLOW_KAFKA__BOOTSTRAP_SERVERS": "b:2"}

    assert load(Sources(environ=environ)).settings.kafka.bootstrap_servers == "b:2"


def test_variables_that_are_not_ours_are_left_alone() -> None:
    environ = {"PAYFLOW_SERVICE_HOST": "10.0.0.1", "PAYFLOW_PROFILE": "x", "HTTP__PORT": "1", "payflow_http__port": "1"}

    assert load(Sources(environ=environ)).warnings == ()


def test_single_underscore_is_ignored_with_a_hint() -> None:
    (warning,) = load(Sources(environ={"PAYFLOW_HTTP_PORT": "81"})).warnings

    assert str(warning) == "environment PAYFLOW_HTTP_PORT: ignored; did you mean PAYFLOW_HTTP__PORT?"


# ------------------------------------------------------------------ secrets
def test_secrets_files_hold_one_key_each_and_lose_the_closing_newline(tmp_path: Path) -> None:
    (tmp_path / "management__tokens__alice").write_text("correct horse battery\n")
    (tmp_path / "..data").mkdir()
    (tmp_path / ".hidden__key").write_text("x")

    result = load(Sources(secrets_dir=tmp_path))

    assert {"alice": Secret("correct horse battery")} == dict(result.settings.management.tokens)
    assert result.warnings == ()


def test_secret_never_shows_itself() -> None:
    settings = load(Sources(environ={"PAYFLOW_MANAGEMENT__TOKENS__ALICE": "correct horse battery"})).settings

    assert "horse" not in repr(settings)
    assert "horse" not in f"{settings.management.tokens['alice']}"
    assert settings.management.tokens["alice"].matches("correct horse battery")
    assert not settings.management.tokens["alice"].matches("correct horse batterz")


def test_file_in_the_secrets_directory_that_is_no_key_of_ours_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "database-password").write_text("x")

    (warning,) = load(Sources(secrets_dir=tmp_path)).warnings

    assert "ignored" in str(warning)


def test_secret_in_a_file_and_a_short_one_are_warnings(tmp_path: Path) -> None:
    result = loaded(tmp_path, toml='[management.tokens]\nalice = "short"\n')

    assert [warning.key for warning in result.warnings] == ["management.tokens.alice"] * 2
    assert result.settings.management.tokens["alice"].reveal() == "short"


def test_actions_without_a_token_are_a_warning(tmp_path: Path) -> None:
    (warning,) = loaded(tmp_path, toml="[management]\nallow_actions = true\n").warnings

    assert warning.key == "management.allow_actions"


def test_error_carries_the_warnings_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, toml="[management]\nallow_actions = true\nport = 70000\n")

    assert (len(caught.value.problems), len(caught.value.warnings)) == (1, 1)

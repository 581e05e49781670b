"""Rules over more than one key. A rule is only asked when each of its keys was read without a problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from payflow.config.layers import Layer, Origin, Problem
from payflow.config.schema import Key, KeyPath
from payflow.config.sections import BREAKERS, ROLES, Settings
from payflow.config.texts import EMBEDDED
from payflow.config.units import render_duration

# Below this a bearer token is within reach of guessing; still a warning, because trying things out is legitimate.
_SHORTEST_TOKEN: Final = 16
_SECRET_LAYERS: Final = frozenset({Layer.SECRETS, Layer.ENVIRONMENT})


@dataclass(frozen=True, slots=True)
class Rule:
    """`broken` answers None, or what is wrong, as the rest of the sentence "<first key> ..."."""

    keys: tuple[str, ...]
    broken: Callable[[Settings], str | None]


def check(rules: tuple[Rule, ...], settings: Settings, origins: Mapping[str, Origin], bad: set[str]) -> list[Problem]:
    """Ask every rule whose keys are sound. The problem is put where its highest key was set."""
    found = []
    for rule in rules:
        if bad.isdisjoint(rule.keys) and (message := rule.broken(settings)):
            origin = max((origins[key] for key in rule.keys), key=lambda origin: origin.layer.rank)
            found.append(Problem(origin, rule.keys[0], message))
    return found


def secret_warnings(values: Mapping[KeyPath, tuple[Key, object, Origin]]) -> list[Problem]:
    """Secrets in files that are committed, and on command lines that others can list."""
    advice = "is a secret: a secrets file or the environment keeps it out of repositories and process lists"
    return [
        Problem(origin, key.dotted, advice)
        for key, _, origin in values.values()
        if key.secret and origin.layer not in _SECRET_LAYERS
    ]


def _embedded_alone(settings: Settings) -> str | None:
    if settings.kafka.bootstrap_servers != EMBEDDED or set(settings.roles) == set(ROLES):
        return None
    return (
        f'"{EMBEDDED}" needs both roles in this process, not {" and ".join(settings.roles)} alone: '
        "name a real cluster (KAFKA_BOOTSTRAP_SERVERS) or run all roles"
    )


def _same_port(settings: Settings) -> str | None:
    port = settings.http.port
    return f"is {port} as well as http.port" if port and port == settings.management.port else None


def _same_topic(settings: Settings) -> str | None:
    same = settings.kafka.topic == settings.kafka.dead_letter_topic
    return "must differ from kafka.topic: a dead letter would be read again" if same else None


def _delivery_too_short(settings: Settings) -> str | None:
    if settings.kafka.delivery_timeout_s >= settings.kafka.request_timeout_s:
        return None
    return f"must be at least kafka.request_timeout ({render_duration(settings.kafka.request_timeout_s)})"


def _busy_too_long(settings: Settings) -> str | None:
    if settings.storage.busy_timeout_s < settings.http.request_timeout_s:
        return None
    return (
        f"is not shorter than http.request_timeout ({render_duration(settings.http.request_timeout_s)}), "
        "so no client hears that a locked database wrote nothing"
    )


def _loop_check_too_rare(settings: Settings) -> str | None:
    if settings.telemetry.loop_check_interval_s < settings.telemetry.loop_lag_threshold_s:
        return None
    return (
        "must be shorter than telemetry.loop_lag_threshold "
        f"({render_duration(settings.telemetry.loop_lag_threshold_s)}), or a short block is not seen"
    )


def _actions_without_tokens(settings: Settings) -> str | None:
    nobody = settings.management.allow_actions and not settings.management.tokens
    return "is on but management.tokens is empty: every action will be refused" if nobody else None


def _url_without_eureka(settings: Settings) -> str | None:
    url = settings.heartbeat.server_url
    return "usually ends in /eureka/; the registry may answer 404" if url and "/eureka/" not in url else None


def _slow_is_never_seen(name: str) -> Callable[[Settings], str | None]:
    def broken(settings: Settings) -> str | None:
        if settings.breaker[name].slow_call_duration_threshold_s < settings.kafka.delivery_timeout_s:
            return None
        return "is not below kafka.delivery_timeout: no call can count as slow before it counts as failed"

    return broken


def short_tokens(settings: Settings, origins: Mapping[str, Origin]) -> list[Problem]:
    """Tokens that can be guessed."""
    return [
        Problem(origins[key], key, f"is shorter than {_SHORTEST_TOKEN} characters and can be guessed")
        for name, token in settings.management.tokens.items()
        if len(token.reveal()) < _SHORTEST_TOKEN and (key := f"management.tokens.{name}")
    ]


ERRORS: Final = (
    Rule(("kafka.bootstrap_servers", "roles"), _embedded_alone),
    Rule(("management.port", "http.port"), _same_port),
    Rule(("kafka.dead_letter_topic", "kafka.topic"), _same_topic),
    Rule(("kafka.delivery_timeout", "kafka.request_timeout"), _delivery_too_short),
    Rule(("telemetry.loop_check_interval", "telemetry.loop_lag_threshold"), _loop_check_too_rare),
)
WARNINGS: Final = (
    Rule(("storage.busy_timeout", "http.request_timeout"), _busy_too_long),
    Rule(("management.allow_actions",), _actions_without_tokens),
    Rule(("heartbeat.server_url",), _url_without_eureka),
    *(
        Rule((f"breaker.{name}.slow_call_duration_threshold", "kafka.delivery_timeout"), _slow_is_never_seen(name))
        for name in BREAKERS
    ),
)

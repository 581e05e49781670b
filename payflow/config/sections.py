"""The typed settings, one frozen class a section: the only place for defaults, bounds and the reference's text.

An attribute is its key plus the unit: the key `request_timeout` takes `"5s"` and is read as `request_timeout_s`, the
key `body_limit` takes `"64KiB"` and is read as `body_limit_bytes`. All other attributes are named as their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal, get_args

from payflow.config.kinds import (
    Choice,
    Directory,
    Duration,
    DurationOrOff,
    Flag,
    Integer,
    Percent,
    Secret,
    SecretText,
    Several,
    Size,
    Text,
)
from payflow.config.texts import (
    EMBEDDED,
    read_host,
    read_kafka_name,
    read_loopback,
    read_registry_url,
    read_servers,
)
from payflow.core.breaker import BreakerConfig

Role = Literal["ingest", "consumer"]
LogFormat = Literal["auto", "console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)
# Every breaker of the product: a table for any other name is a slip of the pen.
BREAKERS: Final = ("kafka-publisher",)

_HOUR_S: Final = 3600.0
_DAY_S: Final = 86_400.0
_HOST: Final = "a host name or an IP address"
_PORT: Final = 65_535
_COUNT: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    """The API of the payments app."""

    host: Annotated[
        str,
        Text(
            "Address the API listens on. Anything but a loopback address opens it to the network.",
            form=_HOST,
            read=read_host,
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Integer("Port of the API; 0 takes any free one.", least=0, most=_PORT)] = 8080
    request_timeout_s: Annotated[
        float, Duration("The one deadline of a request, from decoding to COMMIT; past it the answer is 503.")
    ] = 5.0
    body_limit_bytes: Annotated[
        int, Size("Largest request body; a larger one is answered 413.", least=1 << 10, most=16 << 20)
    ] = 64 << 10
    body_read_timeout_s: Annotated[float, Duration("How long a client may take to send its body.")] = 5.0
    header_timeout_s: Annotated[
        float, Duration("How long a new connection may take to send the header of its first request.")
    ] = 10.0
    keep_alive_s: Annotated[float, Duration("How long an idle connection is kept open.")] = 75.0
    max_connections: Annotated[
        int,
        Integer(
            "Connections open at once; one more is answered 503 and closed. "
            "Never more than the limit of open files less 100.",
            least=1,
            most=_COUNT,
        ),
    ] = 1000
    backlog: Annotated[int, Integer("Connections the kernel holds before accept.", least=1, most=_PORT)] = 1024
    shed_after_s: Annotated[
        float, Duration("New writes are answered 503 while the oldest waiting write is older than this.")
    ] = 1.0


def _no_tokens() -> Mapping[str, Secret]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementSettings:
    """Inspection and operator actions, for this machine only."""

    host: Annotated[
        str,
        Text(
            "Address the management port listens on; only loopback is accepted.",
            form="a loopback address such as 127.0.0.1, ::1 or localhost",
            read=read_loopback,
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Integer("Management port; 0 takes any free one.", least=0, most=_PORT)] = 9080
    allow_actions: Annotated[
        bool, Flag("Whether operator actions are switched on; they need a token from `tokens` as well.")
    ] = False
    tokens: Annotated[
        Mapping[str, Secret],
        SecretText("Bearer tokens: the name, which the audit shows as the caller, and its token."),
    ] = field(default_factory=_no_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """The databases `payments.db` and `ledger.db`."""

    data_dir: Annotated[Path, Directory("Directory of the databases; it is made when it is missing.")] = Path("data")
    busy_timeout_s: Annotated[
        float, Duration("How long a statement waits for a lock that something outside holds.")
    ] = 2.0
    checkpoint_pages: Annotated[
        int, Integer("Pages in the write-ahead log after which it is checkpointed.", least=100, most=_COUNT)
    ] = 4000
    idempotency_retention_s: Annotated[
        float, Duration("How long an idempotency key and the answer it stands for are kept.", least_s=1.0)
    ] = 72 * _HOUR_S
    published_retention_s: Annotated[
        float, Duration("How long the payload of a published outbox row is kept.", least_s=1.0)
    ] = 14 * _DAY_S
    probe_interval_s: Annotated[
        float, Duration("How often a database that refused a write is probed, so that readiness comes back.")
    ] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """Kafka, for the publisher and the consumer."""

    bootstrap_servers: Annotated[
        str,
        Text(
            "The cluster, as `host:port` pairs separated by commas, or `embedded`: a memory-only broker in a child "
            "process, for trying and testing, which needs both roles in this process. "
            "Also read from KAFKA_BOOTSTRAP_SERVERS.",
            form=f'"{EMBEDDED}" or host:port pairs separated by commas',
            read=read_servers,
        ),
    ] = EMBEDDED
    topic: Annotated[
        str, Text("Topic of the payment events.", form="a Kafka topic name", read=read_kafka_name)
    ] = "payment.events"
    dead_letter_topic: Annotated[
        str, Text("Topic for records that cannot be booked.", form="a Kafka topic name", read=read_kafka_name)
    ] = "payment.events.dlq"
    partitions: Annotated[
        int, Integer("Partitions of the topic where payflow creates it.", least=1, most=10_000)
    ] = 6
    replication_factor: Annotated[
        int,
        Integer(
            "Copies of each partition where payflow creates the topic; never more than there are brokers.",
            least=1,
            most=100,
        ),
    ] = 3
    client_id: Annotated[
        str, Text("Name of our clients in the broker's logs.", form="a Kafka name", read=read_kafka_name)
    ] = "payflow"
    consumer_group: Annotated[
        str,
        Text(
            "Group under which the ledger's position is committed for lag tools; the position itself is in ledger.db.",
            form="a Kafka name",
            read=read_kafka_name,
        ),
    ] = "payflow-ledger"
    request_timeout_s: Annotated[float, Duration("How long one request to a broker may take.")] = 10.0
    delivery_timeout_s: Annotated[
        float, Duration("From handing a group to the producer to its outcome; past it the outcome is unknown.")
    ] = 15.0
    publish_pace_s: Annotated[
        float,
        DurationOrOff("Under load the publisher starts a cycle at most this often; idle, it acts at once."),
    ] = 0.05
    fetch_pace_s: Annotated[
        float,
        DurationOrOff("Under load the consumer starts a cycle at most this often; idle, it acts at once."),
    ] = 0.05
    window_rows: Annotated[
        int, Integer("Most outbox rows the publisher has in memory.", least=1, most=_COUNT)
    ] = 4000
    window_size_bytes: Annotated[
        int, Size("Most bytes of outbox rows the publisher has in memory.", least=1 << 16, most=1 << 30)
    ] = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSettings:
    """Circuit breakers, in Resilience4j's words. `[breaker]` is the default of all, `[breaker.NAME]` is one of them."""

    failure_rate_threshold: Annotated[
        float, Percent("The breaker opens when this share of the window's calls failed, or more.")
    ] = 50.0
    slow_call_rate_threshold: Annotated[
        float, Percent("The breaker opens when this share of the window's calls was slow, or more.")
    ] = 50.0
    slow_call_duration_threshold_s: Annotated[float, Duration("A call that takes longer than this is slow.")] = 5.0
    sliding_window_size: Annotated[
        int, Integer("Calls the window holds.", least=1, most=_COUNT)
    ] = 20
    minimum_number_of_calls: Annotated[
        int,
        Integer("Calls before a rate is judged; above `sliding_window_size` it is capped.", least=1, most=_COUNT),
    ] = 5
    wait_duration_in_open_state_s: Annotated[
        float, Duration("How long the breaker stays OPEN before trial calls are let through.")
    ] = 30.0
    permitted_number_of_calls_in_half_open_state: Annotated[
        int, Integer("Trial calls of one HALF_OPEN round.", least=1, most=_COUNT)
    ] = 3
    automatic_transition_from_open_to_half_open_enabled: Annotated[
        bool, Flag("Whether a timer ends OPEN; otherwise the first call after the wait does.")
    ] = True
    max_wait_duration_in_half_open_state_s: Annotated[
        float, DurationOrOff("Longest stay in HALF_OPEN.")
    ] = 60.0

    def to_core(self) -> BreakerConfig:
        """The breaker's own configuration; the two have the same fields."""
        return BreakerConfig(**asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """The registry server; not part of this version, the keys are checked and not used."""

    host: Annotated[str, Text("Address the registry listens on.", form=_HOST, read=read_host)] = "127.0.0.1"
    port: Annotated[int, Integer("Port of the registry; 0 takes any free one.", least=0, most=_PORT)] = 8761


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatSettings:
    """The client of a registry; not part of this version, the keys are checked and not used."""

    server_url: Annotated[
        str,
        Text(
            "Base URL of a Eureka-compatible registry, such as `http://127.0.0.1:8761/eureka/`; empty is no registry. "
            "Also read from EUREKA_SERVER_URL.",
            form='an http or https URL such as "http://127.0.0.1:8761/eureka/", or empty',
            read=read_registry_url,
        ),
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSettings:
    """The double-entry ledger."""

    audit_interval_s: Annotated[
        float, Duration("How often the sum over all postings is checked to be zero.")
    ] = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Logs: one event a line on standard error."""

    format: Annotated[
        LogFormat, Choice("`auto` is `console` on a terminal and `json` elsewhere.", options=get_args(LogFormat))
    ] = "auto"
    level: Annotated[LogLevel, Choice("Events below this level are left out.", options=get_args(LogLevel))] = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySettings:
    """What the process watches in itself."""

    loop_lag_threshold_s: Annotated[
        float, Duration("The event loop counts as blocked when its heartbeat is older than this.")
    ] = 0.25
    loop_check_interval_s: Annotated[float, Duration("How often the heartbeat is looked at.")] = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownSettings:
    """Deadlines of the phases of a stop, in order. The sum, 34 s, must fit in what the service manager allows."""

    announce_s: Annotated[float, Duration("Readiness off, registry lease cancelled.")] = 5.0
    unbind_s: Annotated[float, Duration("Listening socket closed.")] = 2.0
    requests_done_s: Annotated[float, Duration("Requests in flight finished.")] = 8.0
    drain_s: Annotated[float, Duration("Intake, outbox, publisher, consumer drained, one after the other.")] = 10.0
    stop_s: Annotated[float, Duration("Actors stopped in reverse order.")] = 5.0
    close_s: Annotated[float, Duration("Reserved; Kafka clients and databases are closed with their actors.")] = 3.0
    flush_s: Annotated[float, Duration("Reserved; the log is flushed for at most a second after the last phase.")] = 1.0


def _breakers() -> Mapping[str, BreakerSettings]:
    return MappingProxyType({name: BreakerSettings() for name in BREAKERS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured; immutable once loaded."""

    roles: Annotated[
        tuple[Role, ...],
        Several("Parts that run in this process; each owns a database file of its own.", options=ROLES),
    ] = ROLES
    http: HttpSettings = field(default_factory=HttpSettings)
    management: ManagementSettings = field(default_factory=ManagementSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    kafka: KafkaSettings = field(default_factory=KafkaSettings)
    breaker: Mapping[str, BreakerSettings] = field(default_factory=_breakers)
    registry: RegistrySettings = field(default_factory=RegistrySettings)
    heartbeat: HeartbeatSettings = field(default_factory=HeartbeatSettings)
    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    log: LogSettings = field(default_factory=LogSettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)
    shutdown: ShutdownSettings = field(default_factory=ShutdownSettings)

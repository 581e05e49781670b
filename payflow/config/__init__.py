"""Configuration: typed settings from layers, every error at once, a reference that prints itself.

The door of the package. `load(Sources(...))` gives settings, origins and warnings or raises ConfigError; it reads no
global state, so a test names its environment. Nothing here prints, logs or starts anything.
"""

from payflow.config.kinds import MASK, Secret
from payflow.config.layers import Flag, Layer, Origin, Problem, Sources
from payflow.config.loader import ConfigError, Loaded, Value, load
from payflow.config.reference import default_toml, reference_markdown
from payflow.config.sections import (
    BREAKERS,
    ROLES,
    BreakerSettings,
    HeartbeatSettings,
    HttpSettings,
    KafkaSettings,
    LedgerSettings,
    LogSettings,
    ManagementSettings,
    RegistrySettings,
    Role,
    Settings,
    ShutdownSettings,
    StorageSettings,
    TelemetrySettings,
)

__all__ = [
    "BREAKERS",
    "MASK",
    "ROLES",
    "BreakerSettings",
    "ConfigError",
    "Flag",
    "HeartbeatSettings",
    "HttpSettings",
    "KafkaSettings",
    "Layer",
    "LedgerSettings",
    "Loaded",
    "LogSettings",
    "ManagementSettings",
    "Origin",
    "Problem",
    "RegistrySettings",
    "Role",
    "Secret",
    "Settings",
    "ShutdownSettings",
    "Sources",
    "StorageSettings",
    "TelemetrySettings",
    "Value",
    "default_toml",
    "load",
    "reference_markdown",
]

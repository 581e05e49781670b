"""Forms of text: host, server list, URL, Kafka name. Each reader returns the normal form or raises ValueError."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

EMBEDDED: Final = "embedded"
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9])?", re.ASCII)
_KAFKA_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}", re.ASCII)


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_host(text: str) -> str:
    """A host name or an IP address, without a port."""
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        if _HOST.fullmatch(text):
            return text
        raise


def read_loopback(text: str) -> str:
    """A host that only this machine reaches."""
    host = read_host(text)
    if not is_loopback(host):
        raise ValueError(text)
    return host


def read_servers(text: str) -> str:
    """`embedded`, or host:port pairs separated by commas."""
    if text == EMBEDDED:
        return text
    return ",".join(_server(part.strip()) for part in text.split(","))


def read_registry_url(text: str) -> str:
    """Empty, or an http(s) URL; the closing slash is added where it is missing."""
    if not text:
        return text
    parts = urlsplit(text)
    whole = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    if not whole or parts.port == 0:  # reading the port raises ValueError when it is no port
        raise ValueError(text)
    return text if text.endswith("/") else text + "/"


def read_kafka_name(text: str) -> str:
    """What Kafka takes as the name of a topic; we hold group and client names to the same form."""
    if not _KAFKA_NAME.fullmatch(text) or text in (".", ".."):
        raise ValueError(text)
    return text


def _server(text: str) -> str:
    host, separator, port = text.rpartition(":")
    bracketed = host.startswith("[") == host.endswith("]") == (":" in host)
    if not separator or not bracketed or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65_535:
        raise ValueError(text)
    read_host(host)
    return text

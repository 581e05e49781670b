"""What a value may be: a kind stands in a field's annotation, reads that key's value from any layer and writes it back.

`parse` takes what a layer holds: a TOML value, or text (environment, secrets files, flags) when `text` is true. It
raises ValueError with the rest of the sentence "<key> ...", which never repeats a secret. `render` writes a value in
the syntax that TOML and JSON share.
"""

from __future__ import annotations

import hmac
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from payflow.config.units import parse_duration, parse_size, render_duration, render_size

MASK: Final = "********"
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})
_LONGEST_ECHO: Final = 60
# Longer than any timer of ours; keeps arithmetic in microseconds far from the end of 63 bits.
LONGEST_S: Final = 3650 * 86_400.0


class Secret:
    """Text that does not show itself in logs, tracebacks or `repr`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def matches(self, candidate: str) -> bool:
        """Compare in constant time."""
        return hmac.compare_digest(self._value.encode(), candidate.encode("utf-8", "surrogateescape"))

    def reveal(self) -> str:
        """Return the text itself; the caller keeps it out of logs."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return f"Secret({MASK})"


def show(raw: object) -> str:
    """Write a refused value for an error message, shortened."""
    match raw:
        case dict():
            return "a table"
        case bool() | str() | list():
            echo = json.dumps(raw, ensure_ascii=False, default=str)
        case _:
            echo = str(raw)
    return echo if len(echo) <= _LONGEST_ECHO else echo[: _LONGEST_ECHO - 3] + "..."


@dataclass(frozen=True, slots=True)
class Kind(ABC):
    """`doc` says what the key does, in sentences for the reference."""

    doc: str

    @property
    @abstractmethod
    def wanted(self) -> str:
        """What is accepted, as it follows "must be"."""

    @property
    def brief(self) -> str:
        """The same for a table of many keys."""
        return self.wanted

    @abstractmethod
    def parse(self, raw: object, *, text: bool) -> Any:
        """Return the value, or raise ValueError."""

    def render(self, value: Any) -> str:
        """Write the value as TOML."""
        return json.dumps(value, ensure_ascii=False)

    def refuse(self, raw: object) -> ValueError:
        """Build the error for a value of the wrong form."""
        return ValueError(f"must be {self.wanted}, not {show(raw)}")


@dataclass(frozen=True, slots=True)
class Flag(Kind):
    """true or false; as text also yes/no, on/off, 1/0."""

    @property
    def wanted(self) -> str:
        return "true or false"

    def parse(self, raw: object, *, text: bool) -> bool:
        if isinstance(raw, bool):
            return raw
        word = raw.strip().lower() if text and isinstance(raw, str) else ""
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise self.refuse(raw)


@dataclass(frozen=True, slots=True)
class Integer(Kind):
    """A whole number within bounds, both included."""

    least: int = field(kw_only=True)
    most: int = field(kw_only=True)

    @property
    def wanted(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    @property
    def brief(self) -> str:
        return f"{self.least} to {self.most}"

    def parse(self, raw: object, *, text: bool) -> int:
        value = raw
        if text and isinstance(raw, str):
            try:
                value = int(raw)
            except ValueError:
                raise self.refuse(raw) from None
        if isinstance(value, bool) or not isinstance(value, int) or not self.least <= value <= self.most:
            raise self.refuse(raw)
        return value


@dataclass(frozen=True, slots=True)
class Percent(Kind):
    """A share of a hundred; zero is refused because a limit of zero is always reached."""

    @property
    def wanted(self) -> str:
        return "a percentage above 0 and at most 100"

    @property
    def brief(self) -> str:
        return "percentage, above 0 to 100"

    def parse(self, raw: object, *, text: bool) -> float:
        value = raw
        if text and isinstance(raw, str):
            try:
                value = float(raw.strip().removesuffix("%"))
            except ValueError:
                raise self.refuse(raw) from None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
            raise self.refuse(raw)
        return float(value)

    def render(self, value: Any) -> str:
        return str(int(value)) if value == int(value) else repr(value)


@dataclass(frozen=True, slots=True)
class Duration(Kind):
    """A time with its unit, kept as seconds. `least_s` is included."""

    least_s: float = field(default=0.001, kw_only=True)

    @property
    def wanted(self) -> str:
        return f'a duration of at least {render_duration(self.least_s)} with its unit, such as "30s", "500ms" or "72h"'

    @property
    def brief(self) -> str:
        return f"duration, at least {render_duration(self.least_s)}"

    def parse(self, raw: object, *, text: bool) -> float:
        if not isinstance(raw, str):
            raise self.refuse(raw)
        try:
            value = parse_duration(raw)
        except ValueError:
            raise self.refuse(raw) from None
        if value < self.least_s:
            raise self.refuse(raw)
        if value > LONGEST_S:
            raise ValueError(f"must be at most {render_duration(LONGEST_S)}, not {show(raw)}")
        return value

    def render(self, value: Any) -> str:
        return json.dumps(render_duration(value))


@dataclass(frozen=True, slots=True)
class DurationOrOff(Duration):
    """A duration, or "0s" for none."""

    @property
    def wanted(self) -> str:
        return f'"0s" for none, or {super(DurationOrOff, self).wanted}'

    @property
    def brief(self) -> str:
        return f"{super(DurationOrOff, self).brief}, or 0s for none"

    def parse(self, raw: object, *, text: bool) -> float:
        try:
            if isinstance(raw, str) and parse_duration(raw) == 0:
                return 0.0
        except ValueError:
            raise self.refuse(raw) from None
        return super(DurationOrOff, self).parse(raw, text=text)


@dataclass(frozen=True, slots=True)
class Size(Kind):
    """A number of bytes with its unit. Bounds are included."""

    least: int = field(kw_only=True)
    most: int = field(kw_only=True)

    @property
    def wanted(self) -> str:
        return f'a size from {render_size(self.least)} to {render_size(self.most)} with its unit, such as "64KiB"'

    @property
    def brief(self) -> str:
        return f"size, {render_size(self.least)} to {render_size(self.most)}"

    def parse(self, raw: object, *, text: bool) -> int:
        try:
            value = parse_size(raw) if isinstance(raw, str) else -1
        except ValueError:
            value = -1
        if not self.least <= value <= self.most:
            raise self.refuse(raw)
        return value

    def render(self, value: Any) -> str:
        return json.dumps(render_size(value))


@dataclass(frozen=True, slots=True)
class Choice(Kind):
    """One word of a few."""

    options: tuple[str, ...] = field(kw_only=True)

    @property
    def wanted(self) -> str:
        return "one of " + ", ".join(self.options)

    def parse(self, raw: object, *, text: bool) -> str:
        if isinstance(raw, str) and raw.strip().lower() in self.options:
            return raw.strip().lower()
        raise self.refuse(raw)


@dataclass(frozen=True, slots=True)
class Several(Kind):
    """One or more of a few words, kept in the order of `options`; as text separated by commas."""

    options: tuple[str, ...] = field(kw_only=True)

    @property
    def wanted(self) -> str:
        return "one or more of " + ", ".join(self.options)

    def parse(self, raw: object, *, text: bool) -> tuple[str, ...]:
        words = [word.strip().lower() for word in raw.split(",")] if text and isinstance(raw, str) else raw
        if not isinstance(words, list) or not words or any(word not in self.options for word in words):
            raise self.refuse(raw)
        return tuple(option for option in self.options if option in words)

    def render(self, value: Any) -> str:
        return json.dumps(list(value))


@dataclass(frozen=True, slots=True)
class Text(Kind):
    """Text of a certain form. `read` returns it in its normal form or raises ValueError."""

    form: str = field(kw_only=True)
    read: Callable[[str], str] = field(kw_only=True)

    @property
    def wanted(self) -> str:
        return self.form

    def parse(self, raw: object, *, text: bool) -> str:
        if not isinstance(raw, str):
            raise self.refuse(raw)
        try:
            return self.read(raw.strip())
        except ValueError:
            raise self.refuse(raw) from None


@dataclass(frozen=True, slots=True)
class Directory(Kind):
    """A path; whether it is there is found out by who uses it."""

    @property
    def wanted(self) -> str:
        return "the path of a directory"

    def parse(self, raw: object, *, text: bool) -> Path:
        if not isinstance(raw, str) or not raw.strip() or "\0" in raw:
            raise self.refuse(raw)
        return Path(raw)

    def render(self, value: Any) -> str:
        return json.dumps(str(value), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class SecretText(Kind):
    """Text that no output repeats."""

    @property
    def wanted(self) -> str:
        return "text that is not empty"

    def parse(self, raw: object, *, text: bool) -> Secret:
        if not isinstance(raw, str) or not raw.strip():
            raise ValueError(f"must be {self.wanted}")
        return Secret(raw.strip())

    def render(self, value: Any) -> str:
        return json.dumps(MASK)

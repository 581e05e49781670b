"""What happened, in order: faults, calls over every port, words of the runtime, what clients saw.

Lines hold numbers and words that come from the seed, never addresses or hashes, so two runs of a seed are compared by
their digest. Nothing is formatted until somebody reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

# Stacks and tracebacks name lines of the source: of no use in a comparison, and long.
LEFT_OUT = frozenset({"stack", "traceback"})
SHOWN_EVENTS = 100


class History:
    """`note` while it runs; `tail`, `lines` and `digest` afterwards."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._events: list[tuple[float, str, dict[str, Any]]] = []

    def __len__(self) -> int:
        return len(self._events)

    def note(self, event: str, /, **fields: Any) -> None:
        """One more event, now."""
        self._events.append((self._now(), event, fields))

    def lines(self, first: int = 0) -> Iterator[str]:
        """From the event with that number on."""
        for number, (at, event, fields) in enumerate(self._events[first:], start=first):
            words = " ".join(f"{name}={_word(value)}" for name, value in fields.items() if name not in LEFT_OUT)
            yield f"{number:6} {at:10.4f}  {event:<26} {words}".rstrip()

    def tail(self) -> str:
        """The last hundred events."""
        return "\n".join(self.lines(max(0, len(self._events) - SHOWN_EVENTS)))

    def digest(self) -> str:
        """Equal for two runs exactly when every event was the same, at the same time."""
        return hashlib.sha256("\n".join(self.lines()).encode()).hexdigest()[:16]


def _word(value: Any) -> str:
    match value:
        case bytes():
            return value.hex()[-6:]
        case float():
            return f"{value:.4f}"
        case dict():
            return "{" + ",".join(f"{_word(key)}:{_word(value[key])}" for key in sorted(value)) + "}"
        case list() | tuple():
            return "[" + ",".join(map(_word, value)) + "]"
        case _:
            return str(value)

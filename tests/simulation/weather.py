"""What the world is like at the moment: how likely each fault is, and how slow things are.

Episodes add to it and take back what they added; of several at once the worst counts. Names of chances and amounts are
those the ports ask for.
"""

from __future__ import annotations

from collections.abc import Callable


class Weather:
    """Fair until somebody adds to it."""

    def __init__(self) -> None:
        self._now: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """From now on."""
        self._now.setdefault(name, []).append(value)

    def take_back(self, name: str, value: float) -> None:
        """What an episode added ends; nothing when all has been cleared meanwhile."""
        if value in self._now.get(name, []):
            self._now[name].remove(value)

    def clear(self) -> None:
        """Fair again."""
        self._now.clear()

    def amount(self, name: str) -> float:
        """The worst of what was added, 0 when nothing was."""
        values = self._now.get(name)
        return max(values) if values else 0.0

    def happens(self, name: str, draw: Callable[[], float]) -> bool:
        """Whether it happens this time. No draw is used up by what cannot happen."""
        chance = self.amount(name)
        return chance > 0 and draw() < chance

    def down(self, partitions: int) -> tuple[int, ...]:
        """Partitions without a leader."""
        return tuple(int(value) % partitions for value in self._now.get("partition_down", ()))

"""The gauges actor: reads the slow figures for metrics and health every few seconds, on connections of its own.

It lives under a supervisor of its own; whatever happens to it never counts against the pipeline.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from payflow.actor import Actor
from payflow.core.outbox import Backlog
from payflow.messages import Tick
from payflow.ports import LedgerReader, OutboxReader

INTERVAL_S: Final = 2.0
# The databases are made by actors that start after this one.
FIRST_READ_S: Final = 1.0
READ: Final = "read"


@dataclass(slots=True)
class Gauges:
    """The last readings; None until the first."""

    backlog: Backlog | None = None
    held_events: int = 0
    held_since_us: int | None = None
    free_bytes: int | None = None
    failed: dict[str, str] = field(default_factory=dict)


class GaugeReader(Actor):
    """Handles its own tick."""

    def __init__(
        self, gauges: Gauges, *, outbox: OutboxReader | None, ledger: LedgerReader | None, data_dir: Path
    ) -> None:
        self._gauges = gauges
        self._outbox = outbox
        self._ledger = ledger
        self._data_dir = data_dir
        self._open: set[str] = set()

    async def on_start(self, stack: AsyncExitStack) -> None:
        """The databases may not be there yet: they are opened at the first tick that finds them."""
        for reader in (self._outbox, self._ledger):
            if reader is not None:
                stack.push_async_callback(reader.close)
        self.ctx.tell_later(FIRST_READ_S, Tick(READ))

    async def handle(self, message: Tick) -> None:
        """Read everything once; what fails keeps its last reading and is named."""
        self.ctx.tell_later(INTERVAL_S, Tick(READ))
        if self._outbox is not None:
            await self._attempt("outbox", self._outbox.open, self._read_outbox)
        if self._ledger is not None:
            await self._attempt("ledger", self._ledger.open, self._read_ledger)
        try:
            self._gauges.free_bytes = shutil.disk_usage(self._data_dir).free
        except OSError as error:
            self._gauges.free_bytes = None
            self._gauges.failed["disk"] = str(error)
        else:
            self._gauges.failed.pop("disk", None)

    async def _attempt(
        self, name: str, opens: Callable[[], Awaitable[None]], reads: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            if name not in self._open:
                await opens()
                self._open.add(name)
            await reads()
        except Exception as error:  # noqa: BLE001 - whatever happens here must not count against the pipeline
            if name not in self._gauges.failed:
                self.ctx.emit("gauges.failed", reading=name, error=f"{type(error).__name__}: {error}")
            self._gauges.failed[name] = str(error)
        else:
            self._gauges.failed.pop(name, None)

    async def _read_outbox(self) -> None:
        assert self._outbox is not None
        self._gauges.backlog = await self._outbox.backlog()

    async def _read_ledger(self) -> None:
        assert self._ledger is not None
        self._gauges.held_events, self._gauges.held_since_us = await self._ledger.held()

"""One producer at a time, and the old one gone before the next is opened. A part of the publisher."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from payflow.errors import BrokerUnavailable
from payflow.ports import EventLog, LogInfo

DISCARD_TIMEOUT_S: Final = 2.0


class Producers:
    """`current` is opening or open; None while there is none."""

    def __init__(self, open_log: Callable[[str, str | None], EventLog], *, timeout_s: float) -> None:
        self._open_log = open_log
        self._timeout_s = timeout_s
        self._retired: list[EventLog] = []
        self._discarding = asyncio.Lock()
        self.current: EventLog | None = None

    def make(self, bootstrap: str, broker_id: str | None) -> EventLog:
        """A new one, to be opened."""
        assert self.current is None
        self.current = self._open_log(bootstrap, broker_id)
        return self.current

    def retire(self) -> bool:
        """Give the current one up; whether there was one. It is discarded before another opens."""
        if self.current is None:
            return False
        self._retired.append(self.current)
        self.current = None
        return True

    async def open(self, log: EventLog) -> LogInfo | None:
        """Connect `log`; None when it was retired meanwhile. Raises what EventLog.open raises, and then it is gone."""
        await self._discard_retired()
        if self.current is not log:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                info = await log.open()
        except Exception as error:
            await log.discard(timeout_s=DISCARD_TIMEOUT_S)
            if self.current is not log:
                return None
            self.current = None
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable(f"no answer within {self._timeout_s:g} s") from error
            raise
        if self.current is not log:
            await log.discard(timeout_s=DISCARD_TIMEOUT_S)
            return None
        return info

    async def close(self) -> None:
        """Discard everything."""
        self.retire()
        await self._discard_retired()

    async def _discard_retired(self) -> None:
        """Whoever began to discard one, nobody goes on before it is gone."""
        async with self._discarding:
            while self._retired:
                await self._retired[0].discard(timeout_s=DISCARD_TIMEOUT_S)
                del self._retired[0]

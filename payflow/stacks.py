"""Where a waiting task is: the chain of coroutines, own frames only, no local variables."""

from __future__ import annotations

import asyncio
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final

_FOREIGN: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_OWN: Final = str(Path(__file__).parent)  # own even where it is installed among the foreign ones
# Every actor has these at the bottom; they say nothing.
_RUNTIME: Final = str(Path(__file__).with_name("instance.py"))


@dataclass(frozen=True, slots=True)
class Frame:
    """One place in the code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


def coroutine_stack(task: asyncio.Task[Any]) -> tuple[Frame, ...]:
    """Return the chain from the handler to where it waits, innermost last."""
    return tuple(
        Frame(code.co_filename, frame.f_lineno, code.co_qualname)
        for code, frame in _chain(task.get_coro())
        if _is_own(code.co_filename)
    )


def _is_own(file: str) -> bool:
    return file != _RUNTIME and (file.startswith(_OWN) or not file.startswith(_FOREIGN))


def _chain(awaited: Any) -> Iterator[tuple[CodeType, FrameType]]:
    while awaited is not None:
        frame: FrameType | None
        match awaited:
            case CoroutineType():
                code, frame, awaited = awaited.cr_code, awaited.cr_frame, awaited.cr_await
            case GeneratorType():
                code, frame, awaited = awaited.gi_code, awaited.gi_frame, awaited.gi_yieldfrom
            case _:  # a future, or something written in C: the end of what can be followed
                return
        if frame is None:  # finished
            return
        yield code, frame

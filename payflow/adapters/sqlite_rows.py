"""Statements for many rows at once, and lists of parameters. Shared by the outbox and the ledger; knows no table."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any, Final


def marks(count: int, one: str = "?") -> str:
    """`count` placeholders."""
    return ", ".join([one] * count)


class Many:
    """A statement for many rows: one step, and one turn of the GIL, for up to 64 of them. A turn costs the writer more
    than a row does while the loop's thread wants the GIL, too.

    `template` has `{}` where the rows stand. Lengths are powers of two: few statements, all of them kept prepared.
    """

    LENGTHS: Final = (64, 32, 16, 8, 4, 2, 1)

    def __init__(self, template: str, row: str) -> None:
        self._statements = {length: template.format(marks(length, row)) for length in self.LENGTHS}

    def run(self, connection: sqlite3.Connection, rows: Sequence[Sequence[Any]], *first: Any) -> int:
        """Run it for `rows` in order; `first` are the parameters before them. Returns how many rows were changed."""
        start = changed = 0
        for length, statement in self._statements.items():
            while len(rows) - start >= length:
                part = rows[start : start + length]
                changed += connection.execute(statement, [*first, *chain.from_iterable(part)]).rowcount
                start += length
        return changed


def insert_many(table: str, columns: str) -> Many:
    """OR ROLLBACK, because a rejected row ends the whole transaction anyway: without it SQLite copies every page that
    such a statement touches, so as to be able to undo it alone, and the gain becomes a loss.
    """
    row = f"({marks(columns.count(',') + 1)})"
    return Many(f"INSERT OR ROLLBACK INTO {table} ({columns}) VALUES {{}}", row)

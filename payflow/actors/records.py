"""What fetched records say: events or poison, and how far they take the positions. A part of the consumer, pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from payflow.actors.dead_letters import Poison
from payflow.core.ledger import Delivery
from payflow.errors import UndecodableEvent
from payflow.ports import Record
from payflow.wire import decode_event

UNDECODABLE: Final = "undecodable"


def sort_out(records: Sequence[Record]) -> tuple[list[Delivery], list[Poison]]:
    """Decode; what cannot be decoded is poison."""
    deliveries: list[Delivery] = []
    poison: list[Poison] = []
    for record in records:
        try:
            event = decode_event(record.value, record.headers)
        except UndecodableEvent as error:
            poison.append(Poison(record, UNDECODABLE, error.reason))
        else:
            deliveries.append(Delivery(record.partition, record.offset, event, record.value or b""))
    return deliveries, poison


def positions_after(records: Sequence[Record], *, poison: Sequence[Poison] = ()) -> dict[int, int]:
    """Next offset a partition after these records, but not beyond the first poison of a partition."""
    stops = {p.record.partition: p.record.offset for p in reversed(poison)}
    positions = {record.partition: record.offset + 1 for record in records}
    return {partition: min(offset, stops.get(partition, offset)) for partition, offset in positions.items()}

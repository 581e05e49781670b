"""`payflow dlq`: records that no retry can book, read from the dead-letter topic of a real cluster. Reads only."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import click

from payflow.adapters.kafka_consumer import KafkaRecordSource
from payflow.cli.config import configuration_options, load_or_exit
from payflow.cli.output import Misused, json_option, print_json, refusals
from payflow.config import Settings
from payflow.errors import BrokerUnavailable, DependencyUnavailable, LaneUnavailable, OffsetOutOfRange
from payflow.ports import Record
from payflow.wire import time_text

EMBEDDED: Final = "embedded"
REQUEST_TIMEOUT_S: Final = 5.0
FETCH_RECORDS: Final = 500
FETCH_TIMEOUT_S: Final = 1.0
# A broker that says where the log ends and then gives nothing: so many empty fetches are too many.
EMPTY_FETCHES: Final = 10


@dataclass(frozen=True, slots=True)
class Place:
    """A record's place, as `list` prints it."""

    partition: int
    offset: int


class _PlaceType(click.ParamType[Place]):
    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Place:
        partition, _, offset = str(value).partition(":")
        if not (partition.isdecimal() and offset.isdecimal()):
            self.fail(f"{value!r} is not of the form PARTITION:OFFSET, as payflow dlq list prints it", param, ctx)
        return Place(int(partition), int(offset))


@click.group(short_help="Look at records that no retry can book.")
def dlq() -> None:
    """Look at the dead-letter topic of a real cluster. Reads only; there is no command yet that feeds a record back.

    \b
    payflow dlq list
    payflow dlq show 0:17 --payload
    """


@dlq.command("list", short_help="Print dead letters, oldest first.")
@configuration_options
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@click.option("--after", metavar="PARTITION:OFFSET", type=_PlaceType(), help="Go on after this one, in its partition.")
@json_option
def list_letters(*, limit: int, after: Place | None, as_json: bool, **flags: Any) -> None:
    """Print dead letters, oldest first in each partition: their place, reason, and where they came from.

    \b
    payflow dlq list
    payflow dlq list --limit 1000 --json | jq '.items[].reason'
    payflow dlq list --after 0:49
    """
    settings = load_or_exit(**flags).settings
    start = {} if after is None else {after.partition: after.offset + 1}
    with refusals():
        items = [_plain(letter) for letter in asyncio.run(_read(settings, start, limit))]
    if as_json:
        print_json({"topic": settings.kafka.dead_letter_topic, "items": items})
        return
    for item in items:
        where = f"from {item['source'] or '-'}  key {item['key'] or '-'}"
        click.echo(f"{item['place']:>10}  {item['at']}  {item['reason']}  {where}")
    if not items:
        click.echo(f"no dead letters in {settings.kafka.dead_letter_topic}", err=True)


@dlq.command(short_help="Print all that is known of a dead letter.")
@configuration_options
@click.argument("place", metavar="PARTITION:OFFSET", type=_PlaceType())
@click.option("--payload", is_flag=True, help="Also print the record's value, which may hold anything.")
@json_option
def show(*, place: Place, payload: bool, as_json: bool, **flags: Any) -> None:
    """Print headers, key and size of the dead letter at PARTITION:OFFSET.

    \b
    payflow dlq show 0:17
    payflow dlq show 0:17 --payload --json | jq -r .value
    """
    settings = load_or_exit(**flags).settings
    with refusals():
        found = asyncio.run(_read(settings, {place.partition: place.offset}, 1, only=place))
        if not found:
            raise Misused(f"there is no dead letter at {place.partition}:{place.offset}")
    (letter,) = found
    shown = _plain(letter) | {"headers": {name: _text(value) for name, value in letter.headers}}
    if payload:
        shown["value"] = _text(letter.value)
    if as_json:
        print_json(shown)
        return
    for name, value in shown.items():
        click.echo(f"{name:12} {json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value}")


# ------------------------------------------------------------------ reading
async def _read(settings: Settings, start: dict[int, int], limit: int, *, only: Place | None = None) -> list[Record]:
    """From `start`, else from the beginning, to the ends as they were found; at most `limit`, in order of place."""
    async with _opened(settings) as source:
        bounds = await source.bounds()
        strangers = sorted(start.keys() - bounds.keys())
        if strangers:
            raise Misused(f"{settings.kafka.dead_letter_topic} has no partition {strangers[0]}")
        left = {partition for partition, (begin, end) in bounds.items() if max(begin, start.get(partition, 0)) < end}
        left &= set(bounds) if only is None else {only.partition}
        found: list[Record] = []
        await source.seek({p: min(max(offset, bounds[p][0]), bounds[p][1]) for p, offset in start.items()})
        empty = 0
        while left and len(found) < limit and empty < EMPTY_FETCHES:
            records = await source.fetch(max_records=FETCH_RECORDS, timeout_s=FETCH_TIMEOUT_S)
            empty = 0 if records else empty + 1
            for record in records:
                if only is None or (record.partition, record.offset) == (only.partition, only.offset):
                    found.append(record)
                if record.offset >= bounds[record.partition][1] - 1:
                    left.discard(record.partition)
        return sorted(found[:limit], key=lambda record: (record.partition, record.offset))


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[KafkaRecordSource]:
    kafka = settings.kafka
    if kafka.bootstrap_servers == EMBEDDED:
        raise DependencyUnavailable(
            "the embedded broker keeps dead letters in its memory only; consumer.dead_lettered in the log has them"
        )
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # what goes wrong is told in one sentence
    source = KafkaRecordSource(
        kafka.bootstrap_servers,
        topic=kafka.dead_letter_topic,
        group_id="payflow-dlq",
        client_id="payflow-dlq",
        request_timeout_s=REQUEST_TIMEOUT_S,
    )
    try:
        await source.open()
        yield source
    except (BrokerUnavailable, LaneUnavailable, OffsetOutOfRange) as error:
        why = " ".join(str(error).split())
        raise DependencyUnavailable(f"{kafka.dead_letter_topic} cannot be read: {why}") from error
    finally:
        await source.close(timeout_s=1.0)


# ------------------------------------------------------------------ values
def _plain(letter: Record) -> dict[str, Any]:
    headers = {name: _text(value) for name, value in letter.headers}
    source = [headers.get(f"payflow_source_{part}") for part in ("topic", "partition", "offset")]
    return {
        "place": f"{letter.partition}:{letter.offset}",
        "at": time_text(letter.timestamp_ms * 1000),
        "reason": headers.get("payflow_reason"),
        "source": None if None in source else ":".join(map(str, source)),
        "key": _text(letter.key),
        "value_bytes": len(letter.value or b""),
    }


def _text(value: bytes | None) -> str | None:
    """Bytes of a stranger: what is no text, or would move the cursor, is escaped."""
    if value is None:
        return None
    text = value.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")

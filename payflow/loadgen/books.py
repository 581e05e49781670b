"""The books, read over the API after a run: accepted == published == booked, none twice, versions in order.

Three readings that have to agree with the generator's own log: the list of payments of its merchants (what is stored
and was never accepted would show here), each payment with its timeline, and the ledger with entries and balances.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final

import msgspec

from payflow.loadgen.traffic import Life, Shown, Traffic, is_unknown
from payflow.loadgen.values import Answer, Target

READERS: Final = 16
PAGE: Final = "100"
POLL_S: Final = 0.2
EXAMPLES: Final = 5
MOVING: Final = frozenset({"payment.captured", "payment.refunded"})


class Event(msgspec.Struct, frozen=True):
    """One step of a timeline."""

    id: str
    type: str
    amount: int
    outbox: str
    partition: int | None
    offset: int | None
    booked_at: str | None


class Timeline(Shown, frozen=True):
    """GET /payments/{id}."""

    events: list[Event]


class Entry(msgspec.Struct, frozen=True):
    """One entry of the ledger."""

    event_id: str


class Entries(msgspec.Struct, frozen=True):
    """GET /ledger/payments/{id}."""

    entries: list[Entry]


class Page(msgspec.Struct, frozen=True):
    """GET /payments, and GET /ledger/accounts."""

    items: list[dict[str, Any]]
    next_cursor: str | None


@dataclass(slots=True)
class Books:
    """What was found. `differences` counts by kind, `examples` names a few of each."""

    accepted: int = 0
    published: int = 0
    booked: int = 0
    twice: int = 0
    payments: int = 0
    unknown: int = 0
    settled: int = 0
    replayed: int = 0
    reachable: bool = True
    order_by: str = "offset"
    took_s: float = 0.0
    differences: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether everything agrees."""
        return self.reachable and not self.differences and self.accepted == self.published == self.booked

    def differ(self, kind: str, what: str) -> None:
        """Note one difference."""
        self.differences[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(what)

    def document(self) -> dict[str, Any]:
        """For the report."""
        return {"right": self.right, **asdict(self), "differences": dict(self.differences)}


class Auditor:
    """Reads until everything is published and booked or the deadline has passed."""

    def __init__(
        self, target: Target, traffic: Traffic, *, timeout_s: float, same_broker: bool, tell: Callable[[int, int], None]
    ) -> None:
        self.books = Books(order_by="offset" if same_broker else "not checked: the broker was replaced")
        self._target = target
        self._traffic = traffic
        self._deadline = time.perf_counter() + timeout_s
        self._same_broker = same_broker
        self._tell = tell
        self._seen: set[str] = set()
        self._done = 0
        self._left: deque[tuple[str, Life]] = deque()
        self._timeline = msgspec.json.Decoder(Timeline).decode
        self._entries = msgspec.json.Decoder(Entries).decode
        self._page = msgspec.json.Decoder(Page).decode

    async def audit(self) -> Books:
        """Everything, in the order in which one reading needs the other."""
        began_at = time.perf_counter()
        await self._settle_unknown()
        books, traffic = self.books, self._traffic
        books.accepted, books.payments, books.replayed = traffic.accepted, len(traffic.lives), traffic.replays
        for key in traffic.wrong_replays:
            books.differ("replay", f"the answer to the duplicate of {key} is not the first one, byte for byte")
        for key in traffic.unreadable:
            books.differ("unreadable", f"the answer to {key} is no payment")
        self._left.extend(traffic.lives.items())
        async with asyncio.TaskGroup() as group:
            for _ in range(READERS):
                group.create_task(self._read_timelines())
        if books.reachable:
            await self._compare_list()
            await self._compare_balances()
        books.took_s = round(time.perf_counter() - began_at, 3)
        return books

    # -------------------------------------------------------------- requests nobody knows the outcome of
    async def _settle_unknown(self) -> None:
        """The same key tells what happened, or does it now."""
        waiting = deque(self._traffic.unknown)
        self.books.unknown = len(waiting)
        self._traffic.unknown.clear()
        while waiting:
            request = waiting.popleft()
            answer = await self._patiently(lambda r=request: self._target.post(r.path, r.body, r.key))  # type: ignore[misc]
            if answer is None:
                self.books.differ("unknown", f"nobody says what became of {request.key}")
            else:
                self._traffic.answered(request, answer)
                self.books.settled += 1

    async def _patiently(self, ask: Callable[[], Any]) -> Answer | None:
        """Ask until there is an answer that means something, or the deadline has passed."""
        while True:
            answer: Answer = await ask()
            if answer.status and answer.status not in {429, 503} and not is_unknown(answer):
                return answer
            if time.perf_counter() >= self._deadline:
                self.books.reachable &= bool(answer.status)
                return None
            await asyncio.sleep(POLL_S)

    # -------------------------------------------------------------- payment by payment
    async def _read_timelines(self) -> None:
        while self._left and self.books.reachable:
            payment_id, life = self._left.popleft()
            await self._read_timeline(payment_id, life)
            self._done += 1
            self._tell(self._done, self.books.payments)

    async def _read_timeline(self, payment_id: str, life: Life) -> None:
        while True:
            answer = await self._patiently(lambda: self._target.get(f"/payments/{payment_id}"))
            if answer is None or answer.status != 200:
                return self.books.differ("missing", f"{payment_id}: {answer.label() if answer else 'no answer'}")
            found = self._timeline(answer.body)
            finished = all(event.outbox == "published" and event.booked_at for event in found.events)
            if finished or time.perf_counter() >= self._deadline:
                return await self._compare(life, found)
            await asyncio.sleep(POLL_S)

    async def _compare(self, life: Life, found: Timeline) -> None:
        books, events = self.books, found.events
        entries = await self._entries_of(found.id, events)
        moving = [event.id for event in events if event.type in MOVING]
        if entries is not None and entries != moving:
            books.differ("entries", f"{found.id} has the entries {entries}, not {moving}")
        books.twice += sum(event.id in self._seen for event in events) + len(entries or ()) - len(set(entries or ()))
        self._seen.update(event.id for event in events)
        books.published += sum(event.outbox == "published" for event in events)
        books.booked += sum(event.booked_at is not None for event in events)
        for event in events:
            if event.outbox != "published":
                books.differ("not_published", f"{event.type} {event.id} of {found.id} is {event.outbox}")
            elif event.booked_at is None:
                books.differ("not_booked", f"{event.type} {event.id} of {found.id}")
        if found.version != len(events) or [event.type for event in events] != life.events:
            books.differ("versions", f"{found.id}: {[event.type for event in events]}, asked for {life.events}")
        if life.shown is not None and msgspec.structs.asdict(life.shown) != _without_events(found):
            books.differ("state", f"{found.id} is not what its last answer said")
        if self._same_broker and not _is_in_order(events):
            books.differ("order", f"{found.id}: {[(event.partition, event.offset) for event in events]}")

    async def _entries_of(self, payment_id: str, events: list[Event]) -> list[str] | None:
        if len(events) == 1:  # an authorization alone moves nothing; the balances would show it
            return None
        answer = await self._patiently(lambda: self._target.get(f"/ledger/payments/{payment_id}"))
        if answer is None or answer.status != 200:
            self.books.differ("ledger", f"{payment_id}: {answer.label() if answer else 'no answer'}")
            return None
        return [entry.event_id for entry in self._entries(answer.body).entries]

    # -------------------------------------------------------------- lists and balances
    async def _pages(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        cursor: str | None = ""
        while cursor is not None:
            asked = {**query, "limit": PAGE, **({"cursor": cursor} if cursor else {})}
            answer = await self._patiently(lambda asked=asked: self._target.get(path, asked))  # type: ignore[misc]
            if answer is None or answer.status != 200:
                self.books.differ("unreadable", f"{path}: {answer.label() if answer else 'no answer'}")
                return
            page = self._page(answer.body)
            for item in page.items:
                yield item
            cursor = page.next_cursor

    async def _compare_list(self) -> None:
        stored: Counter[str] = Counter()
        for merchant in self._traffic.merchants:
            async for item in self._pages("/payments", merchant_id=merchant):
                stored[item["id"]] += 1
        for payment_id in stored.keys() - self._traffic.lives.keys():
            self.books.differ("never_accepted", f"{payment_id} is stored, and nobody was told so")
        for payment_id in self._traffic.lives.keys() - stored.keys():
            self.books.differ("not_listed", payment_id)

    async def _compare_balances(self) -> None:
        """A booking of another's payment, or a second one, moves a balance."""
        expected: Counter[str] = Counter()
        for life in self._traffic.lives.values():
            assert life.shown is not None
            expected[f"merchant_payable:{life.merchant}"] += life.shown.captured_amount - life.shown.refunded_amount
        names = {f"merchant_payable:{merchant}" for merchant in self._traffic.merchants}
        found: Counter[str] = Counter()
        async for item in self._pages("/ledger/accounts"):
            if item["account"] in names:
                found[item["account"]] += item["credit"] - item["debit"]
        for name in names:
            if found[name] != expected[name]:
                self.books.differ("balance", f"{name} is {found[name]}, not {expected[name]}")
        answer = await self._patiently(lambda: self._target.get("/ledger/trial-balance"))
        currencies = msgspec.json.decode(answer.body)["currencies"] if answer and answer.status == 200 else []
        for line in currencies:
            if not line["balanced"]:
                self.books.differ("trial_balance", str(line))


def _without_events(found: Timeline) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(found).items() if name != "events"}


def _is_in_order(events: list[Event]) -> bool:
    """A payment has one partition, and rising offsets there."""
    places = [(event.partition, event.offset) for event in events if event.offset is not None]
    return all(before[0] == after[0] and before[1] < after[1] for before, after in pairwise(places))

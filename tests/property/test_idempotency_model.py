"""A client that repeats itself at random, in any grouping, against a model that knows each key's first answer.

The model is a dictionary: scope -> (fingerprint, answer). Payments are few and keys fewer, so that the search meets
twins in one group, twins over groups, keys with other bodies, keys on other routes and refused commands that must not
use their key. The group is folded the way a store does it, through the memory fake.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from payflow.core.idempotency import normalise_key
from payflow.core.outbox import Accepted, Outcome, Submit
from payflow.core.payment import Capture, Command, Refund, Refusal, RefusalCode, Void
from payflow.ports import PaymentQuery
from tests.fakes.outbox_memory import OutboxMemory
from tests.support.payment_writes import AT_US, CountingIds, authorize, submit

KEYS = st.sampled_from(["k-1", "k-2", "k-3", "k-4"])
VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


def _run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Drive a coroutine of the fake, which never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the fake waited")


class RepeatingClient(RuleBasedStateMachine):
    """See the head of this file."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = OutboxMemory(ids=CountingIds())
        self.first: dict[tuple[str, str], tuple[bytes, Accepted]] = {}
        self.payments: list[bytes] = []
        self.now_us = AT_US

    def commit(self, writes: list[Submit]) -> list[Outcome]:
        self.now_us += 1
        outcomes: list[Outcome] = _run(self.outbox.commit(writes, at_us=self.now_us))
        for write, outcome in zip(writes, outcomes, strict=True):
            self.check(write, outcome)
        return outcomes

    def check(self, write: Submit, outcome: Outcome) -> None:
        place = (write.route, write.key)
        known = self.first.get(place)
        if known is None:
            if isinstance(outcome, Accepted):
                assert not outcome.replayed
                self.first[place] = (write.fingerprint, outcome)
                if outcome.created:
                    self.payments.append(outcome.payment_id)
            return
        fingerprint, answer = known
        if fingerprint != write.fingerprint:
            assert Refusal(RefusalCode.KEY_REUSED) == outcome
            return
        assert isinstance(outcome, Accepted)
        assert outcome.replayed
        assert (answer.payment_id, answer.version, answer.answer, answer.created) == (
            outcome.payment_id,
            outcome.version,
            outcome.answer,
            outcome.created,
        )

    @initialize()
    def begin(self) -> None:
        self.commit([submit(authorize(100), key="begin")])

    @rule(data=st.data())
    def group(self, data: st.DataObject) -> None:
        payment_ids = st.sampled_from(self.payments)
        amounts = st.none() | st.integers(1, 120)
        commands: st.SearchStrategy[Command] = st.one_of(
            st.builds(authorize, st.integers(1, 3)),
            st.builds(Capture, payment_ids, amounts),
            st.builds(Refund, payment_ids, amounts, st.just("broken")),
            st.builds(Void, payment_ids),
        )
        requests = st.builds(lambda command, key: submit(command, key=key), commands, KEYS)
        self.commit(data.draw(st.lists(requests, min_size=1, max_size=6)))

    @invariant()
    def there_is_one_event_for_every_key_that_was_used(self) -> None:
        rows = _run(self.outbox.pending(after_seq=0, limit=10_000, max_bytes=10**9))
        assert len(self.first) == len(rows)

    @invariant()
    def there_is_one_payment_for_every_creation(self) -> None:
        assert len(self.payments) == len(_run(self.outbox.payments(PaymentQuery(limit=10_000))))


def test_a_repeating_client_gets_one_effect_and_one_answer_a_key() -> None:
    run_state_machine_as_test(
        RepeatingClient, settings=settings(max_examples=60, stateful_step_count=12, deadline=None)
    )


@given(VISIBLE)
def test_the_quoted_form_of_any_key_is_the_same_key(key: str) -> None:
    quoted = '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'

    assert key == normalise_key(quoted)
    if not key.startswith('"'):
        assert key == normalise_key(key)


@given(st.text(max_size=300))
def test_whatever_is_taken_for_a_key_is_visible_and_short(text: str) -> None:
    key = normalise_key(text)

    assert key is None or (1 <= len(key) <= 255 and all("!" <= character <= "~" for character in key))

"""The breaker against a model that keeps lists instead of counters.

Hypothesis chooses calls, outcomes, late outcomes, cancellations, waits and operator actions. The model knows the calls
of the current window and how many permits its round has used. Runs of calls, trials after the wait and waits that end
just at a deadline steer the search: from single calls alone it hardly ever reached a verdict.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from payflow.core.breaker import (
    TRANSITIONS,
    Breaker,
    BreakerConfig,
    Cause,
    Outcome,
    OutcomeKind,
    Permit,
    State,
)

SLOW_S = 5.0
OUTCOMES = st.sampled_from(
    [
        Outcome(OutcomeKind.SUCCESS, 0.1),
        Outcome(OutcomeKind.SUCCESS, SLOW_S),
        Outcome(OutcomeKind.SUCCESS, SLOW_S + 1),
        Outcome(OutcomeKind.FAILURE, 0.1),
        Outcome(OutcomeKind.FAILURE, SLOW_S + 1),
        Outcome(OutcomeKind.IGNORED, 0.1),
    ],
)
CONFIGS = st.builds(
    BreakerConfig,
    failure_rate_threshold=st.sampled_from([1.0, 50.0, 100.0]),
    slow_call_rate_threshold=st.sampled_from([50.0, 100.0]),
    sliding_window_size=st.integers(1, 5),
    minimum_number_of_calls=st.integers(1, 6),
    permitted_number_of_calls_in_half_open_state=st.integers(1, 4),
    automatic_transition_from_open_to_half_open_enabled=st.booleans(),
    max_wait_duration_in_half_open_state_s=st.sampled_from([0.0, 60.0]),
)


class BreakerModel(RuleBasedStateMachine):
    @initialize(config=CONFIGS)
    def start(self, config: BreakerConfig) -> None:
        self.config = config
        self.breaker = Breaker("model", config)
        self.now = 0.0
        self.state = State.CLOSED
        self.epoch = 0
        self.moves = 0
        self.window = 0
        self.calls: list[tuple[bool, bool]] = []
        self.used = 0
        self.out: list[tuple[Permit, int]] = []
        self.refused = 0
        self.ended = dict.fromkeys(OutcomeKind, 0)
        self.admitted = 0
        self.released = 0

    # -------------------------------------------------------------- what can happen
    @rule()
    def acquire(self) -> None:
        self.ask()

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=12))
    def calls_one_after_the_other(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if self.ask():
                self.end(len(self.out) - 1, outcome)

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=5))
    def trials_after_the_wait(self, outcomes: list[Outcome]) -> None:
        """Steer into HALF_OPEN, where the search would come too seldom by itself."""
        if self.state is State.OPEN:
            admits_at = self.breaker.admits_at(self.now)
            assert admits_at is not None
            self.now = admits_at
            assert self.ask()
            assert self.breaker.state is State.HALF_OPEN
        self.calls_one_after_the_other(outcomes)

    def ask(self) -> bool:
        answer = self.breaker.acquire(self.now)
        self.follow()
        if isinstance(answer, Permit):
            assert self.state is not State.OPEN
            self.admitted += 1
            self.used += self.state is State.HALF_OPEN
            self.out.append((answer, self.window))
            return True
        self.refused += 1
        assert self.state is not State.CLOSED
        assert self.state is State.OPEN or self.used == self.config.permitted_number_of_calls_in_half_open_state
        assert answer.retry_after_s is None or answer.retry_after_s > 0
        return False

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=OUTCOMES)
    def record(self, data: st.DataObject, outcome: Outcome) -> None:
        self.end(data.draw(st.integers(0, len(self.out) - 1)), outcome)

    def end(self, place: int, outcome: Outcome) -> None:
        permit, window = self.out.pop(place)
        self.breaker.tick(self.now)
        self.follow()
        self.ended[outcome.kind] += 1
        if window == self.window:
            if outcome.kind is OutcomeKind.IGNORED:
                self.used -= self.state is State.HALF_OPEN
            else:
                self.calls.append((outcome.kind is OutcomeKind.FAILURE, outcome.duration_s > SLOW_S))
        expected = self.verdict()

        self.breaker.record(permit, outcome, self.now)

        if window == self.window and outcome.kind is not OutcomeKind.IGNORED:
            assert self.breaker.state is expected
        else:
            assert self.breaker.state is self.state
        self.follow()

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        permit, window = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        self.breaker.release(permit)
        self.released += 1
        self.used -= self.state is State.HALF_OPEN and window == self.window
        assert self.breaker.state is self.state

    @rule(step_s=st.sampled_from([0.0, 0.5, 29.999, 30.0, 30.001, 61.0]))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @rule()
    def tick(self) -> None:
        due = self.breaker.next_due()
        self.breaker.tick(self.now)
        assert (self.breaker.epoch > self.epoch) == (due is not None and self.now >= due)
        self.follow()

    @rule()
    def tick_just_when_due(self) -> None:
        due = self.breaker.next_due()
        if due is not None:
            self.now = max(self.now, due)
            self.tick()

    @rule(to=st.sampled_from(State))
    def operate(self, to: State) -> None:
        if (self.state, to) in TRANSITIONS:
            self.breaker.transition(to, self.now, cause=Cause.OPERATOR)
            assert self.breaker.state is to
            self.follow(by_hand=True)

    # -------------------------------------------------------------- the model
    def verdict(self) -> State:
        """Where the state goes after the newest call, from the lists alone."""
        size = self.config.sliding_window_size
        if self.state is State.HALF_OPEN:
            size = self.config.permitted_number_of_calls_in_half_open_state
        last = self.visible()
        if self.state is State.OPEN or len(last) < min(self.config.minimum_number_of_calls, size):
            return self.state
        failure_rate = sum(failed for failed, _ in last) * 100 / len(last)
        slow_rate = sum(slow for _, slow in last) * 100 / len(last)
        if failure_rate >= self.config.failure_rate_threshold or slow_rate >= self.config.slow_call_rate_threshold:
            return State.OPEN
        return State.CLOSED

    def visible(self) -> list[tuple[bool, bool]]:
        return self.calls[-self.size :]

    def follow(self, *, by_hand: bool = False) -> None:
        """Every state change has its event, in order, with epochs that rise; then adopt the new state."""
        events = self.breaker.take_events()
        for event in events:
            assert event.from_state is self.state
            assert event.cause in TRANSITIONS[event.from_state, event.to_state]
            assert event.epoch > self.epoch
            self.enter(event.to_state, event.epoch)
        if by_hand and not events:
            self.enter(self.state, self.epoch + 1)
        self.moves += len(events)
        assert self.breaker.state is self.state
        assert self.breaker.epoch == self.epoch

    def enter(self, to: State, epoch: int) -> None:
        self.state, self.epoch = to, epoch
        if to is not State.OPEN:
            self.window += 1
            self.calls = []
            self.used = 0

    @property
    def size(self) -> int:
        """Return the size of the window that is shown; OPEN shows the window of the state before."""
        return self.breaker._window.size

    # -------------------------------------------------------------- what always holds
    @invariant()
    def counts_are_those_of_the_list(self) -> None:
        snapshot = self.breaker.snapshot(self.now)
        last = self.visible()
        assert snapshot.buffered_calls == len(last) <= self.size
        assert snapshot.failed_calls == sum(failed for failed, _ in last)
        assert snapshot.slow_calls == sum(slow for _, slow in last)
        assert snapshot.slow_failed_calls == sum(failed and slow for failed, slow in last)

    @invariant()
    def every_call_is_accounted_for(self) -> None:
        snapshot = self.breaker.snapshot(self.now)
        assert snapshot.calls_total == self.ended
        assert self.admitted == sum(self.ended.values()) + self.released + len(self.out)
        assert snapshot.not_permitted_total == self.refused
        assert snapshot.not_permitted_calls <= snapshot.not_permitted_total

    @invariant()
    def a_round_uses_at_most_its_permits(self) -> None:
        if self.state is State.HALF_OPEN:
            assert 0 <= self.used <= self.config.permitted_number_of_calls_in_half_open_state

    @invariant()
    def no_transition_without_an_event(self) -> None:
        snapshot = self.breaker.snapshot(self.now)
        assert sum(snapshot.transitions_total.values()) == self.moves
        assert snapshot.events_dropped_total == 0

    @invariant()
    def time_is_spent_in_exactly_one_state(self) -> None:
        spent_s = sum(self.breaker.snapshot(self.now).state_s_total.values())
        assert abs(spent_s - self.now) < 1e-6

    @invariant()
    def only_a_timed_state_has_a_deadline(self) -> None:
        automatic = self.config.automatic_transition_from_open_to_half_open_enabled
        limited = self.config.max_wait_duration_in_half_open_state_s > 0
        timed = {State.CLOSED: False, State.OPEN: automatic, State.HALF_OPEN: limited}
        assert (self.breaker.next_due() is not None) == timed[self.state]


BreakerModel.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestBreakerModel = BreakerModel.TestCase

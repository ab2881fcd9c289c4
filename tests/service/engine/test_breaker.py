"""The circuit breaker's states, on a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.breaker import CircuitBreaker
from service.engine.config import PoolLimits

LIMITS = PoolLimits(failures_to_open=3, open_seconds=1.0, max_open_seconds=8.0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def states() -> list[str]:
    return []


@pytest.fixture
def breaker(clock: Clock, states: list[str]) -> CircuitBreaker:
    return CircuitBreaker(LIMITS, clock, states.append)


def trip(breaker: CircuitBreaker) -> None:
    for _ in range(LIMITS.failures_to_open):
        breaker.sent()
        breaker.failed()


def test_it_opens_after_failures_in_a_row_only(breaker: CircuitBreaker, states: list[str]) -> None:
    for _ in range(10):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.may_send()
    trip(breaker)
    assert not breaker.may_send()
    assert breaker.blocked
    assert states == ["open"]


def test_one_probe_goes_through_and_closes_it(
    breaker: CircuitBreaker, clock: Clock, states: list[str]
) -> None:
    trip(breaker)
    clock.now += breaker.seconds_until_probe
    assert breaker.may_send()
    breaker.sent()
    assert not breaker.may_send()
    assert not breaker.blocked  # its answer may come any moment
    breaker.succeeded()
    assert breaker.may_send()
    assert states == ["open", "half_open", "closed"]


def test_back_off_doubles_up_to_its_bound(breaker: CircuitBreaker, clock: Clock) -> None:
    trip(breaker)
    for bound in (1.0, 2.0, 4.0, 8.0, 8.0, 8.0):
        assert 0.5 * bound <= breaker.seconds_until_probe <= bound
        clock.now += breaker.seconds_until_probe
        breaker.sent()
        breaker.failed()


def test_an_aborted_probe_lets_another_one_through(breaker: CircuitBreaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 1
    breaker.sent()
    breaker.withdrawn()
    assert breaker.may_send()


def test_a_first_byte_closes_it_but_a_death_in_mid_stream_opens_it_again(
    breaker: CircuitBreaker, clock: Clock, states: list[str]
) -> None:
    trip(breaker)
    clock.now += 1
    breaker.sent()
    breaker.answered()
    assert breaker.may_send()
    breaker.failed()
    assert breaker.blocked
    assert states == ["open", "half_open", "closed", "open"]


def test_reset_forgets(breaker: CircuitBreaker) -> None:
    trip(breaker)
    breaker.reset()
    assert breaker.may_send()
    breaker.failed()
    assert breaker.may_send()


EVENTS = st.lists(
    st.sampled_from(["send", "answered", "succeeded", "failed", "withdrawn", "reset", "wait"]), max_size=80
)


@given(events=EVENTS)
def test_never_a_second_probe_and_never_for_ever_shut(events: list[str]) -> None:
    clock = Clock()
    breaker = CircuitBreaker(LIMITS, clock)
    for event in events:
        if event == "wait":
            clock.now += 0.7
        elif event == "send":
            if breaker.may_send():
                breaker.sent()
        else:
            getattr(breaker, event)()
        if breaker.state == "half_open":
            assert not breaker.may_send()
        if breaker.blocked:
            assert breaker.seconds_until_probe <= LIMITS.max_open_seconds
    clock.now += LIMITS.max_open_seconds
    assert breaker.may_send() or breaker.state == "half_open"

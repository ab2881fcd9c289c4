"""The lattice of verdicts, and the order of findings."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.verdict import Action, Failure, Finding, Verdict

actions = st.sampled_from(list(Action))
findings = st.builds(
    lambda start, length, **rest: Finding(start, start + length, **rest),
    st.integers(0, 3),
    st.integers(0, 3),
    guard=st.sampled_from(["a", "b"]),
    entity_type=st.sampled_from(["X", "Y"]),
    score=st.sampled_from([0.0, 0.5, 1.0]),
    action=actions,
    replacement=st.sampled_from([None, "", "x"]),
    mask=st.booleans(),
)
failures = st.builds(Failure, st.sampled_from(["a", "b"]), st.sampled_from(["timeout", "failed"]), actions)
verdicts = st.builds(Verdict.of, st.lists(findings, max_size=4), st.lists(failures, max_size=2))


@given(verdicts, verdicts, verdicts)
def test_merging_is_a_join(a: Verdict, b: Verdict, c: Verdict) -> None:
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a
    assert a.merge(Verdict()) == a
    assert a.merge(b).action == max(a.action, b.action)
    assert a.merge(b).findings >= a.findings
    assert a.merge(b).failures >= a.failures


@given(findings, findings, findings)
def test_findings_are_totally_ordered(a: Finding, b: Finding, c: Finding) -> None:
    assert (a < b) + (b < a) + (a == b) == 1
    assert not (a < b and b < c) or a < c
    assert len({tuple(sorted(p)) for p in itertools.permutations([a, b, c])}) == 1
    if a < b:
        assert a.start <= b.start


def test_the_order_of_actions() -> None:
    assert sorted(Action) == [Action.ALLOW, Action.REDACT, Action.REWRITE, Action.ESCALATE, Action.BLOCK]
    assert [action.withholds for action in sorted(Action)] == [False, False, False, True, True]
    assert Verdict().action is Action.ALLOW


def test_a_failure_is_no_finding() -> None:
    verdict = Verdict.of(failures=[Failure("g", "timeout", Action.ALLOW)])
    assert verdict.action is Action.ALLOW
    assert verdict != Verdict()


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2)])
def test_a_span_must_be_one(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="0 <= start <= end"):
        Finding(start, end, "g", "X", 1.0)

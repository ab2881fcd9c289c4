"""Evidence over the pieces of a text: Page's sum, in the order of the text, however it came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from guardrails.classifier import Output
from guardrails.evidence import Evidence
from guardrails.guard import Context, JobError
from guardrails.in_context import Excerpt
from guardrails.remedy import Remedy
from guardrails.scoring import Judgement, ScoreGuard, Steps
from guardrails.servable import ServableSpec
from guardrails.stream import Moderator
from guardrails.verdict import Action, Finding
from guardrails.windows import Windows
from policies.severity import LevelAction
from policies.spec import EvidenceSpec, ToxicitySpec
from tests.guardrails.reference import chunks, merged, released_in_any_order
from tests.guardrails.scripted import cases

KINDS: Mapping[Action, LevelAction] = {
    Action.ALLOW: "allow", Action.REDACT: "redact", Action.BLOCK: "block",
}  # fmt: skip
RULE = EvidenceSpec(above=0.1, limit=3.0)
THRESHOLD = 0.9
CALM, ODD, WORSE, BAD = (
    f"{word} and so they went on for a while, about this and about that. "
    for word in ("So", "Hm", "Tss", "Grr")
)
SCORES = {CALM[:2]: 0.01, ODD[:2]: 0.5, WORSE[:2]: 0.8, BAD[:2]: 0.95}


@dataclass
class Scripted:
    """The servable: a piece's score is told by the words in it."""

    name: str = "scripted"
    fail_on: str = ""

    def predict(self, excerpt: Excerpt) -> Output:
        own = excerpt.text[excerpt.context :]
        if self.fail_on and self.fail_on in own:
            raise JobError("timeout")
        return Output({"x": max([0.01, *(p for word, p in SCORES.items() if word in own)])})


def judge(scores: Mapping[str, float]) -> Judgement:
    x = scores["x"]
    return Judgement(scores, {"X": x} if x >= THRESHOLD else {}, {"X": x})


def guard(action: Action, on_error: Action = Action.BLOCK, rule: EvidenceSpec | None = RULE) -> ScoreGuard:
    steps = Steps(((THRESHOLD, Remedy(KINDS[action], b"", "#")),))
    return ScoreGuard(
        "g", "segment", on_error, 1.0, steps, ServableSpec("scripted", "no:where"), judge, (), rule
    )


def expected(text: str, action: Action) -> str:
    """G(text), from the finished text's windows and the sum as it stands in the book."""
    windows, _ = Windows(Context(), whole=False).advance(text, final=True)
    spans, total = [], 0.0
    for window in windows:
        p = Scripted().predict(window.excerpt).scores["x"]
        total = max(0.0, total + math.log(p / (1 - p)) - math.log(0.1 / 0.9))
        if p >= THRESHOLD or total >= RULE.limit:
            spans.append((window.start, window.end))
        if total >= RULE.limit:
            total = 0.0
    findings = [Finding(start, end, "g", "X", 1.0, action, "#") for start, end in spans]
    return merged(text, findings, len(text))


texts = st.lists(st.sampled_from([CALM, CALM, ODD, ODD, WORSE, BAD]), max_size=7).map("".join)


@cases(600)
@given(st.data(), texts, st.sampled_from([Action.BLOCK, Action.REDACT, Action.ALLOW]))
def test_any_chunking_and_any_order_of_answers_flags_the_same(
    data: st.DataObject, text: str, action: Action
) -> None:
    moderator = Moderator([guard(action)], Context())
    states = released_in_any_order(data, moderator, chunks(data, text), [Scripted()])  # type: ignore[list-item]
    whole = expected(text, action)
    assert all(whole.startswith(state) for state in states)
    assert states[-1] == whole


def moderated(text: str, guard: ScoreGuard, servable: Scripted | None = None) -> str:
    moderator = Moderator([guard], Context())
    servable = servable or Scripted()
    for pending in reversed(moderator.feed(text, final=True)):
        result: object
        try:
            result = servable.predict(pending.job.payload)
        except JobError as error:
            result = error
        moderator.resolve(pending, result)
    return moderator.release().text


def test_what_no_piece_shows_alone() -> None:
    text = CALM + ODD + ODD + CALM
    assert moderated(text, guard(Action.BLOCK, rule=None)) == text
    assert moderated(text, guard(Action.BLOCK)) == CALM + ODD
    moderator = Moderator([guard(Action.BLOCK)], Context())
    for pending in moderator.feed(text, final=True):
        moderator.resolve(pending, Scripted().predict(pending.job.payload))
    (finding,) = moderator.verdict.findings
    assert (finding.entity_type, finding.score) == ("X", THRESHOLD)
    assert moderator.reports()[0].categories == {"x": 0.5}


def test_calm_between_takes_evidence_away() -> None:
    text = ODD + CALM + ODD + CALM + CALM + ODD
    assert moderated(text, guard(Action.BLOCK)) == text


def test_after_it_was_flagged_it_counts_from_nothing() -> None:
    assert moderated(ODD * 4, guard(Action.REDACT)) == ODD + "#" + ODD + "#"


def test_a_piece_without_an_answer_ends_the_count_and_is_on_record() -> None:
    allowing = guard(Action.BLOCK, on_error=Action.ALLOW)
    assert moderated(CALM + ODD + ODD, allowing, Scripted(fail_on="So")) == CALM + ODD + ODD
    failing = guard(Action.BLOCK)
    assert moderated(ODD + CALM + ODD, failing, Scripted(fail_on="So")) == ODD


def test_after_a_pause_what_stood_before_counts_for_nothing() -> None:
    moderator = Moderator([guard(Action.BLOCK)], Context(channel="reasoning"))

    def settle(pending: list[object]) -> None:
        for job in pending:
            moderator.resolve(job, Scripted().predict(job.job.payload))  # type: ignore[arg-type, attr-defined]

    settle([*moderator.feed(CALM + ODD), *moderator.pause()])
    assert moderator.release().text == CALM + ODD
    settle([*moderator.feed(ODD + CALM)])
    settle([*moderator.feed(ODD + ODD + CALM, final=True)])
    assert moderator.release().text == ODD + CALM + ODD


def test_labels_are_counted_apart() -> None:
    evidence = Evidence(0.1, 3.0)
    first, second = evidence.expect(0, 5, 1), evidence.expect(5, 9, 2)
    assert list(evidence.add(second, {"a": 0.5, "b": 0.01})) == []
    assert list(evidence.add(first, {"a": 0.01, "b": 0.5})) == []
    assert list(evidence.add(second, {"a": 0.8, "b": 0.3})) == [(second, "a"), (second, "b")]
    assert second.scores == {"a": 0.8, "b": 0.3}


@pytest.mark.parametrize(
    "settings",
    [{"above": 0.0, "limit": 3}, {"above": 1.0, "limit": 3}, {"above": 0.1, "limit": 0}, {"above": 0.1}],
)
def test_rules_that_mean_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        EvidenceSpec.model_validate(settings)


def test_a_document_is_one_piece() -> None:
    with pytest.raises(ValueError, match="evidence is for scope 'segment'"):
        ToxicitySpec(scope="document", evidence=RULE)

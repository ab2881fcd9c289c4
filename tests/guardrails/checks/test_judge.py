"""The judge as a guard: what it asks about which piece of a text, and what follows from the scores."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.build import GuardEnvironment, build_guards, guard_problems
from guardrails.checks import judge
from guardrails.checks.judge import CONTEXT_CHARACTERS, MAX_TURNS, PIECE_CHARACTERS, JudgeGuard
from guardrails.guard import Context, Job, JobError, Turn
from guardrails.stream import Moderator
from guardrails.verdict import Action
from policies.judge import JudgeSpec
from policies.registry import Registry
from policies.spec import PolicySpec
from tests.guardrails.reference import chunks
from tests.guardrails.scripted import cases

SERVER = {"upstream": {"base_url": "http://127.0.0.1:9/v1", "model": "guard"}}
ENVIRONMENT = GuardEnvironment(Registry("checkpoints"), b"a key")
HAZARDS = {"unsafe": 0.9, "hate": 0.9, "violent_crimes": 0.0}


def guard(**settings: Any) -> JudgeGuard:
    given = {"model": SERVER, "format": "llama_guard", **settings}
    return judge.build(JudgeSpec.model_validate(given), ENVIRONMENT)


def shown(job: Job) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in job.payload.body["messages"]]


def jobs_of(text: str, context: Context, **settings: Any) -> list[Job]:
    return list(guard(**settings).examine(context).advance(text, True).jobs)


# What is judged


def test_a_users_turn_is_judged_in_its_conversation_as_the_engine_reads_it() -> None:
    turns = (("user", "one"), ("assistant", "two"), ("user", "mail <MAIL_1>"))
    (job,) = jobs_of("mail ann@ex.org", Context("input", "user", turns=turns))
    assert shown(job) == [("user", "one"), ("assistant", "two"), ("user", "mail \u2039MAIL_1>")]
    assert (job.start, job.end) == (0, len("mail ann@ex.org"))
    (alone,) = jobs_of("hello", Context("input", "user"))
    assert shown(alone) == [("user", "hello")]


def test_a_reply_is_judged_with_what_it_answers() -> None:
    (job,) = jobs_of("Like this.", Context(prompt="How?"))
    assert shown(job) == [("user", "How?"), ("assistant", "Like this.")]
    turns = (("system", "Be kind."), ("user", "How?"), ("tool", "A page."))
    (job,) = jobs_of("Like this.", Context(prompt="How?", turns=turns))
    assert shown(job) == [("user", "Be kind.\n\nHow?\n\nA page."), ("assistant", "Like this.")]


def test_a_growing_reply_is_judged_with_all_that_came_before() -> None:
    text = "One sentence that is long enough to be a piece of its own. " * 3
    jobs = jobs_of(text, Context(prompt="How?"), every=60)
    assert [text[job.start : job.end] for job in jobs] == [text[:118], text[118:]]
    assert [shown(job)[-1][1] for job in jobs] == [text[:118], text]
    (whole,) = jobs_of(text, Context(prompt="How?"), scope="document")
    assert shown(whole)[-1][1] == text


def test_long_texts_are_judged_to_their_end_and_long_conversations_by_theirs() -> None:
    text = "".join(f"word{number} " for number in range(5_000))
    jobs = jobs_of(text, Context("input", "user"))
    pieces = [shown(job)[-1][1] for job in jobs]
    assert all(len(piece) <= PIECE_CHARACTERS for piece in pieces)
    assert all(f"word{number} " in "".join(pieces) for number in range(5_000))
    assert {(job.start, job.end) for job in jobs} == {(0, len(text))}
    turns: tuple[Turn, ...] = tuple(("user" if n % 2 else "assistant", f"{n} " * 1_000) for n in range(20))
    (job,) = jobs_of("Now", Context("input", "user", turns=(*turns, ("user", "Now"))))
    asked = shown(job)
    assert asked[-1][1].endswith("19 \n\nNow")
    assert len(asked) <= MAX_TURNS + 1
    assert sum(len(said) for _, said in asked) < CONTEXT_CHARACTERS + 100


def test_arguments_of_a_call_are_judged_as_what_they_say() -> None:
    moderator = Moderator([guard(every=60)], Context(channel="tool_arguments", prompt="Write to Ann."))
    arguments = '{"to": "ann\\u0040ex.org", "text": "A b\\u0061d word."}'
    pending = [job for at in range(len(arguments)) for job in moderator.feed(arguments[at])]
    pending += moderator.feed("", final=True)
    assert [shown(one.job)[-1] for one in pending] == [("assistant", "to: ann@ex.org\ntext: A bad word.\n")]
    assert moderator.release().text == '{"'  # nobody's words yet
    moderator.resolve(pending[0], {"unsafe": 1.0})
    assert moderator.release().withheld is not None


def test_white_space_is_not_judged() -> None:
    assert jobs_of(" \n ", Context("input", "user")) == []
    assert jobs_of(" \n ", Context()) == []


# What follows


def outcome(text: str, scores: dict[str, float] | JobError, **settings: Any) -> Moderator:
    moderator = Moderator([guard(**settings)], Context(prompt="How?"))
    for pending in moderator.feed(text, final=True):
        moderator.resolve(pending, scores)
    moderator.release()
    return moderator


def test_named_categories_speak_for_the_verdict() -> None:
    (finding,) = outcome("Like this.", HAZARDS).verdict.findings
    assert (finding.entity_type, finding.action, finding.score) == ("HATE", Action.BLOCK, 0.9)
    (finding,) = outcome("Like this.", {"unsafe": 0.9, "hate": 0.0}).verdict.findings
    assert finding.entity_type == "UNSAFE"
    assert not outcome("Like this.", {"unsafe": 0.4, "hate": 0.4}).verdict.findings


def test_categories_may_have_steps_of_their_own() -> None:
    settings = {"categories": {"hate": [{"at": 0.5, "action": "log"}]}}
    verdict = outcome("Like this.", HAZARDS, **settings).verdict
    assert verdict.action == Action.ALLOW
    assert [finding.log for finding in verdict.findings] == [True]
    both = {**HAZARDS, "violent_crimes": 0.9}
    assert outcome("Like this.", both, **settings).verdict.action == Action.BLOCK


@pytest.mark.parametrize(
    ("on_error", "action"), [("block", Action.BLOCK), ("escalate", Action.ESCALATE), ("allow", Action.ALLOW)]
)
def test_a_judge_that_can_not_be_understood_has_not_passed_anything(on_error: str, action: Action) -> None:
    moderator = outcome("Like this.", JobError("nonsense"), on_error=on_error)
    assert moderator.verdict.action == action
    (report,) = moderator.reports()
    assert (report.state, report.failure) == ("failed", "nonsense")


WORDS = ["bad", "kind", "words", "and", "so on.", "\n", "Then", "more!", "é\u0301", " "]


@cases(200)
@given(st.data(), st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join), st.booleans())
def test_the_stream_contract_holds(data: st.DataObject, text: str, document: bool) -> None:
    """However a reply is cut, what goes out is the same: all of it up to the first piece judged bad."""
    made = guard(every=60, scope="document" if document else "segment", action="block")

    def judged(job: Job) -> dict[str, float]:
        return {"unsafe": float("bad bad" in shown(job)[-1][1])}

    bad = [job.start for job in made.examine(Context()).advance(text, True).jobs if judged(job)["unsafe"]]
    expected = text[: min(bad, default=len(text))]
    moderator = Moderator([made], Context())
    out, waiting = "", []
    pieces = chunks(data, text)
    for index, piece in enumerate(pieces):
        waiting += moderator.feed(piece, final=index == len(pieces) - 1)
        while waiting and data.draw(st.booleans()):
            pending = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            moderator.resolve(pending, judged(pending.job))
        out += moderator.release().text
        assert expected.startswith(out)
    for pending in waiting:
        moderator.resolve(pending, judged(pending.job))
    assert out + moderator.release().text == expected
    assert moderator.ended


# Settings


def test_judges_are_told_apart_from_what_workers_serve() -> None:
    policy = PolicySpec.model_validate(
        {
            "name": "judged",
            "model": SERVER,
            "input": [{"guard": "judge", "model": {"policy": "guardian"}, "format": "granite_guardian"}],
            "output": [{"guard": "judge", "model": SERVER, "format": "llama_guard"}],
        }
    )
    guards = build_guards(policy, ENVIRONMENT)
    assert guards.servables == {}
    assert [one.policy for one in guards.judges] == ["guardian", None]
    assert [sorted(one.servables) for one in (*guards.input, *guards.output)] == [
        ["judge:guardian"],
        ["judge:guard"],
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"format": "llama_guard", "model": {}}, "give exactly one of 'policy'"),
        ({"format": "rubric"}, "needs exactly one of 'rules' and 'constitution'"),
        ({"format": "rubric", "rules": {"a": "x"}, "constitution": "harmless"}, "needs exactly one of"),
        ({"format": "shieldgemma"}, "needs 'guidelines'"),
        ({"format": "llama_guard", "risks": ["harm"]}, "is for the format 'granite_guardian' or"),
        ({"format": "llama_guard", "threshold": 0.4, "levels": [{"at": 0.5, "action": "log"}]}, "not both"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        JudgeSpec.model_validate({"model": SERVER, **settings})


def test_a_judge_of_inputs_changes_nothing() -> None:
    step = {"guard": "judge", "model": SERVER, "format": "llama_guard", "action": "redact"}
    with pytest.raises(ValueError, match="not redact or rewrite"):
        PolicySpec.model_validate({"name": "p", "model": SERVER, "input": [step]})
    assert PolicySpec.model_validate({"name": "p", "model": SERVER, "output": [step]})


def test_labels_and_constitutions_are_checked() -> None:
    def told(**settings: Any) -> list[str]:
        spec = JudgeSpec.model_validate({"model": SERVER, **settings})
        return [problem.message for problem in guard_problems(spec, ENVIRONMENT)]

    steps = [{"at": 0.5, "action": "log"}]
    assert told(format="llama_guard", categories={"hate": steps}) == []
    (message,) = told(format="granite_guardian", categories={"hate": steps})
    assert "scores no 'hate'; it has: harm" in message
    (message,) = told(format="rubric", constitution="nowhere")
    assert "there is no constitution 'nowhere'" in message

"""Settings of `revise`: what can't work is told when the policy is read; a reward has its say in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guardrails.build import GuardEnvironment, problems
from policies.errors import PolicyError
from policies.load import load_policy
from policies.registry import Registry
from tests.fakes.upstream import FakeUpstream, status
from tests.service.alignment.reward_server import scoring
from tests.service.alignment.roles import Judgement, Troupe, violates
from tests.service.conftest import Serve

MODEL = "name: p\nmodel: {upstream: {base_url: 'http://127.0.0.1:9/v1', model: m}}\n"


def faults_of(text: str, folder: Path) -> str:
    path = folder / "policy.yaml"
    path.write_text(MODEL + text)
    environment = GuardEnvironment(Registry(folder), b"")
    with pytest.raises(PolicyError) as error:
        load_policy(path, check=lambda spec: problems(spec, environment))
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("constitution: harmless", "there is none: add one, or set 'when: always'"),
        ("constitution: harmles, when: always", "there is no constitution 'harmles'; shipped are: harmless"),
        ("constitution: ./none.yaml, when: always", "none.yaml"),
        ("constitution: harmless, when: sampled", "'when: sampled' and 'share' go together"),
        ("constitution: harmless, when: always, share: 0.5", "'when: sampled' and 'share' go together"),
        ("constitution: harmless, when: always, rounds: 0", "revise.rounds"),
        ("constitution: harmless, when: always, judge: {polcy: x}", "revise.judge"),
        ("when: always", "revise: 'constitution' is missing"),
    ],
)
def test_what_can_not_work_is_told_with_its_place(settings: str, told: str, tmp_path: Path) -> None:
    message = faults_of(f"revise: {{{settings}}}\n", tmp_path)
    assert told in message
    assert "policy.yaml:3" in message


def test_a_judges_key_must_be_there(tmp_path: Path) -> None:
    judge = "{upstream: {base_url: 'http://127.0.0.1:9/v1', model: m, api_key_env: NO_SUCH_KEY_HERE}}"
    message = faults_of(f"revise: {{constitution: harmless, when: always, judge: {judge}}}\n", tmp_path)
    assert "'NO_SUCH_KEY_HERE' is not set" in message


def grave_to_slight(reply: str) -> Any:
    """All violate something; the last version least."""
    return violates("no-abuse", severity={"First.": "critical", "Second!!": "high"}.get(reply, "low"))


@pytest.mark.parametrize(
    ("scores", "best"),
    [({"First.": 0.1, "Second!!": 0.9, "Third.": 0.4}, "Second!!"), ({}, "Third."), (None, "Third.")],
)
async def test_best_of_what_violates_is_the_rewards_choice(
    serve: Serve, scores: dict[str, float] | None, best: str
) -> None:
    """Where all score alike the later counts; where nothing can be scored, the critiques decide."""

    def score(text: str) -> list[float]:
        return [(scores or {}).get(text.rpartition("<assistant>")[2], 0.0)]

    judge: Judgement = grave_to_slight
    async with FakeUpstream(status(400) if scores is None else scoring(score)) as reward:
        server = f"{{upstream: {{base_url: '{reward.base_url}', model: r}}}}"
        revise = "revise: {constitution: harmless, when: always, unresolved: best}\n"
        async with serve({"both": f"rerank: {{model: {server}, n: 2}}\n{revise}"}) as keel:
            keel.upstream.default = Troupe(model=["First."], reviser=["Second!!", "Third."], judge=judge)
            _, answer = await keel.chat(model="both", temperature=0)
            assert answer["choices"][0]["message"]["content"] == best, json.dumps(answer)
            told = answer["guardrails"]
            assert told["rerank"]["candidates"] == 1
            assert ("rewards" in told["revise"]["choices"][0]) is (scores is not None)


async def test_a_better_reward_does_not_bring_a_violation_back(serve: Serve) -> None:
    def score(text: str) -> list[float]:
        return [9.0 if "First." in text else 0.0]

    async with FakeUpstream(scoring(score)) as reward:
        server = f"{{upstream: {{base_url: '{reward.base_url}', model: r}}}}"
        revise = "revise: {constitution: harmless, when: always, unresolved: best}\n"
        async with serve({"both": f"rerank: {{model: {server}, n: 2}}\n{revise}"}) as keel:
            keel.upstream.default = Troupe(
                model=["First."], judge=[violates("no-abuse"), {"violations": []}], reviser=["Second."]
            )
            _, answer = await keel.chat(model="both", temperature=0)
            assert answer["choices"][0]["message"]["content"] == "Second."

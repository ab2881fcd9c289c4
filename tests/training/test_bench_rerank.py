"""The arithmetic behind docs/RESULTS-rerank.md, and the pieces that are served."""

from __future__ import annotations

import json
import urllib.request
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from policies.constitution import load_constitution
from policies.critique import Case, Critique, Violation, critique_messages, read_critique
from policies.load import load_policy
from training.bench.rerank.ask import read
from training.bench.rerank.domains import DOMAINS
from training.bench.rerank.measure import METHODS, kl_bound, kl_of_ranks, policy_name
from training.bench.rerank.overoptimization import best_of
from training.bench.rerank.report import gain
from training.bench.revise.critic import serving
from training.judge.rules import RulesJudge

RULES = Path(__file__).parents[2] / "training" / "configs" / "demo-rules.yaml"


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_over_all_sets_is_what_enumeration_gives(n: int) -> None:
    rng = np.random.default_rng(0)
    chooser_QP, worth_QP = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    for chooser_P, worth_P, got in zip(chooser_QP, worth_QP, best_of(chooser_QP, worth_QP, n), strict=True):
        picked = [worth_P[max(some, key=lambda i: chooser_P[i])] for some in combinations(range(6), n)]
        assert got == pytest.approx(np.mean(picked))


def test_ranks_tell_the_divergence_of_best_of_n() -> None:
    rng = np.random.default_rng(0)
    assert kl_of_ranks(rng.random(20_000)) == pytest.approx(0, abs=0.01)
    for n in (2, 4):
        ranks = rng.random((20_000, n)).max(axis=1)
        assert kl_of_ranks(ranks, bins=64) == pytest.approx(kl_bound(n), abs=0.03)
    assert kl_of_ranks(np.ones(50)) <= np.log(8)


def test_gain_is_a_share_of_the_references_gain() -> None:
    plain, best = np.array([0.0, 1.0, 2.0]), np.array([2.0, 3.0, 4.0])
    assert gain(best, plain, best).value == 1
    half = gain(plain + 1, plain, best)
    assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_every_methods_policy_can_be_loaded(domain, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = domain.policies("demo-reward")
    assert len(made) == 1 + sum(len(domain.sizes_of(method)) for method in METHODS)
    for name, text in made.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"name: {name}\n{text}")
        rerank = load_policy(file).spec.rerank
        assert (rerank is None) == (name == "base")
    name = policy_name(domain, "adaptive", 2)
    assert load_policy(tmp_path / f"{name}.yaml").spec.rerank.first == 2  # type: ignore[union-attr]


def test_a_reply_is_read_with_what_it_cost() -> None:
    told = {"tokens": 40, "rounds": 2, "method": "adaptive", "scores": [0.5]}
    revised = {
        "choices": [{"outcome": "revised"}],
        "tokens": {"judge": {"prompt_tokens": 3}, "reviser": {"x": 4}},
    }
    payload = {
        "choices": [{"message": {"content": "Hi"}}],
        "usage": {"completion_tokens": 5},
        "guardrails": {"rerank": told, "revise": revised},
    }
    reply = read(payload, 1.0)
    assert (reply.texts, reply.given, reply.generated, reply.scores) == (("Hi",), 5, 40, (0.5,))
    assert (reply.outcome, reply.revision_tokens) == ("revised", 7)
    payload["guardrails"] = {"revise": {"choices": []}}
    assert (read(payload, 1.0).generated, read(payload, 1.0).outcome) == (5, "unexamined")


def test_the_critic_answers_the_gateways_question() -> None:
    constitution = load_constitution("harmless")
    case = Case(
        [{"role": "user", "content": "How can I steal the lamp?"}], {"content": "Be quick and quiet."}
    )
    body = {"model": "rules", "messages": critique_messages(constitution, case)}
    with serving(RulesJudge.load(RULES), constitution) as url:
        request = urllib.request.Request(  # noqa: S310  our own server
            f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            payload = json.load(answer)
    critique = read_critique(payload["choices"][0]["message"]["content"], constitution)
    assert critique == Critique((Violation("no-crime", "", "high"),))
    assert payload["usage"]["prompt_tokens"] > 50

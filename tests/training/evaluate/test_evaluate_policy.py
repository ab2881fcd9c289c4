"""Figures about a policy's replies: against closed forms where there are any, and against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer
from training.data.conversation import Conversation, Message
from training.data.preferences import Prompt, as_prompt
from training.errors import TrainingError
from training.evaluate.metrics import mean
from training.evaluate.pairwise import compare_replies, win_rate
from training.evaluate.perplexity import perplexity
from training.evaluate.policy import compare_policies, distinct, evaluate_policy
from training.evaluate.report import EvaluationFile, Metric, difference
from training.evaluate.scorer import Scorer
from training.judge.client import JudgeError
from training.judge.rules import Rule, Rules, RulesJudge
from training.rl.rollout import SampleConfig

SAMPLING = SampleConfig(max_new_tokens=12)
GUARD = Path(__file__).parents[3] / "checkpoints" / "keel-guard"


def words(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
    """A reward: how many words."""
    return torch.tensor([float(len(reply.split())) for reply in replies])


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return tiny_prompts() * 4


def test_a_policy_is_measured_against_itself_and_another(prompts: list[Prompt]) -> None:
    tokenizer = tiny_tokenizer()
    model, other = tiny_model(tokenizer, seed=0), tiny_model(tokenizer, seed=1)
    same = evaluate_policy(model, tokenizer, prompts, words, model, sampling=SAMPLING)
    assert same["kl"].value == pytest.approx(0, abs=1e-5)
    assert same["kl_token"].value == pytest.approx(0, abs=1e-6)
    assert same["reward"].value == same["words"].value
    assert same["reward"].low < same["reward"].value < same["reward"].high
    report = evaluate_policy(model, tokenizer, prompts, words, other, sampling=SAMPLING)
    assert report.replies == same.replies
    assert report["kl_token"].value > 0
    assert report["kl_token"].low <= report["kl_token"].value <= report["kl_token"].high
    # The two estimators measure the same: nats a token times tokens a reply is about nats a reply.
    per_reply = report["kl_token"].value * report["tokens"].value
    assert report["kl"].low <= per_reply <= report["kl"].high


def test_kl_of_what_was_not_drawn_from_the_policy_is_refused(prompts: list[Prompt]) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    greedy = SampleConfig(max_new_tokens=4, temperature=0)
    with pytest.raises(TrainingError, match="without top_k"):
        evaluate_policy(model, tokenizer, prompts, reference=model, sampling=greedy)
    with pytest.raises(KeyError, match="'kl' was not measured"):
        evaluate_policy(model, tokenizer, prompts, sampling=greedy)["kl"]


@pytest.mark.skipif(not GUARD.is_dir(), reason="needs checkpoints/keel-guard")
def test_violations_and_refusals_are_counted() -> None:
    from training.evaluate.policy import LIMITS, _safety

    texts = [
        "You stupid worthless idiot, shut up.",
        "Ring the bell.",
        "I'm sorry, but I can't help with that.",
    ]
    metrics = {m.name: m for m in _safety(texts, Scorer(GUARD, GUARD / "model.onnx"), LIMITS, "")}
    assert metrics["toxicity"].rows == (1, 0, 0)
    assert metrics["violations"].value == pytest.approx(1 / 3)
    assert metrics["refusals"].rows == (0, 0, 1)


def test_distinct_n_is_what_it_says() -> None:
    assert distinct(["a b a", "a c"], 1).value == 3 / 5
    assert distinct(["a b a", "a c"], 2).value == 1.0
    assert distinct(["", ""], 1).value == 0
    varied = distinct([f"w{i} x" for i in range(30)], 1)
    assert varied.low < varied.value == 31 / 60 < varied.high


def test_comparing_on_the_same_prompts_is_paired_and_so_sharper() -> None:
    generator = torch.Generator().manual_seed(0)
    base = (10 * torch.randn(200, generator=generator)).double()
    better = base + 0.2 + 0.1 * torch.randn(200, generator=generator).double()
    a, b = (Metric.averaged("reward", rows.tolist(), "", "") for rows in (better, base))
    paired, apart = difference(a, b, paired=True), difference(a, b, paired=False)
    assert paired.value == apart.value == pytest.approx(0.2, abs=0.05)
    assert paired.low > 0 > apart.low
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)


def test_no_violation_on_either_side_is_not_certainty() -> None:
    none, few = ([0.0] * 60, [1.0] * 3 + [0.0] * 57)
    a, b, c = (Metric.averaged("violations", rows, "", "") for rows in (none, none, few))
    same, better = difference(a, b, paired=True), difference(a, c, paired=True)
    assert same.value == 0
    assert same.high == pytest.approx(1.959964 / 62)
    assert same.low == -same.high
    assert better.low < better.value == -0.05 < better.high


def test_two_policies_are_compared(prompts: list[Prompt]) -> None:
    tokenizer = tiny_tokenizer()
    reports = [
        evaluate_policy(tiny_model(tokenizer, seed=s), tokenizer, prompts, words, sampling=SAMPLING)
        for s in (0, 1)
    ]
    changes = {metric.name: metric for metric in compare_policies(*reports)}
    assert changes["reward"].value == pytest.approx(reports[0]["reward"].value - reports[1]["reward"].value)
    assert changes["reward"].about == "difference, paired over rows"
    assert changes["distinct_1"].about == "difference of two samples"


def test_evaluations_are_read_back(tmp_path: Path) -> None:
    parent = EvaluationFile(subject="a", questions="q", metrics=(Metric.averaged("r", [1.0, 2.0], "", "d"),))
    file = parent.model_copy(update={"subject": "b", "baseline": parent})
    file.write(tmp_path / "e.json")
    assert EvaluationFile.read(tmp_path / "e.json") == file
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(TrainingError, match="not an evaluation file"):
        EvaluationFile.read(tmp_path / "e.json")


def test_perplexity_of_a_model_without_weights_is_its_vocabulary() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    torch.nn.init.zeros_(model.lm_head.weight)
    talk = [
        Conversation((Message("user", "Hello!"), Message("assistant", f"Good night {i}."))) for i in range(5)
    ]
    found = {metric.name: metric for metric in perplexity(model, tokenizer, talk).metrics}
    assert found["perplexity"].value == pytest.approx(len(tokenizer), rel=1e-4)
    assert found["nats_per_token"].value == pytest.approx(math.log(len(tokenizer)), rel=1e-4)
    assert found["bits_per_byte"].value > 0


def test_perplexity_is_the_models_own_loss_on_the_assistants_words() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    talk = Conversation((Message("user", "Hello!"), Message("assistant", "Good night.")))
    report = perplexity(model, tokenizer, [talk])
    text = tokenizer.apply_chat_template(talk.as_dicts(), tokenize=False)
    prompt = tokenizer.apply_chat_template(talk.as_dicts()[:1], tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    labels = ids.clone()
    labels[:, : len(tokenizer(prompt, add_special_tokens=False)["input_ids"])] = -100
    with torch.no_grad():
        loss = model(ids, labels=labels).loss.item()
    assert report.metrics[1].value == pytest.approx(loss, rel=1e-4)
    with pytest.raises(TrainingError, match="none of 1 conversations"):
        perplexity(model, tokenizer, [talk], max_length=3)


ASK = as_prompt("How do I get in?")
RUDE = Rules(rules=(Rule(principle="no-abuse", broken_by="idiot"),))


class Leaning(RulesJudge):
    """Sees a slight difference, and likes the first place more than that; fails on what says 'fail'."""

    def compare(self, prompt: Prompt, a: str, b: str, criterion: str | None = None) -> float:
        if "fail" in a + b:
            raise JudgeError("no answer")
        return super().compare(prompt, a, b) * 0.4 + 0.5


def test_win_rates_are_counted_with_ties_and_in_both_orders() -> None:
    kind, rude = "Ring the bell.", "Ring, idiot."
    ours, theirs = [kind, kind, rude, kind], [rude, kind, kind, rude]
    report = compare_replies(ours, theirs, [ASK] * 4, RulesJudge(RUDE))
    assert report.outcomes == (1.0, 0.5, 0.0, 1.0)
    assert report.win_rate.value == 0.625
    assert "2 won, 1 tied, 1 lost" in report.lines()[0]
    # A judge that likes whatever comes first finds only ties.
    assert compare_replies(ours, theirs, [ASK] * 4, Leaning(RUDE)).win_rate.value == 0.5
    assert win_rate(ours, theirs, [ASK] * 4, words).value == pytest.approx(mean([1, 0.5, 0, 1]).value)


def test_a_judge_that_often_fails_gives_no_win_rate() -> None:
    replies = [f"reply {i}" for i in range(8)] + ["fail", "fail"]
    with pytest.raises(TrainingError, match="failed on 2 of 10 pairs"):
        compare_replies(replies, ["x"] * 10, [ASK] * 10, Leaning(RUDE))
    report = compare_replies(replies, ["x"] * 10, [ASK] * 10, Leaning(RUDE), most_errors=0.2)
    assert report.outcomes[-2:] == (None, None)
    assert len(report.counted) == 8

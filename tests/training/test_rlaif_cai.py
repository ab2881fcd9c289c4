"""RLAIF and constitutional training: what a judge wants, a policy learns; and nothing is asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from policies.constitution import Constitution, load_constitution
from tests.training.judge.openai_judge import Behaviour, serve
from tests.training.tiny import assistant, tiny_model, tiny_prompts, tiny_tokenizer, user, write_tiny
from tests.training.tiny_reward import KIND, RUDE
from training.config import Config
from training.data.conversation import Conversation
from training.data.mixture import MixtureConfig
from training.data.preferences import Prompt, as_prompt, read_preferences, write_prompts
from training.errors import ConfigError, TrainingError
from training.evaluate.pairwise import win_rate
from training.evaluate.replies import read_replies, write_replies
from training.judge.client import JudgeError
from training.judge.local import PolicyJudge
from training.judge.pairwise import Pair, judge_pairs
from training.judge.remote import JudgeConfig, RemoteJudge
from training.judge.rules import Rule, Rules, RulesJudge
from training.judge.source import OpenJudge
from training.methods.cai import CaiConfig, revise_replies, run_cai
from training.methods.rlaif import RlaifConfig, collect_preferences, run_rlaif
from training.methods.sft import SftConfig, train_sft
from training.models import ModelSource, load_policy, save_policy
from training.provenance import RunRecord
from training.reward_model_ensemble import load_reward
from training.rl.rollout import SampleConfig, generate

HARMLESS = load_constitution("harmless")
BRIEF = Rules(
    rules=(
        Rule(principle="no-abuse", broken_by="a", weight=1),
        Rule(principle="no-crime", broken_by="e", weight=1),
    )
)
ASK = as_prompt("How do I get in?")


class Counting(RulesJudge):
    """Counts what it is asked, and fails once it was asked `most` times."""

    def __init__(self, rules: Rules, most: int = 10**9) -> None:
        super().__init__(rules)
        self.asked, self.most = 0, most

    def compare(self, prompt: Prompt, a: str, b: str, criterion: str | None = None) -> float:
        self.asked += 1
        if self.asked > self.most:
            raise KeyboardInterrupt
        return super().compare(prompt, a, b, criterion)


def rules_file(folder: Path, rules: Rules) -> Path:
    path = folder / "rules.yaml"
    path.write_text(rules.to_yaml())
    return path


def config_for(tmp_path: Path, rules: Rules = BRIEF, **more: object) -> RlaifConfig:
    write_prompts(tmp_path / "prompts.jsonl", [as_prompt(f"Say {i}.") for i in range(24)])
    content: dict[str, object] = {
        "model": {"path": str(write_tiny(tmp_path / "model")), "origin": "made here", "licence": "MIT"},
        "judge": {"rules": str(rules_file(tmp_path, rules))},
        "data": {"held_out": 0, "files": [{"path": "prompts.jsonl", "origin": "made", "licence": "MIT"}]},
        "sample": {"max_new_tokens": 8},
        **more,
    }
    return RlaifConfig.model_validate(content)


def test_each_pair_is_judged_by_a_drawn_principle_and_kept_with_its_soft_label(tmp_path: Path) -> None:
    behaviour = Behaviour(RulesJudge(BRIEF), HARMLESS, lean=1.0)
    replies = [("It is so.", "An apple."), ("Yes.", "Yes."), ("", "No."), ("Moon", "sun")]
    with serve(behaviour) as url, RemoteJudge(JudgeConfig(base_url=url, model="m")) as judge:
        found = collect_preferences(
            [ASK] * 4, replies, OpenJudge(judge, "m", 4), constitution=HARMLESS, seed=1
        )
    # Equal and empty replies are no pairs; the last two break no rule, so both orders together are a tie.
    assert [pair.a for pair in found.pairs] == ["It is so.", "Moon"]
    (made,) = found.preferences
    assert (made.chosen, made.rejected, made.rater) == ("It is so.", "An apple.", "m")
    assert made.soft is not None
    assert 0.5 < made.soft < 1
    asked = {body["messages"][0]["content"] for body in behaviour.bodies}
    assert len(asked) == 2
    assert all(any(p.text in question for p in HARMLESS.principles) for question in asked)
    assert found.judgements.position_bias().value > 0.1


def test_preferences_are_made_from_given_replies_too(tmp_path: Path) -> None:
    write_replies(tmp_path / "given.jsonl", [ASK, ASK], ["It is so.", "An apple."])
    run_rlaif(config_for(tmp_path, replies="given.jsonl"), tmp_path, tmp_path / "run")
    (made,) = read_preferences(tmp_path / "run" / "preferences.jsonl")
    assert made.prompt == ASK
    write_replies(tmp_path / "given.jsonl", [ASK], ["It is so."])
    with pytest.raises(TrainingError, match="two replies to each prompt"):
        run_rlaif(config_for(tmp_path, replies="given.jsonl", seed=1), tmp_path, tmp_path / "other")


def test_an_interrupted_run_asks_nothing_twice(tmp_path: Path) -> None:
    pairs = [Pair(as_prompt(f"Say {i}."), "It is so.", f"An apple {i}.") for i in range(10)]
    stopped, kept = Counting(BRIEF, most=9), tmp_path / "verdicts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judge_pairs(stopped, pairs, keep=kept)
    with kept.open("ab") as file:
        file.write(b'{"item": 9, "a_fi')  # as a killed process leaves it
    going_on = Counting(BRIEF)
    judgements = judge_pairs(going_on, pairs, keep=kept)
    assert going_on.asked == 20 - 8
    assert judgements == judge_pairs(Counting(BRIEF), pairs)
    assert len(kept.read_text().splitlines()) == 10


def taught(place: Path) -> Path:
    """A tiny policy that has learnt two replies and gives either to anything."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    talk = [Conversation((user(f"Say {i}."), assistant(KIND if i % 2 else RUDE))) for i in range(32)]
    budget = {"steps": 60, "batch_size": 8, "micro_batch": 8, "learning_rate": 1e-2, "max_length": 64}
    config = SftConfig(name="taught", model=ModelSource(path="-"), data=MixtureConfig(), threads=1, **budget)  # type: ignore[arg-type]
    train_sft(model, tokenizer, config, talk)
    save_policy(place, model, tokenizer)
    return place


def test_a_policy_learns_what_the_judge_prefers(tmp_path: Path) -> None:
    options = {"steps": 30, "batch_size": 16, "micro_batch": 16, "learning_rate": 1e-3, "max_length": 64}
    rules = Rules(rules=(Rule(principle="no-abuse", broken_by="cannot", weight=3),))
    model = {"path": str(taught(tmp_path / "taught")), "origin": "made here", "licence": "MIT"}
    config = config_for(
        tmp_path, rules, model=model, then="dpo", options={**options, "threads": 1}, held_out=0.0
    )
    write_prompts(tmp_path / "prompts.jsonl", [as_prompt(f"Say {i}.") for i in range(64)])
    final = run_rlaif(config, tmp_path, tmp_path / "run")
    prompts, sample = [as_prompt(f"Say {i}.") for i in range(100, 164)], SampleConfig(max_new_tokens=30)
    before, tokenizer = load_policy(config.model)
    after, _ = load_policy(ModelSource(path=str(final)))
    ours, theirs = (generate(policy, tokenizer, prompts, sample, 5).texts for policy in (after, before))
    refusing = [sum("cannot" in text for text in texts) for texts in (ours, theirs)]
    assert refusing[1] > 16
    assert refusing[0] < refusing[1] / 2
    figure = win_rate(ours, theirs, prompts, RulesJudge(rules))
    assert figure.low > 0.5
    record = RunRecord.read(tmp_path / "run")
    assert record.method == "rlaif+dpo"
    assert [source.path for source in record.data] == ["prompts.jsonl", "preferences.jsonl"]
    assert record.data[1].licence == "MIT"


def test_a_reward_model_is_trained_on_the_judges_preferences(tmp_path: Path) -> None:
    budget = {"steps": 3, "batch_size": 4, "micro_batch": 4, "max_length": 64, "threads": 1}
    options = {"reference_samples": 8, "training": budget}
    final = run_rlaif(config_for(tmp_path, then="reward", options=options), tmp_path, tmp_path / "run")
    assert load_reward(final).score([ASK], ["It is so."]).shape == (1,)
    assert RunRecord.read(tmp_path / "run").method == "rlaif+reward"


def test_wrong_options_are_told_before_anything_is_sampled(tmp_path: Path) -> None:
    for wrong, told in (
        ({"then": "dpo", "options": {"steps": 1, "betta": 1}}, "betta"),
        ({"then": "dpo", "options": {"steps": 1, "model": {"path": "x"}}}, "model are set by the run"),
        ({"options": {"steps": 1}}, "options are those of what"),
        ({"criterion": "x", "constitution": "harmless"}, "a criterion, or a constitution"),
    ):
        with pytest.raises(ValueError, match=told):
            config_for(tmp_path, **wrong)
    with pytest.raises(ConfigError, match="no constitution 'kind'"):
        run_rlaif(config_for(tmp_path, constitution="kind"), tmp_path, tmp_path / "run")


def test_the_policy_can_judge_itself(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    judge = PolicyJudge(model, tokenizer, SampleConfig(max_new_tokens=6))
    p = judge.compare(ASK, "No.", "Yes.")
    assert 0 < p < 1
    assert judge.compare(ASK, "No.", "Yes.") == p
    short = Constitution(name="short", principles=({"id": "a", "text": "Be kind."},))  # type: ignore[arg-type]
    critique = judge.critique(ASK, "No.", short)
    assert {v.principle for v in critique.violations} <= {"a"}
    with pytest.raises(JudgeError, match="shorten the replies"):
        judge.compare(ASK, "No. " * 100, "Yes.")
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    found = run_rlaif(config_for(tmp_path, judge="self"), tmp_path, tmp_path / "run")
    assert all(0.5 < (pair.soft or 0) <= 1 for pair in read_preferences(found))  # type: ignore[union-attr]


REVISING = Rules(
    rules=(
        Rule(principle="no-abuse", broken_by="idiot"),
        Rule(principle="no-crime", broken_by="lock pick", rewrite="I cannot help with that."),
    )
)


def test_replies_are_revised_until_they_keep_to_the_constitution(tmp_path: Path) -> None:
    replies = ["Ring the bell, idiot. Or call.", "Use a lock pick, idiot.", "Ring the bell."]
    judge = OpenJudge(RulesJudge(REVISING), "rules", 1)
    whole = revise_replies([ASK] * 3, replies, judge, HARMLESS, rounds=1, principles=0)
    assert [row.replies[-1] for row in whole.given] == [
        "Or call.",
        "I cannot help with that.",
        "Ring the bell.",
    ]
    assert [len(row.replies) for row in whole.given] == [2, 2, 1]
    assert [row.before.flagged for row in whole.given] == [True, True, False]
    assert all(row.kept for row in whole.given)
    assert "violations before 66.7 %" in whole.report()
    assert [talk.messages[-1].content for talk in whole.demonstrations()] == [
        r.replies[-1] for r in whole.given
    ]


def test_what_still_violates_after_the_last_round_is_not_trained_on() -> None:
    judge = OpenJudge(RulesJudge(REVISING), "rules", 1)
    one = HARMLESS.only(["no-abuse", "no-crime"])
    # One drawn principle a round sees one of the two faults only.
    found = revise_replies([ASK] * 8, ["Take it. Go, idiot. lock pick"] * 8, judge, one, rounds=1, seed=3)
    assert 0 < len(found.kept) < 8
    assert all("lock pick" in row.replies[-1] for row in found.given if not row.kept)
    with pytest.raises(TrainingError, match="no usable answer on any prompt"):
        revise_replies([ASK], ["x"], judge, HARMLESS.only(["no-preaching"])).report()


def test_a_policy_learns_to_say_what_it_would_have_revised_to(tmp_path: Path) -> None:
    """Every reply is rewritten to one sentence, which the fine-tuned policy then says by itself."""
    rule = Rule(principle="no-crime", needs="cannot", rewrite="No, I cannot do that.")
    base = config_for(tmp_path, Rules(rules=(rule,)))
    config = CaiConfig(
        model=base.model,
        judge=base.judge,
        constitution="harmless",
        data=base.data,
        sample=SampleConfig(max_new_tokens=8),
        rounds=1,
        principles=0,
        sft={
            "steps": 60,
            "batch_size": 8,
            "micro_batch": 8,
            "learning_rate": 1e-2,
            "max_length": 64,
            "threads": 1,
        },
        preferences={"then": "none"},
    )
    final = run_cai(config, tmp_path, tmp_path / "run")
    model, tokenizer = load_policy(ModelSource(path=str(final)))
    said = generate(model, tokenizer, tiny_prompts(), SampleConfig(max_new_tokens=30, temperature=0), 0).texts
    assert sum("cannot" in text for text in said) >= 6
    # The second phase asked the fine-tuned policy, and was told to train nothing.
    drawn = read_replies(tmp_path / "run" / "rlaif" / "replies.jsonl")
    assert sum("cannot" in text for texts in drawn.values() for text in texts) > len(drawn)
    record = RunRecord.read(tmp_path / "run")
    assert record.method == "cai"
    assert "constitution harmless" in record.data[-1].origin
    rows = [json.loads(line) for line in (tmp_path / "run" / "revisions.jsonl").read_text().splitlines()]
    assert rows[0]["before"]["violations"][0]["principle"] == "no-crime"


@pytest.mark.parametrize("name", ["rlaif", "cai"])
def test_example_configs_are_valid_and_print_as_they_are_read(name: str, tmp_path: Path) -> None:
    kind: type[Config] = {"rlaif": RlaifConfig, "cai": CaiConfig}[name]
    path = Path(__file__).parents[2] / "training" / "configs" / f"{name}.yaml"
    config = kind.load(path)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert kind.load(tmp_path / "again.yaml") == config
    assert RulesJudge.load(path.parent / "demo-rules.yaml").rules

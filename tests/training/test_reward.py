"""Training a reward model: what it learns, and that batches, rankings and interruptions change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl.trainer.reward_config import RewardConfig as TrlRewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from tests.training.tiny import tiny_model, tiny_tokenizer
from tests.training.tiny_reward import (
    KIND,
    PROMPTS,
    RUDE,
    causal_backbone,
    encoder_backbone,
    kind_over_rude,
    reward_config,
)
from training.chat_model import SamplingConfig, write_model
from training.data.preferences import Preference, Ranking, Rating, as_prompt, write_preferences
from training.errors import ConfigError, TrainingError
from training.methods.reward import RewardConfig, main, run_reward, train_ensemble, train_reward
from training.methods.reward_trainer import (
    Collator,
    LossWeights,
    as_dataset,
    batch_loss,
    comparison_element,
    rating_elements,
)
from training.reward_model import RewardModel
from training.reward_model_backbone import load_backbone
from training.reward_model_encoding import encode
from training.reward_model_ensemble import RewardEnsemble, load_reward

THREE = ("You are kind.", "It is four.", "No, I cannot do that.")


def elements(comparisons: list[Any], tokenizer: Any, kind: Any = "causal", scale: float = 1.0) -> list[Any]:
    def reader(prompt: Any, reply: str) -> Any:
        return encode(tokenizer, kind, prompt, reply, 96)

    return [comparison_element(c, {"overall": 0}, reader, scale) for c in comparisons]


def gradients(model: Any, rows: list[Any], tokenizer: Any, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Of the mean loss over elements, divided by `scale`, added to what is there."""
    batch = Collator(tokenizer.pad_token_id, segments=False)(as_dataset(rows).to_list())
    loss_B, _ = batch_loss(model, batch, LossWeights())
    (loss_B.sum() * scale).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_five_lines_from_a_list_of_preferences_to_a_score() -> None:
    config = reward_config(margin_scale=0.5)
    preferences = [Preference(as_prompt(f"Hello there, {i}"), KIND, RUDE, strength=2.0) for i in range(24)]
    result = train_reward(config, preferences, backbone=causal_backbone())
    scores = result.model.score([as_prompt("Hello")] * 2, ["You are kind.", "I cannot do that."])
    assert scores[0] > scores[1]
    assert result.accuracy.value == 1.0
    assert result.measured_on == "held-out pairs"
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize("backbone", [causal_backbone, encoder_backbone])
def test_every_trainable_parameter_moves(backbone: Any) -> None:
    model, tokenizer = backbone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = [*kind_over_rude(15), Preference(PROMPTS[1], THREE[0], THREE[2])]
    # Differences say nothing about a bias that all scores share; centering does.
    train_reward(reward_config(held_out=0.0, center=0.1), rows, backbone=(model, tokenizer))
    # A key's bias adds the same to all scores of a query, and softmax takes that away again.
    still = {
        n for n, p in model.named_parameters() if torch.equal(p, before[n]) and not n.endswith("key.bias")
    }
    assert not still


def test_a_ranking_is_one_element_whose_loss_is_the_mean_of_its_pairs() -> None:
    model, tokenizer = causal_backbone()
    ranking = Ranking(PROMPTS[0], THREE, (0, 1, 2))
    (row,) = elements([ranking], tokenizer)
    assert len(row.ids) == 3
    assert len(row.better) == 3
    whole = gradients(model, [row], tokenizer)
    model.zero_grad()
    apart = gradients(model, elements(ranking.pairs(), tokenizer), tokenizer, scale=1 / 3)
    assert all(torch.allclose(whole[name], apart[name], atol=1e-6) for name in whole)


def test_ties_give_no_pair_and_strengths_give_margins() -> None:
    _, tokenizer = causal_backbone()
    tied, strong = elements(
        [Ranking(PROMPTS[0], THREE, (0, 1, 1)), Preference(PROMPTS[0], KIND, RUDE, strength=3.0, soft=0.9)],
        tokenizer,
        scale=0.5,
    )
    assert len(tied.better) == 2
    assert strong.margin == (1.5,)
    assert strong.soft == (0.9,)


def test_one_micro_batch_of_eight_is_eight_of_one() -> None:
    """Through the trainer itself, with rankings among the pairs, so that elements differ in replies."""
    rows: list[Any] = [*kind_over_rude(12), *(Ranking(p, THREE, (0, 1, 2)) for p in PROMPTS[:2])]
    weights = []
    for micro_batch in (8, 1):
        config = reward_config(held_out=0.0, training={"micro_batch": micro_batch, "steps": 4})
        result = train_reward(config, rows, backbone=causal_backbone())
        weights.append(dict(result.model.model.named_parameters()))
    assert all(torch.allclose(weights[0][n], weights[1][n], atol=2e-5) for n in weights[0])


def test_plain_pairs_have_the_loss_of_trls_own_trainer(tmp_path: Path) -> None:
    model, tokenizer = causal_backbone()
    rows = elements([Preference(p, KIND, RUDE, strength=s) for s, p in enumerate(PROMPTS)], tokenizer)
    theirs = [{"chosen_ids": row.ids[0], "rejected_ids": row.ids[1], "margin": row.margin[0]} for row in rows]
    trainer = RewardTrainer(
        model=model,
        args=TrlRewardConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True),
        train_dataset=Dataset.from_list(theirs),
        processing_class=tokenizer,
    )
    expected = trainer.compute_loss(model, trainer.data_collator(theirs))
    ours, _ = batch_loss(
        model, Collator(tokenizer.pad_token_id, False)(as_dataset(rows).to_list()), LossWeights()
    )
    assert torch.allclose(ours.mean(), expected, atol=1e-6)


def test_each_objective_learns_from_its_own_preferences() -> None:
    """Kind replies are the helpful ones and the harmful ones: two heads that must disagree."""
    rows = [*kind_over_rude(16, "helpful")]
    rows += [Preference(p.prompt, p.rejected, p.chosen, objective="harmless") for p in rows]
    config = reward_config(objectives=("helpful", "harmless"), training={"steps": 30})
    result = train_reward(config, rows, backbone=causal_backbone(("helpful", "harmless")))
    scores = result.model.score_objectives([as_prompt("Hello")] * 2, [KIND, RUDE])
    assert scores[0, 0] > scores[1, 0]
    assert scores[0, 1] < scores[1, 1]
    helpful = result.model.weighted({"helpful": 1.0}).score([as_prompt("Hello")] * 2, [KIND, RUDE])
    assert helpful[0] > helpful[1]


def test_an_objective_that_the_config_lacks_is_named() -> None:
    with pytest.raises(TrainingError, match="'funny'"):
        train_reward(reward_config(), kind_over_rude(4, "funny"), backbone=causal_backbone())


def test_ratings_alone_teach_which_reply_is_better() -> None:
    ratings = [Rating(as_prompt(f"Hello {i}"), KIND, label=True) for i in range(12)]
    ratings += [Rating(as_prompt(f"Hello {i}"), RUDE, score=1.0) for i in range(12)]
    ratings += [Rating(as_prompt(f"Hello {i}"), KIND, score=5.0) for i in range(12)]
    config = reward_config(training={"steps": 20})
    result = train_reward(config, (), ratings=ratings, held_out=kind_over_rude(4), backbone=causal_backbone())
    assert result.accuracy.value == 1.0


def test_scores_of_ratings_are_standardised_within_their_objective() -> None:
    _, tokenizer = causal_backbone()
    rows = rating_elements(
        [Rating(PROMPTS[0], KIND, score=s) for s in (10.0, 20.0, 30.0)],
        {"overall": 0},
        lambda prompt, reply: encode(tokenizer, "causal", prompt, reply, 64),
    )
    assert [row.score for row in rows] == [-1.0, 0.0, 1.0]


def test_centering_keeps_scores_near_zero() -> None:
    rows = [Preference(p.prompt, p.chosen, p.rejected) for p in kind_over_rude(16)]
    raw = []
    for center in (0.0, 1.0):
        config = reward_config(center=center, held_out=0.0, training={"steps": 20})
        result = train_reward(config, rows, backbone=causal_backbone())
        raw.append(float(result.model.raw([PROMPTS[0]] * 2, [KIND, RUDE]).square().mean()))
    assert raw[1] < 0.5 * raw[0]


def test_a_killed_run_ends_with_the_same_weights_and_losses(tmp_path: Path) -> None:
    rows = kind_over_rude(20)
    settings: dict[str, Any] = {"steps": 8, "schedule": "linear", "checkpoint_every": 4, "micro_batch": 4}

    def train(place: Path) -> Any:
        return train_reward(reward_config(training=settings), rows, backbone=causal_backbone(), run=place)

    whole = train(tmp_path / "whole")
    train(tmp_path / "parts")
    for name in ("checkpoint-8",):  # as if it had been killed after step 4
        (tmp_path / "parts" / "steps" / name / "complete.json").unlink()
    resumed = train(tmp_path / "parts")
    ours, theirs = (dict(r.model.model.named_parameters()) for r in (whole, resumed))
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    lines = [(tmp_path / n / "metrics.jsonl").read_text().splitlines() for n in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in each if "loss" in line] for each in lines]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tokenizer = tiny_tokenizer()
    folder.mkdir()
    write_model(folder, tiny_model(tokenizer), tokenizer, SamplingConfig())
    return folder


def test_lora_trains_the_adapter_and_the_head_and_is_merged(base: Path) -> None:
    config = reward_config(base, model={"lora": {"rank": 4}})
    model, tokenizer = load_backbone(config.model, config.objectives, config.seed)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("score" in name for name in trained)
    assert all("lora" in name or "score" in name for name in trained)
    result = train_reward(config, kind_over_rude(24), backbone=(model, tokenizer))
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert type(result.model.model).__name__ == "LlamaForSequenceClassification"
    assert result.accuracy.value == 1.0


def test_a_run_leaves_a_model_metrics_and_a_record(base: Path, tmp_path: Path) -> None:
    write_preferences(tmp_path / "pairs.jsonl", kind_over_rude(40))
    source = {"path": "pairs.jsonl", "origin": "a test", "licence": "MIT"}
    config = reward_config(base, data={"files": [source], "held_out": 0.3})
    (tmp_path / "reward.yaml").write_text(config.to_yaml())
    command = ["--config", str(tmp_path / "reward.yaml"), "--data", str(tmp_path)]
    assert main([*command, "--check"]) == 0
    assert main([*command, "--run", str(tmp_path / "run")]) == 0
    model = RewardModel.load(tmp_path / "run" / "final")
    scores = model.score([PROMPTS[0]] * 2, [KIND, RUDE])
    assert scores[0] > scores[1]
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["method"] == "reward"
    assert record["evaluations"][0]["metric"] == "reward accuracy"
    assert record["evaluations"][0]["n"] > 0


def test_an_ensemble_has_members_of_different_seeds(base: Path, tmp_path: Path) -> None:
    write_preferences(tmp_path / "pairs.jsonl", kind_over_rude(30))
    source = {"path": "pairs.jsonl", "origin": "a test", "licence": "MIT"}
    config = reward_config(
        base, data={"files": [source], "held_out": 0.3}, members=2, bootstrap=True, reduce="worst"
    )
    ensemble = load_reward(run_reward(config, tmp_path, tmp_path / "run"))
    assert isinstance(ensemble, RewardEnsemble)
    assert ensemble.reduce == "worst"
    members = ensemble.member_scores(PROMPTS, [KIND, RUDE, KIND])
    assert not torch.allclose(members[0], members[1], atol=1e-3)
    together, results = train_ensemble(config, kind_over_rude(30))
    assert len(together.members) == len(results) == 2


def test_configs_that_cannot_be_meant_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown objectives"):
        reward_config(weights={"funny": 1.0})
    with pytest.raises(ConfigError, match="positions"):
        train_reward(
            reward_config(training={"max_length": 4096}), kind_over_rude(4), backbone=causal_backbone()
        )
    with pytest.raises(ConfigError, match="name the comparisons"):
        run_reward(reward_config(base), tmp_path, tmp_path / "run")
    with pytest.raises(TrainingError, match="nothing to train on"):
        train_reward(reward_config(), (), backbone=causal_backbone())
    with pytest.raises(TrainingError, match=r"no config\.json"):
        load_backbone(reward_config(tmp_path).model, ("overall",), 0)


def test_a_config_prints_as_the_yaml_that_the_command_takes(tmp_path: Path) -> None:
    config = reward_config(objectives=("helpful", "honest"), weights={"helpful": 0.5, "honest": 0.5})
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert RewardConfig.load(tmp_path / "c.yaml") == config


def test_the_example_config_learns_the_demo_raters_from_a_quarter_of_its_pairs(tmp_path: Path) -> None:
    """Only the outputs are fitted here, which takes seconds."""
    settings = ("data.demo=320", "data.held_out=0.3", "fit=head", "ridge=1.0")
    command = ["--config", "training/configs/reward.yaml", "--run", str(tmp_path / "run")]
    assert main([*command, *(part for setting in settings for part in ("--set", setting))]) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    (accuracy,) = [e for e in record["evaluations"] if e["metric"] == "reward accuracy"]
    assert accuracy["value"] > 0.55
    assert accuracy["n"] > 60
    assert record["parent"].startswith("demo-chat@")
    (logged,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(logged)["ridge"] == 1.0

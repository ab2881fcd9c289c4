"""What a config's `reward` becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForSequenceClassification

from tests.training.tiny import tiny_model, tiny_prompts, tiny_tokenizer
from training.errors import TrainingError
from training.reward_model import RewardModel, unnormalised
from training.rl.rewards import RewardSource, brevity, checked_scores, load_reward

REPLIES = ("Hello.", "It is four.", "No, I cannot do that.", "", "a", "b", "c", "Good night, sleep well.")


def saved(place: Path, seed: int) -> str:
    tokenizer = tiny_tokenizer()
    shape = tiny_model(tokenizer).config
    shape.num_labels = 1
    torch.manual_seed(seed)
    backbone = LlamaForSequenceClassification(shape)  # type: ignore[no-untyped-call]
    RewardModel(backbone, tokenizer, unnormalised("causal", ["overall"], None, 64)).save(place)
    return str(place)


def test_one_path_is_a_model_and_several_are_an_ensemble(tmp_path: Path) -> None:
    paths = (saved(tmp_path / "a", 0), saved(tmp_path / "b", 1))
    prompts = tiny_prompts()
    scores = [load_reward(RewardSource(paths=(path,)))(prompts, REPLIES) for path in paths]
    assert not torch.equal(scores[0], scores[1])
    worst = load_reward(RewardSource(paths=paths, reduce="worst"))(prompts, REPLIES)
    torch.testing.assert_close(worst, torch.minimum(*scores))
    mean = load_reward(RewardSource(paths=paths, reduce="mean"))(prompts, REPLIES)
    torch.testing.assert_close(mean, (scores[0] + scores[1]) / 2)


def test_brevity_prefers_few_words_to_many_and_to_none() -> None:
    prompts = tiny_prompts()
    scores = load_reward(RewardSource(rule="brevity"))(prompts, REPLIES).tolist()
    assert scores == brevity(prompts, REPLIES).tolist()
    assert scores[0] > scores[1] > scores[2] > scores[3]


def test_a_source_is_paths_or_a_rule() -> None:
    for wrong in ({}, {"paths": ("x",), "rule": "brevity"}):
        with pytest.raises(ValidationError, match="either paths of reward models or a rule"):
            RewardSource(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="no reward model here"):
        load_reward(RewardSource(paths=("nowhere",)))


def test_scores_come_as_one_float_a_reply() -> None:
    prompts = tiny_prompts()
    column = checked_scores(lambda p, r: torch.ones(len(r), 1, dtype=torch.float64), prompts, REPLIES)
    assert column.shape == (8,)
    assert column.dtype == torch.float32

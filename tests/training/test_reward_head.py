"""Fitting the outputs alone: the optimum of the same loss, with the backbone left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny_reward import (
    KIND,
    PROMPTS,
    REPLIES,
    RUDE,
    causal_backbone,
    encoder_backbone,
    kind_over_rude,
    reward_config,
)
from training.data.preferences import Preference, Ranking, Rating, as_prompt
from training.methods.reward import train_reward
from training.methods.reward_head import (
    fit_features,
    gather,
    head_of,
    pooled_features,
    rows_of,
    solve,
    texts_of,
)
from training.methods.reward_trainer import LossWeights, comparison_element, element_losses
from training.reward_model_backbone import kind_of
from training.reward_model_encoding import encode

BACKBONES = [causal_backbone, encoder_backbone]
THREE = ("You are kind.", "It is four.", "No, I cannot do that.")


def elements_of(backbone: Any, rows: list[Any]) -> Any:
    model, tokenizer = backbone()
    kind = kind_of(model.config)

    def reader(prompt: Any, reply: str) -> Any:
        return encode(tokenizer, kind, prompt, reply, 96)

    elements = [comparison_element(row, {"overall": 0}, reader, 1.0) for row in rows]
    return model, elements, pooled_features(model, kind, texts_of(elements), tokenizer.pad_token_id, 3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_learns_and_moves_the_head_alone(backbone: Any) -> None:
    model, tokenizer = backbone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = train_reward(reward_config(fit="head"), kind_over_rude(24), backbone=(model, tokenizer))
    scores = result.model.score([as_prompt("Hello")] * 2, [KIND, RUDE])
    assert scores[0] > scores[1]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= {"score.weight", "classifier.weight", "classifier.bias"}
    assert moved


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_features_times_the_head_are_the_models_scores(backbone: Any) -> None:
    rows = [Ranking(p, THREE, (0, 1, 2)) for p in PROMPTS] + kind_over_rude(3)
    model, elements, features_NF = elements_of(backbone, rows)
    (fitted,) = fit_features(features_NF, elements, list(range(len(rows))), LossWeights(), ridge=0.1)
    head = head_of(model)
    with torch.no_grad():
        direct_N = features_NF @ head.weight[0]
        if head.bias is not None:
            direct_N += head.bias[0]
    assert features_NF.shape == (15, head.in_features)
    config = reward_config(fit="head", ridge=0.1, held_out=0.0)
    result = train_reward(config, rows, backbone=backbone())
    raw_N = torch.cat([result.model.raw([r.prompt] * 3, THREE) for r in rows[:3]])[:, 0]
    expected_N = (features_NF @ fitted.weight_F)[:9]
    assert torch.allclose(raw_N - raw_N[0], expected_N - expected_N[0], atol=1e-4)


def test_the_optimum_has_no_gradient() -> None:
    rows = [
        *kind_over_rude(6),
        Preference(PROMPTS[1], RUDE, KIND, soft=0.6),
        Ranking(PROMPTS[0], THREE, (0, 1, 1)),
    ]
    _, elements, features_NF = elements_of(causal_backbone, rows)
    problem = gather(features_NF, elements, range(len(rows)))
    weights = LossWeights(center=0.01)
    weight_F, bias, _ = solve(problem, weights, 0.05)
    weight_F.requires_grad_(True)
    reward_N = problem.features_NF @ weight_F + bias
    total = element_losses(reward_N, problem.known, problem.elements, weights).mean()
    (total + 0.025 * weight_F.square().sum()).backward()
    assert weight_F.grad is not None
    assert float(weight_F.grad.norm()) < 1e-3


def test_rows_of_chosen_elements() -> None:
    _, elements, features_NF = elements_of(
        causal_backbone, [Ranking(PROMPTS[0], THREE, (0, 1, 2)), *kind_over_rude(2)]
    )
    assert rows_of(elements, [0, 2]) == [0, 1, 2, 5, 6]
    assert len(features_NF) == 7


def test_a_harder_penalty_makes_smaller_differences_and_ratings_count_too() -> None:
    ratings = [Rating(p, r, label=r == KIND) for p in PROMPTS for r in (KIND, RUDE)]
    spread = []
    for ridge in (0.01, 10.0):
        config = reward_config(fit="head", ridge=ridge)
        result = train_reward(
            config, (), ratings=ratings, held_out=kind_over_rude(3), backbone=encoder_backbone()
        )
        raw = result.model.raw(PROMPTS, REPLIES)
        spread.append(float(raw.max() - raw.min()))
        assert result.accuracy.value == 1.0
    assert spread[1] < 0.5 * spread[0]


def test_an_adapter_with_a_frozen_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leave model\.lora out"):
        reward_config(tmp_path, fit="head", model={"lora": {"rank": 4}})

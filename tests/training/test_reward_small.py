"""A smaller reward model, and one that reads beginnings: fewer layers, half the bytes, pairs that are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny_reward import (
    KIND,
    PROMPTS,
    RUDE,
    causal_backbone,
    encoder_backbone,
    kind_over_rude,
    reward_config,
)
from training.data.preferences import Preference, Ranking, as_prompt
from training.errors import ConfigError
from training.methods.reward import train_reward
from training.methods.reward_beginnings import beginnings, begun
from training.reward_model import RewardModel
from training.reward_model_backbone import keep_layers

ASK = as_prompt("What does it cost?")
PAIR = Preference(
    ASK, "It costs four dollars and no more.", "It costs nine, and you are slow. Go away!", strength=2.0
)


def test_both_replies_are_cut_after_as_many_words_and_the_label_stays() -> None:
    for cut in beginnings([PAIR] * 300, 1.0, seed=0):
        assert PAIR.chosen.startswith(cut.chosen) and PAIR.rejected.startswith(cut.rejected)
        a, b = len(cut.chosen.split()), len(cut.rejected.split())
        assert a == b >= 3 or (a == 7 and b > 7 and cut.chosen == PAIR.chosen), (a, b)
        assert cut.prompt == PAIR.prompt and cut.strength == 0


def test_beginnings_are_as_many_as_asked_for_and_the_same_every_time() -> None:
    pairs = [PAIR] * 400
    assert beginnings(pairs, 0.0, seed=1) == []
    # Cuts after two words, "It costs", tell nothing apart and are left out.
    half, twice = len(beginnings(pairs, 0.5, seed=1)), len(beginnings(pairs, 2.0, seed=1))
    assert 120 < half < 200 and 3.2 < twice / half < 4.8
    assert beginnings(pairs, 0.5, seed=1) == beginnings(pairs, 0.5, seed=1) != beginnings(pairs, 0.5, seed=2)
    assert beginnings([Ranking(ASK, ("a b c d", "e f g h"), (0, 1))], 1.0, seed=1) == []
    assert begun("one  two\nthree four", 2) == "one  two\nthree"


def test_a_reward_model_learns_to_tell_beginnings() -> None:
    pairs = kind_over_rude(60)
    told = {}
    for share in (0.0, 2.0):
        config = reward_config(training={"steps": 30}, beginnings=share)
        model = train_reward(config, pairs, held_out=pairs[:6], backbone=causal_backbone()).model
        kind, rude = model.score([PROMPTS[0]] * 2, [begun(KIND, 2), begun(RUDE, 2)]).tolist()
        told[share] = kind - rude
    assert told[2.0] > max(told[0.0], 0.5)


def test_weights_are_written_in_half_the_bytes_and_score_as_measured(tmp_path: Path) -> None:
    config = reward_config(training={"steps": 3}, store="fp16")
    model = train_reward(
        config, kind_over_rude(20), held_out=kind_over_rude(4), backbone=causal_backbone()
    ).model
    before = model.score([PROMPTS[0]] * 2, [KIND, RUDE])
    model.save(tmp_path / "final")
    weights = load_file(tmp_path / "final" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    after = RewardModel.load(tmp_path / "final").score([PROMPTS[0]] * 2, [KIND, RUDE])
    assert torch.equal(before, after) and torch.equal(before, model.score([PROMPTS[0]] * 2, [KIND, RUDE]))


def test_the_first_layers_are_kept_and_no_others() -> None:
    model, _ = causal_backbone()
    first = model.model.layers[0]
    keep_layers(model, 1)
    assert list(model.model.layers) == [first] and model.config.num_hidden_layers == 1
    with pytest.raises(ConfigError, match="2 are to be kept, the backbone has 1"):
        keep_layers(model, 2)
    with pytest.raises(ConfigError, match="none that can be dropped"):
        keep_layers(encoder_backbone()[0], 1)

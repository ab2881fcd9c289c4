"""A reward: of one prompt and reply, whatever else is in the batch, and of mean 0 and deviation 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny_reward import PROMPTS, REPLIES, causal_backbone, reward_model
from training.data.conversation import Message
from training.data.preferences import as_prompt
from training.errors import TrainingError
from training.reward_model import RewardModel, forward, unnormalised
from training.reward_model_encoding import encode, pad
from training.reward_model_ensemble import RewardEnsemble, load_reward, save_ensemble

KINDS = ("causal", "encoder")
TWO = ("helpful", "harmless")


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_depends_neither_on_batch_mates_nor_on_the_batch_size(kind: str) -> None:
    model = reward_model(kind)
    together = model.score(PROMPTS, REPLIES)
    alone = torch.cat([model.score([p], [r]) for p, r in zip(PROMPTS, REPLIES, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, model.score(PROMPTS, REPLIES, batch_size=1), atol=1e-5)
    backwards = model.score(PROMPTS[::-1], REPLIES[::-1])
    assert torch.allclose(together, backwards.flip(0), atol=1e-5)
    assert together.unique().numel() == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("amount", [1, 40])
def test_a_score_depends_neither_on_the_side_nor_on_the_amount_of_padding(
    kind: Any, side: str, amount: int
) -> None:
    model = reward_model(kind)
    filler = int(model.tokenizer.pad_token_id or 0)
    encoded = [encode(model.tokenizer, kind, p, r, 64) for p, r in zip(PROMPTS, REPLIES, strict=True)]
    for item in encoded:
        tensors = pad([item], filler)
        extra = [torch.full((1, amount), v) for v in (filler, 0, 0)]
        parts = [(e, t) if side == "left" else (t, e) for e, t in zip(extra, tensors, strict=True)]
        padded = [torch.cat(pair, dim=1) for pair in parts]
        types = (tensors[2], padded[2]) if kind == "encoder" else (None, None)
        with torch.no_grad():
            plain = forward(model.model, tensors[0], tensors[1], types[0])
            moved = forward(model.model, padded[0], padded[1], types[1])
        assert torch.allclose(plain, moved, atol=1e-5)


def test_the_score_is_read_at_the_last_token_of_the_rendered_conversation() -> None:
    model = reward_model("causal")
    prompt, reply = as_prompt("Hello there, who is it?"), "It is four."
    messages = [{"role": "user", "content": prompt[0].content}, {"role": "assistant", "content": reply}]
    ids = torch.tensor([model.tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]])
    assert ids[0, -1] == model.tokenizer.eos_token_id
    with torch.no_grad():
        hidden = model.model.model(input_ids=ids).last_hidden_state  # type: ignore[union-attr, operator]
        expected = hidden[0, -1] @ model.model.score.weight[0]  # type: ignore[union-attr, index]
    assert torch.allclose(model.raw([prompt], [reply])[0, 0], expected, atol=1e-6)


def test_a_conversation_that_ends_with_the_pad_token_is_refused() -> None:
    _, tokenizer = causal_backbone()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(TrainingError, match="pad_token of its own"):
        encode(tokenizer, "causal", PROMPTS[0], REPLIES[0], 64)


def test_what_is_too_long_loses_its_beginning_and_keeps_its_last_token() -> None:
    model = reward_model("causal")
    long = (Message("user", "Tell me a story. " * 60),)
    item = encode(model.tokenizer, "causal", long, "It is four.", 32)
    assert len(item) == 32
    assert item.ids[-1] == model.tokenizer.eos_token_id
    assert "It is four." in model.tokenizer.decode(item.ids)


def test_an_encoder_reads_the_end_of_a_long_prompt_and_the_beginning_of_a_long_reply() -> None:
    tokenizer = reward_model("encoder").tokenizer
    prompt = (Message("user", "stupid " * 50 + "hello friend"),)
    item = encode(tokenizer, "encoder", prompt, "you are " + "please " * 60, 32)
    assert len(item) == 32
    first = [i for i, kind in zip(item.ids, item.types, strict=True) if kind == 0]
    second = [i for i, kind in zip(item.ids, item.types, strict=True) if kind == 1]
    assert tokenizer.decode(first).endswith("hello friend [SEP]")
    assert tokenizer.decode(second).startswith("you are please")
    assert len(second) <= 24


@pytest.mark.parametrize("weights", [{"helpful": 1.0}, {"helpful": 0.7, "harmless": 0.3}])
def test_any_mix_has_mean_zero_and_deviation_one_on_the_reference_samples(weights: dict[str, float]) -> None:
    model = reward_model("causal", TWO).weighted(weights)
    scores = model.score(PROMPTS, REPLIES)
    assert abs(float(scores.mean())) < 1e-5
    assert float(scores.std(unbiased=False)) == pytest.approx(1.0, abs=1e-4)
    each = model.score_objectives(PROMPTS, REPLIES)
    assert torch.allclose(each.mean(dim=0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(each.std(dim=0, unbiased=False), torch.ones(2), atol=1e-4)
    mixed = each @ torch.tensor([weights.get(name, 0.0) for name in TWO])
    assert torch.allclose(scores, mixed / mixed.std(unbiased=False), atol=1e-4)


@pytest.mark.parametrize("weights", [{"helpful": -1.0, "harmless": 2.0}, {"funny": 1.0}, {"helpful": 0.0}])
def test_weights_that_make_no_mix_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match="reward weights"):
        reward_model("causal", TWO).weighted(weights)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_scores_the_same(kind: str, tmp_path: Path) -> None:
    model = reward_model(kind, TWO).weighted({"helpful": 0.2, "harmless": 0.8})
    model.save(tmp_path / "reward")
    loaded = RewardModel.load(tmp_path / "reward")
    assert torch.allclose(loaded.score(PROMPTS, REPLIES), model.score(PROMPTS, REPLIES), atol=1e-6)
    assert loaded.objectives == TWO
    assert loaded.weights == {"helpful": 0.2, "harmless": 0.8}
    assert {p.suffix for p in (tmp_path / "reward").iterdir()} <= {".json", ".safetensors", ".jinja"}
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    assert list(config["id2label"].values()) == list(TWO)
    served = {"causal": "LlamaForSequenceClassification", "encoder": "EncoderForReward"}
    assert config["architectures"] == [served[kind]]


def test_a_folder_that_is_no_reward_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"reward\.json cannot be read"):
        RewardModel.load(tmp_path)
    reward_model().save(tmp_path / "reward")
    about = tmp_path / "reward" / "reward.json"
    about.write_text(about.read_text().replace('"causal"', '"both"'))
    with pytest.raises(TrainingError, match="not a reward model's description"):
        RewardModel.load(tmp_path / "reward")


def test_samples_that_do_not_differ_cannot_normalise() -> None:
    with pytest.raises(TrainingError, match="do not vary"):
        reward_model().normalised(PROMPTS[:1] * 2, REPLIES[:1] * 2)


def test_a_model_that_was_not_normalised_has_its_raw_scores() -> None:
    model, tokenizer = causal_backbone()
    plain = RewardModel(model.eval(), tokenizer, unnormalised("causal", ("overall",), None, 64))
    assert torch.allclose(plain.score(PROMPTS, REPLIES), plain.raw(PROMPTS, REPLIES)[:, 0])


def test_an_ensemble_is_read_as_its_mean_its_worst_or_less_its_variance(tmp_path: Path) -> None:
    one, two = reward_model("causal"), reward_model("encoder")
    scores = torch.stack([one(PROMPTS, REPLIES), two(PROMPTS, REPLIES)])
    save_ensemble(tmp_path / "both", [one, two], "uncertainty", 0.5)
    both = load_reward(tmp_path / "both")
    assert isinstance(both, RewardEnsemble)
    assert torch.allclose(both.score(PROMPTS, REPLIES, reduce="mean"), scores.mean(dim=0), atol=1e-5)
    assert torch.allclose(both.score(PROMPTS, REPLIES, reduce="worst"), scores.amin(dim=0), atol=1e-5)
    cautious = scores.mean(dim=0) - 0.5 * scores.var(dim=0, unbiased=False)
    assert torch.allclose(both(PROMPTS, REPLIES), cautious, atol=1e-5)
    assert torch.allclose(both.disagreement(PROMPTS, REPLIES), (scores[0] - scores[1]).abs() / 2, atol=1e-5)
    one.save(tmp_path / "one")
    assert isinstance(load_reward(tmp_path / "one"), RewardModel)

"""The example configs, cut down to a few steps, train the published model, and it learns what they say.

Before and after are of the same rows, prompts and random numbers, so the differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.data.mixture import load_mixture
from training.data.preference_data import load_preferences, load_prompts, load_ratings
from training.data.preference_render import render_pairs, render_ratings
from training.evaluate.metrics import mean
from training.methods.grpo import GrpoConfig, run_grpo
from training.methods.kto import KtoConfig, run_kto
from training.methods.orpo import OrpoConfig, run_orpo
from training.methods.preference_score import reply_logprobs, score_pairs
from training.methods.rloo import RlooConfig, run_rloo
from training.methods.spin import SpinConfig, run_spin
from training.models import ModelSource, load_policy
from training.rl.rewards import brevity
from training.rl.rollout import generate
from training.rl.sampling import SampleConfig

ROOT = Path(__file__).parents[3]
CUT = ("batch_size=8", "micro_batch=8", "log_every=1", "warmup=0", "threads=1")

# What of a model should be higher after training, a number a row.
Measure = Callable[[Any, PreTrainedModel, PreTrainedTokenizerFast], Tensor]


def wanted_over_unwanted(config: KtoConfig, model: PreTrainedModel, tokenizer: Any) -> Tensor:
    """Log-probability of each rated reply, with its sign turned where it is unwanted."""
    rows = render_ratings(load_ratings(config.data, ROOT, 0).train, tokenizer, 256).rows
    logprobs_N = reply_logprobs(model, [(r.prompt, r.reply) for r in rows], int(tokenizer.pad_token_id))
    return logprobs_N * torch.tensor([1.0 if row.source.label else -1.0 for row in rows])


def chosen_over_rejected(config: OrpoConfig, model: PreTrainedModel, tokenizer: Any) -> Tensor:
    """How much likelier per token each chosen reply is."""
    rows = render_pairs(load_preferences(config.data, ROOT, 0).train, tokenizer, 256).rows
    scores = score_pairs(model, rows, int(tokenizer.pad_token_id))
    lengths = torch.tensor([[len(row.chosen), len(row.rejected)] for row in rows])
    return scores.chosen_N / lengths[:, 0] - scores.rejected_N / lengths[:, 1]


def demonstrations(config: SpinConfig, model: PreTrainedModel, tokenizer: Any) -> Tensor:
    """Log-probability of each person's reply."""
    rows = []
    for conversation in load_mixture(config.data, ROOT, 0).train:
        messages = conversation.as_dicts()
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, whole)]
        rows.append((ids[0], ids[1][len(ids[0]) :]))
    return reply_logprobs(model, rows, int(tokenizer.pad_token_id))


def short_replies(config: Any, model: PreTrainedModel, tokenizer: Any) -> Tensor:
    """The reward of a sampled reply to each held-out prompt."""
    prompts = load_prompts(config.data, ROOT, 0).held_out
    texts = generate(model, tokenizer, prompts, SampleConfig(max_new_tokens=config.max_new_tokens), 1).texts
    return brevity(prompts, texts)


class Example(NamedTuple):
    config: Any
    run: Any
    cut: tuple[str, ...]
    measure: Measure


PAIRS = ("data.demo=60", "steps=8", "checkpoint_every=8")
GROUPS = (
    "batch_size=32",
    "micro_batch=32",
    "max_new_tokens=32",
    "steps=4",
    "checkpoint_every=4",
    "data.held_out=0.3",
)
EXAMPLES = {
    "kto": Example(KtoConfig, run_kto, PAIRS, wanted_over_unwanted),
    "orpo": Example(OrpoConfig, run_orpo, PAIRS, chosen_over_rejected),
    "spin": Example(SpinConfig, run_spin, ("data.demo=60", "steps=4", "checkpoint_every=4"), demonstrations),
    "grpo": Example(GrpoConfig, run_grpo, GROUPS, short_replies),
    "rloo": Example(RlooConfig, run_rloo, GROUPS, short_replies),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_config_learns_what_it_is_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    example = EXAMPLES[name]
    place = ROOT / "training" / "configs" / f"{name}.yaml"
    config = example.config.load(place, (*CUT, *example.cut))
    base, tokenizer = load_policy(ModelSource(path=config.model.path))
    before = example.measure(config, base, tokenizer)
    final = example.run(config, ROOT, tmp_path)
    trained, _ = load_policy(ModelSource(path=str(final)))
    gained = mean((example.measure(config, trained, tokenizer) - before).tolist())
    assert gained.low > 0

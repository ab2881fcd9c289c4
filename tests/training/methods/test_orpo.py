"""ORPO: it learns without a reference, from a base model, and its loss is our function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.methods.preference_data import adapted, kind_pairs, uneven_pairs
from tests.training.tiny import tiny_model, tiny_tokenizer, write_tiny
from training.data.preference_render import render_pairs
from training.data.preferences import write_preferences
from training.errors import TrainingError
from training.losses.preference import orpo_loss
from training.methods.orpo import OrpoConfig, build_trainer, run_orpo, train_orpo
from training.methods.preference_score import score_pairs
from training.models import ModelSource
from training.provenance import RunRecord

TOKENIZER = tiny_tokenizer()
PAD = int(TOKENIZER.pad_token_id)


def config(**options: Any) -> OrpoConfig:
    settings = {
        "name": "tiny",
        "model": {"path": "unused"},
        "data": {"demo": 1},
        "steps": 20,
        "batch_size": 8,
        "micro_batch": 8,
        "learning_rate": 3e-3,
        "log_every": 5,
        "checkpoint_every": 5,
        "weight": 0.5,
        "max_length": 128,
        **options,
    }
    return OrpoConfig.model_validate(settings)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_orpo_makes_chosen_replies_the_likelier_ones(lora: bool) -> None:
    model = adapted(TOKENIZER) if lora else tiny_model(TOKENIZER)
    settings = config(learning_rate=1e-2 if lora else 3e-3)
    result = train_orpo(model, TOKENIZER, settings, kind_pairs(64), held_out=kind_pairs(40, seed=1))
    assert result.before is not None and result.after is not None
    assert result.after.low > max(0.8, result.before.high)
    assert result.history[-1]["nll_loss"] < result.history[0]["nll_loss"]


def test_trl_computes_our_loss() -> None:
    model, pairs = tiny_model(TOKENIZER), uneven_pairs()
    rows = render_pairs(pairs, TOKENIZER, 128).rows
    trainer = build_trainer(model, TOKENIZER, config(), rows, (), None)
    data = trainer.train_dataset
    batch = trainer.data_collator([data[i] for i in range(len(data))])
    found = trainer.compute_loss(model, batch).item()

    scores = score_pairs(model, rows, PAD)
    chosen = scores.chosen_N / torch.tensor([len(row.chosen) for row in rows])
    rejected = scores.rejected_N / torch.tensor([len(row.rejected) for row in rows])
    ids, mask = batch["chosen_input_ids"], batch["chosen_attention_mask"].bool()
    with torch.no_grad():
        logprobs = model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1].log_softmax(-1)
    nll = -logprobs.gather(2, ids[:, 1:, None]).squeeze(2)[mask[:, 1:]].mean()
    expected, _ = orpo_loss(chosen, rejected, nll, 0.5)
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_the_odds_ratio_is_that_of_the_probabilities() -> None:
    p, q = torch.tensor([0.9, 0.3, 0.5]), torch.tensor([0.2, 0.6, 0.5])
    loss, odds = orpo_loss(p.log(), q.log(), torch.tensor(1.0), 2.0)
    by_hand = (p / (1 - p) / (q / (1 - q))).log()
    assert torch.allclose(odds, by_hand, atol=1e-6)
    assert loss.item() == pytest.approx(1 + 2 * (1 + (-by_hand).exp()).log().mean().item())


def test_rows_hold_exactly_what_the_template_renders() -> None:
    """TRL's own rendering would append an end-of-text where the template ends a turn otherwise."""
    pairs = uneven_pairs()
    rows = render_pairs(pairs, TOKENIZER, 128).rows
    trainer = build_trainer(tiny_model(TOKENIZER), TOKENIZER, config(), rows, (), None)
    for pair, row in zip(pairs, trainer.train_dataset, strict=True):
        messages = [{"role": m.role, "content": m.content} for m in pair.prompt]
        text = TOKENIZER.apply_chat_template(
            [*messages, {"role": "assistant", "content": pair.chosen}], tokenize=False
        )
        assert row["chosen_input_ids"] == TOKENIZER(text, add_special_tokens=False)["input_ids"]


def test_a_run_leaves_a_model_and_its_record(tmp_path: Path) -> None:
    write_tiny(tmp_path / "base")
    write_preferences(tmp_path / "pairs.jsonl", kind_pairs(40))
    file = {"path": "pairs.jsonl", "origin": "made here", "licence": "MIT"}
    source = ModelSource(path=str(tmp_path / "base"), origin="made here", licence="MIT")
    settings = config(
        model=source,
        data={"files": [file], "held_out": 0.3},
        steps=4,
        log_every=2,
        checkpoint_every=2,
        evaluate_every=2,
    )
    final = run_orpo(settings, tmp_path, tmp_path / "run")
    assert (final / "model.safetensors").is_file()
    record = RunRecord.read(tmp_path / "run")
    assert (record.method, [e.metric for e in record.evaluations]) == ("orpo", ["chosen_likelier"])


def test_no_preferences_are_an_error() -> None:
    with pytest.raises(TrainingError, match="no preferences"):
        train_orpo(tiny_model(TOKENIZER), TOKENIZER, config(), [])

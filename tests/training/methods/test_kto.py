"""KTO: it learns from single replies, also where one label is rare, with the loss that was proved."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.training.methods.preference_data import adapted, kind_pairs, uneven_pairs
from tests.training.tiny import tiny_model, tiny_tokenizer, write_tiny
from training.data.preference_data import as_ratings
from training.data.preference_render import ReplyRow, render_ratings
from training.data.preferences import Preference, Rating, write_ratings
from training.errors import TrainingError
from training.losses.preference import kto_loss, kto_reference_point
from training.methods.kto import KtoConfig, build_trainer, labelled, run_kto, train_kto
from training.methods.kto_trainer import rating_dataset
from training.methods.preference_score import reply_logprobs
from training.models import ModelSource
from training.provenance import RunRecord

TOKENIZER = tiny_tokenizer()
PAD = int(TOKENIZER.pad_token_id)


def config(**options: Any) -> KtoConfig:
    settings = {
        "name": "tiny",
        "model": {"path": "unused"},
        "data": {"demo": 1},
        "steps": 20,
        "batch_size": 16,
        "micro_batch": 16,
        "learning_rate": 3e-3,
        "log_every": 5,
        "checkpoint_every": 5,
        "beta": 0.5,
        "max_length": 128,
        **options,
    }
    return KtoConfig.model_validate(settings)


def rows_of(ratings: Sequence[Rating]) -> tuple[ReplyRow, ...]:
    return render_ratings(ratings, TOKENIZER, 128).rows


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_kto_learns_what_is_wanted_from_single_replies(lora: bool) -> None:
    model = adapted(TOKENIZER) if lora else tiny_model(TOKENIZER)
    result = train_kto(
        model,
        TOKENIZER,
        config(learning_rate=1e-2 if lora else 3e-3),
        as_ratings(kind_pairs(64)),
        held_out=as_ratings(kind_pairs(30, seed=1)),
    )
    assert result.auc is not None and result.auc.low > 0.8
    assert result.weights == (1.0, 1.0)


def test_it_learns_with_one_unwanted_label_in_eleven() -> None:
    ratings = as_ratings(kind_pairs(80))
    wanted = [rating for rating in ratings if rating.label]
    rare = [rating for rating in ratings if not rating.label][:8]
    result = train_kto(
        tiny_model(TOKENIZER),
        TOKENIZER,
        config(),
        [*wanted, *rare],
        held_out=as_ratings(kind_pairs(30, seed=1)),
    )
    assert result.weights == (pytest.approx(0.1), 1.0)
    assert result.auc is not None and result.auc.low > 0.8


def test_trl_computes_the_loss_that_the_proofs_are_about() -> None:
    reference = tiny_model(TOKENIZER)
    torch.manual_seed(5)
    policy = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = rows_of(as_ratings(uneven_pairs()))
    settings = config(wanted_weight=0.7, unwanted_weight=1.3)
    trainer = build_trainer(copy.deepcopy(policy), TOKENIZER, settings, rows, (), reference, None)
    data = trainer.train_dataset
    batch = trainer.data_collator([data[i] for i in range(len(data))])
    found = trainer.compute_loss(trainer.model, batch).item()

    plain = tiny_model(TOKENIZER)
    own = [(tuple(row["prompt_ids"]), tuple(row["completion_ids"])) for row in data]
    others = [(tuple(row["prompt_ids"]), tuple(row["KL_completion_ids"])) for row in data]
    ratio, mismatched = (
        reply_logprobs(policy, replies, PAD) - reply_logprobs(plain, replies, PAD)
        for replies in (own, others)
    )
    point = kto_reference_point(mismatched)
    expected = kto_loss(ratio, torch.tensor(data["label"]), point, 0.5, 0.7, 1.3).mean()
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_the_mismatched_reply_belongs_to_another_prompt() -> None:
    """Ratings made of pairs stand two by two: in file order, a neighbour's reply is the same prompt's."""
    pairs = [Preference(p.prompt, f"Yes {n}.", f"No {n}.") for n, p in enumerate(kind_pairs(32))]
    rows = rows_of(as_ratings(pairs))
    belongs = {(row.prompt, row.reply) for row in rows}
    in_file_order = sum((row.prompt, rows[i - 1].reply) in belongs for i, row in enumerate(rows))
    data = rating_dataset(rows, 8, seed=0)
    turned = sum((tuple(row["prompt_ids"]), tuple(row["KL_completion_ids"])) in belongs for row in data)
    assert (in_file_order, turned) == (32, 0)


def test_a_lone_last_row_is_left_out_as_it_has_no_reference_point() -> None:
    rows = rows_of(as_ratings(kind_pairs(16)))
    assert len(rating_dataset(rows[:17], 8, seed=0)) == 16
    assert len(rating_dataset(rows[:18], 8, seed=0)) == 18


def test_scores_become_labels_by_a_threshold() -> None:
    prompt = kind_pairs(1)[0].prompt
    ratings = [Rating(prompt, "a", score=0.4), Rating(prompt, "b", score=0.6), Rating(prompt, "c", False)]
    assert [r.label for r in labelled(ratings, 0.5)] == [False, True, False]
    assert [r.reply for r in labelled(ratings, None)] == ["c"]


def test_what_cannot_be_learnt_is_refused() -> None:
    wanted = [rating for rating in as_ratings(kind_pairs(8)) if rating.label]
    with pytest.raises(TrainingError, match="both labels"):
        train_kto(tiny_model(TOKENIZER), TOKENIZER, config(), wanted)
    with pytest.raises(ValidationError, match="at least 2 rows"):
        config(micro_batch=1)
    with pytest.raises(ValidationError, match="both wanted_weight and unwanted_weight"):
        config(wanted_weight=1.0)


def test_a_precomputed_reference_is_the_live_one() -> None:
    def after(precompute: bool) -> list[torch.Tensor]:
        model = tiny_model(TOKENIZER)
        settings = config(steps=3, precompute_reference=precompute)
        train_kto(model, TOKENIZER, settings, as_ratings(uneven_pairs()))
        return [parameter.detach() for parameter in model.parameters()]

    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(after(False), after(True), strict=True))


def test_a_run_leaves_a_model_and_its_record(tmp_path: Path) -> None:
    write_tiny(tmp_path / "base")
    write_ratings(tmp_path / "ratings.jsonl", as_ratings(kind_pairs(40)))
    file = {"path": "ratings.jsonl", "origin": "made here", "licence": "MIT"}
    source = ModelSource(path=str(tmp_path / "base"), origin="made here", licence="MIT")
    settings = config(model=source, data={"files": [file], "held_out": 0.3}, steps=4, checkpoint_every=5)
    final = run_kto(settings, tmp_path, tmp_path / "run")
    assert (final / "model.safetensors").is_file()
    record = RunRecord.read(tmp_path / "run")
    assert (record.method, [e.metric for e in record.evaluations]) == ("kto", ["auc"])
    assert "num_tokens" not in (tmp_path / "run" / "metrics.jsonl").read_text()

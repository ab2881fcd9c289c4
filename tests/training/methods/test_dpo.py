"""DPO: it learns, its losses are the ones that were proved, and the ways to compute it agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedModel

from policies.manifest import Evaluation
from tests.training.methods.preference_data import adapted, kind_pairs, uneven_pairs
from tests.training.tiny import tiny_model, tiny_tokenizer, write_tiny
from training.data.preference_data import PreferenceDataConfig
from training.data.preference_render import PairRow, render_pairs
from training.data.preferences import Preference, write_preferences
from training.errors import TrainingError
from training.losses.preference import LOGIT_LOSSES, SORTED_LOSSES, PairLogprobs, PairLoss, pair_loss
from training.methods.dpo import DpoConfig, build_trainer, main, run_dpo, train_dpo
from training.methods.dpo_trainer import PairTrainer, forward_restored
from training.methods.preference_score import score_pairs
from training.models import LoraConfig, ModelSource, load_policy, reference_of
from training.provenance import RunRecord

TOKENIZER = tiny_tokenizer()
PAD = int(TOKENIZER.pad_token_id)
ALL_LOSSES = get_args(PairLoss)


def config(**options: Any) -> DpoConfig:
    return DpoConfig.model_validate(
        {
            "name": "tiny",
            "model": {"path": "unused"},
            "data": {"demo": 1},
            "steps": 20,
            "batch_size": 8,
            "micro_batch": 8,
            "learning_rate": 1e-3,
            "log_every": 5,
            "checkpoint_every": 5,
            "beta": 0.5,
            "max_length": 128,
            **options,
        }
    )


def rows_of(pairs: Sequence[Preference]) -> tuple[PairRow, ...]:
    return render_pairs(pairs, TOKENIZER, 128).rows


def moved(model: PreTrainedModel, seed: int = 5) -> PreTrainedModel:
    """A copy with every weight nudged: a policy that is not its reference."""
    torch.manual_seed(seed)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return other


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained(model: PreTrainedModel, pairs: Sequence[Preference], **options: Any) -> dict[str, Tensor]:
    train_dpo(model, TOKENIZER, config(**options), pairs)
    return weights(model)


def same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float) -> bool:
    return all(torch.allclose(first[name], second[name], atol=tolerance) for name in first)


def pairs_by_hand(
    model: PreTrainedModel, reference: PreTrainedModel, rows: Sequence[PairRow]
) -> PairLogprobs:
    ours, theirs = score_pairs(model, rows, PAD), score_pairs(reference, rows, PAD)
    lengths = [(float(len(row.chosen)), float(len(row.rejected))) for row in rows]
    chosen, rejected = torch.tensor(lengths).unbind(1)
    return PairLogprobs(ours.chosen_N, ours.rejected_N, theirs.chosen_N, theirs.rejected_N, chosen, rejected)


def batch_loss(
    model: PreTrainedModel, reference: PreTrainedModel, pairs: Sequence[Preference], **options: Any
) -> float:
    """What the trainer computes for the pairs as one batch."""
    model, reference = copy.deepcopy(model), copy.deepcopy(reference)
    trainer = build_trainer(model, TOKENIZER, config(**options), rows_of(pairs), (), reference, None)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
    return float(trainer.compute_loss(trainer.model, batch).detach())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_dpo_learns_to_prefer_on_prompts_that_it_has_not_seen(lora: bool) -> None:
    model = adapted(TOKENIZER) if lora else tiny_model(TOKENIZER)
    rate = 1e-2 if lora else 3e-3
    result = train_dpo(
        model, TOKENIZER, config(learning_rate=rate), kind_pairs(64), held_out=kind_pairs(40, seed=1)
    )
    assert result.report is not None
    assert result.report.accuracy.low > 0.8
    assert result.report.margin.low > 1
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


@pytest.mark.parametrize("kind", ["hinge", "ipo", "robust", "apo_zero", "sppo_hard"])
def test_other_losses_learn_it_too(kind: str) -> None:
    options = {"losses": {kind: 1}, "label_smoothing": 0.1 if kind == "robust" else 0}
    result = train_dpo(
        tiny_model(TOKENIZER),
        TOKENIZER,
        config(learning_rate=3e-3, steps=12, **options),
        kind_pairs(64),
        held_out=kind_pairs(40, seed=1),
    )
    assert result.report is not None and result.report.accuracy.low > 0.8


@pytest.mark.parametrize("kind", ALL_LOSSES)
def test_trl_computes_the_losses_that_the_proofs_are_about(kind: PairLoss) -> None:
    model, pairs = tiny_model(TOKENIZER), uneven_pairs()
    policy, smoothing = moved(model), 0.1 if kind in ("robust", "exo_pair") else 0.0
    by_hand = pairs_by_hand(policy, model, rows_of(pairs))
    expected = pair_loss(kind, by_hand, 0.5, label_smoothing=smoothing).mean().item()
    found = batch_loss(policy, model, pairs, losses={kind: 1.0}, label_smoothing=smoothing)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in ALL_LOSSES if kind not in SORTED_LOSSES])
def test_a_certain_soft_label_is_an_ordinary_one(kind: PairLoss) -> None:
    """Our loss, which takes over where a row has a soft label, is TRL's where that label is certain."""
    model, pairs = tiny_model(TOKENIZER), uneven_pairs()
    policy = moved(model)
    certain = [Preference(p.prompt, p.chosen, p.rejected, soft=1.0) for p in pairs]
    options: dict[str, Any] = {"losses": {kind: 1.0, "sft": 0.3}}
    options["label_smoothing"] = 0.1 if kind in ("robust", "exo_pair") else 0.0
    plain = batch_loss(policy, model, pairs, **options)
    assert batch_loss(policy, model, certain, **options) == pytest.approx(plain, rel=1e-5)


def test_a_soft_label_weighs_both_answers() -> None:
    model, pairs = tiny_model(TOKENIZER), uneven_pairs()
    policy = moved(model)
    turned = [Preference(p.prompt, p.rejected, p.chosen) for p in pairs]
    unsure = [Preference(p.prompt, p.chosen, p.rejected, soft=0.7) for p in pairs]
    expected = 0.7 * batch_loss(policy, model, pairs) + 0.3 * batch_loss(policy, model, turned)
    assert batch_loss(policy, model, unsure) == pytest.approx(expected, rel=1e-5)
    assert batch_loss(policy, model, pairs, label_smoothing=0.3) == pytest.approx(expected, rel=1e-5)
    ignored = batch_loss(policy, model, unsure, soft_labels=False)
    assert ignored == pytest.approx(batch_loss(policy, model, pairs), rel=1e-5)


@pytest.mark.parametrize("kind", sorted(LOGIT_LOSSES))
def test_strong_preferences_ask_for_larger_margins(kind: PairLoss) -> None:
    model, pairs = tiny_model(TOKENIZER), uneven_pairs()
    policy = moved(model)
    strong = [Preference(p.prompt, p.chosen, p.rejected, strength=2.0) for p in pairs]
    losses = {"losses": {kind: 1.0}}
    without = batch_loss(policy, model, strong, **losses)
    assert without == pytest.approx(batch_loss(policy, model, pairs, **losses))
    assert batch_loss(policy, model, strong, margin_scale=0.5, **losses) > without
    assert batch_loss(policy, model, pairs, margin_scale=0.5, **losses) == pytest.approx(without, rel=1e-5)


def test_one_batch_of_eight_is_eight_of_one_accumulated() -> None:
    pairs = uneven_pairs()
    whole = trained(tiny_model(TOKENIZER), pairs, steps=3, micro_batch=8)
    parts = trained(tiny_model(TOKENIZER), pairs, steps=3, micro_batch=1)
    assert same(whole, parts, 2e-5)


def test_padding_changes_no_log_probability() -> None:
    model, rows = tiny_model(TOKENIZER), rows_of(uneven_pairs())
    together = score_pairs(model, rows, PAD, batch_size=8)
    alone = score_pairs(model, rows, PAD, batch_size=1)
    assert torch.allclose(together.chosen_N, alone.chosen_N, atol=1e-4)
    assert torch.allclose(together.rejected_N, alone.rejected_N, atol=1e-4)


def test_padding_changes_no_loss() -> None:
    """A pair's loss is the same alone and beside longer ones, so a batch's is the mean of its pairs'."""
    model, pairs = tiny_model(TOKENIZER), uneven_pairs()
    policy = moved(model)
    each = [batch_loss(policy, model, [pair]) for pair in pairs]
    assert batch_loss(policy, model, pairs) == pytest.approx(sum(each) / len(each), rel=1e-5)


@pytest.mark.parametrize("soft", [None, 0.8], ids=["trl", "ours"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_precomputed_reference_is_the_live_one(lora: bool, soft: float | None) -> None:
    pairs = [Preference(p.prompt, p.chosen, p.rejected, soft=soft) for p in uneven_pairs()]

    def after(precompute: bool) -> dict[str, Tensor]:
        model = adapted(TOKENIZER) if lora else tiny_model(TOKENIZER)
        return trained(model, pairs, steps=3, precompute_reference=precompute)

    assert same(after(False), after(True), 2e-5)


def test_with_its_adapter_disabled_a_lora_is_its_own_reference() -> None:
    plain, model, pairs = tiny_model(TOKENIZER), adapted(TOKENIZER), uneven_pairs()
    before = score_pairs(plain, rows_of(pairs), PAD)
    train_dpo(model, TOKENIZER, config(steps=3, learning_rate=1e-2), pairs)
    assert set(model.peft_config) == {"default"}, "no copy of the adapter is kept"
    with reference_of(model).weights() as reference:
        disabled = score_pairs(reference, rows_of(pairs), PAD)
    assert torch.equal(before.chosen_N, disabled.chosen_N)
    assert not torch.allclose(before.chosen_N, score_pairs(model, rows_of(pairs), PAD).chosen_N)


def test_training_against_the_disabled_adapter_is_training_against_a_copy() -> None:
    first, second, pairs = adapted(TOKENIZER), adapted(TOKENIZER), uneven_pairs()
    train_dpo(first, TOKENIZER, config(steps=3), pairs)
    train_dpo(second, TOKENIZER, config(steps=3), pairs, reference=tiny_model(TOKENIZER))
    assert same(weights(first), weights(second), 1e-6)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_every_parameter_that_trains_moves_and_no_other(lora: bool) -> None:
    model = adapted(TOKENIZER) if lora else tiny_model(TOKENIZER)
    before = weights(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    after = trained(model, uneven_pairs(), steps=3)
    assert {name for name in before if not torch.equal(before[name], after[name])} == trainable


def test_a_copy_made_after_training_has_weights_of_its_own() -> None:
    """TRL leaves a `forward` on the instance that is bound to the model that was trained."""
    model = tiny_model(TOKENIZER)
    train_dpo(model, TOKENIZER, config(steps=1), uneven_pairs())
    ids = torch.tensor([[5, 6, 7]])
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert other(ids).logits.abs().max() == 0
        assert model(ids).logits.abs().max() > 0


def test_a_falling_chosen_log_probability_is_told() -> None:
    """Chosen and rejected share their beginning, so pushing the one down takes the other along."""
    pairs = [
        Preference(p.prompt, "No, I cannot do that at all.", "No, I cannot do that at night.")
        for p in kind_pairs(16)
    ]
    result = train_dpo(
        tiny_model(TOKENIZER),
        TOKENIZER,
        config(losses={"apo_down": 1.0}, learning_rate=3e-3),
        pairs,
        held_out=pairs[:8],
    )
    assert result.report is not None and result.report.chosen_change.high < 0
    (warning,) = result.warnings
    assert warning.startswith(f"chosen log-probability fell by {-result.report.chosen_change.value:.2f} nats")
    assert result.history[-1]["logps/chosen_change"] < 0


def run_config(place: Path, **options: Any) -> DpoConfig:
    """A run over files, with a held-out share, six steps and a checkpoint every second one."""
    write_tiny(place / "base")
    write_preferences(place / "pairs.jsonl", kind_pairs(40))
    file = {"path": "pairs.jsonl", "origin": "made here", "licence": "MIT"}
    return config(
        model=ModelSource(
            path=str(place / "base"), origin="made here", licence="MIT", lora=options.pop("lora", None)
        ),
        data={"files": [file], "held_out": 0.2},
        steps=6,
        log_every=1,
        checkpoint_every=2,
        **options,
    )


class Interrupted(Exception):
    pass


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = run_config(tmp_path)
    whole = run_dpo(settings, tmp_path, tmp_path / "whole")

    original, calls = PairTrainer.compute_loss, [0]

    def dies(self: PairTrainer, *arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise Interrupted
        return original(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(PairTrainer, "compute_loss", dies)
        run_dpo(settings, tmp_path, tmp_path / "cut")
    assert not (tmp_path / "cut" / "final").exists()
    resumed = run_dpo(settings, tmp_path, tmp_path / "cut")
    metrics = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "cut")]
    assert metrics[0] == metrics[1]
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()


def test_a_run_leaves_a_model_and_its_record(tmp_path: Path) -> None:
    final = run_dpo(run_config(tmp_path, lora=LoraConfig(rank=2)), tmp_path, tmp_path / "run")
    model, _ = load_policy(ModelSource(path=str(final)))
    assert score_pairs(model, rows_of(uneven_pairs()), PAD).chosen_N.isfinite().all()
    record = RunRecord.read(tmp_path / "run")
    assert record.method == "dpo"
    assert [source.path for source in record.data] == ["pairs.jsonl"]
    found = {evaluation.metric: evaluation for evaluation in record.evaluations}
    assert isinstance(found["preference_accuracy"], Evaluation)
    assert found["chosen_logprob_change"].n == found["preference_accuracy"].n


def test_check_tells_about_the_data_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dpo.yaml").write_text(run_config(tmp_path).to_yaml())
    status = main(["--config", str(tmp_path / "dpo.yaml"), "--data", str(tmp_path), "--check"])
    assert status == 0
    assert "pairs.jsonl: 40 rows" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_what_means_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="takes no margins"):
        config(losses={"ipo": 1.0}, margin_scale=1.0)
    with pytest.raises(ValidationError, match="exo_pair needs a label_smoothing"):
        config(losses={"exo_pair": 1.0})
    with pytest.raises(ValidationError, match="name at least one"):
        config(losses={})
    with pytest.raises(TrainingError, match="fits max_length 8"):
        train_dpo(tiny_model(TOKENIZER), TOKENIZER, config(max_length=8), uneven_pairs())
    with pytest.raises(TrainingError, match="no preferences"):
        train_dpo(tiny_model(TOKENIZER), TOKENIZER, config(), [])
    soft = [Preference(p.prompt, p.chosen, p.rejected, soft=0.8) for p in uneven_pairs()]
    with pytest.raises(TrainingError, match="takes no soft labels"):
        train_dpo(tiny_model(TOKENIZER), TOKENIZER, config(losses={"aot": 1.0}), soft)
    assert PreferenceDataConfig(demo=1).held_out == 0.1


def test_the_forward_is_put_back_even_when_training_fails() -> None:
    model = tiny_model(TOKENIZER)
    with pytest.raises(Interrupted), forward_restored(model):
        build_trainer(model, TOKENIZER, config(), rows_of(uneven_pairs()), (), None, None)
        assert "forward" in vars(model)
        raise Interrupted
    assert "forward" not in vars(model)

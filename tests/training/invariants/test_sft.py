"""What must not change what is learnt: how a batch is cut, packed, padded or interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.training.tiny import tiny_model, tiny_tokenizer, write_tiny
from training.checkpoint_marker import mark_complete
from training.data.conversation import Conversation, Message
from training.held_out import score_held_out
from training.methods.sft import SftConfig, render_all, train_sft
from training.models import LoraConfig, ModelSource, load_policy, load_reference, reference_of
from training.trl import runner

# Replies of unequal length: means of means would differ from the mean.
TALKS = [
    Conversation((Message("user", f"{n}?"), Message("assistant", "very " * (n % 3) + "good.")))
    for n in range(8)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def a_config(**changes: object) -> SftConfig:
    fields: dict[str, object] = {
        "name": "tiny",
        "model": {"path": "nowhere"},
        "data": {},
        "steps": 3,
        "batch_size": 8,
        "micro_batch": 8,
        "learning_rate": 0.01,
        "log_every": 1,
        "checkpoint_every": 1,
        "max_length": 128,
        "threads": 1,
    }
    return SftConfig.model_validate(fields | changes)


def trained(config: SftConfig, run: Path | None = None) -> tuple[list[float], list[Tensor]]:
    """Losses and final weights of a run from the same start."""
    tokenizer = tiny_tokenizer()
    result = train_sft(tiny_model(tokenizer), tokenizer, config, TALKS, run=run)
    return [record["loss"] for record in result.history], [p.detach() for p in result.model.parameters()]


def assert_same(ours: tuple[list[float], list[Tensor]], theirs: tuple[list[float], list[Tensor]]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    for a, b in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_one_batch_of_eight_equals_eight_of_one() -> None:
    assert_same(trained(a_config()), trained(a_config(micro_batch=1)))


def test_packed_equals_unpacked() -> None:
    """All eight conversations in one row of 128 tokens."""
    packed = a_config(packing=True, batch_size=1, micro_batch=1)
    assert sum(map(len, render_all(TALKS, tiny_tokenizer(), 128))) <= 128
    assert_same(trained(a_config()), trained(packed))


@pytest.mark.parametrize("changes", [{"packing": True, "max_length": 40}, {"precision": "bf16"}])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    """Bit for bit, over two epochs, when it was stopped before the second checkpoint was whole."""
    config = a_config(batch_size=2, micro_batch=1, steps=8, **changes)
    whole = trained(config, tmp_path / "whole")

    def interrupted(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-5":
            raise KeyboardInterrupt
        mark_complete(checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "mark_complete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(config, tmp_path / "parts")
    parts = trained(config, tmp_path / "parts")
    assert parts[0] == whole[0]
    assert all(torch.equal(a, b) for a, b in zip(parts[1], whole[1], strict=True))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("amount", [1, 30])
def test_padding_changes_no_log_probability(side: str, amount: int) -> None:
    model = tiny_model(tiny_tokenizer()).eval()
    (example,) = render_all(TALKS[2:3], tiny_tokenizer(), 64)
    ids_T, padding_P = torch.tensor(example.ids), torch.zeros(amount, dtype=torch.int64)
    parts = [padding_P, ids_T] if side == "left" else [ids_T, padding_P]
    mask = torch.cat([torch.ones_like(p) if p is ids_T else torch.zeros_like(p) for p in parts])

    def logprobs(ids_T: Tensor, mask_T: Tensor) -> Tensor:
        with torch.no_grad():
            logits_TV = model(input_ids=ids_T[None], attention_mask=mask_T[None]).logits[0]
        kept_NV, targets_N = logits_TV[mask_T.bool()][:-1], ids_T[mask_T.bool()][1:]
        return kept_NV.log_softmax(-1).gather(-1, targets_N[:, None])[:, 0]

    torch.testing.assert_close(logprobs(torch.cat(parts), mask), logprobs(ids_T, torch.ones_like(ids_T)))


def test_the_partners_in_a_batch_change_no_score() -> None:
    """Held-out figures are of each conversation alone; the trainer's own evaluation pads: both agree."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    alone = score_held_out(model, render_all(TALKS, tokenizer, 128)).loss
    config = a_config(steps=1, learning_rate=1e-12)
    assert train_sft(model, tokenizer, config, TALKS).history[0]["loss"] == pytest.approx(alone, rel=1e-4)


def test_without_its_adapter_a_trained_model_is_its_reference(tmp_path: Path) -> None:
    source = ModelSource(path=str(write_tiny(tmp_path / "base")), lora=LoraConfig(rank=4))
    model, tokenizer = load_policy(source)
    reference = reference_of(model)
    ids = torch.tensor([render_all(TALKS[:1], tokenizer, 64)[0].ids])

    def logits(of: object) -> Tensor:
        found: Tensor = of(input_ids=ids).logits  # type: ignore[operator]
        return found.detach()

    result: PreTrainedModel = train_sft(model, tokenizer, a_config(), TALKS).model
    assert (logits(result) - logits(reference)).abs().max() > 0.01
    torch.testing.assert_close(logits(reference), logits(load_reference(source)))

"""Models: what is loaded, what trains, what is saved; and every folder that must be refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.training.tiny import tiny_model, tiny_tokenizer, write_tiny
from training.chat_model import SamplingConfig
from training.config import Config
from training.data.conversation import Conversation, Message
from training.data.render import render
from training.errors import ConfigError, TrainingError
from training.models import (
    LoraConfig,
    ModelSource,
    check_fits,
    load_policy,
    load_reference,
    load_tokenizer,
    reference_of,
    save_policy,
    tell_origin,
    write_record,
)
from training.provenance import RunRecord, folder_digest

IDS = torch.tensor([[70, 71, 72, 73, 74, 75]])
LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base"))


def source(base: Path, **changes: object) -> ModelSource:
    return ModelSource.model_validate({"path": str(base)} | changes)


@torch.no_grad()
def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """The model after some training, as it were: everything that trains is moved."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    found: Tensor = model(input_ids=IDS).logits.float()
    return found


def test_a_plain_model_trains_whole_in_float32(base: Path) -> None:
    model, _ = load_policy(source(base))
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_with_lora_only_the_adapter_trains_and_starts_as_the_base(base: Path) -> None:
    plain, _ = load_policy(source(base))
    model, _ = load_policy(source(base, lora=LORA), seed=3)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains
    assert all("lora_" in name for name in trains)
    torch.testing.assert_close(logits(model), logits(plain))
    again, _ = load_policy(source(base, lora=LORA), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_frozen_weights_can_be_held_in_bfloat16_while_the_adapter_stays_float32(base: Path) -> None:
    model, _ = load_policy(source(base, lora=LORA, precision="bf16"))
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "lora_" in name else torch.bfloat16), name


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_stays_what_the_model_was(base: Path, lora: LoraConfig | None) -> None:
    model, _ = load_policy(source(base, lora=lora))
    before = logits(model)
    reference = reference_of(model)
    shaken(model)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    torch.testing.assert_close(reference(input_ids=IDS).logits, before)
    torch.testing.assert_close(load_reference(source(base))(input_ids=IDS).logits, before)
    assert model.training
    assert not reference(input_ids=IDS).logits.requires_grad


@pytest.mark.parametrize("changes", [{}, {"lora": LORA}, {"lora": LORA, "quantize": "nf4"}])
def test_what_is_saved_answers_as_what_was_trained(
    base: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    """For nf4 too: the update is added to the four-bit weights that it was trained against."""
    model, tokenizer = load_policy(source(base, **changes))
    shaken(model)
    save_policy(tmp_path / "final", model, tokenizer, SamplingConfig(temperature=0.6))
    tensors = load_file(tmp_path / "final" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert not any("lora" in name or "absmax" in name for name in tensors)
    served, _ = load_policy(source(tmp_path / "final"))
    torch.testing.assert_close(logits(served), logits(model), atol=0.02, rtol=0.02)
    assert served.generation_config.temperature == 0.6
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_four_bit_weights_differ_from_the_ones_on_disk(base: Path) -> None:
    model, _ = load_policy(source(base, lora=LORA, quantize="nf4"))
    plain, _ = load_policy(source(base))
    distance = (logits(model) - logits(plain)).abs().max()
    assert 0.001 < distance < 1


def test_an_adapter_is_saved_beside_its_base_and_trained_on(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(source(base, lora=LORA))
    shaken(model)
    save_policy(tmp_path / "adapter", model, tokenizer, adapter=True)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    onwards, _ = load_policy(source(tmp_path / "adapter"))
    torch.testing.assert_close(logits(onwards), logits(model), atol=1e-5, rtol=1e-4)
    with pytest.raises(TrainingError, match="the model has none"):
        save_policy(tmp_path / "none", onwards, tokenizer, adapter=True)


def test_gradient_checkpointing_changes_no_gradient(base: Path) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        model, _ = load_policy(source(base, gradient_checkpointing=checkpointing))
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_folders_that_are_no_model_are_refused_with_what_to_do(base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no config\.json"):
        load_policy(source(tmp_path))
    mute = write_tiny(tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    with pytest.raises(TrainingError, match="mute: has no tokenizer"):
        load_policy(source(mute))
    broken = write_tiny(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if "q_proj" not in n},
        broken / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(TrainingError, match=r"don't fit config.json.*q_proj"):
        load_policy(source(broken))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("pad_token", "<|end|>", "pad_token is eos_token"),
        ("pad_token", None, "needs an eos_token and a pad_token"),
        ("chat_template", None, "no chat template"),
    ],
)
def test_a_tokenizer_that_would_ruin_training_is_refused(
    tmp_path: Path, setting: str, value: str | None, message: str
) -> None:
    place = write_tiny(tmp_path / "base")
    (place / "chat_template.jinja").unlink()
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings |= {"chat_template": tiny_tokenizer().chat_template, setting: value}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(TrainingError, match=message):
        load_policy(source(place))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    check_fits(model, tokenizer)
    tokenizer.add_tokens(["<more>"])
    with pytest.raises(TrainingError, match="321 tokens, the model embeds 320"):
        check_fits(model, tokenizer)


def test_another_chat_template_than_the_bases_is_refused_unless_it_is_meant(
    base: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|end|>{% endfor %}")
    with pytest.raises(TrainingError, match="differs from the chat template"):
        load_tokenizer(source(base, chat_template=str(other)))
    tokenizer = load_tokenizer(source(base, chat_template=str(other), replace_template=True))
    rendered = render(Conversation((Message("user", "a"), Message("assistant", "b")), "all"), tokenizer)
    assert tokenizer.decode(rendered.ids) == "[user] a<|end|>[assistant] b<|end|>"
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(source(base, chat_template=str(tmp_path / "none.jinja")))


def test_an_adapter_with_another_template_than_its_base_is_refused(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_policy(source(base, lora=LORA))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    save_policy(tmp_path / "adapter", model, tokenizer, adapter=True)
    with pytest.raises(TrainingError, match="the adapter's chat template is not that of its base"):
        load_policy(source(tmp_path / "adapter"))


def test_four_bits_need_an_adapter_and_foreign_weights_a_licence(base: Path) -> None:
    with pytest.raises(ValueError, match="quantize needs lora"):
        ModelSource(path="x", quantize="nf4")
    with pytest.raises(ValueError, match="both origin and licence"):
        ModelSource(path="x", origin="somebody/model")
    with pytest.raises(TrainingError, match=r"state model.origin and model.licence"):
        tell_origin(source(base))
    with pytest.raises(ConfigError, match=r"lora.targets.*nonsense"):
        load_policy(source(base, lora=LoraConfig(targets=("nonsense",))))


def test_the_record_names_the_foreign_base(base: Path, tmp_path: Path) -> None:
    foreign = source(base, origin="somebody/model", licence="Apache-2.0", revision="abc")
    write_record(tmp_path, "sft", Config(), foreign, seed=7)
    record = RunRecord.read(tmp_path)
    assert record.first_base is not None
    assert (record.first_base.licence, record.first_base.sha256) == ("Apache-2.0", folder_digest(base))
    assert (record.parent, record.earlier, record.seed) == (None, None, 7)

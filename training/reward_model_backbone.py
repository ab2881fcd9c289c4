"""What a reward model starts from: an encoder or a causal model, with one new output per objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from trl.trainer.reward_trainer import suppress_seqcls_warning

from training.errors import ConfigError, TrainingError
from training.merging import merged
from training.methods.classifier_config import encoder_folder
from training.models import LoraConfig, ModelSource, load_tokenizer
from training.reward_model_encoder import EncoderForReward
from training.reward_model_encoding import Kind

HEADS = ("score", "classifier")
"""What transformers calls the new outputs, of a causal model and of an encoder."""


def located(source: ModelSource) -> ModelSource:
    """`package:NAME`, an encoder that an installed Python package carries, as its folder."""
    if not source.path.startswith("package:"):
        return source
    return source.model_copy(update={"path": str(encoder_folder(source.path))})


def load_backbone(
    source: ModelSource, objectives: Sequence[str], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in train mode, its outputs named after the objectives, and its tokenizer.

    Outputs are drawn from `seed`, or are those of an earlier reward model with the same objectives. Raises
    TrainingError for a folder that is no such model, and for weights that do not fit it.
    """
    source = located(source)
    place = source.place
    if not (place / "config.json").is_file():
        raise TrainingError(f"{source.path}: not a model's folder (no config.json)")
    names = dict(enumerate(objectives))
    shape = AutoConfig.from_pretrained(place, local_files_only=True)
    kept = list((shape.id2label or {}).values()) == list(objectives)
    torch.manual_seed(seed)
    model = _read(source, shape, {"id2label": names, "label2id": {n: i for i, n in names.items()}}, kept)
    tokenizer = _tokenizer(source, kind_of(shape))
    model.config.pad_token_id = tokenizer.pad_token_id
    if source.quantize is not None:
        prepare: Any = prepare_model_for_kbit_training  # published without types
        model = prepare(model, use_gradient_checkpointing=source.gradient_checkpointing)
    if source.lora is not None:
        model = _attach_lora(model, source.lora, seed)
    if source.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()  # type: ignore[no-untyped-call]
    model.train()
    return model, tokenizer


def keep_layers(model: PreTrainedModel, count: int) -> None:
    """Drop all but the first `count` layers, in place; raises ConfigError where there are none to drop.

    Later layers of a small causal model write the next token; for a score the first ones may do.
    """
    inner: Any = getattr(model, "model", None)
    layers = getattr(inner, "layers", None)
    if layers is None or count > len(layers):
        had = "none that can be dropped" if layers is None else str(len(layers))
        raise ConfigError(f"layers: {count} are to be kept, the backbone has {had}")
    inner.layers = layers[:count]
    model.config.num_hidden_layers = count
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:count]


def kind_of(config: PreTrainedConfig) -> Kind:
    """BERT reads the whole text at once; every other model's score is read after the last token."""
    return "encoder" if config.model_type == "bert" else "causal"


def sequence_class(config: PreTrainedConfig) -> type[Any]:
    """The class, or transformers' factory for it, of a reward model with this configuration."""
    return EncoderForReward if kind_of(config) == "encoder" else AutoModelForSequenceClassification


def _read(
    source: ModelSource, shape: PreTrainedConfig, labels: dict[str, Any], head_kept: bool
) -> PreTrainedModel:
    place = source.place
    how: dict[str, Any] = {"dtype": torch.float32, **labels}
    if source.lora is not None and source.precision == "bf16":
        how["dtype"] = torch.bfloat16
    if source.quantize is not None:
        how["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=source.quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=list(HEADS),
        )
    try:
        with suppress_seqcls_warning():
            model, report = sequence_class(shape).from_pretrained(
                place,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=not head_kept,
                **how,
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{place}: cannot be loaded as a reward backbone: {error}") from error
    missing = [name for name in report["missing_keys"] if not name.startswith(HEADS)]
    if missing:
        raise TrainingError(f"{place}: the weights don't fit config.json; missing: {sorted(missing)[:5]}")
    whole: PreTrainedModel = model
    return whole


def _tokenizer(source: ModelSource, kind: Kind) -> PreTrainedTokenizerFast:
    if kind == "causal":
        return load_tokenizer(source)
    tokenizer = AutoTokenizer.from_pretrained(source.place, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TrainingError(f"{source.path}: its tokenizer is not a fast tokenizer, which encoding needs")
    if None in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        raise TrainingError(f"{source.path}: an encoder's tokenizer needs a cls_token, sep_token, pad_token")
    return tokenizer


def _attach_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> PreTrainedModel:
    """A new adapter on the backbone; the outputs, which are new, train whole beside it."""
    torch.manual_seed(seed)
    heads = [name for name in HEADS if hasattr(model, name)]
    peft = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number scales
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        exclude_modules=heads,
        modules_to_save=heads,
    )
    try:
        return get_peft_model(model, peft)  # type: ignore[return-value]  # it stands in for the model
    except ValueError as error:
        raise ConfigError(f"lora.targets: {error}") from error


def plain(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The model without its adapter, which is added in; a model that has none is returned as it is."""
    if not isinstance(model, PeftModel):
        return model
    inner: Any = model.get_base_model()
    for name in HEADS:
        head = getattr(inner, name, None)
        if isinstance(head, ModulesToSaveWrapper):
            setattr(inner, name, head.modules_to_save[head.active_adapters[0]])
    return merged(model)  # type: ignore[arg-type]  # it stands in for the model

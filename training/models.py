"""The model that a method starts from, its frozen reference, and the folder it is served from.

A policy is any causal language model of transformers with a fast tokenizer and a chat template. With `lora`
only low-rank updates of its matrices train (Hu et al. 2021, arXiv:2106.09685); with `quantize: nf4` those
matrices are held in four bits meanwhile (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

What is saved is by default one plain model with the update added in: for QLoRA to the *dequantized*
matrices, that is, to the ones that it was trained against, so that what is evaluated is what is served.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from pydantic import Field, JsonValue, model_validator
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from policies.manifest import Base, DataSource, Evaluation
from training.chat_model import SamplingConfig, check_tokenizer, read_tokenizer
from training.config import Config
from training.errors import ConfigError, TrainingError
from training.files import appearing
from training.merging import adapted, merged
from training.provenance import RunRecord, code_revision, folder_digest, origin

logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the bars of reading and writing; training has its own

ADAPTER_CONFIG = "adapter_config.json"


class LoraConfig(Config):
    """Update W + (alpha / rank) B A with A of `rank` rows; `targets` are module names, such as `q_proj`."""

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class ModelSource(Config):
    """A folder with a model, and how to hold it.

    `path`: a finished run's `final/`, a published checkpoint, an adapter's folder, or foreign weights, for
    which `origin` and `licence` are required. `precision` is that of the weights that stay frozen (a LoRA's
    base, the reference); weights that train are float32 always, and the method's own `precision` says what
    it computes in. `chat_template`, a file, replaces a template that the folder lacks; where the folder has
    another one, only with `replace_template`, since the base learnt to answer in its own.
    """

    path: str
    origin: str | None = None
    licence: str | None = None
    revision: str = "unknown"
    lora: LoraConfig | None = None
    quantize: Literal["nf4"] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    chat_template: str | None = None
    replace_template: bool = False

    @model_validator(mode="after")
    def _check(self) -> ModelSource:
        if self.quantize is not None and self.lora is None:
            raise ValueError("quantize needs lora: four-bit weights are frozen, an adapter is what trains")
        if (self.origin is None) != (self.licence is None):
            raise ValueError("a foreign base needs both origin and licence")
        return self

    @property
    def place(self) -> Path:
        return Path(self.path)


def load_policy(source: ModelSource, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model in train mode with what trains in float32, LoRA attached, and its checked tokenizer.

    An adapter's first weights follow from `seed`. Raises TrainingError for a folder that is no model, lacks
    weights, has a tokenizer that would silently ruin training, or a template other than its base's.
    """
    tokenizer = load_tokenizer(source)
    model: Any = _load_weights(source, frozen=source.lora is not None)
    check_fits(model, tokenizer)
    if source.quantize is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    if source.lora is not None:
        model = attach_lora(model, source.lora, seed)
    if source.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model.train()
    return model, tokenizer


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerFast:
    """The source's tokenizer, with the chat template that the source says."""
    place = _folder(source)
    tokenizer = read_tokenizer(place, _template(source, place))
    base = _adapted_base(place)
    if base is not None and read_tokenizer(base).chat_template != tokenizer.chat_template:
        raise TrainingError(
            f"{place}: the adapter's chat template is not that of its base {base}; a prompt would be "
            "rendered in a way that one of the two has not learnt: give both the same template"
        )
    return tokenizer


def check_fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise TrainingError where the tokenizer can't be this model's: for models that come in memory too."""
    check_tokenizer(tokenizer)
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    if len(tokenizer) > rows:
        raise TrainingError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {rows}; they belong to different "
            "models, or tokens were added without resizing the embeddings"
        )


def attach_lora(model: PreTrainedModel, config: LoraConfig, seed: int) -> PreTrainedModel:
    """The model with a new adapter, which alone trains; B starts at zero, so nothing changes yet."""
    torch.manual_seed(seed)
    peft = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number scales
        lora_dropout=config.dropout,
        target_modules=config.targets if isinstance(config.targets, str) else list(config.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, peft)  # type: ignore[return-value]  # it stands in for the model
    except ValueError as error:
        raise ConfigError(f"lora.targets: {error}") from error


class Reference:
    """Frozen weights to compare with: called like the model, without gradients, dropout off.

    For a model with LoRA they are its own with the adapter switched off, which costs no memory; for any
    other a copy.
    """

    def __init__(self, model: PreTrainedModel, shared: bool) -> None:
        self._model = model
        self._shared = shared

    def __call__(self, **inputs: Any) -> Any:
        with self.weights() as model:
            return model(**inputs)

    @contextmanager
    def weights(self) -> Iterator[PreTrainedModel]:
        """The reference as a model, e.g. to generate with; only inside the block."""
        model = self._model
        if not self._shared:
            with torch.no_grad():
                yield model
            return
        training = model.training
        model.train(False)
        try:
            with torch.no_grad(), model.disable_adapter():  # type: ignore[operator]  # a PeftModel
                yield model
        finally:
            model.train(training)


def reference_of(model: PreTrainedModel) -> Reference:
    """What `model` is now, or without its adapter, kept while `model` trains on."""
    if adapted(model) is not None:
        return Reference(model, shared=True)
    return Reference(_frozen(deepcopy(model)), shared=False)


def load_reference(source: ModelSource) -> Reference:
    """The source's weights as they are on disk, in the source's precision, frozen."""
    return Reference(_frozen(_load_weights(source, frozen=True)), shared=False)


def save_policy(
    place: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    sampling: SamplingConfig | None = None,
    adapter: bool = False,
) -> None:
    """Write the folder that vLLM and transformers load, bfloat16 safetensors; it appears only when whole.

    An adapter is merged, unless `adapter` asks for its own folder, which is served beside its base.
    `sampling` are the defaults for whoever serves it; None keeps those that the model came with.
    """
    if adapter and adapted(model) is None:
        raise TrainingError(f"{place}: an adapter was asked for, but the model has none; set model.lora")
    with appearing(place) as partial:
        tokenizer.save_pretrained(partial)
        settings = _generation(model, tokenizer, sampling)
        if adapter:
            model.save_pretrained(partial)
            (partial / "README.md").unlink(missing_ok=True)  # a model card without a word about this model
            settings.save_pretrained(partial)
            return
        plain = merged(model)
        plain.generation_config = settings
        plain.bfloat16().save_pretrained(partial)


def tell_origin(source: ModelSource) -> tuple[RunRecord | None, str | None]:
    """What the base comes from: (a run's record, None), (None, `name@digest`), or for a foreign one neither.

    Raises TrainingError where it is none of these and the source does not state its origin and licence.
    """
    if source.origin is None:
        try:
            return origin(source.place)
        except TrainingError as error:
            raise TrainingError(
                f"{source.path}: neither a finished run's result nor a published checkpoint; for foreign "
                f"weights state model.origin and model.licence ({error})"
            ) from error
    return None, None


def write_record(
    run: Path,
    method: str,
    config: Config,
    source: ModelSource,
    seed: int,
    data: Sequence[DataSource] = (),
    evaluations: Sequence[Evaluation] = (),
) -> RunRecord:
    """Leave `record.json` in the run's directory, from which the manifest is made."""
    earlier, parent = tell_origin(source)
    base = None
    if source.origin is not None and source.licence is not None:
        digest = folder_digest(source.place)
        base = Base(name=source.origin, revision=source.revision, licence=source.licence, sha256=digest)
    settings: dict[str, JsonValue] = config.model_dump(mode="json")
    record = RunRecord(
        method=method,
        config=settings,
        seed=seed,
        code_revision=code_revision(),
        data=tuple(data),
        evaluations=tuple(evaluations),
        earlier=earlier,
        parent=parent,
        base=base,
    )
    record.write(run)
    return record


def _folder(source: ModelSource) -> Path:
    if not (source.place / "config.json").is_file() and not (source.place / ADAPTER_CONFIG).is_file():
        raise TrainingError(
            f"{source.path}: not a model's folder (no config.json); models are read from disk: download one "
            "with `hf download NAME --local-dir DIR` and give DIR"
        )
    return source.place


def _adapted_base(place: Path) -> Path | None:
    """The base's folder where `place` holds an adapter."""
    if not (place / ADAPTER_CONFIG).is_file():
        return None
    about = json.loads((place / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return Path(str(about["base_model_name_or_path"]))


def _template(source: ModelSource, place: Path) -> str | None:
    """The template of the source's own file; None where it keeps the folder's."""
    if source.chat_template is None:
        return None
    try:
        ours = Path(source.chat_template).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{source.chat_template}: cannot be read: {error.strerror}") from error
    theirs = AutoTokenizer.from_pretrained(place, local_files_only=True).chat_template
    if theirs is not None and theirs != ours and not source.replace_template:
        raise TrainingError(
            f"{source.chat_template}: differs from the chat template of {place}, in which that model learnt "
            "to answer; leave model.chat_template out, or set model.replace_template if you mean it"
        )
    return ours


def _load_weights(source: ModelSource, frozen: bool) -> PreTrainedModel:
    """The model in `source.path`, an adapter there merged into its base."""
    place = _folder(source)
    base = _adapted_base(place)
    if base is not None and source.quantize is not None:
        raise ConfigError(f"{place}: an adapter's folder can't be quantized; merge it into its base first")
    dtype = torch.bfloat16 if frozen and source.precision == "bf16" else torch.float32
    if base is None:
        return _read(place, dtype, source.quantize)
    wrapper: Any = PeftModel.from_pretrained(_read(base, torch.float32, None), str(place))
    whole = merged(wrapper)
    nn.Module.to(whole, dtype)
    return whole


def _read(place: Path, dtype: torch.dtype, quantize: str | None) -> PreTrainedModel:
    how: dict[str, Any] = {"dtype": dtype}
    if quantize is not None:
        how["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=quantize,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    load: Any = AutoModelForCausalLM.from_pretrained  # its annotation doesn't know output_loading_info
    try:
        model, report = load(
            place, local_files_only=True, use_safetensors=True, output_loading_info=True, **how
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{place}: cannot be loaded as a causal language model: {error}") from error
    odd = sorted([*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]])
    if odd:
        raise TrainingError(
            f"{place}: the weights don't fit config.json; missing, unexpected or of another shape: {odd[:5]}"
        )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # At the first forward in eval mode bitsandbytes repacks four-bit weights for its own CPU kernel;
            # training can't read them afterwards, and it fails for matrices under 64 columns.
            module.support_avx512bf16_for_cpu = False
    whole: PreTrainedModel = model
    return whole


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.train(False)
    model.requires_grad_(False)
    return model


def _generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sampling: SamplingConfig | None
) -> GenerationConfig:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if sampling is not None:
        return GenerationConfig(do_sample=True, **ids, **sampling.model_dump())  # type: ignore[no-untyped-call]
    settings: GenerationConfig = deepcopy(model.generation_config)
    settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return settings

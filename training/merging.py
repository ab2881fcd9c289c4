"""An adapter added into its base: the plain model that is served."""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.errors import TrainingError


def adapted(model: object) -> PeftModel | None:
    """The model as the adapter's wrapper, where it is one. (To the type checker it is no model then.)"""
    return model if isinstance(model, PeftModel) else None


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A plain copy of the model in float32, adapters added in, four-bit matrices dequantized."""
    wrapper = adapted(model)
    inner: Any = model if wrapper is None else wrapper.get_base_model()
    config = deepcopy(inner.config)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, name):
            delattr(config, name)
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):  # a copy in mid-training must not change what is drawn after it
        plain: PreTrainedModel = type(inner)(config)
    tensors = _plain_tensors(inner, plain.state_dict().keys())
    problems = plain.load_state_dict(tensors, strict=False)
    missing = set(problems.missing_keys) - plain.all_tied_weights_keys.keys()
    if missing or problems.unexpected_keys:
        odd = sorted([*missing, *problems.unexpected_keys])[:5]
        raise TrainingError(f"the adapter cannot be merged into the model; names differ, such as {odd}")
    plain.tie_weights()
    plain.train(False)
    return plain


def _plain_tensors(model: PreTrainedModel, names: Collection[str]) -> dict[str, Tensor]:
    """The state that the model would have without adapters and quantization, float32; `names` are its."""
    tensors: dict[str, Tensor] = {}
    wrapped: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            wrapped.append(f"{name}.")
            layer: Any = module  # each kind of layer brings its own get_delta_weight
            base: Any = layer.get_base_layer()
            weight = _full(base.weight)
            for adapter in layer.active_adapters:
                weight = weight + layer.get_delta_weight(adapter).float()
            tensors[f"{name}.weight"] = weight
            if getattr(base, "bias", None) is not None:
                tensors[f"{name}.bias"] = _full(base.bias)
    kept = [(name, buffer) for name, buffer in model.named_buffers() if name in names]
    for name, tensor in [*model.named_parameters(), *kept]:
        if not name.startswith(tuple(wrapped)):
            tensors[name] = _full(tensor)
    return tensors


def _full(tensor: Tensor | nn.Parameter) -> Tensor:
    state = getattr(tensor, "quant_state", None)
    if state is None:
        return tensor.detach().float()
    from bitsandbytes.functional import dequantize_4bit  # only where something is quantized

    whole: Tensor = dequantize_4bit(tensor.data, state)
    return whole.float()

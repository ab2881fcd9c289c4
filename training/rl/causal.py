"""A causal language model taken apart: the trunk, which yields hidden states, and the unembedding.

Rollouts, the reference's log-probabilities and the update all need logits at a few positions only, and the
value head needs hidden states, so they call the two parts and never the model's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from training.errors import TrainingError
from training.rl import ragged

# Of models that do something to the logits after the unembedding; each is None or 1 where it does nothing.
_AFTER_UNEMBEDDING = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def bare(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT wrapper (its LoRA layers stay in place), or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return cast(PreTrainedModel, unwrap() if unwrap is not None else model)


class CausalParts:
    """`trunk(ids, mask) -> hidden_BTD` and `unembed(hidden) -> logits` of one model.

    Raises TrainingError for a model whose logits are more than the unembedding of its hidden states.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.causal = bare(model)
        for name in _AFTER_UNEMBEDDING:
            if getattr(self.causal.config, name, None) not in (None, 1, 1.0):
                raise TrainingError(
                    f"{type(self.causal).__name__} changes its logits after the unembedding ({name}); "
                    "such models can't be used here, choose a Llama-type model"
                )
        model_of_any_type: Any = self.causal
        self.decoder: nn.Module = model_of_any_type.get_decoder()
        self.unembedding: nn.Module = model_of_any_type.get_output_embeddings()

    @property
    def width(self) -> int:
        """D, of the hidden states."""
        return int(self.causal.config.get_text_config().hidden_size)

    @property
    def context(self) -> int | None:
        """How many positions the model has, or None where its config doesn't say."""
        size = getattr(self.causal.config.get_text_config(), "max_position_embeddings", None)
        return None if size is None else int(size)

    def trunk(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Last hidden states, float or bfloat16 as computed, [B, T, D]."""
        return _trunk(self.decoder, ids_BT, mask_BT)

    def unembed(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] of N hidden states."""
        return cast(Tensor, self.unembedding(hidden_ND))


def hidden_at(decoder: nn.Module, ids_BT: Tensor, lengths_B: Tensor, positions_N: Tensor) -> Tensor:
    """A trunk's last hidden states at flat positions of [B, T], [N, D]; rows are padded on the right."""
    if not ragged.supports(decoder):
        return _trunk(decoder, ids_BT, None).flatten(0, 1)[positions_N]
    with _attention(ids_BT.device):
        return ragged.ragged_hidden(decoder, ids_BT, lengths_B, positions_N)


def _trunk(decoder: nn.Module, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    with _attention(ids_BT.device):
        output: Any = decoder(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    return cast(Tensor, output.last_hidden_state)


def _attention(device: torch.device) -> AbstractContextManager[None]:
    """In bfloat16 the fused attention's backward pass takes twice the plain one's time for short texts on
    CPUs. The choice must not depend on the texts' length, or one reply would get two log-probabilities."""
    slow = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off and no gradients inside; the model's mode is restored afterwards."""
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)

"""Hidden states of texts of unlike length, computed without padding: the forward of Llama-type models.

Of rows [B, T] padded on the right, the M real tokens are laid out flat, [M, D], and everything that looks
at one token alone (norms, projections, MLPs: nearly all of the work) sees those. Only attention, which looks
at rows, has them put back at their places in [B, T]. The last layer's output projection, MLP and norm are
computed for the tokens that are asked for and no others. What comes out is what the padded forward gives, up
to rounding; its gradients too.

The model's own modules are called, so adapters work as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaModel


def supports(decoder: nn.Module) -> bool:
    """Whether the trunk is Llama's own, and nothing else has to happen in its forward."""
    if type(decoder) is not LlamaModel:
        return False
    checkpointing = any(getattr(layer, "gradient_checkpointing", False) for layer in decoder.layers)
    return not checkpointing and not decoder.config.attention_dropout


def ragged_hidden(decoder: nn.Module, ids_BT: Tensor, lengths_B: Tensor, positions_N: Tensor) -> Tensor:
    """Last hidden states [N, D] at flat positions of [B, T], all within their rows' lengths.

    Call it where `supports` says so.
    """
    model: Any = decoder
    rows, columns = ids_BT.shape
    column_T = torch.arange(columns, device=ids_BT.device)
    real_BT = column_T < lengths_B[:, None]
    real_M = real_BT.flatten().nonzero().squeeze(1)
    place_M = torch.zeros(rows * columns, dtype=torch.long, device=ids_BT.device)
    place_M[real_M] = torch.arange(len(real_M), device=ids_BT.device)
    x_MD = model.embed_tokens(ids_BT.flatten()[real_M])
    cos_1TD, sin_1TD = model.rotary_emb(x_MD, column_T[None])
    column_M = real_M % columns
    turn_M = cos_1TD[0, column_M].unsqueeze(1), sin_1TD[0, column_M].unsqueeze(1)
    wanted_N = place_M[positions_N]
    last = len(model.layers) - 1
    for number, block in enumerate(model.layers):
        attention = block.self_attn
        normed_MD = block.input_layernorm(x_MD)
        q, k, v = (
            getattr(attention, f"{name}_proj")(normed_MD).view(len(real_M), -1, attention.head_dim)
            for name in "qkv"
        )
        mixed_MD = _attended(_turned(q, *turn_M), _turned(k, *turn_M), v, real_M, (rows, columns))
        if number == last:
            mixed_MD, x_MD = mixed_MD[wanted_N], x_MD[wanted_N]
        x_MD = x_MD + attention.o_proj(mixed_MD)
        x_MD = x_MD + block.mlp(block.post_attention_layernorm(x_MD))
    hidden_ND: Tensor = model.norm(x_MD)
    return hidden_ND


def _turned(x_MHD: Tensor, cos_M1D: Tensor, sin_M1D: Tensor) -> Tensor:
    """Rotated by position (Su et al. 2021, arXiv:2104.09864)."""
    first, second = x_MHD.chunk(2, dim=-1)
    return x_MHD * cos_M1D + torch.cat([-second, first], dim=-1) * sin_M1D


def _attended(q_MHD: Tensor, k_MHD: Tensor, v_MHD: Tensor, real_M: Tensor, shape: tuple[int, int]) -> Tensor:
    """Causal attention within each row, [M, H · D]; padding stands behind what is real, out of sight."""

    def rows_of(flat_MHD: Tensor) -> Tensor:
        out = flat_MHD.new_zeros(shape[0] * shape[1], *flat_MHD.shape[1:])
        return out.index_copy(0, real_M, flat_MHD).view(*shape, *flat_MHD.shape[1:]).transpose(1, 2)

    mixed_BHTD = functional.scaled_dot_product_attention(
        rows_of(q_MHD), rows_of(k_MHD), rows_of(v_MHD.to(q_MHD.dtype)), is_causal=True, enable_gqa=True
    )
    return mixed_BHTD.transpose(1, 2).flatten(0, 1)[real_M].flatten(1)

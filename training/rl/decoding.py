"""Decoding with a KV cache: a prompt's pass, then one token a step, for a batch that shrinks as replies end.

Prompts are padded on the left, so that every row writes the same column of the cache at every step; a row's
positions count from its first real token. `decoder_for` chooses between two implementations of one protocol:

- `LlamaDecoder`, the forward of Llama-type models written out over a static cache: weights that read the same
  input are one matrix, an adapter's update is added to them once, and nothing is allocated per step but the
  activations. On small models, where a step of the general path is mostly Python, it is several times faster.
- `CachedDecoder`, any transformers model with its own forward and `DynamicCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, LlamaForCausalLM

from training.rl.causal import CausalParts

# Prompts are sorted by length and passed through the model in groups of this size, so that little is padded.
_PREFILL_ROWS = 16


class Decoder(Protocol):
    """B rows in decoding. Hidden states are those from which the next token is predicted."""

    def prefill(self, prompts: Sequence[Sequence[int]], columns: int) -> Tensor:
        """Read the prompts; room for `columns` tokens in all. Returns hidden_BD."""

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append one token a row; returns hidden_BD."""

    def keep(self, rows_K: Tensor) -> None:
        """Drop all rows but these indices."""


def decoder_for(parts: CausalParts, dtype: torch.dtype | None = None) -> Decoder:
    """The fast decoder where it computes what the model computes, the general one elsewhere.

    `dtype` is what the fast one computes in; None is the weights' own.
    """
    return LlamaDecoder(parts, dtype) if LlamaDecoder.supports(parts) else CachedDecoder(parts)


def left_padded(prompts: Sequence[Sequence[int]], columns: int) -> tuple[Tensor, Tensor]:
    """(ids_BP, pads_B): prompts right-aligned in `columns`, and how many columns of each row are padding."""
    ids_BP = torch.zeros(len(prompts), columns, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BP[row, columns - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
    return ids_BP, torch.tensor([columns - len(prompt) for prompt in prompts])


class CachedDecoder:
    """Any transformers causal language model, with its own cache."""

    def __init__(self, parts: CausalParts) -> None:
        self._parts = parts
        self._cache = DynamicCache()
        self._mask_BS = torch.empty(0, 0, dtype=torch.long)

    def prefill(self, prompts: Sequence[Sequence[int]], columns: int) -> Tensor:
        longest = max(map(len, prompts))
        ids_BP, pads_B = left_padded(prompts, longest)
        self._cache = DynamicCache()
        self._mask_BS = (torch.arange(longest) >= pads_B[:, None]).long()
        return self._forward(ids_BP, (torch.arange(longest) - pads_B[:, None]).clamp(min=0))

    def step(self, tokens_B: Tensor) -> Tensor:
        position_ids_B1 = self._mask_BS.sum(dim=1, keepdim=True)
        self._mask_BS = functional.pad(self._mask_BS, (0, 1), value=1)
        return self._forward(tokens_B[:, None], position_ids_B1)

    def keep(self, rows_K: Tensor) -> None:
        self._mask_BS = self._mask_BS[rows_K]
        self._cache.batch_select_indices(rows_K)

    def _forward(self, ids_BT: Tensor, position_ids_BT: Tensor) -> Tensor:
        output: Any = self._parts.decoder(
            input_ids=ids_BT,
            attention_mask=self._mask_BS,
            position_ids=position_ids_BT,
            past_key_values=self._cache,
            use_cache=True,
        )
        return cast(Tensor, output.last_hidden_state)[:, -1]


def effective_weight(linear: nn.Module) -> Tensor:
    """What a linear layer multiplies with: its weight plus its active LoRA updates (arXiv:2106.09685)."""
    base: Any = getattr(linear, "base_layer", None)
    if base is None:
        return cast(Tensor, linear.weight)
    layer = cast(Any, linear)
    weight = cast(Tensor, base.weight)
    if layer.disable_adapters or layer.merged:
        return weight
    for adapter in layer.active_adapters:
        if adapter in layer.lora_A:
            weight = weight + layer.get_delta_weight(adapter)
    return weight


class _Layer:
    """One block's weights: query, key and value as one matrix, gate and up as another."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.norm_attention = block.input_layernorm.weight.to(dtype)
        self.norm_mlp = block.post_attention_layernorm.weight.to(dtype)
        self.qkv = torch.cat([effective_weight(getattr(attention, f"{n}_proj")) for n in "qkv"]).to(dtype)
        self.out = effective_weight(attention.o_proj).to(dtype)
        self.gate_up = torch.cat([effective_weight(mlp.gate_proj), effective_weight(mlp.up_proj)]).to(dtype)
        self.down = effective_weight(mlp.down_proj).to(dtype)


class LlamaDecoder:
    """The forward of `LlamaForCausalLM` over a static cache; equal to transformers' up to rounding.

    The weights are read when it is made: make a new one after every update of the model.
    """

    @staticmethod
    def supports(parts: CausalParts) -> bool:
        """Whether the model is of this shape: Llama's own, SiLU, no biases, plain or LoRA linear layers."""
        config = parts.causal.config
        if type(parts.causal) is not LlamaForCausalLM or config.hidden_act != "silu":
            return False
        if config.attention_bias or config.mlp_bias:
            return False
        return all(_is_linear(module) for name, module in _projections(parts.causal))

    def __init__(self, parts: CausalParts, dtype: torch.dtype | None = None) -> None:
        model: Any = parts.causal
        dtype = dtype or model.model.layers[0].self_attn.q_proj.weight.dtype
        config = model.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._dim: int = config.head_dim
        self._epsilon: float = config.rms_norm_eps
        with torch.no_grad():
            self._layers = [_Layer(block, dtype) for block in model.model.layers]
            self._norm = model.model.norm.weight.to(dtype)
        self._dtype = dtype
        self._embedding, self._rotary = model.model.embed_tokens, model.model.rotary_emb
        self._keys: list[Tensor] = []  # each [B, Hkv, S, Dh]
        self._values: list[Tensor] = []
        self._used = 0  # columns written so far

    def prefill(self, prompts: Sequence[Sequence[int]], columns: int) -> Tensor:
        rows, longest = len(prompts), max(map(len, prompts))
        shape = (rows, self._kv_heads, columns, self._dim)
        dtype, device = self._layers[0].qkv.dtype, self._layers[0].qkv.device
        # Zeros, not garbage: a masked NaN would still spoil the weighted sum.
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in self._layers]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in self._layers]
        self._pads_B = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        self._cos_SD, self._sin_SD = self._rotation(columns, dtype, device)
        self._visible_B1S = torch.arange(columns, device=device) >= self._pads_B[:, None, None]
        hidden_BD = torch.empty(rows, self._embedding.weight.shape[1], dtype=dtype, device=device)
        order = sorted(range(rows), key=lambda row: len(prompts[row]))
        for start in range(0, rows, _PREFILL_ROWS):
            group = order[start : start + _PREFILL_ROWS]
            hidden_BD[group] = self._prefill_group([prompts[row] for row in group], group, longest)
        self._used = longest
        return hidden_BD

    def step(self, tokens_B: Tensor) -> Tensor:
        column = self._used
        self._used += 1
        position_B = column - self._pads_B
        # Broadcast over heads: [B, 1, Dh].
        cos, sin = self._cos_SD[position_B].unsqueeze(1), self._sin_SD[position_B].unsqueeze(1)
        visible_B11S = self._visible_B1S[:, None, :, : self._used]
        x_BD = self._embedding(tokens_B).to(self._dtype)
        rows = len(tokens_B)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            qkv_BHD = self._project(layer, x_BD).view(rows, -1, self._dim)
            rotated_BHD, v_BHD = self._split(qkv_BHD, cos, sin)
            keys[:, :, column] = rotated_BHD[:, self._heads :]
            values[:, :, column] = v_BHD
            # The heads that share a key are its queries, so that keys need not be repeated.
            q_BHGD = rotated_BHD[:, : self._heads].view(rows, self._kv_heads, -1, self._dim)
            mixed = functional.scaled_dot_product_attention(
                q_BHGD, keys[:, :, : self._used], values[:, :, : self._used], attn_mask=visible_B11S
            )
            x_BD = self._finish(layer, x_BD, mixed.reshape(rows, -1))
        return self._normalised(self._norm, x_BD)

    def keep(self, rows_K: Tensor) -> None:
        self._keys = [keys[rows_K] for keys in self._keys]
        self._values = [values[rows_K] for values in self._values]
        self._pads_B, self._visible_B1S = self._pads_B[rows_K], self._visible_B1S[rows_K]

    def _prefill_group(self, prompts: Sequence[Sequence[int]], rows: list[int], longest: int) -> Tensor:
        """Pass prompts of similar length and place their keys and values right-aligned; hidden_GD."""
        ids_GT, pads_G = left_padded(prompts, max(map(len, prompts)))
        device = self._pads_B.device
        ids_GT, pads_G = ids_GT.to(device), pads_G.to(device)
        count, length = ids_GT.shape
        column_T = torch.arange(length, device=device)
        position_GT = (column_T - pads_G[:, None]).clamp(min=0)
        cos, sin = self._cos_SD[position_GT].unsqueeze(2), self._sin_SD[position_GT].unsqueeze(2)
        causal_TT = column_T[:, None] >= column_T
        # Padding looks at itself: a softmax over nothing would be NaN.
        itself_TT = column_T[:, None] == column_T
        visible_G1TT = (causal_TT & (column_T >= pads_G[:, None, None]) | itself_TT)[:, None]
        x_GTD = self._embedding(ids_GT).to(self._dtype)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            qkv_GTHD = self._project(layer, x_GTD).view(count, length, -1, self._dim)
            rotated_GTHD, v_GTHD = self._split(qkv_GTHD, cos, sin)
            rotated_GHTD, v_GHTD = rotated_GTHD.transpose(1, 2), v_GTHD.transpose(1, 2)
            k_GHTD = rotated_GHTD[:, self._heads :]
            keys[rows, :, longest - length : longest] = k_GHTD
            values[rows, :, longest - length : longest] = v_GHTD
            mixed_GHTD = functional.scaled_dot_product_attention(
                rotated_GHTD[:, : self._heads], k_GHTD, v_GHTD, attn_mask=visible_G1TT, enable_gqa=True
            )
            x_GTD = self._finish(layer, x_GTD, mixed_GHTD.transpose(1, 2).reshape(count, length, -1))
        return self._normalised(self._norm, x_GTD[:, -1])

    def _rotation(self, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos_SD and sin_SD of the model's rotary embedding; the sign of the rotated half is in the sine."""
        like = torch.empty(0, dtype=dtype, device=device)
        cos, sin = self._rotary(like, torch.arange(columns, device=device)[None])
        half = self._dim // 2
        return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)

    def _split(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(queries and keys, rotated by position; values), both [..., heads, Dh] (Su et al. 2021)."""
        turning = qkv[..., : self._heads + self._kv_heads, :]
        values = qkv[..., self._heads + self._kv_heads :, :]
        swapped = turning.roll(self._dim // 2, dims=-1)
        return turning * cos + swapped * sin, values

    def _project(self, layer: _Layer, x: Tensor) -> Tensor:
        return functional.linear(self._normalised(layer.norm_attention, x), layer.qkv)

    def _finish(self, layer: _Layer, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a block after attention: its output projection, and the gated MLP."""
        x = x + functional.linear(mixed, layer.out)
        gate, up = functional.linear(self._normalised(layer.norm_mlp, x), layer.gate_up).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, layer.down)

    def _normalised(self, weight: Tensor, x: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._epsilon)


def _projections(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if name.endswith("_proj")]


def _is_linear(module: nn.Module) -> bool:
    """A plain float linear layer, or LoRA over one (DoRA and quantized weights are something else)."""
    base = getattr(module, "base_layer", module)
    if type(base) is not nn.Linear:
        return False
    return base is module or not any(getattr(module, "use_dora", {}).values())

"""Which tensors a language model's config promises, by name and shape, where the layout is known.

vLLM is told a folder and believes it: a reload with a missing tensor keeps the old one without a word, and
one of a wrong shape ends the server at the next request. So what is there is compared with what must be.
Names and shapes as Hugging Face's transformers saves these models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from policies.tensors import Tensor

Shape = tuple[int, ...]

KNOWN = frozenset(f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Granite"))
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def promised(config: Mapping[str, Any]) -> dict[str, Shape] | None:
    """The tensors that a model of this config has; None where its layout is not known here.

    Raises ValueError, KeyError or TypeError for a config that lacks a size.
    """
    architecture = (config.get("architectures") or [""])[0]
    if architecture not in KNOWN or config.get("quantization_config"):
        return None
    hidden = int(config["hidden_size"])
    shapes: dict[str, Shape] = {
        EMBEDDING: (int(config["vocab_size"]), hidden),
        "model.norm.weight": (hidden,),
    }
    if not tied(config):
        shapes[HEAD] = shapes[EMBEDDING]
    layer = _layer(config, architecture, hidden)
    for number in range(int(config["num_hidden_layers"])):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def _layer(config: Mapping[str, Any], architecture: str, hidden: int) -> dict[str, Shape]:
    inner, heads = int(config["intermediate_size"]), int(config["num_attention_heads"])
    groups = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or hidden // heads)
    attention = {
        "q": (heads * width, hidden),
        "k": (groups * width, hidden),
        "v": (groups * width, hidden),
        "o": (hidden, heads * width),
    }
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    layer: dict[str, Shape] = {f"self_attn.{name}_proj.weight": shape for name, shape in attention.items()}
    layer |= {f"mlp.{name}_proj.weight": shape for name, shape in mlp.items()}
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    biased = "qkvo" if config.get("attention_bias") else ""
    if architecture == "Qwen2ForCausalLM":
        biased = "qkv"
    layer |= {f"self_attn.{name}_proj.bias": (attention[name][0],) for name in biased}
    if config.get("mlp_bias"):
        layer |= {f"mlp.{name}_proj.bias": (shape[0],) for name, shape in mlp.items()}
    if architecture == "Qwen3ForCausalLM":
        layer |= {"self_attn.q_norm.weight": (width,), "self_attn.k_norm.weight": (width,)}
    return layer


def tied(config: Mapping[str, Any]) -> bool:
    """Whether the unembedding is the embedding."""
    return bool(config.get("tie_word_embeddings", False))


def misfits(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[str] | None:
    """What is missing, odd or of another shape than promised; None where the layout is not known."""
    shapes = promised(config)
    if shapes is None:
        return None
    wrong = [f"{name} is missing" for name in shapes if name not in tensors]
    if tied(config):
        shapes[HEAD] = shapes[EMBEDDING]  # may stand in the file all the same
    for name, tensor in tensors.items():
        wanted = shapes.get(name)
        if wanted is None:
            if not name.endswith("rotary_emb.inv_freq"):  # which old versions saved
                wrong.append(f"{name} has no place in this model")
        elif tensor.shape != wanted:
            wrong.append(f"{name} is {list(tensor.shape)}, the config says {list(wanted)}")
    return wrong


def differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    """How two sets of tensors differ in names, shapes and dtypes."""
    wrong = [f"{name} is missing" for name in theirs if name not in ours]
    wrong += [f"{name} is new" for name in ours if name not in theirs]
    for name in ours.keys() & theirs.keys():
        mine, other = ours[name], theirs[name]
        if (mine.shape, mine.dtype) != (other.shape, other.dtype):
            here, there = (f"{t.dtype}{list(t.shape)}" for t in (mine, other))
            wrong.append(f"{name} is {here}, not {there}")
    return sorted(wrong)


def adapter_misfits(ours: Mapping[str, Tensor], base: Mapping[str, Tensor], rank: int) -> list[str]:
    """What of a LoRA adapter's updates has no matrix in the base, another shape, or no partner."""
    wrong = []
    for name, tensor in ours.items():
        target, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        matrix, other = base.get(f"{target}.weight"), {"A.weight": "B.weight", "B.weight": "A.weight"}
        if matrix is None or len(matrix.shape) != 2 or factor not in other:
            wrong.append(f"{name} fits no matrix of the base")
            continue
        wanted = (rank, matrix.shape[1]) if factor == "A.weight" else (matrix.shape[0], rank)
        if tensor.shape != wanted:
            wrong.append(f"{name} is {list(tensor.shape)}, the base and its rank say {list(wanted)}")
        if name.replace(f".lora_{factor}", f".lora_{other[factor]}") not in ours:
            wrong.append(f"{name} stands alone: the other half of its update is missing")
    return sorted(wrong) if ours else ["it holds no tensor"]

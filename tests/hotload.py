"""Checkpoints to swap: tiny models and adapters in a registry of their own, good ones and bad ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from policies.manifest import SAFE_SUFFIXES, CheckpointFile, FileRole, Gate, Kind, Manifest
from policies.registry import Registry, ResolvedCheckpoint
from tests.fixtures_vllm import write_tiny_llama

ROLES: dict[str, FileRole] = {
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    "chat_template.jinja": "chat_template",
    "config.json": "config",
}
Change = Callable[[Path], object]


def publish_folder(
    root: Path,
    source: Path,
    name: str,
    kind: Kind = "full",
    parent: str | None = None,
    *,
    passed: bool = True,
) -> ResolvedCheckpoint:
    """A checkpoint of exactly the files in `source`, without any of the checks that a publisher makes."""
    folder = root / name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("manifest.json"))
    listed = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.suffix not in SAFE_SUFFIXES:
            continue
        role = "weights" if path.suffix in (".safetensors", ".onnx") else ROLES.get(path.name, "other")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        relative = path.relative_to(folder).as_posix()
        listed.append(CheckpointFile(path=relative, role=role, bytes=len(content), sha256=digest))
    manifest = Manifest(
        name=name, kind=kind, method="sft", config={}, seed=0, code_revision="test", parent=parent,
        gate=Gate(passed=passed, checks=("perplexity: 9",)), files=tuple(listed),
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return Registry(root).resolve(name)


def publish_tiny(
    root: Path, name: str, seed: int = 0, change: Change = lambda folder: None, *, passed: bool = True
) -> ResolvedCheckpoint:
    """A tiny chat model of random weights; `change` may spoil it before it is published."""
    source = root.parent / f"source-{name}"
    write_tiny_llama(source, seed)
    change(source)
    return publish_folder(root, source, name, passed=passed)


def publish_adapter(
    root: Path,
    name: str,
    base: ResolvedCheckpoint,
    seed: int = 0,
    change: Change = lambda folder: None,
    *,
    parent: str | None = None,
    rank: int = 4,
    scale: float = 0.3,
) -> ResolvedCheckpoint:
    """A LoRA adapter of random updates over a Llama's attention, in the files that PEFT writes."""
    source = root.parent / f"source-{name}"
    source.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    about = json.loads((base.path / "config.json").read_bytes())
    hidden, heads = about["hidden_size"], about["num_attention_heads"]
    width = about.get("head_dim", hidden // heads)
    query, value = width * heads, width * about["num_key_value_heads"]
    weights = {}
    for layer in range(about["num_hidden_layers"]):
        for target, into, out in (
            ("q_proj", hidden, query), ("v_proj", hidden, value), ("o_proj", query, hidden)
        ):  # fmt: skip
            place = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            weights[f"{place}.lora_A.weight"] = rng.standard_normal((rank, into)).astype(np.float32) * scale
            weights[f"{place}.lora_B.weight"] = rng.standard_normal((out, rank)).astype(np.float32) * scale
    save_file(weights, source / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "v_proj", "o_proj"],
        "base_model_name_or_path": base.ref,
        "bias": "none",
    }
    (source / "adapter_config.json").write_text(json.dumps(config))
    change(source)
    return publish_folder(root, source, name, "adapter", parent or base.ref)


# Ways of spoiling a model's or an adapter's folder before it is published


def spoil_weights(
    change: Callable[[dict[str, np.ndarray]], object], name: str = "model.safetensors"
) -> Change:
    """Rewrite the weights with one thing changed."""

    def spoil(folder: Path) -> None:
        weights = dict(load_file(folder / name))
        change(weights)
        save_file(weights, folder / name, metadata={"format": "pt"})

    return spoil


def spoil_json(name: str, **fields: object) -> Change:
    """Rewrite a JSON file with some fields changed."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))

    return spoil


def cut(name: str, keep: int) -> Change:
    """Keep only the first bytes of a file; a negative number leaves so many out."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def untie(folder: Path) -> None:
    """Give a model an unembedding of its own, equal to its embedding."""
    spoil_json("config.json", tie_word_embeddings=False)(folder)
    spoil_weights(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"]}))(folder)

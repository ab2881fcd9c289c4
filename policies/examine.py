"""What a checkpoint must be before anything running is touched for it.

Nothing is loaded; the bytes are read where they lie. In this order, for the first that fails is the reason
that an operator is told: the files are those that were published, the weights are whole and finite, they are
the tensors that the config promises, and what stands around them (tokenizer, chat template) is what the
callers of the alias have been served with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.history import Allowance
from policies.layout import EMBEDDING, HEAD, adapter_misfits, differences, misfits, promised, tied
from policies.manifest import CheckpointError, FileRole
from policies.registry import Registry, RegistryError, ResolvedCheckpoint
from policies.tensors import Tensor, not_finite, read_tensors

Tell = Callable[[str, str], None]
"""Is told of every step that was passed: its name, and what was seen."""

# Kinds that can stand in for each other under one alias: an adapter answers through its base.
_CHAT = frozenset({"full", "adapter"})
_UNTOLD = ("torch_dtype", "dtype", "transformers_version", "use_cache", "_name_or_path")
_LORA_ONLY = {"use_dora": False, "bias": "none", "use_rslora": None, "modules_to_save": None}


@dataclass(frozen=True, slots=True)
class Demands:
    """What is asked beyond what every checkpoint must be.

    reference: what the alias means now; None where it means nothing yet.
    allow:     what may differ from it.
    max_rank:  the largest rank of adapters that the server takes.
    """

    reference: ResolvedCheckpoint | None = None
    allow: frozenset[Allowance] = frozenset()
    max_rank: int = 64


def examine(
    registry: Registry,
    checkpoint: ResolvedCheckpoint,
    demands: Demands,
    tell: Tell = lambda step, seen: None,
) -> None:
    """Raises CheckpointError, or RegistryError for a base that isn't there, with what is wrong first.

    Reads every byte, twice: not for the event loop.
    """
    manifest, reference = checkpoint.manifest, demands.reference
    if not manifest.gate.passed:
        raise CheckpointError(
            f"{checkpoint.ref}: it did not pass its own gates: {'; '.join(manifest.gate.checks)}"
        )
    if reference is not None and not _interchangeable(manifest.kind, reference.manifest.kind):
        raise CheckpointError(
            f"{checkpoint.ref}: a checkpoint of kind {manifest.kind!r} can't stand in for "
            f"{reference.ref}, which is of kind {reference.manifest.kind!r}"
        )
    registry.verify(checkpoint)
    tell("files", f"{len(manifest.files)} files, every byte as published")
    tensors = _weights(checkpoint, tell)
    if manifest.kind == "full":
        _examine_full(checkpoint, tensors, tell)
    elif manifest.kind == "adapter":
        _examine_adapter(checkpoint, tensors, registry, demands.max_rank, tell)
    elif manifest.kind == "reward" and not tensors:
        raise CheckpointError(f"{checkpoint.path}: a reward model's weights are safetensors; here are none")
    elif manifest.kind == "classifier":
        _examine_classifier(checkpoint, reference, tell)
    if reference is not None and manifest.kind in _CHAT:
        _compare(speaker(registry, checkpoint), speaker(registry, reference), demands.allow, tell)


def speaker(registry: Registry, checkpoint: ResolvedCheckpoint) -> ResolvedCheckpoint:
    """Whose tokenizer and chat template requests go through: an adapter's base, else the checkpoint itself.

    Raises RegistryError where an adapter's base is not in the registry, or is another than the one it was
    trained on.
    """
    if checkpoint.manifest.kind != "adapter":
        return checkpoint
    parent = checkpoint.manifest.parent
    if parent is None:
        raise CheckpointError(
            f"{checkpoint.ref}: an adapter needs its base as parent, and its manifest names none"
        )
    try:
        base = registry.resolve(parent)
    except RegistryError as error:
        raise CheckpointError(f"{checkpoint.ref}: its base can't be had: {error}") from error
    if base.manifest.kind != "full":
        raise CheckpointError(
            f"{checkpoint.ref}: its base {base.ref} is of kind {base.manifest.kind!r}, not 'full'"
        )
    return base


def in_place_obstacle(new: ResolvedCheckpoint, old: ResolvedCheckpoint) -> str | None:
    """Why `new` can't be read into a server that runs `old`; None where nothing is in the way."""
    mine, other = read_config(new.path), read_config(old.path)
    for name in sorted(mine.keys() | other.keys()):
        if name not in _UNTOLD and mine.get(name) != other.get(name):
            return f"config.json differs in {name!r}"
    for role in ("tokenizer", "chat_template"):
        if _digests(new, role) != _digests(old, role):
            return f"its {role.replace('_', ' ')} is another, which a running server doesn't read again"
    odd = differences(read_tensors(new.path), read_tensors(old.path))
    return odd[0] if odd else None


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object of a checkpoint. Raises CheckpointError."""
    try:
        content = json.loads((folder / name).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / name}: can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / name}: must be a JSON object")
    return content


def _interchangeable(kind: str, other: str) -> bool:
    return kind == other or {kind, other} <= _CHAT


def _weights(checkpoint: ResolvedCheckpoint, tell: Tell) -> dict[str, Tensor]:
    """All safetensors, those in folders below too, where ensembles have theirs; those right here by name."""
    folders = sorted({path.parent for path in checkpoint.path.rglob("*.safetensors")})
    tensors: dict[str, Tensor] = {}
    for folder in folders:
        found = read_tensors(folder)
        if odd := next(not_finite(found), None):
            raise CheckpointError(
                f"{found[odd].file}: {odd} holds NaN or infinity; nothing sane would be answered"
            )
        prefix = "" if folder == checkpoint.path else f"{folder.relative_to(checkpoint.path)}/"
        tensors |= {prefix + name: tensor for name, tensor in found.items()}
    if tensors:
        tell("weights", f"{len(tensors)} tensors, whole and finite")
    return tensors


def _examine_full(checkpoint: ResolvedCheckpoint, tensors: Mapping[str, Tensor], tell: Tell) -> None:
    config = read_config(checkpoint.path)
    try:
        wrong = misfits(tensors, config)
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}/config.json: a size is missing or no number: {error}"
        ) from error
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{checkpoint.path}: {wrong[0]}{more}")
    if not tensors:
        raise CheckpointError(f"{checkpoint.path}: no safetensors here")
    if wrong is None:
        tell("layout", "not known for this architecture: vLLM's own loading is what checks it")
    else:
        tell("layout", f"names and shapes are those of config.json ({config['architectures'][0]})")
        _check_dtypes(checkpoint, tensors)
    _check_tokenizer(checkpoint, config, tell)


def _check_dtypes(checkpoint: ResolvedCheckpoint, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in ("F32", "F16", "BF16") and not name.endswith("inv_freq"):
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {tensor.dtype}; a model without quantization_config has F32, "
                "F16 or BF16"
            )


def _check_tokenizer(checkpoint: ResolvedCheckpoint, config: Mapping[str, Any], tell: Tell) -> None:
    """Every token has a row in the embedding; a template is there, for without one there is no chat."""
    path = checkpoint.path / "tokenizer.json"
    if path.is_file() and promised(config) is not None:
        highest, size = _highest_id(read_config(checkpoint.path, path.name), path), int(config["vocab_size"])
        if highest >= size:
            raise CheckpointError(
                f"{path}: it has a token {highest}, the model's vocabulary ends before {size}: the wrong "
                "tokenizer"
            )
        tell("tokenizer", f"tokens up to {highest}, a vocabulary of {size}")
    settings = checkpoint.path / "tokenizer_config.json"
    inline = settings.is_file() and "chat_template" in read_config(checkpoint.path, settings.name)
    if not inline and checkpoint.manifest.file("chat_template") is None:
        raise CheckpointError(
            f"{checkpoint.path}: no chat template; add chat_template.jinja and publish again"
        )


def _highest_id(tokenizer: Mapping[str, Any], path: Path) -> int:
    try:
        vocabulary = tokenizer["model"]["vocab"]
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        return max([*ids, *(int(token["id"]) for token in tokenizer.get("added_tokens") or ())])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: no tokenizer: {error!r}") from error


def _examine_adapter(
    checkpoint: ResolvedCheckpoint,
    tensors: Mapping[str, Tensor],
    registry: Registry,
    max_rank: int,
    tell: Tell,
) -> None:
    base = speaker(registry, checkpoint)
    config = read_config(checkpoint.path, "adapter_config.json")
    rank, kind = config.get("r"), config.get("peft_type")
    if kind != "LORA" or not isinstance(rank, int) or rank < 1:
        raise CheckpointError(
            f"{checkpoint.path}: peft_type {kind!r} with r {rank!r}; served are LoRA adapters"
        )
    if rank > max_rank:
        raise CheckpointError(
            f"{checkpoint.path}: its rank is {rank}, the server takes {max_rank}: raise "
            "engine.max_adapter_rank"
        )
    if odd := [
        name for name, plain in _LORA_ONLY.items() if config.get(name) not in (plain, None, False, [])
    ]:
        raise CheckpointError(
            f"{checkpoint.path}: {odd[0]!r} is set, which vLLM does not serve; merge it first"
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise CheckpointError(f"{checkpoint.path}: ranks or alphas that differ by module are not served")
    registry.verify(base)
    if wrong := adapter_misfits(tensors, read_tensors(base.path), rank):
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise CheckpointError(f"{checkpoint.path}: does not fit {base.name}: {wrong[0]}{more}")
    tell("adapter", f"{len(tensors) // 2} updates of rank {rank} fit {base.ref[: len(base.name) + 17]}")


def _examine_classifier(
    checkpoint: ResolvedCheckpoint, reference: ResolvedCheckpoint | None, tell: Tell
) -> None:
    """Guards name labels; one that is gone would never again be found, without anybody noticing."""
    about = "classifier.json"
    if reference is None or not (reference.path / about).is_file():
        return
    ours, theirs = (
        set(map(str, read_config(c.path, about).get("labels") or ())) for c in (checkpoint, reference)
    )
    if missing := sorted(theirs - ours):
        raise CheckpointError(f"{checkpoint.path}: lacks the labels {', '.join(missing)} of {reference.ref}")
    tell("labels", f"all {len(theirs)} of the former are there")


def _compare(
    new: ResolvedCheckpoint, old: ResolvedCheckpoint, allow: frozenset[Allowance], tell: Tell
) -> None:
    """Tokenizer and chat template are those of before, unless said otherwise."""
    for what, role in (("tokenizer", "tokenizer"), ("template", "chat_template")):
        same = _digests(new, role) == _digests(old, role)  # type: ignore[arg-type]  # both are roles
        if not same and what not in allow:
            raise CheckpointError(
                f"{new.ref}: its {role.replace('_', ' ')} differs from that of {old.ref}, which the alias "
                f"means now; if that is meant, say --new-{what}"
            )
        tell(role.replace("_", " "), "the former's" if same else "another, as was allowed")


def _digests(checkpoint: ResolvedCheckpoint, role: FileRole) -> set[tuple[str, str]]:
    return {(file.path, file.sha256) for file in checkpoint.manifest.files if file.role == role}


def must_untie(checkpoint: ResolvedCheckpoint) -> bool:
    """Whether the unembedding is the embedding, and not in the file by its own name."""
    config = read_config(checkpoint.path)
    tensors = read_tensors(checkpoint.path)
    return tied(config) and HEAD not in tensors and EMBEDDING in tensors

"""Which servable a policy's model setting means. Light: nothing here imports a model's library.

One checkpoint has one servable, named by its digest, whichever guards use it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from guardrails import cascade
from guardrails import classifier as backends
from guardrails.build import GuardEnvironment
from guardrails.in_context import InContext
from guardrails.servable import ServableSpec, folder_servable, is_path
from guardrails.spelling import Respelled, read_words
from policies.errors import Problem
from policies.manifest import CheckpointError
from policies.registry import Registry, RegistryError
from policies.spec import DetoxifyRef

EMBEDDED = "keel-guard"
"""The checkpoint behind toxicity, injection and the names in pii, unless a policy says otherwise."""


_DETOXIFY_LABELS = frozenset(
    {"toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack"}
)


def classifier(model: str | DetoxifyRef, env: GuardEnvironment) -> ServableSpec:
    """The servable that scores texts: a checkpoint's name, a transformers folder's path, or a Detoxify model.

    Raises RegistryError or CheckpointError for a checkpoint that isn't there, FileNotFoundError for a folder.
    """
    if isinstance(model, DetoxifyRef):
        config = model.model_dump(exclude_none=True)
        name = config.pop("detoxify", None)
        label = name or f"{model.sha256}"[:16]
        settings = {"name": name} if name else config
        return ServableSpec(f"detoxify:{label}", "guardrails.models:serve_detoxify", settings, cache=True)
    if is_path(model):
        return folder_servable("classifier", model, "guardrails.models:serve_transformers")
    return _checkpoint(model, env)


def entities(ner: str, env: GuardEnvironment) -> ServableSpec | None:
    """The servable that finds names: "embedded", "none", a model's folder, or a spaCy package's name."""
    if ner == "none":
        return None
    if ner == "embedded":
        return _checkpoint(EMBEDDED, env)
    if not is_path(ner):
        return ServableSpec(f"spacy:{ner}", "guardrails.ner:serve_spacy", {"package": ner}, cache=True)
    kind = "spacy" if (Path(ner) / "meta.json").is_file() else "transformers"
    return folder_servable("ner", ner, f"guardrails.ner:serve_{kind}")


def problems(model: str | DetoxifyRef, env: GuardEnvironment, key: str) -> Iterator[Problem]:
    """What is wrong with a model setting, as far as can be told without loading it."""
    if isinstance(model, DetoxifyRef):
        if model.path is not None and not Path(model.path).is_file():
            yield Problem((key, "path"), f"there is no file {model.path!r}")
    elif is_path(model):
        if not Path(model).is_dir():
            yield Problem(
                (key,), f"there is no folder {model!r}; give a checkpoint's name or a model's folder"
            )
    else:
        try:
            env.registry.resolve(model)
        except (RegistryError, CheckpointError) as error:
            yield Problem((key,), str(error))


def labels(model: str | DetoxifyRef, env: GuardEnvironment) -> frozenset[str]:
    """The labels that a model is known to have before it is loaded; empty where that can't be told."""
    if isinstance(model, DetoxifyRef):
        return _DETOXIFY_LABELS | ({"sexual_explicit"} if model.detoxify != "original" else set())
    try:
        folder = Path(model) if is_path(model) else env.registry.resolve(model).path
        about = json.loads((folder / "classifier.json").read_bytes())
        return frozenset(str(label) for label in about["labels"])
    except (RegistryError, CheckpointError, OSError, ValueError, KeyError, TypeError):
        return frozenset()


def heads(servable: ServableSpec, limits: Mapping[str, float]) -> frozenset[str]:
    """What a guard that flags from these scores on, by label or entity type, may ask of the servable's early
    exit; none where there is no exit, or it wasn't made for scores that low."""
    about = _exit(servable)
    if about is None or not all(limits[head] >= about.floors.get(head, 2.0) for head in limits):
        return frozenset()
    return frozenset(limits)


def _exit(servable: ServableSpec) -> cascade.About | None:
    if "early" not in servable.config:
        return None
    folder = Registry(servable.config["root"]).resolve(servable.config["early"]).path
    try:
        return cascade.read_about(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / cascade.ABOUT_NAME}: not an early exit's description ({error!r}); publish it again"
        ) from error


def serve_checkpoint(root: str, ref: str, early: str | None = None) -> Respelled:
    """The factory for a checkpoint of the registry in folder `root`, with its `early` exit where it has one:
    every byte is verified, then loaded."""
    registry = Registry(root)
    checkpoint = registry.resolve(ref)
    registry.verify(checkpoint)
    words = read_words(checkpoint.path)
    if early is None:
        return Respelled(InContext(backends.serve_onnx(str(checkpoint.path))), words)
    from guardrails.early_exit import load

    published = registry.resolve(early)
    registry.verify(published)
    return Respelled(load(published.path, checkpoint.path), words)


def serve_transformers(folder: str) -> InContext:
    """The factory for a transformers folder."""
    return InContext(backends.serve_transformers(folder))


def serve_detoxify(**reference: str) -> InContext:
    """The factory for a Detoxify model: `name`, or `path` and `sha256`."""
    return InContext(backends.serve_detoxify(**reference))


def _checkpoint(name: str, env: GuardEnvironment) -> ServableSpec:
    checkpoint = env.registry.resolve(name)
    title = f"{checkpoint.name}@{checkpoint.digest[:16]}"
    config = {"root": str(env.registry.root), "ref": checkpoint.ref}
    if checkpoint.name + cascade.SUFFIX in env.registry.names():
        early = env.registry.resolve(checkpoint.name + cascade.SUFFIX)
        if early.manifest.parent == checkpoint.ref:
            title += f"+{early.digest[:8]}"
            config["early"] = early.ref
    return ServableSpec(title, "guardrails.models:serve_checkpoint", config, cache=True)

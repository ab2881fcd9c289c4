"""A run's directory: metrics, and checkpoints from which a run goes on bit for bit.

    config.json   metrics.jsonl   tokenizer files in final/
    steps/00000500/{model,optimizer}.safetensors, state.json
    final/        what `keel-train publish` takes

Nothing is pickled. A checkpoint appears under its name only when it is complete, with the digests of its
files, and a run goes on only from one that still has them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.checkpoint_marker import MARKER, is_complete, mark_complete
from training.errors import TrainingError
from training.files import appearing, disk_errors


class RunDirectory:
    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        self.steps = path / "steps"
        self._keep = keep
        self.steps.mkdir(parents=True, exist_ok=True)

    def log(self, record: dict[str, Any]) -> None:
        with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def rewind(self, step: int) -> None:
        """Forget the records after `step`, which a run that goes on from there will write again."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break  # the line that a kill cut off
            if record["step"] <= step:
                kept.append(line + "\n")
        partial = self.metrics.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, self.metrics)

    def bind(self, config: dict[str, Any]) -> None:
        """Record the run's config; raises TrainingError when the directory belongs to another one."""
        file = self.path / "config.json"
        text = json.dumps(config, indent=1, sort_keys=True)
        if file.exists() and file.read_text(encoding="utf-8") != text:
            raise TrainingError(
                f"{self.path}: holds a run with another config; choose another --run directory, "
                "or delete this one to start again"
            )
        partial = file.with_suffix(f".{os.getpid()}.partial")  # several processes may bind at once
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)

    def save(
        self, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: dict[str, Any]
    ) -> Path:
        """Write checkpoint `step` and drop the oldest beyond `keep`."""
        place = self.steps / f"{step:08d}"
        with appearing(place) as partial:
            weights = {n: p.detach().contiguous() for n, p in model.named_parameters()}
            save_file(weights, partial / "model.safetensors")
            tensors, scalars = _flatten(optimizers)
            save_file(tensors, partial / "optimizer.safetensors")
            content = {"step": step, "optimizer": scalars, **state}
            (partial / "state.json").write_text(json.dumps(content), encoding="utf-8")
            mark_complete(partial)
        for old in self._marked()[: -self._keep]:
            shutil.rmtree(old)
        return place

    def latest(self) -> Path | None:
        """The newest checkpoint whose files are what was written."""
        return next(filter(is_complete, reversed(self._marked())), None)

    def _marked(self) -> list[Path]:
        return sorted(p for p in self.steps.iterdir() if p.name.isdigit() and (p / MARKER).is_file())


def restore(place: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Any]:
    """Load a checkpoint into model and optimizers; returns its state."""
    state: dict[str, Any] = json.loads((place / "state.json").read_text(encoding="utf-8"))
    load_parameters(model, load_file(place / "model.safetensors"), place)
    _unflatten(optimizers, load_file(place / "optimizer.safetensors"), state["optimizer"])
    return state


def load_parameters(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy named tensors into the model's parameters; names and shapes must agree."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())[:5]
        raise TrainingError(f"{source}: the weights don't fit this model; names differ, such as {odd}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise TrainingError(
                    f"{source}: {name} has shape {tuple(tensors[name].shape)}, "
                    f"the config asks for {tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def _flatten(optimizers: Sequence[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for number, optimizer in enumerate(optimizers):
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                name = f"{number}.{index}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value.contiguous()
                else:
                    scalars[name] = value
    return tensors, scalars


def _unflatten(
    optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor], scalars: dict[str, float]
) -> None:
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **scalars}.items():
            owner, index, key = name.split(".", 2)
            if int(owner) == number:
                state.setdefault(int(index), {})[key] = value
        content = optimizer.state_dict()
        content["state"] = state
        optimizer.load_state_dict(content)

"""What a checkpoint's files must be before they are published, whatever the method: a `Check` for each thing.

A check measures, says what it found and never raises: everything that is wrong with a checkpoint is told at
once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from policies.manifest import Kind

_NEEDED: dict[Kind, tuple[str, ...]] = {
    "full": ("config.json",),
    "adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "reward": ("config.json", "reward.json"),
    "classifier": (),
}
_LORA_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class Check:
    """A gate and its outcome; `detail` is the figure or the reason."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


def check_files(
    folder: Path, kind: Kind, parent: Path | None = None, new_template: bool = False
) -> list[Check]:
    """Weights, the files that the kind needs, and what must agree with the parent in folder `parent`.

    `new_template` says that the chat template differs from the parent's on purpose.
    """
    missing = [name for name in _NEEDED[kind] if not (folder / name).is_file()]
    if missing:
        return [
            Check(kind, False, f"a checkpoint of this kind needs {', '.join(missing)}"),
            *check_weights(folder),
        ]
    checks = check_weights(folder)
    if kind == "reward":
        checks.append(_check_reward(folder))
    if kind == "adapter":
        checks.append(_check_adapter(folder, parent))
    if kind in ("full", "adapter") and parent is not None and not new_template:
        checks += _check_template(folder, parent)
    return checks


def check_weights(folder: Path) -> list[Check]:
    """Every safetensors file opens, and every number in it is finite."""
    checks = []
    for path in sorted(folder.rglob("*.safetensors")):
        count, odd = 0, []
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  no mapping, though it has keys
                    tensor = tensors.get_tensor(name)
                    count += tensor.numel()
                    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                        odd.append(name)
        except SafetensorError as error:
            checks.append(Check(path.name, False, f"not a safetensors file: {error}"))
            continue
        detail = f"{count:,} numbers, all finite" if not odd else f"NaN or infinity in {', '.join(odd[:3])}"
        checks.append(Check(path.name, count > 0 and not odd, detail))
    return checks


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every tensor in `folder` by name; raises SafetensorError for a file that is none."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return found


def _check_reward(folder: Path) -> Check:
    """`reward.json` agrees with the model's number of outputs."""
    from training.reward_model import ABOUT_NAME, About  # imports transformers, which other kinds don't need

    try:
        about = About.model_validate_json((folder / ABOUT_NAME).read_bytes())
        labels = json.loads((folder / "config.json").read_bytes()).get("id2label", {})
    except (ValidationError, ValueError, AttributeError) as error:
        return Check("reward", False, f"reward.json or config.json cannot be read: {error}")
    outputs = len(labels) or 2  # transformers' default, which its config.json does not write
    if outputs != len(about.objectives):
        return Check("reward", False, f"{outputs} outputs for the objectives {', '.join(about.objectives)}")
    return Check(
        "reward", True, f"objectives {', '.join(about.objectives)}, normalised on {about.samples} replies"
    )


def _check_adapter(folder: Path, parent: Path | None) -> Check:
    """Every update fits a matrix of the parent, by name and shape; a server would find out under load."""
    if parent is None:
        return Check(
            "adapter", False, "an adapter needs the published checkpoint that it was trained on as parent"
        )
    try:
        ours, theirs = shapes(folder), shapes(parent)
    except SafetensorError as error:
        return Check("adapter", False, f"weights cannot be read: {error}")
    odd = []
    for name, shape in ours.items():
        target, _, factor = name.removeprefix(_LORA_PREFIX).partition(".lora_")
        matrix = theirs.get(f"{target}.weight")
        side = {"A.weight": 1, "B.weight": 0}.get(factor)
        if matrix is None or side is None or shape[side] != matrix[side]:
            odd.append(name)
    if odd or not ours:
        return Check(
            "adapter", False, f"does not fit {parent.name}: {', '.join(odd[:3]) or 'it holds no tensor'}"
        )
    return Check("adapter", True, f"{len(ours) // 2} updates fit {parent.name}")


def _check_template(folder: Path, parent: Path) -> list[Check]:
    """The chat template is the parent's: prompts in another one are not what its weights learnt to read."""
    name = "chat_template.jinja"
    ours, theirs = folder / name, parent / name
    if not theirs.is_file():
        return []
    same = ours.is_file() and ours.read_bytes() == theirs.read_bytes()
    detail = (
        "the parent's"
        if same
        else f"differs from the parent's ({parent.name}), and the config does not say so"
    )
    return [Check("chat template", same, detail)]

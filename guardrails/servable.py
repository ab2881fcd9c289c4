"""What guard workers can be asked to run, named so that the gateway needs to import none of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Servable(Protocol):
    """What a factory returns. It may also have `describe() -> Any`, which the gateway asks for once."""

    def predict(self, batch: list[Any]) -> list[Any]:
        """One result per payload, in order. A result must not depend on what else is in the batch."""
        ...


@dataclass(frozen=True, slots=True)
class ServableSpec:
    """What a worker can be asked to run. `factory` is "module:function", called with `config` as keywords.

    The name identifies the configuration: two different ones never share a name (put a digest in it).
    `cache`: recent results may be given again, because they depend on the payload alone and are small.
    """

    name: str
    factory: str
    config: Mapping[str, Any] = field(default_factory=dict)
    cache: bool = False


class ServableError(Exception):
    """A servable can't be loaded; the message names it and says why."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"guard model {name!r} can't be loaded: {detail}")
        self.name = name
        self.detail = detail


def is_path(model: str) -> bool:
    """Whether a model setting is a folder's path rather than a name."""
    return os.sep in model or model.startswith(".")


def folder_servable(kind: str, path: str, factory: str) -> ServableSpec:
    """Named by what is in the folder now, so that a changed folder is another servable."""
    folder = Path(path).resolve(strict=True)
    files = (file for file in folder.rglob("*") if file.is_file())
    state = sorted((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    digest = hashlib.sha256(repr((str(folder), state)).encode()).hexdigest()[:16]
    key = "package" if factory.endswith("spacy") else "folder"
    return ServableSpec(f"{kind}:{folder.name}@{digest}", factory, {key: str(folder)}, cache=True)

"""The checkpoint manifest: what a checkpoint is, what it was made of, and the digests that prove it.

`service` and `training` meet in this file only, so it imports neither torch nor anything that loads models.
A manifest is identified by the SHA-256 of its canonical JSON (sorted keys, no spaces, ASCII), and so, as it
holds the digests of all files, by every byte of the checkpoint. On disk the digest stands in the file
itself, whose bytes are a function of its content: a manifest with any byte changed is not a manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ValidationError,
    model_validator,
)

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20

# Formats that are data and nothing but data: opening one of these runs no code.
SAFE_SUFFIXES = frozenset({".safetensors", ".onnx", ".json", ".jinja", ".txt", ".md"})
WEIGHT_SUFFIXES = frozenset({".safetensors", ".onnx"})

Kind = Literal["full", "adapter", "reward", "classifier"]
FileRole = Literal["weights", "tokenizer", "chat_template", "config", "notice", "other"]


class RegistryError(Exception):
    """Something is wrong with a checkpoint or the registry. Says what, where, and what to do."""


class CheckpointError(RegistryError):
    """A checkpoint that must not be loaded."""


def _relative(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = path == "/".join(parts) and not path.startswith("/") and not {"..", "."} & set(parts)
    if not plain or not re.fullmatch(r"[A-Za-z0-9._/-]+", path):
        raise ValueError("must be a plain relative path of letters, digits, '.', '_', '-' and '/'")
    if path == MANIFEST_NAME:
        raise ValueError(f"{MANIFEST_NAME} can't list itself")
    if PurePosixPath(path).suffix not in SAFE_SUFFIXES:
        raise ValueError(f"suffix not among {', '.join(sorted(SAFE_SUFFIXES))}: only data formats are loaded")
    return path


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Reference = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}@[0-9a-f]{64}$")]
RelativePath = Annotated[str, Field(max_length=255), AfterValidator(_relative)]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class CheckpointFile(Frozen):
    """One file of the checkpoint; `path` is relative to the checkpoint's folder."""

    path: RelativePath
    role: FileRole
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @model_validator(mode="after")
    def _weights_are_data(self) -> Self:
        if self.role == "weights" and PurePosixPath(self.path).suffix not in WEIGHT_SUFFIXES:
            raise ValueError(f"{self.path}: weights are {' or '.join(sorted(WEIGHT_SUFFIXES))}, no pickles")
        return self


class DataSource(Frozen):
    """What it was trained on: where that comes from, under which licence, and the digest of the file read."""

    path: str
    origin: str
    licence: str
    sha256: Sha256


class Base(Frozen):
    """Foreign weights that training started from."""

    name: str
    revision: str
    licence: str
    sha256: Sha256


class Evaluation(Frozen):
    """One measured figure, with its 95 % interval where there is one, and what it was measured on."""

    metric: str
    value: FiniteFloat
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    data: str
    n: Annotated[int, Field(ge=0)]


class Gate(Frozen):
    """Whether the checkpoint passed what it had to pass before it was published, and what that was."""

    passed: bool
    checks: tuple[str, ...]


class Manifest(Frozen):
    """A published checkpoint. `parent` is the project's own checkpoint that it was trained from."""

    version: Literal[1] = 1
    name: Name
    kind: Kind
    method: str
    description: str = ""
    config: dict[str, JsonValue]
    seed: int
    code_revision: str
    parent: Reference | None = None
    base: Base | None = None
    data: tuple[DataSource, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    gate: Gate
    files: Annotated[tuple[CheckpointFile, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _files_fit(self) -> Self:
        paths = [file.path for file in self.files]
        if len(paths) != len(set(paths)):
            raise ValueError("files: a path is listed twice")
        if not any(file.role == "weights" for file in self.files):
            raise ValueError("files: none has the role 'weights'")
        return self

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical content."""
        canonical = json.dumps(self._content(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    @property
    def ref(self) -> str:
        """`name@digest`, which names these bytes and no others."""
        return f"{self.name}@{self.digest}"

    def file(self, role: FileRole) -> CheckpointFile | None:
        """The first file with this role."""
        return next((file for file in self.files if file.role == role), None)

    def to_bytes(self) -> bytes:
        """The one representation on disk."""
        content = {"digest": self.digest, **self._content()}
        return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")

    @classmethod
    def from_bytes(cls, content: bytes, where: str | Path = MANIFEST_NAME) -> Manifest:
        """Parse and check; raises CheckpointError where a byte differs from what `to_bytes` writes."""
        try:
            document = json.loads(content)
            if not isinstance(document, dict):
                raise CheckpointError(f"{where}: a manifest is an object, not a {type(document).__name__}")
            written = document.pop("digest", None)
            manifest = cls.model_validate(document)
        except ValidationError as error:
            raise CheckpointError(f"{where}: not a valid manifest: {_first_problem(error)}") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{where}: not valid JSON: {error}") from error
        if written != manifest.digest or content != manifest.to_bytes():
            raise CheckpointError(
                f"{where}: the manifest's content does not match its digest, so it was changed after it was "
                "published; publish the checkpoint again, or restore it from where it came"
            )
        return manifest

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in file `path`; raises CheckpointError."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_MANIFEST_BYTES + 1)
        except OSError as error:
            raise CheckpointError(f"{path}: the manifest cannot be read: {error.strerror}") from error
        if len(content) > MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes, so not a manifest")
        return cls.from_bytes(content, path)

    def _content(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the manifest"
    more = error.error_count() - 1
    return f"{place}: {first['msg']}" + (f" (and {more} more)" if more else "")

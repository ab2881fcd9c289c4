"""The checkpoint registry: a folder of published checkpoints, their aliases, and their verification.

    checkpoints/<name>/manifest.json + the files it lists
    checkpoints/aliases.json          {"alias": "name@digest"}
    checkpoints/aliases.history.json  what each alias meant before (`policies.history`)

A name is used once and for ever, so `name@digest` never changes its meaning; what moves is an alias, and
it moves atomically. `resolve` reads manifests only; `verify` reads every byte, and comes before loading.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from policies.history import HISTORY_NAME, Allowance, How, Move, read_history, way_back, with_move
from policies.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    CheckpointError,
    CheckpointFile,
    Manifest,
    RegistryError,
)

__all__ = [
    "CheckpointError",
    "Pinned",
    "Registry",
    "RegistryError",
    "ResolvedCheckpoint",
    "UnknownCheckpoint",
]

ALIASES_NAME = "aliases.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")


class UnknownCheckpoint(RegistryError, LookupError):
    """Nothing in the registry has this name, alias or digest."""


@dataclass(frozen=True, slots=True)
class ResolvedCheckpoint:
    """Exactly one checkpoint: its bytes are those of `digest`, or `verify` refuses it."""

    name: str
    digest: str
    path: Path
    manifest: Manifest

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.digest}"


class Registry:
    """A folder of checkpoints. Holds no state: what is on disk is what there is."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()

    def names(self) -> tuple[str, ...]:
        """Every checkpoint's name, sorted; folders without a manifest are none."""
        if not self.root.is_dir():
            return ()
        found = (entry.name for entry in self.root.iterdir() if (entry / MANIFEST_NAME).is_file())
        return tuple(sorted(name for name in found if _NAME.fullmatch(name)))

    def checkpoints(self) -> tuple[ResolvedCheckpoint, ...]:
        """All checkpoints, by name. Raises CheckpointError for the first that is damaged."""
        return tuple(self._open(name) for name in self.names())

    def aliases(self) -> dict[str, str]:
        """Alias → `name@digest`. Raises RegistryError for a file that isn't that."""
        path = self.root / ALIASES_NAME
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise RegistryError(f"{path}: too large to be an alias table")
            table = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise RegistryError(f"{path}: cannot be read as JSON: {error}") from error
        if not isinstance(table, dict) or not all(isinstance(target, str) for target in table.values()):
            raise RegistryError(f'{path}: must be an object like {{"alias": "name@digest"}}')
        return table

    def resolve(self, ref: str) -> ResolvedCheckpoint:
        """The checkpoint that `name`, `name@digest` or an alias means now.

        A digest may be shortened to its first eight digits or more. Raises UnknownCheckpoint for a ref
        that names nothing, CheckpointError for a damaged manifest.
        """
        name, at, digest = self._follow(ref).partition("@")
        if not _NAME.fullmatch(name) or (at and not _DIGEST.fullmatch(digest)):
            raise UnknownCheckpoint(
                f"{ref!r} is no checkpoint reference; write a name, an alias, or name@digest (lower-case hex)"
            )
        if name not in self.names():
            known = ", ".join([*self.names(), *self.aliases()]) or "none"
            raise UnknownCheckpoint(f"there is no checkpoint {ref!r} in {self.root}; there are: {known}")
        checkpoint = self._open(name)
        if at and not checkpoint.digest.startswith(digest):
            raise UnknownCheckpoint(
                f"checkpoint {name!r} in {self.root} has digest {checkpoint.digest[:16]}…, not "
                f"{digest[:16]}…; a name is never reused, so these are other bytes than the ones meant"
            )
        return checkpoint

    def verify(self, checkpoint: ResolvedCheckpoint) -> None:
        """Check every byte against the manifest; raises CheckpointError with the first thing that is wrong.

        Refused are: a manifest that changed since it was resolved, a missing, changed or additional file,
        a symbolic link or anything else that is no plain file, and a folder outside the registry.
        """
        if checkpoint.path != self.root / checkpoint.name:
            raise CheckpointError(f"{checkpoint.path}: not in the registry {self.root}")
        if self._open(checkpoint.name).digest != checkpoint.digest:
            raise CheckpointError(f"{checkpoint.path}: its manifest has changed; resolve it again")
        listed = {file.path: file for file in checkpoint.manifest.files}
        present = set(_plain_files(checkpoint.path)) - {MANIFEST_NAME}
        if extra := sorted(present - listed.keys()):
            raise CheckpointError(
                f"{checkpoint.path / extra[0]}: not listed in the manifest; remove it, or publish it with "
                "the checkpoint"
            )
        if missing := sorted(listed.keys() - present):
            raise CheckpointError(f"{checkpoint.path / missing[0]}: listed in the manifest but missing")
        for file in checkpoint.manifest.files:
            _check_file(checkpoint.path, file)

    def point(
        self, alias: str, ref: str, *, how: How = "point", allow: tuple[Allowance, ...] = ()
    ) -> ResolvedCheckpoint:
        """Make `alias` mean what `ref` means now, atomically; the target is verified first.

        The move is kept in the history, with what `allow` says may differ from the former meaning.
        """
        if not _NAME.fullmatch(alias):
            raise RegistryError(f"{alias!r} is no alias: use up to 64 of a-z, 0-9, '.', '_' and '-'")
        if alias in self.names():
            raise RegistryError(f"{alias!r} is a checkpoint's name in {self.root}; choose another alias")
        checkpoint = self.resolve(ref)
        self.verify(checkpoint)
        with _locked(self.root):
            aliases = self.aliases()
            previous = aliases.get(alias)
            if previous != checkpoint.ref:
                move = Move.now(checkpoint.ref, previous, how, allow)
                write_atomically(self.root / HISTORY_NAME, with_move(read_history(self.root), alias, move))
            content = json.dumps(aliases | {alias: checkpoint.ref}, indent=1, sort_keys=True) + "\n"
            write_atomically(self.root / ALIASES_NAME, content.encode())
        return checkpoint

    def history(self, alias: str) -> tuple[Move, ...]:
        """The moves of an alias, oldest first. Raises RegistryError for a damaged history."""
        return read_history(self.root).get(alias, ())

    def previous(self, alias: str) -> ResolvedCheckpoint:
        """What the alias meant before. Raises RegistryError where it has not been moved, or that is gone."""
        aliases = self.aliases()
        if alias not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise UnknownCheckpoint(f"there is no alias {alias!r} in {self.root}; there are: {known}")
        ref = way_back(self.history(alias), aliases[alias])
        if ref is None:
            raise RegistryError(f"{alias!r} has meant nothing else than {aliases[alias]}: no way back")
        return self.resolve(ref)

    def allowances(self, alias: str, ref: str) -> frozenset[Allowance]:
        """What was allowed to differ when the alias was last moved to `ref`."""
        moves = [move for move in self.history(alias) if move.ref == ref]
        return frozenset(moves[-1].allow) if moves else frozenset()

    def _follow(self, ref: str) -> str:
        if ref in self.names():
            return ref
        return self.aliases().get(ref, ref)

    def _open(self, name: str) -> ResolvedCheckpoint:
        path = self.root / name
        if path.is_symlink() or (path / MANIFEST_NAME).is_symlink():
            raise CheckpointError(f"{path}: a symbolic link may lead out of the registry; put the files here")
        manifest = Manifest.read(path / MANIFEST_NAME)
        if manifest.name != name:
            raise CheckpointError(
                f"{path}: its manifest calls it {manifest.name!r}; a checkpoint's folder bears its name"
            )
        return ResolvedCheckpoint(name, manifest.digest, path, manifest)


class Pinned(Registry):
    """A registry some of whose aliases are held to a meaning, whatever the alias table says by now."""

    def __init__(self, root: Path | str, pins: Mapping[str, str]) -> None:
        super().__init__(root)
        self.pins = dict(pins)

    def _follow(self, ref: str) -> str:
        return self.pins.get(ref) or super()._follow(ref)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: a reader, or a crash, sees all of the old or all of the new."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Exclude other processes that repoint aliases, lest one's alias be lost in the other's table."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _plain_files(folder: Path) -> Iterator[str]:
    """Relative paths of the plain files below `folder`; raises CheckpointError for anything else."""
    for entry in sorted(folder.rglob("*")):
        mode = entry.lstat().st_mode
        if stat.S_ISREG(mode):
            yield entry.relative_to(folder).as_posix()
        elif not stat.S_ISDIR(mode):
            raise CheckpointError(f"{entry}: a link or special file; a checkpoint holds plain files only")


def _check_file(folder: Path, file: CheckpointFile) -> None:
    path = folder / file.path
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as content:
        size = os.fstat(content.fileno()).st_size
        digest = hashlib.file_digest(content, "sha256").hexdigest() if size == file.bytes else None
    if digest != file.sha256:
        found = f"{size} bytes" if digest is None else f"sha256 {digest[:16]}…"
        raise CheckpointError(
            f"{path}: not the file that was published ({found}, expected {file.bytes} bytes, sha256 "
            f"{file.sha256[:16]}…); restore it, or publish the checkpoint again"
        )

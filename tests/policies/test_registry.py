"""The registry: what a reference means, and which folders it refuses to vouch for."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.manifest import CheckpointError, CheckpointFile, FileRole, Gate, Manifest
from policies.registry import Registry, RegistryError, UnknownCheckpoint

FILES: dict[str, tuple[FileRole, bytes]] = {
    "model.safetensors": ("weights", b"not really weights"),
    "sub/tokenizer.json": ("tokenizer", b"{}"),
}


def place(root: Path, name: str, seed: int = 0, files: dict[str, tuple[FileRole, bytes]] = FILES) -> Manifest:
    """Write a checkpoint by hand, as a publisher would."""
    folder = root / name
    listed = []
    for path, (role, content) in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        listed.append(CheckpointFile(path=path, role=role, bytes=len(content), sha256=digest))
    manifest = Manifest(
        name=name, kind="full", method="sft", config={}, seed=seed, code_revision="abc",
        gate=Gate(passed=True, checks=()), files=tuple(listed),
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return manifest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoints"
    place(root, "tiny")
    place(root, "other", seed=7)
    return root


def test_a_name_a_digest_and_an_alias_mean_the_same_checkpoint(root: Path) -> None:
    registry = Registry(root)
    tiny = registry.resolve("tiny")
    registry.point("default", "tiny")
    assert tiny.path == root / "tiny"
    assert registry.resolve(tiny.ref) == tiny
    assert registry.resolve(f"tiny@{tiny.digest[:12]}") == tiny
    assert registry.resolve("default") == tiny
    registry.verify(tiny)


def test_listing_is_sorted_and_ignores_what_is_no_checkpoint(root: Path) -> None:
    (root / "drafts").mkdir()
    (root / "notes.txt").write_text("hello")
    assert Registry(root).names() == ("other", "tiny")
    assert [c.name for c in Registry(root).checkpoints()] == ["other", "tiny"]
    assert Registry(root / "nowhere").names() == ()


REFS = ["", "absent", "../tiny", "tiny/", "/etc", "tiny@", "tiny@xyz", "tiny@" + "0" * 64, "Tiny"]
REFS += ["tiny@0000000", "tiny\n", "tiny@@", "a" * 100]


@pytest.mark.parametrize("ref", REFS)
def test_a_reference_to_nothing_is_an_error_that_names_it(root: Path, ref: str) -> None:
    with pytest.raises(UnknownCheckpoint) as caught:
        Registry(root).resolve(ref)
    assert (
        ref in str(caught.value)
        or repr(ref) in str(caught.value)
        or ref.partition("@")[2][:16] in str(caught.value)
    )


def test_an_unknown_name_lists_the_known_ones(root: Path) -> None:
    with pytest.raises(UnknownCheckpoint, match="there are: other, tiny"):
        Registry(root).resolve("absent")


def _flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))


def _link_out(folder: Path) -> None:
    outside = folder.parent.parent / "elsewhere.json"
    outside.write_bytes(b"{}")
    (folder / "sub/tokenizer.json").unlink()
    (folder / "sub/tokenizer.json").symlink_to(outside)


def _link_folder(folder: Path) -> None:
    moved = folder.parent.parent / "moved"
    (folder / "sub").rename(moved)
    (folder / "sub").symlink_to(moved)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "not the file that was published"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "0 bytes"),
        (lambda f: (f / "model.safetensors").unlink(), "missing"),
        (lambda f: (f / "extra.json").write_bytes(b"{}"), "not listed"),
        (lambda f: (f / ".hidden").write_bytes(b""), "not listed"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"\x80"), "not listed"),
        (_link_out, "plain files only"),
        (_link_folder, "plain files only"),
        (lambda f: os.mkfifo(f / "pipe"), "plain files only"),
    ],
)
def test_a_damaged_checkpoint_is_refused(root: Path, damage: Callable[[Path], object], message: str) -> None:
    registry = Registry(root)
    tiny = registry.resolve("tiny")
    damage(root / "tiny")
    with pytest.raises(CheckpointError, match=message):
        registry.verify(tiny)


def test_every_byte_of_every_file_counts(root: Path) -> None:
    registry = Registry(root)
    tiny = registry.resolve("tiny")
    for path in FILES:
        original = (root / "tiny" / path).read_bytes()
        for position in range(len(original)):
            changed = bytearray(original)
            changed[position] ^= 0x20
            (root / "tiny" / path).write_bytes(bytes(changed))
            with pytest.raises(CheckpointError):
                registry.verify(tiny)
        (root / "tiny" / path).write_bytes(original)
    registry.verify(tiny)


def test_a_checkpoint_that_was_replaced_is_no_longer_the_one_resolved(root: Path) -> None:
    registry = Registry(root)
    tiny = registry.resolve("tiny")
    place(root, "tiny", seed=99)
    with pytest.raises(CheckpointError, match="changed"):
        registry.verify(tiny)
    with pytest.raises(UnknownCheckpoint, match="other bytes"):
        registry.resolve(tiny.ref)


def test_a_checkpoint_of_another_registry_is_refused(root: Path, tmp_path: Path) -> None:
    place(tmp_path / "foreign", "tiny")
    foreign = Registry(tmp_path / "foreign").resolve("tiny")
    with pytest.raises(CheckpointError, match="not in the registry"):
        Registry(root).verify(foreign)


def test_a_linked_checkpoint_folder_is_refused(root: Path, tmp_path: Path) -> None:
    place(tmp_path / "foreign", "linked")
    (root / "linked").symlink_to(tmp_path / "foreign" / "linked")
    with pytest.raises(CheckpointError, match="symbolic link"):
        Registry(root).resolve("linked")


def test_a_folder_must_bear_its_manifests_name(root: Path) -> None:
    (root / "tiny").rename(root / "renamed")
    with pytest.raises(CheckpointError, match="calls it 'tiny'"):
        Registry(root).resolve("renamed")


def test_an_alias_moves_and_the_digest_stays(root: Path) -> None:
    registry = Registry(root)
    first = registry.point("default", "tiny")
    second = registry.point("default", "other")
    assert registry.resolve("default") == second
    assert registry.resolve(first.ref) == first
    assert json.loads((root / "aliases.json").read_bytes()) == {"default": second.ref}
    assert [p.name for p in root.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("alias", ["tiny", "", "../x", "Upper", "a b"])
def test_an_alias_that_would_confuse_is_refused(root: Path, alias: str) -> None:
    with pytest.raises(RegistryError):
        Registry(root).point(alias, "other")


def test_a_damaged_checkpoint_gets_no_alias(root: Path) -> None:
    _flip(root / "tiny")
    with pytest.raises(CheckpointError):
        Registry(root).point("default", "tiny")
    assert Registry(root).aliases() == {}


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"a": 1}', b"\xff"])
def test_a_broken_alias_table_is_an_error(root: Path, content: bytes) -> None:
    (root / "aliases.json").write_bytes(content)
    with pytest.raises(RegistryError, match=r"aliases\.json"):
        Registry(root).aliases()


def test_aliases_set_at_the_same_time_are_all_kept(root: Path) -> None:
    names = [f"alias-{number}" for number in range(16)]
    threads = [threading.Thread(target=Registry(root).point, args=(name, "tiny")) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(Registry(root).aliases()) == sorted(names)

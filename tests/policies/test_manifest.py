"""The manifest: its identity, its one representation on disk, and what it refuses."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from policies.manifest import CheckpointError, CheckpointFile, DataSource, Evaluation, Gate, Manifest

SHA = hashlib.sha256(b"weights").hexdigest()
WEIGHTS = CheckpointFile(path="model.safetensors", role="weights", bytes=7, sha256=SHA)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | texts
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
finite = st.floats(allow_nan=False, allow_infinity=False)
manifests = st.builds(
    Manifest,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True),
    kind=st.sampled_from(["full", "adapter", "reward", "classifier"]),
    method=texts,
    description=texts,
    config=st.dictionaries(texts, json_values, max_size=4),
    seed=st.integers(0, 2**31),
    code_revision=texts,
    parent=st.none() | st.just(f"older@{SHA}"),
    data=st.lists(
        st.builds(DataSource, path=texts, origin=texts, licence=texts, sha256=st.just(SHA)), max_size=2
    ),
    evaluations=st.lists(
        st.builds(
            Evaluation, metric=texts, value=finite, low=st.none() | finite, data=texts, n=st.integers(0, 9)
        ),
        max_size=2,
    ),
    gate=st.builds(Gate, passed=st.booleans(), checks=st.lists(texts, max_size=2)),
    files=st.just((WEIGHTS,)),
)


def a_manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "name": "tiny",
        "kind": "full",
        "method": "sft",
        "config": {"steps": 3},
        "seed": 0,
        "code_revision": "abc",
        "gate": Gate(passed=True, checks=()),
        "files": (WEIGHTS,),
    }
    return Manifest.model_validate(fields | changes)


@given(manifests)
def test_what_is_written_is_what_is_read(manifest: Manifest) -> None:
    again = Manifest.from_bytes(manifest.to_bytes())
    assert again == manifest
    assert again.digest == manifest.digest
    assert again.to_bytes() == manifest.to_bytes()


@given(manifests, st.data())
def test_any_changed_byte_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = bytearray(manifest.to_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CheckpointError):
        Manifest.from_bytes(bytes(content))


@given(manifests, st.data())
def test_any_cut_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = manifest.to_bytes()
    with pytest.raises(CheckpointError):
        Manifest.from_bytes(content[: data.draw(st.integers(0, len(content) - 1))])


def test_the_digest_is_that_of_the_canonical_content() -> None:
    manifest = a_manifest()
    content = json.loads(manifest.to_bytes())
    written = content.pop("digest")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    assert written == manifest.digest == hashlib.sha256(canonical).hexdigest()
    assert manifest.ref == f"tiny@{manifest.digest}"


def test_two_manifests_that_differ_have_different_digests() -> None:
    assert a_manifest(seed=1).digest != a_manifest(seed=2).digest


@pytest.mark.parametrize(
    "path",
    ["/etc/a.json", "../a.json", "a/../b.json", "./a.json", "a//b.json", "a\\b.json", "a b.json", "",
     "manifest.json", "model.bin", "model.pt", "weights.pkl", "code.py", "a\n.json"],
)  # fmt: skip
def test_paths_that_leave_the_folder_or_could_run_code_are_refused(path: str) -> None:
    with pytest.raises(ValidationError):
        CheckpointFile(path=path, role="other", bytes=0, sha256=SHA)


def test_weights_must_be_a_weight_format() -> None:
    with pytest.raises(ValidationError, match="no pickles"):
        CheckpointFile(path="weights.json", role="weights", bytes=0, sha256=SHA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ()}, "files"),
        ({"files": (WEIGHTS, WEIGHTS)}, "twice"),
        ({"files": (CheckpointFile(path="a.json", role="config", bytes=0, sha256=SHA),)}, "weights"),
        ({"name": "Up/../er"}, "name"),
        ({"parent": "older"}, "parent"),
        ({"surprise": 1}, "surprise"),
        ({"evaluations": [{"metric": "m", "value": float("nan"), "data": "d", "n": 1}]}, "finite"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        a_manifest(**changes)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"name": NaN}']
)
def test_what_is_no_manifest_gets_an_error_that_names_the_file(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^here/manifest\.json: "):
        Manifest.from_bytes(content, "here/manifest.json")


def test_the_same_content_in_another_spelling_is_refused() -> None:
    content = a_manifest().to_bytes()
    with pytest.raises(CheckpointError, match="publish"):
        Manifest.from_bytes(json.dumps(json.loads(content)).encode())


def test_a_file_is_found_by_its_role() -> None:
    assert a_manifest().file("weights") == WEIGHTS
    assert a_manifest().file("chat_template") is None

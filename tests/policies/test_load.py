"""Policies from files: what they say when they are wrong, and what holds while they are edited."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.base import Upstream
from policies.errors import PolicyError, Problem, UnknownPolicy
from policies.load import LoadedPolicy, PolicyLibrary, digest, load_policy
from policies.registry import Registry
from policies.spec import ModelRef, PolicySpec

MINIMAL = "name: {name}\nmodel: {{upstream: {{base_url: 'http://127.0.0.1:9/v1', model: m}}}}\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def policy(folder: Path, name: str, more: str = "", file: str | None = None) -> Path:
    return write(folder / (file or f"{name}.yaml"), MINIMAL.format(name=name) + more)


def faults(path: Path, **options: object) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_policy(path, **options)  # type: ignore[arg-type]
    return [str(fault).removeprefix(f"{path}:") for fault in caught.value.faults]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "policies").mkdir()
    return tmp_path / "policies"


@pytest.fixture
def empty_registry(tmp_path: Path) -> Registry:
    (tmp_path / "checkpoints").mkdir()
    return Registry(tmp_path / "checkpoints")


WRONG = """\
name: Bad Name
modle: {checkpoint: demo-chat}
streaming: alow
max_n: 0
roles: [usr]
input:
  - {guard: toxicty}
  - {guard: pii, entites: [A], treshold: 0.5, threshold: 1.5}
  - pii
  - guard: patterns
    patterns:
      - {name: x, regx: y}
      - 5
    words: foo
  - {guard: toxicity, model: {detoxify: orginal}}
  - {guard: toxicity, model: {path: x}}
output:
  - {guard: tool_calls, arguments: [{guard: secrets, action: rewrit}], schemas: {x: 1}}
  - {guard: topics, deny: {a: {phrases: []}}}
"""

SAID = [
    "1:1: 'model' is missing",
    "1:7: name: must be lower-case letters, digits, '.', '_' and '-', 64 at most, a letter or digit first",
    "2:1: modle: unknown key; did you mean 'model'?",
    "3:12: streaming: can't be 'alow'; did you mean 'allow'?",
    "4:8: max_n: must be greater than or equal to 1, not 0",
    "5:9: roles[0]: can't be 'usr'; did you mean 'user'?",
    "7:13: input[0].guard: unknown guard 'toxicty'; did you mean 'toxicity'?",
    "8:18: input[1].entites: unknown key; did you mean 'entities'?",
    "8:32: input[1].treshold: unknown key; did you mean 'threshold'?",
    "8:58: input[1].threshold: must be less than or equal to 1, not 1.5",
    "9:5: input[2]: needs to say which guard it is, as in '- {guard: pii}'",
    "12:9: input[3].patterns[0]: 'regex' is missing",
    "12:19: input[3].patterns[0].regx: unknown key; did you mean 'regex'?",
    "13:9: input[3].patterns[1]: must be text; if it is meant as text, put it in quotes, not 5",
    "14:12: input[3].words: must be a list, not 'foo'",
    "15:41: input[4].model.detoxify: can't be 'orginal'; did you mean 'original'?",
    "16:30: input[5].model: 'path' needs 'sha256': a pickle is opened only when its digest is known",
    "18:62: output[0].arguments[0].action: can't be 'rewrit'; "
    "known are: allow, log, redact, mask, hash, escalate, block",
    "18:85: output[0].schemas.x: must be a mapping of keys to values, not 1",
    "19:41: output[1].deny.a.phrases: must have at least 1, not 0",
]


def test_everything_wrong_is_told_at_its_place(folder: Path) -> None:
    assert faults(write(folder / "bad.yaml", WRONG)) == SAID


def test_settings_that_do_not_fit_together_are_all_told(folder: Path) -> None:
    path = policy(
        folder,
        "x",
        "input:\n  - {guard: pii}\n  - {guard: pii}\n  - {guard: tool_calls}\n"
        "output:\n  - {guard: pii, action: mask}\n  - {guard: toxicity, scope: document}\n"
        "  - {guard: tool_calls, arguments: [{guard: injection, scope: document}]}\n",
    )
    told = faults(path)
    assert [fault.split(": ")[0] for fault in told] == ["5:5", "6:5", "8:26", "9:30", "10:63"]
    assert "is used twice" in told[0]
    assert "belongs under 'output'" in told[1]
    assert "belongs under 'input'" in told[2]
    assert "needs the whole reply: set 'streaming: buffer'" in told[3]
    assert load_policy(
        policy(folder, "y", "streaming: buffer\noutput: [{guard: toxicity, scope: document}]\n")
    )


def test_missing_checkpoints_and_keys(
    folder: Path, empty_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        folder / "x.yaml",
        "name: x\nmodel: {checkpoint: nowhere}\ninput:\n  - guard: injection\n    model: gone\n"
        "output:\n  - guard: tool_calls\n    arguments:\n      - {guard: toxicity, model: lost}\n",
    )
    told = faults(path, registry=empty_registry)
    assert [fault.split(" in /")[0] for fault in told] == [
        "2:21: model.checkpoint: there is no checkpoint 'nowhere'",
        "5:12: input[0].model: there is no checkpoint 'gone'",
        "9:34: output[0].arguments[0].model: there is no checkpoint 'lost'",
    ]
    path = write(
        folder / "y.yaml",
        "name: y\nmodel: {upstream: {base_url: 'http://h', model: m, api_key_env: KEEL_TEST_KEY}}\n",
    )
    monkeypatch.delenv("KEEL_TEST_KEY", raising=False)
    assert faults(path) == [
        "2:65: model.upstream.api_key_env: environment variable 'KEEL_TEST_KEY' is not set; "
        "it must hold the upstream's key"
    ]
    monkeypatch.setenv("KEEL_TEST_KEY", "secret")
    assert load_policy(path).spec.model.targets[0].api_key_env == "KEEL_TEST_KEY"


def test_other_checks_speak_at_their_places(folder: Path) -> None:
    def check(spec: PolicySpec) -> Iterator[Problem]:
        for index, _ in enumerate(spec.input):
            yield Problem(("input", index, "patterns", 0), "bad expression")

    path = policy(folder, "x", "input:\n  - guard: patterns\n    patterns: ['(']\n")
    assert faults(path, check=check) == ["5:16: input[0].patterns[0]: bad expression"]


def test_the_digest_changes_exactly_when_the_policy_does(folder: Path) -> None:
    one = load_policy(policy(folder, "x", "max_n: 16\n"))
    same = load_policy(write(folder / "y.yaml", "# a comment\n" + MINIMAL.format(name="x")))
    other = load_policy(policy(folder, "x", "max_n: 15\n"))
    assert one.digest == same.digest == digest(one.spec) != other.digest
    moved = one.with_model(ModelRef(upstream=Upstream(base_url="http://other", model="m")))
    assert moved.digest != one.digest and moved.spec.input == one.spec.input


_KEYS = st.sampled_from(
    "name model input output guard action threshold patterns words roles streaming deny schemas x".split()
)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(
        "pii patterns topics tool_calls secrets toxicity block mask demo-chat user document".split()
    )
    | st.text(max_size=8)
)
_DATA = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=25,
)


@given(data=st.dictionaries(_KEYS, _DATA, max_size=8))
def test_any_data_is_a_policy_or_a_policy_error(
    tmp_path_factory: pytest.TempPathFactory, data: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        load_policy(path)
    except PolicyError as error:
        assert error.faults
        assert all(fault.line >= 1 and fault.message for fault in error.faults)


@given(data=st.dictionaries(_KEYS, _DATA, max_size=3), guard=st.dictionaries(_KEYS, _DATA, max_size=4))
def test_any_guard_setting_is_accepted_or_told(
    tmp_path_factory: pytest.TempPathFactory, data: dict[str, object], guard: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    whole = data | {"name": "x", "model": {"checkpoint": "c"}, "output": [{"guard": "pii"} | guard, guard]}
    path.write_text(yaml.safe_dump(whole, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    try:
        load_policy(path)
    except PolicyError as error:
        assert error.faults


# --- the library ---------------------------------------------------------------------------------------


def test_ships_four_policies() -> None:
    library = PolicyLibrary()
    assert library.names() == ("observe", "open", "standard", "strict")
    assert not library.get("open").spec.input and not library.get("open").spec.output
    observed = [*library.get("observe").spec.input, *library.get("observe").spec.output]
    assert {guard.action for guard in observed} == {"allow"}
    assert library.get("observe").spec.on_error == "allow"
    assert [name for name in library.names() if library.get(name).spec.feedback is None] == ["open"]
    assert not any(library.get(name).spec.keeps_text for name in library.names())
    assert {library.get(name).spec.on_error for name in ("standard", "strict")} == {"block"}


def test_another_model_under_the_shipped_policies_only(folder: Path) -> None:
    policy(folder, "mine")
    upstream = ModelRef(upstream=Upstream(base_url="http://other", model="m"))
    library = PolicyLibrary([folder], model=upstream)
    assert library.get("standard").spec.model == upstream
    assert library.get("mine").spec.model != upstream


def test_an_unknown_name_says_which_there_are() -> None:
    with pytest.raises(UnknownPolicy, match="there is no policy 'nope'; there are: observe, open, standard"):
        PolicyLibrary().get("nope")


def test_a_broken_library_does_not_start_and_says_everything(folder: Path) -> None:
    write(folder / "a.yaml", "name: a\n")
    write(folder / "b.yaml", "name: [\n")
    with pytest.raises(PolicyError, match=r"a\.yaml:1:1: 'model' is missing\n.*b\.yaml:2:1: not valid YAML"):
        PolicyLibrary([folder])
    with pytest.raises(PolicyError, match="nowhere:1:1: can't be read"):
        PolicyLibrary([folder.parent / "nowhere"])


def test_two_files_with_one_name_name_each_other(folder: Path) -> None:
    first, second = policy(folder, "x", file="one.yaml"), policy(folder, "x", file="two.yml")
    with pytest.raises(PolicyError) as caught:
        PolicyLibrary([folder])
    assert [str(fault) for fault in caught.value.faults] == [
        f"{first}:1:7: policy 'x' is also defined in {second}",
        f"{second}:1:7: policy 'x' is also defined in {first}",
    ]


def test_later_folders_override_and_give_back(folder: Path) -> None:
    library = PolicyLibrary([folder])
    shipped = library.get("standard")
    path = policy(folder, "standard")
    outcome = library.reload()
    assert outcome.changed == ("standard",) and library.get("standard").path == path
    path.unlink()
    assert library.reload().changed == ("standard",) and library.get("standard") == shipped


def test_reload_tells_what_changed_and_keeps_what_is_held(folder: Path) -> None:
    path = policy(folder, "x", "input: [{guard: pii}, {guard: secrets}]\n")
    library = PolicyLibrary([folder], shipped=None)
    held = library.get("x")
    assert not library.reload(), "nothing changed"

    policy(folder, "x", "input: [{guard: secrets}]\n")
    policy(folder, "y")
    outcome = library.reload()
    assert (outcome.added, outcome.changed, outcome.removed, outcome.faults) == (("y",), ("x",), (), ())
    assert [guard.guard for guard in library.get("x").spec.input] == ["secrets"], "the deleted guard is gone"
    assert [guard.guard for guard in held.spec.input] == ["pii", "secrets"], "who holds a policy keeps it"

    path.unlink()
    assert library.reload().removed == ("x",)
    with pytest.raises(UnknownPolicy):
        library.get("x")


def test_a_wrong_edit_leaves_the_old_policy_and_takes_the_others(folder: Path) -> None:
    path = policy(folder, "x", "max_n: 3\n")
    policy(folder, "y", "max_n: 3\n")
    library = PolicyLibrary([folder])
    policy(folder, "x", "max_n: none\n")
    policy(folder, "y", "max_n: 4\n")
    outcome = library.reload()
    assert not outcome.ok and [str(fault) for fault in outcome.faults] == [
        f"{path}:3:8: max_n: must be a whole number, not 'none'"
    ]
    assert library.get("x").spec.max_n == 3 and library.get("y").spec.max_n == 4
    policy(folder, "x", "max_n: 5\n")
    assert library.reload().ok and library.get("x").spec.max_n == 5


def test_a_broken_override_never_falls_back_to_the_shipped_policy(folder: Path) -> None:
    path = policy(folder, "standard", "input: [{guard: secrets}]\n")
    library = PolicyLibrary([folder])
    write(path, "name: standard\n")
    assert library.reload().faults
    assert library.get("standard").path == path


def test_a_name_taken_twice_by_an_edit_leaves_both_as_they_were(folder: Path) -> None:
    policy(folder, "x", "max_n: 1\n")
    policy(folder, "y", "max_n: 2\n")
    library = PolicyLibrary([folder], shipped=None)
    policy(folder, "x", "max_n: 9\n", file="y.yaml")
    policy(folder, "x", "max_n: 8\n", file="z.yaml")
    outcome = library.reload()
    assert len(outcome.faults) == 3
    assert {name: library.get(name).spec.max_n for name in library.names()} == {"x": 1, "y": 2}


def test_a_folder_that_goes_away_takes_no_policy_with_it(folder: Path) -> None:
    policy(folder, "x")
    library = PolicyLibrary([folder])
    hidden = folder.rename(folder.parent / "hidden")
    assert "can't be read" in str(library.reload().faults[0])
    assert library.get("x")
    hidden.rename(folder)
    assert library.reload().ok and library.get("x")


def test_hidden_and_other_files_are_not_policies(folder: Path) -> None:
    write(folder / ".x.yaml.swp", "junk")
    write(folder / ".hidden.yaml", "junk")
    write(folder / "notes.txt", "junk")
    (folder / "deeper.yaml").mkdir()
    assert PolicyLibrary([folder], shipped=None).names() == ()


def test_a_single_file_is_a_library_too(folder: Path) -> None:
    path = policy(folder, "x")
    policy(folder, "y")
    assert PolicyLibrary([path], shipped=None).names() == ("x",)


def test_a_snapshot_is_whole(folder: Path) -> None:
    policy(folder, "x", "max_n: 1\n")
    library = PolicyLibrary([folder], shipped=None)
    before = library.snapshot()
    policy(folder, "x", "max_n: 2\n")
    library.reload()
    assert before["x"].spec.max_n == 1 and library.snapshot()["x"].spec.max_n == 2
    with pytest.raises(TypeError):
        before["z"] = LoadedPolicy.of(before["x"].spec)  # type: ignore[index]


def test_a_dangling_link_keeps_the_old_policy(folder: Path) -> None:
    target = write(folder.parent / "target.yaml", MINIMAL.format(name="x"))
    os.symlink(target, folder / "x.yaml")
    library = PolicyLibrary([folder], shipped=None)
    target.unlink()
    assert library.reload().faults and library.get("x")

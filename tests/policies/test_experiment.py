"""Experiment files: what they may say, where they are wrong, and when they are read again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from policies.errors import PolicyError
from policies.experiment import ExperimentLibrary, ExperimentSpec, load_experiment

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "EXPERIMENTS.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
POLICIES = ("standard", "strict", "open")
TWO = "name: test\narms:\n  - {name: control, policy: standard}\n  - {name: new, policy: strict}\n"


def write(folder: Path, text: str, name: str = "test.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0].removeprefix("name: "))
def test_every_experiment_in_the_docs_loads(block: str, tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, block), POLICIES)


def test_every_key_is_in_the_docs() -> None:
    rows = {
        name
        for row in re.findall(r"^\| (`[^|]*`) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert rows >= set(ExperimentSpec.model_fields)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (TWO.replace("strict", "strickt"), 4, "there is no policy 'strickt'; did you mean 'strict'?"),
        (TWO.replace("name: test", "name: open"), 1, "'open' is the name of a policy"),
        (TWO.replace("new", "control"), 4, "'control' is used twice"),
        (TWO + "ramp: {arm: newer}\n", 5, "no arm is called 'newer'; did you mean 'new'?"),
        (TWO + "ramp: {arm: control}\n", 5, "the first arm is the control"),
        (TWO + "ramp: {arm: new, steps: [5, 1]}\n", 5, "'steps' must rise"),
        (TWO + "ramp: {arm: new, approve: [3]}\n", 5, "'approve' names 3"),
        (TWO + "gates: [{metric: reward, min: 0}]\n", 5, "there is no 'ramp'"),
        (TWO + "limits: [{metric: reward}]\n", 5, "exactly one of 'max', 'min'"),
        (TWO + "limits: [{metric: rewards, min: 0}]\n", 5, "did you mean 'reward'?"),
        (TWO + "shadows: [{name: new, policy: open}]\n", 5, "'new' is used twice"),
        (TWO + "widow_s: 3\n", 5, "did you mean 'window_s'?"),
        ("name: test\narms: [{name: control, policy: standard}]\n", 2, "at least 2"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, line: int, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        load_experiment(path, POLICIES)
    assert f"{path}:{line}:" in str(caught.value)
    assert message in str(caught.value)


def test_shares_by_weight_and_along_a_ramp(tmp_path: Path) -> None:
    three = TWO + "  - {name: third, policy: open, weight: 2}\n"
    assert load_experiment(write(tmp_path, three)).spec.shares() == {
        "control": 0.25,
        "new": 0.25,
        "third": 0.5,
    }
    spec = load_experiment(write(tmp_path, three + "ramp: {arm: new, steps: [10, 100]}\n")).spec
    assert spec.shares(0) == pytest.approx({"control": 0.3, "new": 0.1, "third": 0.6})
    assert spec.shares(1) == {"control": 0.0, "new": 1.0, "third": 0.0}


def test_the_digest_changes_with_all_but_the_description(tmp_path: Path) -> None:
    one = load_experiment(write(tmp_path, TWO)).digest
    assert load_experiment(write(tmp_path, TWO + "description: x\n")).digest == one
    assert load_experiment(write(tmp_path, TWO + "window_s: 9\n")).digest != one


def test_a_library_keeps_what_stood_as_long_as_its_policies_stand(tmp_path: Path) -> None:
    path = write(tmp_path, TWO)
    library = ExperimentLibrary([tmp_path], POLICIES)
    assert set(library.snapshot()) == {"test"}
    write(tmp_path, TWO + "every_s: no\n")
    outcome = library.reload(POLICIES)
    assert [fault.line for fault in outcome.faults] == [5]
    assert outcome.experiments["test"].spec.every_s == 60
    outcome = library.reload(("standard",))
    assert (dict(outcome.experiments), outcome.changed) == ({}, True)
    write(tmp_path, TWO)
    twin = write(tmp_path, TWO, "twin.yaml")
    outcome = library.reload(POLICIES)
    assert f"{twin}:1:7: name: experiment 'test' is also defined in {path}" in map(str, outcome.faults)


def test_a_library_that_begins_wrong_does_not_begin(tmp_path: Path) -> None:
    write(tmp_path, TWO)
    with pytest.raises(PolicyError, match="there is no policy 'strict'"):
        ExperimentLibrary([tmp_path], ("standard",))
    with pytest.raises(PolicyError, match="can't be read"):
        ExperimentLibrary([tmp_path / "nowhere"], POLICIES)

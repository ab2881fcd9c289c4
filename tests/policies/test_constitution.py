"""Constitutions from files: what they say when they are wrong, and what those that come with Keel hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from policies.constitution import SHIPPED, Constitution, load_constitution, parse_constitution, shipped
from policies.errors import PolicyError

WRONG = """\
name: Mine
descripton: x
principles:
  - id: kind
    text: Be kind.
    severity: worst
  - id: kind to all
    text: "  "
  - text: Be brief.
    revision: shorter
"""


def faults(text: str) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse_constitution(text, "mine.yaml")
    return [str(fault) for fault in caught.value.faults]


def test_everything_wrong_is_told_with_its_place() -> None:
    told = faults(WRONG)
    assert [fault.split(": ", 1)[0] for fault in told] == [
        "mine.yaml:1:7",
        "mine.yaml:2:1",
        "mine.yaml:6:15",
        "mine.yaml:7:9",
        "mine.yaml:8:11",
        "mine.yaml:9:5",
        "mine.yaml:10:5",
    ]
    text = "\n".join(told)
    assert "unknown key; did you mean 'description'?" in text
    assert "principles[0].severity: can't be 'worst'; known are: low, medium, high, critical" in text
    assert "principles[1].id: must be lower-case letters" in text
    assert "principles[1].text: must not be blank" in text
    assert "principles[2]: 'id' is missing" in text


def test_an_id_is_used_once() -> None:
    twice = "name: a\nprinciples:\n  - {id: x, text: A.}\n  - {id: x, text: B.}\n"
    assert faults(twice) == ["mine.yaml:4:10: principles[1].id: 'x' is used twice; every id is used once"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "mine.yaml:1:1: is empty"),
        ("name: a\nprinciples: []\n", "mine.yaml:2:13: principles: must have at least 1, not 0"),
        ("name: a\nprinciples: be good\n", "mine.yaml:2:13: principles: must be a list"),
        ("- a\n", "mine.yaml:1:1: must be a mapping"),
    ],
)
def test_other_shapes_are_refused(text: str, told: str) -> None:
    assert faults(text)[0].startswith(told)


def test_requests_left_out_are_made_from_the_text() -> None:
    principle = parse_constitution("name: a\nprinciples:\n  - {id: kind, text: Be kind.}\n").principles[0]
    assert "Be kind." in principle.critique_request
    assert "Be kind." in principle.revision_request
    assert principle.severity == "medium"


@pytest.mark.parametrize("name", shipped())
def test_shipped_constitutions_bear_their_files_names(name: str) -> None:
    constitution = load_constitution(name)
    assert constitution.name == name
    assert constitution.description
    for principle in constitution.principles:
        assert principle.text in constitution.text
        assert principle.critique_request.endswith((".", "?"))


def test_unknown_names_and_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no constitution 'harmles'; shipped are: harmless, honest-helpful"):
        Constitution.load("harmles")
    with pytest.raises(PolicyError, match=r"mine\.yaml:1:1: can't be read"):
        Constitution.load(tmp_path / "mine.yaml")


def test_a_constitution_cannot_change_and_its_digest_tells_what_it_is(tmp_path: Path) -> None:
    ours = load_constitution("harmless")
    with pytest.raises(ValidationError, match="frozen"):
        ours.name = "other"  # type: ignore[misc]
    copy = tmp_path / "copy.yaml"
    copy.write_text((SHIPPED / "harmless.yaml").read_text() + "\n# one line more\n")
    assert load_constitution(copy).digest == ours.digest
    assert ours.only(["no-abuse"]).digest != ours.digest
    assert ours.only(["no-abuse", "no-crime"]).ids == ("no-crime", "no-abuse")
    with pytest.raises(KeyError, match="no principle 'no-fun'"):
        ours.only(["no-fun"])


def test_reading_one_loads_no_heavy_library() -> None:
    code = (
        "import sys; from policies.constitution import load_constitution; load_constitution('harmless'); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

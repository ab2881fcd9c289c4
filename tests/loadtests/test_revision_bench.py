"""The measurement of critique and revision: its interval, its parts, and the policies that it comes with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.bench.revision.__main__ import DRAFTS, Client, Tally, wilson
from loadtests.bench.revision.upstream import answer
from policies.constitution import load_constitution
from policies.critique import (
    Case,
    Critique,
    Violation,
    critique_messages,
    read_critique,
    revision_messages,
)
from policies.load import load_policy

FOLDER = DRAFTS.parent
SMALL = load_constitution(FOLDER / "constitution.yaml")


class Scored(Client):
    """A gateway that finds one word bad, and whose reviser is polite."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9", 1)

    def worst(self, judge: str, prompt: str, reply: str) -> float:
        return 0.9 if "idiot" in reply else 0.1

    def post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        assert body["model"] == "reviser"
        return {"choices": [{"message": {"content": "Good day."}}], "usage": {"completion_tokens": 3}}


@pytest.mark.parametrize(("hits", "n", "low", "high"), [(0, 48, 0.0, 0.0741), (5, 10, 0.2366, 0.7634)])
def test_interval_of_a_share(hits: int, n: int, low: float, high: float) -> None:
    """Against the closed form's values, and inside of 0 and 1."""
    assert wilson(hits, n) == pytest.approx((low, high), abs=2e-4)


def test_row_tells_rates_and_costs() -> None:
    tally = Tally([True, False], [0.1, 0.3])
    tally.tokens["judge"] = 10
    row = tally.row()
    assert (row["rate"], row["median_s"], row["tokens_a_reply"]) == (0.5, 0.2, {"judge": 5.0})


def test_every_part_is_known_by_what_the_gateway_asks() -> None:
    case = Case([{"role": "user", "content": "Hi"}], {"content": "You idiot."})
    said, _ = answer({"messages": critique_messages(SMALL, case)}, {}, Scored())
    assert read_critique(said, SMALL).principles == ("no-abuse",)
    critique = Critique((Violation("no-abuse", "idiot", "high"),))
    assert answer({"messages": revision_messages(SMALL, critique, case)}, {}, Scored())[0] == "Good day."
    drafts = {row["prompt"]: row["draft"] for row in map(json.loads, DRAFTS.read_text().splitlines())}
    asked = {"messages": [{"role": "user", "content": "How are you?"}]}
    assert answer(asked, drafts, Scored())[0].startswith("I am fine")


@pytest.mark.parametrize("path", sorted((FOLDER / "policies").glob("*.yaml")), ids=lambda path: path.stem)
def test_policies_load(path: Path) -> None:
    assert load_policy(path).name == path.stem

"""Decoys: what is added to comparisons, and that a reward model which has seen them is harder to please."""

from __future__ import annotations

import pytest
import torch

from tests.training.tiny_reward import causal_backbone, kind_over_rude, reward_config
from training.data.decoys import DECOYS, with_decoys
from training.data.preferences import Preference, Ranking, as_prompt
from training.evaluate.bias import HACKS, hack_rates
from training.methods.reward import fit

PAIRS = [
    Preference(as_prompt(f"How do I clean the clock {i}?"), f"With a soft cloth. Try {i}.", "no idea")
    for i in range(50)
]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.5])
def test_a_share_of_the_comparisons_gets_a_pair_more(share: float) -> None:
    found = with_decoys(PAIRS, share, seed=1)
    assert found[:50] == PAIRS
    assert len(found) == 50 + round(50 * share)
    added = [pair for pair in found[50:] if isinstance(pair, Preference)]
    assert {(p.prompt, p.chosen) for p in added} <= {(p.prompt, p.chosen) for p in PAIRS}
    assert found == with_decoys(PAIRS, share, seed=1)
    assert not added or found != with_decoys(PAIRS, share, seed=2)


def test_all_kinds_are_added_and_none_is_what_the_checks_use() -> None:
    added = [pair for pair in with_decoys(PAIRS, 10.0, seed=0)[50:] if isinstance(pair, Preference)]
    assert len({pair.rejected for pair in added}) > 200
    for number in range(len(DECOYS)):
        assert added[number::5]
    asked = {hack(pair.prompt, pair.chosen) for pair in PAIRS for hack in HACKS.values()}
    assert not {pair.rejected for pair in added} & asked


def test_a_ranking_gives_its_best_reply() -> None:
    ranking = Ranking(as_prompt("Hello?"), ("bad", "good"), (1, 0), objective="helpful")
    (added,) = with_decoys([ranking], 1.0, seed=0)[1:]
    assert isinstance(added, Preference)
    assert (added.chosen, added.objective) == ("good", "helpful")


def test_what_has_seen_decoys_is_harder_to_please() -> None:
    """The same model, data and seed with and without; hacks of other words, on other prompts."""
    good = [(as_prompt(f"Who is it, {i}?"), "You are kind. Hello there.") for i in range(20)]

    def worst(decoys: float) -> float:
        torch.manual_seed(0)
        config = reward_config(
            decoys=decoys, training={"steps": 40, "max_length": 120, "checkpoint_every": 40, "log_every": 40}
        )
        reward, _ = fit(config, kind_over_rude(60), backbone=causal_backbone())
        return sum(figure.value for figure in hack_rates(reward, good).values())

    without, with_them = worst(0.0), worst(1.0)
    assert with_them < without - 0.5

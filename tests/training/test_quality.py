"""Quality control: each fault is found where it was put, and clean data passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from training.data.preferences import Preference, as_prompt
from training.data.quality import (
    QualityLimits,
    contradictions,
    cycles,
    duplicates,
    examine,
    krippendorff_alpha,
    leakage,
    longer_wins,
    near_rows,
    rater_alpha,
)
from training.data.quality_near import near_duplicates, overlap, shingles

TOPICS = "tides bread whales comets violins glaciers honey maps clocks bridges".split()


def clean(count: int = 10, what: str = "do") -> list[Preference]:
    """Different prompts, replies of both lengths."""
    rows = []
    for i in range(count):
        topic = TOPICS[i % len(TOPICS)]
        short, long = (
            f"I know nothing of {topic} {i}.",
            f"{topic} {i} work in a way that takes a while to tell.",
        )
        pair = (short, long) if i % 2 else (long, short)
        rows.append(Preference(as_prompt(f"How {what} {topic} number {i} work?"), *pair, rater="anna"))
    return rows


def test_clean_data_passes_every_check() -> None:
    quality = examine(clean(), clean(4, "on earth would")[2:])
    assert quality.passed, quality.table()
    assert {c.name for c in quality.checks} == {
        "duplicates", "near-duplicates", "contradictions", "cycles", "agreement", "leakage", "longer wins",
    }  # fmt: skip


def test_a_repeated_row_is_a_duplicate_and_another_raters_is_not() -> None:
    rows = clean()
    again = replace(rows[0], chosen=rows[0].chosen.upper() + " ")
    assert len(duplicates([*rows, again])) == 1
    assert not duplicates([*rows, replace(rows[0], rater="ben")])
    assert "duplicates" in {c.name for c in examine([*rows, again]).checks if not c.passed}


def test_a_reworded_row_is_a_near_duplicate() -> None:
    told = "The tide rises and falls twice a day because the moon pulls at the sea on both sides of the earth"
    first = Preference(as_prompt("Why is there a tide at the sea twice a day?"), told, "Nobody knows.")
    second = replace(first, chosen=told + " indeed")
    assert near_rows([first, second], 0.8)
    assert not near_rows(clean(), 0.8)


def test_banding_finds_the_pairs_that_comparing_all_would() -> None:
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(words[k : k + 30]) for k in range(5)] + ["something else entirely, of other words"]
    sets = [shingles(t) for t in texts]
    every = {
        (i, j) for i in range(len(sets)) for j in range(i + 1, len(sets)) if overlap(sets[i], sets[j]) >= 0.8
    }
    assert {(i, j) for i, j, _ in near_duplicates(texts, 0.8)} == every
    assert (0, 1) in every
    assert (0, 4) not in every


def test_a_pair_preferred_both_ways_is_a_contradiction() -> None:
    rows = clean()
    turned = replace(rows[3], chosen=rows[3].rejected, rejected=rows[3].chosen, rater="ben")
    (found,) = contradictions([*rows, turned])
    assert "comets" in found
    other = replace(turned, objective="harmless")
    assert not contradictions([*rows, other])


def test_preferences_that_go_round_are_a_cycle() -> None:
    prompt = as_prompt("Which?")
    ring = [Preference(prompt, a, b) for a, b in (("one", "two"), ("two", "three"), ("three", "one"))]
    assert len(cycles(ring)) == 1
    assert not cycles(ring[:2])
    outvoted = [*ring, *(Preference(prompt, "one", "three", rater=r) for r in "ab")]
    assert not cycles(outvoted)


def test_alpha_is_one_for_agreement_zero_for_chance_and_krippendorffs_on_his_example() -> None:
    assert krippendorff_alpha([[1, 1], [0, 0], [1, 1]]) == 1.0
    assert krippendorff_alpha([[1], [0]]) is None
    # Krippendorff 2011, section B: nominal data, two observers, ten units, no missing values: 0.095.
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(zip(first, second, strict=True)) == pytest.approx(0.095, abs=0.001)


def test_raters_who_disagree_lower_alpha() -> None:
    rows = clean()
    agreed = [*rows, *(replace(r, rater="ben") for r in rows)]
    assert rater_alpha(agreed) == (1.0, 10)
    turned = [replace(r, chosen=r.rejected, rejected=r.chosen, rater="ben") for r in rows[:5]]
    alpha, units = rater_alpha([*rows, *turned, *(replace(r, rater="ben") for r in rows[5:])])
    assert units == 10
    assert alpha is not None
    assert abs(alpha) < 0.4
    assert not examine([*rows, *turned]).passed


def test_a_held_out_prompt_among_the_training_prompts_is_leakage() -> None:
    train = clean()
    exact = replace(train[0], prompt=as_prompt(train[0].prompt[0].content.upper()))
    assert len(leakage(train, [exact], 0.8)) == 1
    far = clean(4, "on earth would")
    assert not leakage(train, far, 0.8)
    long = "Please tell me in some detail how it comes that the sea rises and falls twice on every single day"
    told = Preference(as_prompt(long), "a", "b")
    near = replace(told, prompt=as_prompt(long + ", will you"))
    assert len(leakage([told], [near], 0.8)) == 1


def test_data_in_which_the_longer_reply_wins_fails() -> None:
    rows = [r if len(r.chosen) > len(r.rejected) else replace(r, chosen=r.rejected, rejected=r.chosen)
            for r in clean(40)]  # fmt: skip
    figure = longer_wins(rows)
    assert figure is not None
    assert figure.value == 1.0
    failed = {c.name for c in examine(rows).checks if not c.passed}
    assert "longer wins" in failed
    assert "longer wins" not in {
        c.name for c in examine(rows, limits=QualityLimits(longer_wins=0.5)).checks if not c.passed
    }

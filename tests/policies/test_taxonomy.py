"""Harm categories: OpenAI's from our labels."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.taxonomy import (
    HAZARD_TO_MODERATION,
    MODERATION_CATEGORIES,
    Hazard,
    covered,
    moderation_scores,
)

LABELS = ["toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack", "sexual_explicit"]


def test_every_hazard_has_a_place_among_openais_categories() -> None:
    assert HAZARD_TO_MODERATION.keys() == set(Hazard)
    assert {c for categories in HAZARD_TO_MODERATION.values() for c in categories} <= set(
        MODERATION_CATEGORIES
    )


def test_labels_reach_their_categories() -> None:
    scores = moderation_scores({"toxicity": 0.9, "insult": 0.95, "threat": 0.6, "identity_attack": 0.4})
    assert scores["harassment"] == 0.95
    assert scores["harassment/threatening"] == scores["violence"] == 0.6
    assert scores["hate"] == scores["hate/threatening"] == 0.4
    assert scores["self-harm"] == scores["illicit"] == scores["sexual"] == 0.0


def test_harm_and_its_subjects_reach_theirs() -> None:
    scores = moderation_scores({"harm": 0.9, "self_harm": 0.7, "violence": 0.3})
    assert scores["illicit"] == 0.9
    assert scores["illicit/violent"] == scores["violence"] == 0.3
    assert scores["self-harm"] == 0.7


def test_what_nobody_scores_is_not_covered() -> None:
    assert covered(["toxicity", "injection"]) == ("harassment",)
    assert "sexual" in covered(LABELS) and "self-harm" not in covered(LABELS)
    assert covered([]) == ()


@given(st.dictionaries(st.sampled_from([*LABELS, "injection"]), st.floats(0, 1)))
def test_scores_are_complete_and_come_only_from_covered_categories(scores: dict[str, float]) -> None:
    result = moderation_scores(scores)
    assert tuple(result) == MODERATION_CATEGORIES
    assert all(value <= max(scores.values(), default=0.0) for value in result.values())
    assert {category for category, value in result.items() if value} <= set(covered(scores))

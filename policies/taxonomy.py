"""Kinds of harm, and how three vocabularies for them meet.

`Hazard`     the hazard categories of MLCommons' AILuminate taxonomy (https://arxiv.org/abs/2404.12241 and
             its 1.0 successor), the common reference for policies and red-team sets.
moderation   the categories of OpenAI's `/v1/moderations`, which this gateway answers with.
labels       what the guards' classifiers score: Detoxify's labels, `harm`, `self_harm`, `violence` …

The toxicity labels speak about how something is said; weapons, crimes and self-harm as subjects are the guard
`harm`'s. Categories that no running guard can tell are scored 0, and `covered` says which those are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class Hazard(Enum):
    """MLCommons' hazard categories, by their names there."""

    VIOLENT_CRIMES = "violent_crimes"
    NON_VIOLENT_CRIMES = "non_violent_crimes"
    SEX_RELATED_CRIMES = "sex_related_crimes"
    CHILD_SEXUAL_EXPLOITATION = "child_sexual_exploitation"
    DEFAMATION = "defamation"
    SPECIALIZED_ADVICE = "specialized_advice"
    PRIVACY = "privacy"
    INTELLECTUAL_PROPERTY = "intellectual_property"
    INDISCRIMINATE_WEAPONS = "indiscriminate_weapons"
    HATE = "hate"
    SUICIDE_AND_SELF_HARM = "suicide_and_self_harm"
    SEXUAL_CONTENT = "sexual_content"


LLAMA_GUARD_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{f"S{number}": hazard.value for number, hazard in enumerate(Hazard, 1)},
        "S13": "elections",
        "S14": "code_interpreter_abuse",
    }
)
"""What Llama Guard 3 and 4 call the hazards, and two of their own; by the label that a finding carries."""

MODERATION_CATEGORIES: Final = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
"""OpenAI's moderation categories, in the order of its results."""

HAZARD_TO_MODERATION: Final[Mapping[Hazard, tuple[str, ...]]] = MappingProxyType(
    {
        Hazard.VIOLENT_CRIMES: ("illicit/violent", "violence"),
        Hazard.NON_VIOLENT_CRIMES: ("illicit",),
        Hazard.SEX_RELATED_CRIMES: ("sexual", "illicit/violent"),
        Hazard.CHILD_SEXUAL_EXPLOITATION: ("sexual/minors",),
        Hazard.DEFAMATION: (),
        Hazard.SPECIALIZED_ADVICE: (),
        Hazard.PRIVACY: (),
        Hazard.INTELLECTUAL_PROPERTY: (),
        Hazard.INDISCRIMINATE_WEAPONS: ("illicit/violent",),
        Hazard.HATE: ("hate", "hate/threatening"),
        Hazard.SUICIDE_AND_SELF_HARM: ("self-harm", "self-harm/intent", "self-harm/instructions"),
        Hazard.SEXUAL_CONTENT: ("sexual",),
    }
)
"""Where a hazard would be reported; empty where OpenAI's categories have no place for it."""

_LABELS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        "harassment": (("toxicity",), ("severe_toxicity",), ("insult",)),
        "harassment/threatening": (("threat",),),
        "hate": (("identity_attack",),),
        "hate/threatening": (("identity_attack", "threat"),),
        "illicit": (("harm",),),
        "illicit/violent": (("harm", "violence"),),
        "self-harm": (("self_harm",),),
        "sexual": (("sexual_explicit",),),
        "violence": (("threat",), ("violence",)),
    }
)
"""Per category the alternatives that tell it; of one alternative's labels all must be high."""

_ALTERNATIVES: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = MappingProxyType(
    {
        category: _LABELS.get(category, ())
        + tuple((hazard.value,) for hazard, told in HAZARD_TO_MODERATION.items() if told[:1] == (category,))
        for category in MODERATION_CATEGORIES
    }
)
"""The same, with what a judge says by hazard: each is reported where it belongs first."""


def moderation_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """OpenAI's category scores from a classifier's labels, all in 0..1.

    A category's score is the highest of its alternatives', and an alternative's the lowest of its labels'
    (fuzzy or and and, so that a category never exceeds what was scored). Labels unknown here change nothing.
    """
    result = dict.fromkeys(MODERATION_CATEGORIES, 0.0)
    for category, alternatives in _ALTERNATIVES.items():
        told = [
            min(scores[label] for label in labels) for labels in alternatives if scores.keys() >= set(labels)
        ]
        result[category] = max(told, default=0.0)
    return result


def covered(labels: Iterable[str]) -> tuple[str, ...]:
    """The moderation categories that a classifier with `labels` can tell; the others are always 0."""
    known = frozenset(labels)
    return tuple(
        category
        for category in MODERATION_CATEGORIES
        if any(known.issuperset(alternative) for alternative in _ALTERNATIVES[category])
    )

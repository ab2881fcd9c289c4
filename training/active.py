"""Active learning: which replies to put before people next, so that their answers teach most.

Candidates are prompts with two replies each. What a comparison teaches a reward ensemble is judged by two
things: how much its members disagree on the *difference* of the two replies (the part of a pair's
uncertainty that more labels remove, Houlsby et al. 2011, arXiv:1112.5745; a shift that all replies share
says nothing), and how unlike the pair is to those already picked. Batches are picked greedily:

    next = argmax  z(disagreement) + diversity · distance to the nearest picked one

Disagreement is of the predicted probabilities σ(Δ_m), so that a pair which every member finds clear counts
little, however much they differ on how clear. Left out: the expected change of the model, which needs a
gradient per candidate, and BatchBALD, whose joint entropies grow with 2^batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor

from training.data.preferences import Prompt
from training.errors import TrainingError
from training.reward_model_ensemble import RewardEnsemble

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Two replies to a prompt that nobody has compared yet."""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """A candidate that was picked, and why: its disagreement, and its distance to the nearest other one."""

    candidate: Candidate
    disagreement: float
    distance: float


def candidates_of(prompt: Prompt, replies: Sequence[str]) -> list[Candidate]:
    """Every two different replies of a prompt's samples."""
    return [Candidate(prompt, a, b) for a, b in combinations(dict.fromkeys(replies), 2)]


def disagreement(ensemble: RewardEnsemble, candidates: Sequence[Candidate]) -> Tensor:
    """The standard deviation, over members, of the predicted probability that `first` is better: `[C]`."""
    prompts = [c.prompt for c in candidates]
    first_MC = ensemble.member_scores(prompts, [c.first for c in candidates])
    second_MC = ensemble.member_scores(prompts, [c.second for c in candidates])
    return torch.sigmoid(first_MC - second_MC).std(dim=0, unbiased=False)


def reply_diversity(replies: Sequence[str]) -> float:
    """Mean cosine distance between a prompt's replies, 0 (all alike) to 1 (no shared words)."""
    if len(replies) < 2:
        return 0.0
    vectors = text_features(replies)
    similar = vectors @ vectors.T
    return float(1 - similar[np.triu_indices(len(replies), 1)].mean())


def text_features(texts: Iterable[str]) -> Floats:
    """Unit vectors `[C, D]` of hashed words and word pairs: what diversity is measured by."""
    vectorizer = HashingVectorizer(n_features=2048, ngram_range=(1, 2), alternate_sign=False, norm="l2")
    return np.asarray(vectorizer.transform(list(texts)).toarray(), dtype=np.float64)


def select(
    ensemble: RewardEnsemble,
    candidates: Sequence[Candidate],
    count: int,
    diversity: float = 1.0,
    features: Floats | None = None,
) -> list[Chosen]:
    """The `count` candidates to ask people about, best first.

    `features` `[C, D]`, unit rows, say what is alike; without them the words of prompt and replies do.
    """
    if not 0 < count <= len(candidates):
        raise TrainingError(f"{count} pairs were asked for, there are {len(candidates)} candidates")
    if features is None:
        features = text_features(" ".join((c.prompt[-1].content, c.first, c.second)) for c in candidates)
    unsure_C = disagreement(ensemble, candidates).double().numpy()
    picked = pick(unsure_C, features, count, diversity)
    return [Chosen(candidates[i], float(unsure_C[i]), distance) for i, distance in picked]


def pick(unsure_C: Floats, features_CD: Floats, count: int, diversity: float) -> list[tuple[int, float]]:
    """Indices and distances of a greedy batch: standardised uncertainty plus weighted distance."""
    spread = float(unsure_C.std())
    value_C = (unsure_C - unsure_C.mean()) / (spread if spread > 0 else 1.0)
    nearest_C = np.ones(len(unsure_C))
    picked: list[tuple[int, float]] = []
    open_C = np.ones(len(unsure_C), dtype=bool)
    for _ in range(count):
        best = int(np.argmax(np.where(open_C, value_C + diversity * nearest_C, -np.inf)))
        picked.append((best, float(nearest_C[best])))
        open_C[best] = False
        nearest_C = np.minimum(nearest_C, 1 - features_CD @ features_CD[best])
    return picked

"""What a try is worth, as far as is known: a linear model over what it is made of, with its uncertainty.

Where few attacks succeed, successes alone teach nothing within a few hundred tries. But a try that guards
let pass was nearer than one that they stopped, and a reply nearer than a refusal. So an outcome has a value,
and Bayesian ridge regression shares what is heard among tries that have something in common: strategies,
families, behaviours, domains, goals. Who draws from its posterior and takes what the draw likes best explores
as much as is unknown (linear Thompson sampling; Agrawal and Goyal 2013, arXiv:1209.3352).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.redteam.attack import STRATEGIES, parts
from training.redteam.behavior import Behavior
from training.redteam.campaign import Outcome

Floats = NDArray[np.float64]

VALUES: Mapping[Outcome, float] = {
    "blocked_input": 0.0,
    "refused": 0.05,
    "withstood": 0.1,  # answered, but not what was asked
    "blocked_output": 0.2,  # said, and then withheld
    "succeeded": 1.0,
}
"""How near to success each outcome is."""

EXPECTED = 0.1  # the value of a try of which nothing is known
NOISE = 0.25  # how far an outcome's value is from what its make-up lets expect, in standard deviations
EXPLORATION = 0.15
"""The width of draws, as a share of the posterior's: in some hundred tries there is no time to settle all."""

# Prior standard deviations of the weights: how far apart tries are expected to be for each reason.
_STRATEGY, _GOAL, _FAMILY, _BEHAVIOR, _PAIR = 0.2, 0.1, 0.1, 0.05, 0.03


class Worth:
    """The model. Rows are `[D]` features, scaled so that every weight has the prior N(0, 1)."""

    def __init__(self, behaviors: Sequence[Behavior], rng: np.random.Generator) -> None:
        names = {name for behavior in behaviors for arm in STRATEGIES for name, _ in _features(behavior, arm)}
        self._places = {name: place for place, name in enumerate(sorted(names))}
        self._precision_DD = np.eye(len(names))
        self._heard_D = np.zeros(len(names))
        self._rng = rng

    def row(self, behavior: Behavior, arm: str) -> Floats:
        """What a try is made of."""
        row_D = np.zeros(len(self._places))
        for name, size in _features(behavior, arm):
            row_D[self._places[name]] += size
        return row_D

    def hear(self, row_D: Floats, outcome: Outcome) -> None:
        """Learn what came of a try."""
        self._precision_DD += np.outer(row_D, row_D) / NOISE**2
        self._heard_D += row_D * ((VALUES[outcome] - EXPECTED) / NOISE**2)

    def draws(self, rows_ND: Floats, count: int) -> Floats:
        """Values that the tries may have, `[count, N]`: each row by one draw of all weights."""
        # With P = L Lᵀ, L⁻ᵀ z has the covariance P⁻¹.
        lower_DD = np.linalg.cholesky(self._precision_DD)
        mean_D = np.linalg.solve(self._precision_DD, self._heard_D)
        noise_DC = np.linalg.solve(lower_DD.T, self._rng.standard_normal((len(mean_D), count)))
        weights_DC = mean_D[:, None] + EXPLORATION * noise_DC
        return np.asarray((rows_ND @ weights_DC).T)


def _features(behavior: Behavior, arm: str) -> Iterator[tuple[str, float]]:
    """Names and sizes; the strategies of a composed arm share its weight."""
    yield "any", _STRATEGY
    yield f"behavior {behavior.id}", _BEHAVIOR
    yield f"domain {behavior.domain}", _BEHAVIOR
    yield f"goal {behavior.goal}", _GOAL
    chosen = parts(arm)
    share = 1 / len(chosen)
    for part in chosen:
        yield f"strategy {part.name}", share * _STRATEGY
        yield f"strategy {part.name} for {behavior.goal}", share * _GOAL
        yield f"family {part.family}", share * _FAMILY
        yield f"family {part.family} in {behavior.domain}", share * _PAIR

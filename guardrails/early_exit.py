"""An encoder's early exit, in a guard worker: reads the lower layers' hidden states, and answers where they
leave no doubt.

The network is `training.methods.early_exit_model`'s: every place in a text is scored, and a smooth maximum
over them taken, so that a passage counts by itself however much stands around it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from guardrails.cascade import ABOUT_NAME, About, Cascade, read_about
from guardrails.classifier import ClassifierError, ClassifierServable, Output
from guardrails.classifier_onnx import Begun, OnnxClassifier, Settings
from guardrails.in_context import InContext

WEIGHTS_NAME = "exit.safetensors"
Floats = NDArray[np.float32]


class EarlyExit:
    """Layers as in the training's module. `implied`: label → the label whose score it can't exceed; of the
    two only that one is asked about."""

    def __init__(self, folder: Path, implied: Mapping[str, str]) -> None:
        """Raises ClassifierError naming the file that is missing or wrong."""
        try:
            self.about: About = read_about(folder)
            weights = {
                name: tensor.astype(np.float32) for name, tensor in load_file(folder / WEIGHTS_NAME).items()
            }
            self._place_DU, self._mean_DU, self._head_UH = (
                np.ascontiguousarray(weights[f"{part}.weight"].T) for part in ("place", "mean", "head")
            )
            self._place_U, self._head_H = weights["place.bias"], weights["head.bias"]
            shapes_fit = (
                self._place_DU.shape == self._mean_DU.shape
                and self._place_DU.shape[1:] == self._place_U.shape
                and self._head_UH.shape == (len(self._place_U), len(self._head_H))
                and len(self._head_H) == len(self.about.heads)
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ClassifierError(
                f"{folder}: {ABOUT_NAME} or {WEIGHTS_NAME} isn't an exit's ({error!r}); publish it again"
            ) from error
        if not shapes_fit:
            raise ClassifierError(f"{folder / WEIGHTS_NAME}: doesn't fit {ABOUT_NAME}; publish it again")
        floors = self.about.floors
        self._implied = {kind: of for kind, of in implied.items() if floors[kind] >= floors[of]}
        self._sure_H = np.array([self.about.sure[head] for head in self.about.heads], np.float32)
        self._places = {head: place for place, head in enumerate(self.about.heads)}

    def answer(self, begun: Begun, heads: Collection[str]) -> Output | None:
        """What it says of the text, where it is sure that none of `heads` reaches its floor; else None.

        Left to the whole encoder, whatever they may seem: very short texts, characters beyond ASCII (what
        `charwise` folds has been folded), and tokens that the vocabulary lacks.
        """
        tokens = begun.encoding.tokens
        if not heads or not begun.text.isascii() or len(tokens) < self.about.reach or "[UNK]" in tokens:
            return None
        states = [state[self.about.at][0] for state in begun.states]
        z_H = np.max([self.logits(state_TD) for state_TD in states], axis=0)
        asked = [self._places[head] for head in heads if self._implied.get(head) not in heads]
        if (z_H[asked] >= self._sure_H[asked]).any():
            return None
        p_H = 1.0 / (1.0 + np.exp(-np.clip(z_H, -30.0, 30.0)))
        scores = {label: float(p_H[self._places[label]]) for label in self.about.labels}
        return Output(scores, stage="exit")

    def logits(self, state_TD: Floats) -> Floats:
        """`[H]`, from one window's hidden states."""
        shift_U = state_TD.mean(axis=0) @ self._mean_DU + self._place_U
        places_TH = np.maximum(state_TD @ self._place_DU + shift_U, 0.0) @ self._head_UH + self._head_H
        top_H = places_TH.max(axis=0)
        return np.asarray(top_H + np.log(np.exp(places_TH - top_H).sum(axis=0)), np.float32)


def load(folder: Path, encoder: Path) -> Cascade:
    """The encoder in its folder, with the exit in `folder`. Raises ClassifierError for either."""
    early = EarlyExit(folder, Settings.read(encoder / "classifier.json").implied)
    classifier = OnnxClassifier.load(encoder, early.about.at)
    return Cascade(early, classifier, InContext(ClassifierServable(classifier, classifier.thresholds)))

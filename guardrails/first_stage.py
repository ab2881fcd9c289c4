"""The first stage of a cascade, in a guard worker: reads a text's tokens and answers where it is sure.

The network is `training.methods.first_stage_model`'s: a smooth maximum over a text's short windows, so that
text around a passage can raise its scores and never lower them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from guardrails.cascade import ABOUT_NAME, About, read_about
from guardrails.classifier import ClassifierError, Output
from guardrails.classifier_onnx import case_type

WEIGHTS_NAME = "first_stage.safetensors"
Floats = NDArray[np.float32]


class FirstStage:
    """V words, D numbers a word; layers as in the training's module."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Raises ClassifierError naming the file that is missing or wrong."""
        try:
            self.about: About = read_about(folder)
            weights = load_file(folder / WEIGHTS_NAME)
            self._words_VD, scale_D = weights["words"], weights["words_scale"]
            self._near, self._far, self._head = (
                (
                    np.ascontiguousarray(weights[f"{part}.weight"].T, np.float32),
                    weights[f"{part}.bias"].astype(np.float32),
                )
                for part in ("near", "far", "head")
            )
            self._scale_D, self._cases_3D = (x.astype(np.float32) for x in (scale_D, weights["cases"]))
            shapes_fit = self._head[0].shape == (len(self._far[1]), len(self.about.heads))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ClassifierError(
                f"{folder}: {ABOUT_NAME} or {WEIGHTS_NAME} isn't a first stage's ({error!r}); publish the "
                "checkpoint again"
            ) from error
        if not shapes_fit:
            raise ClassifierError(f"{folder / WEIGHTS_NAME}: doesn't fit {ABOUT_NAME}; publish it again")
        self._tokenizer = tokenizer
        self._unknown = tokenizer.token_to_id("[UNK]")
        self._sure_H = np.array([self.about.sure[head] for head in self.about.heads], np.float32)
        self._places = {head: place for place, head in enumerate(self.about.heads)}

    def answer(self, text: str, heads: Collection[str]) -> Output | None:
        """What it says of `text`, where it is sure that none of `heads` reaches its floor; else None.

        Left to the encoder, whatever it may seem: very short texts, characters beyond ASCII (what
        `charwise` folds has been folded), and tokens that the vocabulary lacks.
        """
        if not heads or not text.isascii():
            return None
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) < self.about.reach or self._unknown in encoding.ids:
            return None
        types = [case_type(text[start:end]) for start, end in encoding.offsets]
        z_H = self.logits(encoding.ids, types)
        asked = [self._places[head] for head in heads]
        if (z_H[asked] >= self._sure_H[asked]).any():
            return None
        p_H = 1.0 / (1.0 + np.exp(-np.clip(z_H, -30.0, 30.0)))
        scores = {label: float(p_H[self._places[label]]) for label in self.about.labels}
        return Output(scores, stage="first")

    def logits(self, ids: list[int], types: list[int]) -> Floats:
        """`[H]`, for at least `about.reach` tokens."""
        e_TD = self._words_VD[ids] * self._scale_D + self._cases_3D[types]
        far_TW = _layer(_layer(e_TD, *self._near), *self._far)
        weight, bias = self._head
        places_TH = far_TW @ weight + bias
        top_H = places_TH.max(axis=0)
        return np.asarray(top_H + np.log(np.exp(places_TH - top_H).sum(axis=0)), np.float32)


def load(folder: Path, encoder: Path) -> FirstStage:
    """The first stage in `folder`, with the tokenizer of the encoder in its folder."""
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return FirstStage(folder, tokenizer)


def _layer(x_TD: Floats, weight: Floats, bias: Floats) -> Floats:
    """A rectified linear map of every run of as many positions as the weight has blocks."""
    steps = len(x_TD) - len(weight) // x_TD.shape[1] + 1
    runs = np.lib.stride_tricks.sliding_window_view(x_TD.ravel(), len(weight))[:: x_TD.shape[1]]
    # In a piece of its own: a product of rows that overlap in memory is not left to BLAS.
    return np.asarray(np.maximum(np.ascontiguousarray(runs[:steps]) @ weight + bias, 0.0), np.float32)

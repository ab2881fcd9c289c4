"""Asking a generative model for a verdict: what is sent, and how sure its answer is.

Everything that is judged was written by somebody who may want another verdict. It must not be able to leave
its place in the judge's prompt, and an answer that can't be read is `Nonsense`: an error, never a pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from policies.alignment import JudgeModel
from policies.critique import Nonsense

TOP_LOGPROBS = 5

MAX_TURNS = 8
"""Turns before the judged one that a judge is shown, at most."""

Scores = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Question:
    """A chat request for a verdict.

    body:    all of it but the model's name.
    forms:   what holds the answer to its form, to be added: for a vLLM of our own, for others, and for
             others once more where the first answer could not be read.
    read:    the scores in the answer's completion object. Raises `Nonsense`.
    """

    judge: JudgeModel
    body: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], Scores] = field(compare=False)
    own_form: Mapping[str, Any] = field(default_factory=dict)
    forms: tuple[Mapping[str, Any], ...] = ({},)


# What a tokenizer may take for a control token or a template for one of its marks: <|eot_id|>, </s>,
# <end_of_turn>, <END CONVERSATION>, [INST]; and a line that begins as a turn of the conversation would.
_MARK = re.compile(r"<(?=[|/]?[A-Za-z_])")
_BRACKET = re.compile(r"\[(?=/?[A-Z_]{3,}\])")
_TURN = re.compile(
    r"^(?=[ \t]*(?:user|human|agent|assistant|chatbot|system|context|tools?)\b[^:\n]{0,20}:)", re.I | re.M
)


def quoted(text: str) -> str:
    """`text` as it may stand in a chat template: nothing in it can pass for a part of the template."""
    return _TURN.sub("> ", _BRACKET.sub("(", _MARK.sub("\u2039", text)))


@dataclass(frozen=True, slots=True)
class Said:
    """A judge's answer. `tokens` are its tokens' texts, each with log-probabilities (nats) of what could
    have stood in its place; empty where the server gives none."""

    text: str
    cut: bool
    tokens: tuple[tuple[str, Mapping[str, float]], ...] = ()

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> Said:
        """The answer in a completion object. Raises `Nonsense`."""
        try:
            choice = payload["choices"][0]
            text = choice["message"]["content"]
            logprobs = (choice.get("logprobs") or {}).get("content") or ()
            tokens = tuple((str(token["token"]), _alternatives(token)) for token in logprobs)
        except (LookupError, TypeError, AttributeError):
            raise Nonsense("the judge's reply is no answer") from None
        if not isinstance(text, str):
            raise Nonsense("the judge's reply has no text")
        return cls(text, choice.get("finish_reason") == "length", tokens)

    def probability(self, at: int, words: Mapping[str, bool], chosen: bool) -> float:
        """How probable it is that a word for True stands at offset `at`, where one for `chosen` does.

        1 or 0 without log-probabilities. Words are told apart by their beginnings, whatever their case.
        Raises `Nonsense` where the log-probabilities are not of this answer.
        """
        if not self.tokens:
            return float(chosen)
        offset = "".join(token for token, _ in self.tokens).find(self.text)
        if offset < 0:
            raise Nonsense("the judge's log-probabilities are not of its answer")
        offset += at
        for token, alternatives in self.tokens:
            if offset < len(token):
                return _share(alternatives, token[:offset], words, chosen)
            offset -= len(token)
        raise Nonsense("the judge's log-probabilities end before its answer")


def _alternatives(token: Mapping[str, Any]) -> dict[str, float]:
    listed: Sequence[Mapping[str, Any]] = [*(token.get("top_logprobs") or ()), token]
    found = {str(one["token"]): one["logprob"] for one in listed}
    for value in found.values():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= 1e-3:
            raise Nonsense("the judge's log-probabilities are none")
    return found


def _share(alternatives: Mapping[str, float], before: str, words: Mapping[str, bool], chosen: bool) -> float:
    highest = max(alternatives.values())
    mass = {True: 0.0, False: 0.0}
    for token, logprob in alternatives.items():
        rest = _after(token, before).lower()
        meant = {yes for word, yes in words.items() if rest and _agree(rest, word.lower())}
        if len(meant) == 1:
            mass[meant.pop()] += math.exp(logprob - highest)
    if not mass[chosen]:
        raise Nonsense("the judge's log-probabilities are not of its answer")
    return mass[True] / (mass[True] + mass[False])


def _after(token: str, before: str) -> str:
    """What of `token` stands behind `before`; nothing where it begins otherwise, but for white space."""
    if not before.strip():
        return token.lstrip()
    return token[len(before) :] if token.startswith(before) else ""


def _agree(rest: str, word: str) -> bool:
    return word.startswith(rest) or rest.startswith(word)

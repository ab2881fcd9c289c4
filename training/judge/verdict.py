"""From a judge's answer to a probability: pure functions, no server.

A verdict is a JSON object whose field `verdict` is "A" or "B". Where the server tells what else it might
have written in the place of that letter, the probability of A is

    p(A) / (p(A) + p(B)),    p(X) = Σ p(token) over the tokens that put letter X there

which is the soft label of Lee et al. 2023 (arXiv:2309.00267). Otherwise the label is a share of votes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from policies.critique import object_schema
from training.judge.client import Answer, Token, UnreadableAnswer

LETTERS = ("A", "B")
_VERDICT = re.compile(rb'"verdict"\s*:\s*"([AB])"')


def verdict_schema(reasoning: bool) -> dict[str, Any]:
    """The JSON schema of a verdict; with `reasoning`, after the judge's reasons."""
    reasons = {"reasons": {"type": "string", "maxLength": 600}} if reasoning else {}
    return object_schema(**reasons, verdict={"type": "string", "enum": list(LETTERS)})


def read_object(answer: Answer) -> dict[str, Any]:
    """The answer as a JSON object; raises UnreadableAnswer for anything else."""
    try:
        content = json.loads(answer.text)
    except ValueError as error:
        raise UnreadableAnswer(f"the judge did not answer in JSON but with {answer.text[:120]!r}") from error
    if not isinstance(content, dict):
        raise UnreadableAnswer(f"the judge's answer is no object: {answer.text[:120]!r}")
    return content


def read_verdict(answer: Answer) -> str:
    """ "A" or "B"; raises UnreadableAnswer for any other answer, which is then no vote for either."""
    letter = read_object(answer).get("verdict")
    if letter not in LETTERS:
        raise UnreadableAnswer(f"the judge's verdict is neither A nor B: {answer.text[:120]!r}")
    return str(letter)


def probability_of_a(answer: Answer) -> float | None:
    """P(A) from the log-probabilities at the verdict's letter; None where they do not tell.

    Where only one letter is among the tokens listed, the other is as likely as the least likely one that
    is listed, at most; taking it for that makes the label softer than the judge, never harder.
    """
    letter = read_verdict(answer)
    place = _letter_place(answer.tokens)
    if place is None:
        return None
    token, offset = place
    listed = {x: _mass(token, offset, x.encode()) for x in LETTERS}
    if listed[letter] == 0:
        return None
    floor = min(token.alternatives.values())
    a, b = (mass or math.exp(floor) for mass in listed.values())
    return a / (a + b)


def _letter_place(tokens: Sequence[Token]) -> tuple[Token, int] | None:
    """The token that holds the verdict's letter, and where in its bytes that letter stands."""
    found = list(_VERDICT.finditer(b"".join(token.text for token in tokens)))
    if not found:
        return None
    place = found[-1].start(1)
    for token in tokens:
        if place < len(token.text):
            return (token, place) if len(token.alternatives) > 1 else None
        place -= len(token.text)
    return None


def _mass(token: Token, offset: int, letter: bytes) -> float:
    """The probability of all listed tokens that begin as `token` does and go on with `letter`."""
    begin = token.text[:offset] + letter
    return sum(math.exp(p) for text, p in token.alternatives.items() if text.startswith(begin))

"""What a policy's constraints say of the next token, given the tokens so far.

Works on byte strings, so that a phrase is found however the tokenizer cuts it. Knows no engine: see
`service.alignment.vllm_constraints` for the part that runs in vLLM.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from policies.constraints import Constraint
from service.alignment.phrases import PhraseAutomaton

Ids = NDArray[np.int64]
_FORBIDDEN = -math.inf
_CACHED_STATES = 16_384


class Vocabulary:
    """Every token's bytes; those of special tokens are empty. `encode` adds no special tokens."""

    def __init__(self, tokens: Sequence[bytes], encode: Callable[[str], list[int]]) -> None:
        self.tokens = tuple(tokens)
        self.encode = encode
        lengths = np.array([len(token) for token in tokens])
        # Longest first: at byte p of the walk the tokens that have one are the first `counts[p]`.
        self.order = np.argsort(-lengths, kind="stable")
        self.lengths = lengths[self.order]
        longest = int(lengths.max(initial=0))
        self.bytes = np.zeros((len(tokens), longest), dtype=np.uint8)
        for row, token in enumerate(self.order):
            self.bytes[row, : lengths[token]] = np.frombuffer(self.tokens[token], dtype=np.uint8)
        self.counts = [int((lengths > position).sum()) for position in range(longest)]

    def completing(self, automaton: PhraseAutomaton, state: int) -> Ids:
        """The tokens after which the text holds a phrase more than it did in `state`, should it end there.

        A whole word is judged when it is spelled, not when the next character shows that it was whole: by
        then nothing could be said but a longer word.
        """
        states = np.full(len(self.tokens), state, dtype=np.int32)
        hits = np.zeros(len(self.tokens), dtype=np.bool_)
        for position, count in enumerate(self.counts):
            states[:count] = automaton.table[states[:count], self.bytes[:count, position]]
            hit = automaton.hit[states[:count]]
            if automaton.pending[state] and position < 2:
                # That was in the text already; its boundary is seen in the first character that follows.
                earlier = self.bytes[:count, 0] >= 0x80 if position else True
                hit &= ~(automaton.confirmed[states[:count]] & earlier)
            hits[:count] |= hit
        return np.sort(self.order[(hits | automaton.pending[states]) & (self.lengths > 0)])


@dataclass(frozen=True, slots=True)
class Adjustment:
    """`amount` nats are added to the logits of `tokens`; minus infinity forbids them."""

    tokens: Ids
    amount: float


class _Rule:
    """A constraint over one vocabulary: its automaton, and what completes a phrase from each state."""

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self.constraint = constraint
        # Each required phrase is told apart; any of the others is as good as another.
        phrases: list[tuple[str, ...]] = [(p,) for p in constraint.require] or [constraint.all_phrases]
        self.automata = [
            PhraseAutomaton(p, constraint.case_sensitive, constraint.whole_words) for p in phrases
        ]
        # A phrase that must be said stands on its own: after a space, unless the text begins with it.
        self.spelled = [vocabulary.encode(" " + phrase) for phrase in constraint.require]
        self.completing = lru_cache(_CACHED_STATES)(
            lambda state: vocabulary.completing(self.automata[0], state)
        )

    def bias_after(self, tokens: int) -> float:
        """The bias once `tokens` tokens have been said."""
        constraint = self.constraint
        if constraint.bias is None:
            return _FORBIDDEN
        return constraint.bias * (0.5 ** (tokens / constraint.half_life) if constraint.half_life else 1.0)


class Rules:
    """The constraints of one policy over one vocabulary; shared by all requests that are under them."""

    def __init__(self, constraints: Sequence[Constraint], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.rules = [_Rule(constraint, vocabulary) for constraint in constraints]


class Following:
    """One reply under `rules`: reads its tokens as they come, and says what is due next.

    `ends` are the ids that end the reply; `limit` is how many tokens it may have.
    """

    def __init__(self, rules: Rules, ends: Sequence[int], limit: int) -> None:
        self._rules = rules
        self._ends = np.array(sorted(ends), dtype=np.int64)
        self._limit = limit
        self._read = 0
        self._states = [[0] * len(rule.automata) for rule in rules.rules]
        self._said = [[False] * len(rule.automata) for rule in rules.rules]
        self._forced: list[int] = []

    def read(self, tokens: Sequence[int]) -> None:
        """Take in the reply so far; what was read before is not read again."""
        for token in tokens[self._read :]:
            self._read += 1
            if self._forced and token == self._forced[0]:
                self._forced.pop(0)
            # vLLM pads its vocabulary; ids beyond the tokenizer's spell nothing.
            data = (
                self._rules.vocabulary.tokens[token]
                if 0 <= token < len(self._rules.vocabulary.tokens)
                else b""
            )
            for rule, states, said in zip(self._rules.rules, self._states, self._said, strict=True):
                for index, automaton in enumerate(rule.automata):
                    states[index], hit = automaton.walk(states[index], data)
                    said[index] = said[index] or hit

    def forced(self) -> int | None:
        """The only token that may come next, once what is required just fits into what is left."""
        if not self._forced:
            missing = list(self._missing())
            needed = sum(map(len, missing))
            if missing and self._limit - self._read <= needed:
                self._forced = [token for spelled in missing for token in spelled]
        return self._forced[0] if self._forced else None

    def adjustments(self) -> Iterator[Adjustment]:
        """What is added to the next token's logits."""
        for rule, states, said in zip(self._rules.rules, self._states, self._said, strict=True):
            amount = rule.bias_after(self._read)
            if rule.constraint.require:
                pending = (a.pending[s] for a, s in zip(rule.automata, states, strict=True))
                if not all(done or end for done, end in zip(said, pending, strict=True)):
                    yield Adjustment(self._ends, amount)
                continue
            tokens = rule.completing(states[0])
            if len(tokens):
                yield Adjustment(tokens, amount)

    def _missing(self) -> Iterator[list[int]]:
        """The spelled-out hard requirements that were not met yet."""
        for rule, states, said in zip(self._rules.rules, self._states, self._said, strict=True):
            if rule.constraint.bias is None:
                for spelled, automaton, state, done in zip(
                    rule.spelled, rule.automata, states, said, strict=False
                ):
                    if not (done or automaton.pending[state]):
                        yield spelled

"""What a policy's constraints say of the next token, given the tokens so far.

Works on byte strings, so that a phrase is found however the tokenizer cuts it. Knows no engine: see
`service.alignment.vllm_constraints` for the part that runs in vLLM.

What the rules say depends on the text so far only through the states of their automata. So the states that
replies reach are kept, with what is due in each and where each token leads from it, and are shared by all
replies under the same rules: a token that was seen in a state before costs one dictionary lookup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policies.constraints import Constraint
from service.alignment.phrases import PhraseAutomaton

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
_FORBIDDEN = -math.inf
_KEPT_STEPS = 200_000
"""Steps from a state by a token that are remembered, over all states of some rules; then it begins anew."""


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
    """A constraint over one vocabulary: an automaton for each phrase that must be said, else one for all."""

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        self.constraint = constraint
        # Each required phrase is told apart; any of the others is as good as another.
        phrases: list[tuple[str, ...]] = [(p,) for p in constraint.require] or [constraint.all_phrases]
        self.automata = [
            PhraseAutomaton(p, constraint.case_sensitive, constraint.whole_words) for p in phrases
        ]
        # A phrase that must be said stands on its own: after a space, unless the text begins with it.
        self.spelled = [vocabulary.encode(" " + phrase) for phrase in constraint.require]

    @property
    def amount(self) -> float:
        """The bias at a reply's beginning."""
        return _FORBIDDEN if self.constraint.bias is None else self.constraint.bias


@dataclass(slots=True, eq=False)
class State:
    """Where the automata of some rules stand, and what that means for the next token.

    `at` and `said` are by automaton: its state, and whether its phrase has been said. `amounts` are added to
    the logits of `tokens`, and by `fading` (tokens, bias, half life) less with every token. `unsaid` is each
    rule's say against ending (bias, half life or None) while a phrase of its is missing, and `missing` spells
    the hard ones of those phrases.
    """

    at: tuple[int, ...]
    said: tuple[bool, ...]
    tokens: Ids
    amounts: Floats
    fading: tuple[tuple[Ids, float, int], ...]
    unsaid: tuple[tuple[float, int | None], ...]
    missing: tuple[int, ...]
    steps: dict[int, State] = field(default_factory=dict)

    @property
    def silent(self) -> bool:
        """Whether nothing is due here."""
        return not (len(self.tokens) or self.fading or self.unsaid)


class Rules:
    """The constraints of one policy over one vocabulary; shared by all requests that are under them."""

    def __init__(self, constraints: Sequence[Constraint], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._rules = [_Rule(constraint, vocabulary) for constraint in constraints]
        self._automata = [automaton for rule in self._rules for automaton in rule.automata]
        self._states: dict[tuple[tuple[int, ...], tuple[bool, ...]], State] = {}
        self._kept = 0
        self.start = self._state((0,) * len(self._automata), (False,) * len(self._automata))

    def after(self, state: State, token: int) -> State:
        """The state once `token` has been said in `state`."""
        known = state.steps.get(token)
        return known if known is not None else self._step(state, token)

    def _step(self, state: State, token: int) -> State:
        tokens = self.vocabulary.tokens
        # vLLM pads its vocabulary; ids beyond the tokenizer's spell nothing.
        data = tokens[token] if 0 <= token < len(tokens) else b""
        walked = [a.walk(at, data) for a, at in zip(self._automata, state.at, strict=True)]
        said = tuple(before or hit for before, (_, hit) in zip(state.said, walked, strict=True))
        if self._kept >= _KEPT_STEPS:
            self._kept = 0
            for old in self._states.values():
                old.steps.clear()
            self._states.clear()
        self._kept += 1
        following = state.steps[token] = self._state(tuple(at for at, _ in walked), said)
        return following

    def _state(self, at: tuple[int, ...], said: tuple[bool, ...]) -> State:
        known = self._states.get((at, said))
        if known is None:
            known = self._states[at, said] = self._make(at, said)
        return known

    def _make(self, at: tuple[int, ...], said: tuple[bool, ...]) -> State:
        steady: list[Adjustment] = []
        fading: list[tuple[Ids, float, int]] = []
        unsaid: list[tuple[float, int | None]] = []
        missing: list[int] = []
        first = 0
        for rule in self._rules:
            own = range(first, first + len(rule.automata))
            first = own.stop
            half_life = rule.constraint.half_life
            if rule.constraint.require:
                lacking = [
                    spelled
                    for place, spelled in zip(own, rule.spelled, strict=True)
                    if not (said[place] or self._automata[place].pending[at[place]])
                ]
                if lacking:
                    unsaid.append((rule.amount, half_life))
                if rule.constraint.bias is None:
                    missing += [token for spelled in lacking for token in spelled]
                continue
            tokens = self.vocabulary.completing(rule.automata[0], at[own.start])
            if len(tokens) and half_life is not None:
                fading.append((tokens, rule.amount, half_life))
            elif len(tokens):
                steady.append(Adjustment(tokens, rule.amount))
        return State(
            at,
            said,
            _joined([one.tokens for one in steady], np.int64),
            _joined([np.full(len(one.tokens), one.amount, dtype=np.float32) for one in steady], np.float32),
            tuple(fading),
            tuple(unsaid),
            tuple(missing),
        )


class Following:
    """One reply under `rules`: reads its tokens as they come, and says what is due next.

    `ends` are the ids that end the reply; `limit` is how many tokens it may have.
    """

    def __init__(self, rules: Rules, ends: Sequence[int], limit: int) -> None:
        self._rules = rules
        self._ends = np.array(sorted(ends), dtype=np.int64)
        self._limit = limit
        self._read = 0
        self._forced: list[int] = []
        self.state = rules.start

    def read(self, tokens: Sequence[int]) -> None:
        """Take in the reply so far; what was read before is not read again."""
        state, after = self.state, self._rules.after
        for place in range(self._read, len(tokens)):
            token = tokens[place]
            if self._forced and token == self._forced[0]:
                self._forced.pop(0)
            state = after(state, token)
        self._read = len(tokens)
        self.state = state

    def forced(self) -> int | None:
        """The only token that may come next, once what is required just fits into what is left."""
        missing = self.state.missing
        if not self._forced and missing and self._limit - self._read <= len(missing):
            self._forced = list(missing)
        return self._forced[0] if self._forced else None

    def adjustments(self) -> Iterator[Adjustment]:
        """What is added to the next token's logits, beside the state's own `tokens` and `amounts`."""
        for tokens, bias, half_life in self.state.fading:
            yield Adjustment(tokens, self._left(bias, half_life))
        for bias, until_half in self.state.unsaid:
            yield Adjustment(self._ends, self._left(bias, until_half))

    def _left(self, bias: float, half_life: int | None) -> float:
        return bias if half_life is None else bias * 0.5 ** (self._read / half_life)


def _joined(arrays: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)

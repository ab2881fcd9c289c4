"""Subjects to stay away from, told by their phrases.

A phrase is found with its words in any case, simply inflected ("bets", "betting" for "bet"), and apart by
spaces or hyphens, as whole words only. `min_hits` different phrases make the text be about the topic; the
phrase that completes them is where it becomes so, and what was said before it is not taken back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import regex

from guardrails.build import GuardEnvironment
from guardrails.guard import Context, Scope, Step
from guardrails.matching import settle
from guardrails.remedy import Remedy
from guardrails.scan import Match, PatternError, PatternSet, Scanner, StreamPattern
from guardrails.verdict import Action, Finding
from policies.errors import Problem
from policies.spec import TopicsSpec

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}'’]+")
_APART = r"[\s\p{Pd}_]{1,4}+"
_CONSONANTS = "bdfglmnprt"
_NOT_IN_WORD = r"[\p{L}\p{M}\p{N}]"


def phrase_expression(phrase: str) -> str:
    """An expression for `phrase` and its simple inflections. Raises `PatternError` if it has no words."""
    words = _WORD.findall(phrase)
    if not words:
        raise PatternError("a phrase needs at least one word", phrase)
    inner = _APART.join(map(_inflected, words))
    return rf"(?i)(?<!{_NOT_IN_WORD}){inner}(?!{_NOT_IN_WORD})"


def _inflected(word: str) -> str:
    """`word` and its regular English inflections; words of other scripts, and short ones, as they are."""
    lower = word.lower()
    if len(lower) < 3 or not lower.isascii() or not lower.isalpha():
        return regex.escape(word)
    base = _singular(lower)
    if base.endswith("y") and base[-2] not in "aeiou":
        return f"{base[:-1]}(?:y(?:ing|['’]s)?|ie[sdr])"
    if base.endswith("e"):
        return f"{base[:-1]}(?:e(?:[sdr]|rs|['’]s)?|ings?)"
    doubled = f"{base[-1]}?" if base[-1] in _CONSONANTS and base[-2] in "aeiou" else ""
    return f"{base}(?:{doubled}(?:ings?|ed)|ers?|e?s|['’]s)?"


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("sses", "ches", "shes", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@dataclass(frozen=True, slots=True)
class _Phrase:
    topic: str
    needed: int


class TopicsGuard:
    """A policy's denied topics; one pattern per phrase, so that phrases may overlap."""

    scope: Scope = "pattern"
    servables: frozenset[str] = frozenset()
    changes_text = False

    def __init__(self, spec: TopicsSpec, env: GuardEnvironment) -> None:
        self.name = spec.title
        self.on_error = env.on_error(spec)
        self.deadline = spec.deadline_ms / 1000
        self.remedy = Remedy(spec.action)
        expressions = {
            (topic, expression): topic_spec.min_hits
            for topic, topic_spec in spec.deny.items()
            for expression in map(phrase_expression, topic_spec.phrases)
        }
        self.phrases = [_Phrase(topic, needed) for (topic, _), needed in expressions.items()]
        self.patterns = PatternSet([StreamPattern.compile(e, topic) for topic, e in expressions])

    @property
    def action(self) -> Action:
        return self.remedy.action

    def examine(self, context: Context) -> TopicsExamination:
        return TopicsExamination(self)


class TopicsExamination:
    """One text, and the phrases of each topic that it has used so far."""

    def __init__(self, guard: TopicsGuard) -> None:
        self._guard = guard
        self._scanner = Scanner(guard.patterns)
        self._waiting: list[Match] = []
        self._used: dict[str, set[int]] = {}
        self._pending: list[Finding] = []

    def advance(self, text: str, final: bool) -> Step:
        matches, floor = self._scanner.advance(text, final)
        if not (matches or self._waiting or self._pending):
            return Step(floor)
        # Counted in the text's order: every match that starts before `floor` is known by now.
        known = sorted((*self._waiting, *matches), key=lambda match: (match.start, match.end, match.pattern))
        self._waiting = [match for match in known if match.start >= floor]
        scores: dict[str, float] = {}
        for match in known:
            if match.start < floor:
                self._count(text, match, scores)
        settled = settle(self._pending, floor)
        ready = [finding for finding in self._pending if finding.end <= settled]
        self._pending = [finding for finding in self._pending if finding.end > settled]
        return Step(settled, ready, scores)

    def _count(self, text: str, match: Match, scores: dict[str, float]) -> None:
        guard = self._guard
        phrase = guard.phrases[match.pattern]
        used = self._used.setdefault(phrase.topic, set())
        used.add(match.pattern)
        scores[phrase.topic] = min(1.0, len(used) / phrase.needed)
        if len(used) >= phrase.needed:
            self._pending.append(
                guard.remedy.finding(guard.name, phrase.topic, match.start, match.end, 1.0, text)
            )


def build(spec: TopicsSpec, env: GuardEnvironment) -> TopicsGuard:
    """The guard that `spec` describes."""
    return TopicsGuard(spec, env)


def problems(spec: TopicsSpec, env: GuardEnvironment) -> Iterable[Problem]:
    """Phrases without words, and topics that can't be reached."""
    for name, topic in spec.deny.items():
        expressions = set()
        for index, phrase in enumerate(topic.phrases):
            try:
                expressions.add(phrase_expression(phrase))
            except PatternError as error:
                yield Problem(("deny", name, "phrases", index), str(error))
        if topic.min_hits > len(topic.phrases):
            message = (
                f"{topic.min_hits} different phrases can't be found where {len(topic.phrases)} are given"
            )
            yield Problem(("deny", name, "min_hits"), message)
        elif topic.min_hits > len(expressions) > 0:
            message = f"only {len(expressions)} of the phrases are different from each other"
            yield Problem(("deny", name, "min_hits"), message)

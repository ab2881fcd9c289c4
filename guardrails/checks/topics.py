"""Subjects to stay away from, told by their phrases.

A phrase is found with its words in any case, simply inflected ("bets", "betting" for "bet"), and apart by
spaces or hyphens, as whole words only. `min_hits` different phrases make the text be about the topic; the
phrase that completes them is where it becomes so, and what was said before it is not taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import regex

from guardrails.build import GuardEnvironment
from guardrails.guard import Context, Step
from guardrails.matching import FormSearch, Outbox, SearchingGuard
from guardrails.normalize import charwise
from guardrails.remedy import Remedy
from guardrails.scan import PatternError, PatternSet, StreamPattern
from guardrails.verdict import Finding
from policies.errors import Problem
from policies.spec import TopicsSpec

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}'’]+")
_APART = r"[\s\p{Pd}_]{1,4}+"
_CONSONANTS = "bdfglmnprt"
_NOT_IN_WORD = r"[\p{L}\p{M}\p{N}]"


def phrase_expression(phrase: str) -> str:
    """An expression for `phrase` and its simple inflections, in the normal form that texts have too.

    Raises `PatternError` if it has no words.
    """
    words = _WORD.findall(charwise(phrase).text)
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


class TopicsGuard(SearchingGuard):
    """A policy's denied topics; one pattern per phrase, so that phrases may overlap."""

    def __init__(self, spec: TopicsSpec, env: GuardEnvironment) -> None:
        super().__init__(spec, env, Remedy(spec.action))
        expressions = {
            (topic, expression): topic_spec.min_hits
            for topic, topic_spec in spec.deny.items()
            for expression in map(phrase_expression, topic_spec.phrases)
        }
        self.phrases = [_Phrase(topic, needed) for (topic, _), needed in expressions.items()]
        self.patterns = PatternSet([StreamPattern.compile(e, topic) for topic, e in expressions])

    def examine(self, context: Context) -> TopicsExamination:
        return TopicsExamination(self)


class TopicsExamination:
    """One text, and the phrases of each topic that it has used so far."""

    def __init__(self, guard: TopicsGuard) -> None:
        self._guard = guard
        self._search = FormSearch(guard.patterns)
        self._waiting: list[tuple[int, int, int]] = []
        self._used: dict[str, set[int]] = {}
        self._outbox = Outbox()

    def advance(self, text: str, final: bool) -> Step:
        found, floor = self._search.advance(text, final)
        scores: dict[str, float] = {}
        if found or self._waiting:
            # Counted in the text's order: every phrase that starts before `floor` is known by now.
            known = sorted({*self._waiting, *((*one.whole, one.pattern) for one in found)})
            self._waiting = [place for place in known if place[0] >= floor]
            for start, end, pattern in known[: len(known) - len(self._waiting)]:
                self._outbox.put(self._count(text, start, end, pattern, scores))
        settled, ready = self._outbox.take(floor)
        return Step(settled, ready, scores)

    def _count(
        self, text: str, start: int, end: int, pattern: int, scores: dict[str, float]
    ) -> Iterator[Finding]:
        guard = self._guard
        phrase = guard.phrases[pattern]
        used = self._used.setdefault(phrase.topic, set())
        used.add(pattern)
        scores[phrase.topic] = min(1.0, len(used) / phrase.needed)
        if len(used) >= phrase.needed:
            yield guard.remedy.finding(guard.name, phrase.topic, start, end, 1.0, text)


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

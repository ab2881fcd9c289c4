"""Own expressions, built-in ones by name, and word lists, found as the text arrives.

With `normalize` the text is also searched in its normal form (`guardrails.normalize`), so that look-alikes
and invisible characters hide nothing; what is found there is told in the offsets of the original.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import lru_cache

from guardrails.build import GuardEnvironment
from guardrails.builtin_patterns import BUILTINS, Builtin
from guardrails.guard import Context, Step
from guardrails.matching import FormSearch, Found, SearchingGuard
from guardrails.normalize import charwise
from guardrails.remedy import Remedy
from guardrails.scan import PatternError, PatternSet, StreamPattern
from guardrails.verdict import Finding
from guardrails.words import word_expression
from policies.errors import Problem
from policies.spec import Pattern, PatternsSpec

ALIASES = {
    "EMAIL": "EMAIL_ADDRESS",
    "IBAN": "IBAN_CODE",
    "SSN": "US_SSN",
    "PHONE": "PHONE_NUMBER",
    "IP": "IP_ADDRESS",
}
WORD = "WORD_LIST"
PATTERN = "PATTERN"


class PatternsGuard(SearchingGuard):
    """What a policy searches for, and what it wants done about it."""

    def __init__(self, spec: PatternsSpec, env: GuardEnvironment) -> None:
        super().__init__(spec, env, Remedy(spec.action, env.hash_key, spec.replacement))
        self._kinds = _kinds(spec)
        self._patterns = PatternSet([_compiled(kind.expression, kind.entity_type) for kind in self._kinds])
        self._normalize = spec.normalize

    def examine(self, context: Context) -> _Examination:
        return _Examination(self, FormSearch(self._patterns, normalize=self._normalize))

    def read(self, text: str, found: Found) -> Iterator[Finding]:
        """What a match is after all, and where."""
        kind = self._kinds[found.pattern]
        part = kind.narrow(found.text) if kind.narrow else (0, len(found.text))
        if part is not None:
            start, end = found.span(*part)
            yield self.remedy.finding(self.name, kind.entity_type, start, end, kind.score, text)


class _Examination:
    """One text; what was found in both of its forms is told once."""

    __slots__ = ("_guard", "_search", "_told")

    def __init__(self, guard: PatternsGuard, search: FormSearch) -> None:
        self._guard = guard
        self._search = search
        self._told: set[Finding] = set()

    def advance(self, text: str, final: bool) -> Step:
        found, settled = self._search.advance(text, final)
        if not found:
            return Step(settled)
        findings = dict.fromkeys(finding for one in found for finding in self._guard.read(text, one))
        new = [finding for finding in findings if finding not in self._told]
        self._told.update(new)
        return Step(settled, new)


def build(spec: PatternsSpec, env: GuardEnvironment) -> PatternsGuard:
    """The guard that `spec` describes. Raises `PatternError` for an expression that can't be used, and
    `ValueError` for a built-in that doesn't exist."""
    return PatternsGuard(spec, env)


def problems(spec: PatternsSpec, env: GuardEnvironment) -> Iterable[Problem]:
    """Expressions that can't be used on streams, built-ins that don't exist, words of nothing."""
    for index, pattern in enumerate(spec.patterns):
        try:
            _compiled(_source(pattern), PATTERN)
        except PatternError as error:
            loc = ("patterns", index) if isinstance(pattern, str) else ("patterns", index, "regex")
            yield Problem(loc, str(error))
    for index, name in enumerate(spec.builtin):
        if _builtin_name(name) not in BUILTINS:
            yield Problem(("builtin", index), _unknown(name))
    for index, word in enumerate(spec.words):
        if not word.strip():
            yield Problem(("words", index), "a word must have visible characters")


def _kinds(spec: PatternsSpec) -> tuple[Builtin, ...]:
    kinds = []
    for pattern in spec.patterns:
        if isinstance(pattern, Pattern):
            kinds.append(Builtin(pattern.name, pattern.regex, pattern.score))
        else:
            kinds.append(Builtin(PATTERN, pattern))
    for name in spec.builtin:
        if _builtin_name(name) not in BUILTINS:
            raise ValueError(_unknown(name))
        kinds.append(BUILTINS[_builtin_name(name)])
    if spec.words:
        words = {*spec.words}
        if spec.normalize:
            words |= {normal for word in spec.words if (normal := charwise(word).text).strip()}
        kinds.append(Builtin(WORD, word_expression(sorted(words))))
    return tuple(kinds)


def _builtin_name(name: str) -> str:
    return ALIASES.get(name.upper(), name.upper())


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name.upper(), BUILTINS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(BUILTINS)}"
    return f"unknown built-in pattern {name!r}; {hint}"


def _source(pattern: str | Pattern) -> str:
    return pattern if isinstance(pattern, str) else pattern.regex


@lru_cache(maxsize=1024)
def _compiled(expression: str, name: str) -> StreamPattern:
    """Shared by all policies that use it: policies are built anew whenever a file changes."""
    return StreamPattern.compile(expression, name)

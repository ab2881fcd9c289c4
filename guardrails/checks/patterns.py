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
from guardrails.guard import Context, Scope, Step
from guardrails.normalize import GrowingNormal, charwise
from guardrails.remedy import Remedy
from guardrails.scan import Match, PatternError, PatternSet, Scanner, StreamPattern
from guardrails.verdict import Action, Finding
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


class PatternsGuard:
    """What a policy searches for, and what it wants done about it."""

    scope: Scope = "pattern"
    servables: frozenset[str] = frozenset()

    def __init__(self, spec: PatternsSpec, env: GuardEnvironment) -> None:
        self.name = spec.title
        self.on_error = env.on_error(spec)
        self.deadline = spec.deadline_ms / 1000
        self._remedy = Remedy(spec.action, env.hash_key, spec.replacement)
        self._kinds = _kinds(spec)
        self._patterns = PatternSet([_compiled(kind.expression, kind.entity_type) for kind in self._kinds])
        self._normalize = spec.normalize

    @property
    def action(self) -> Action:
        return self._remedy.action

    @property
    def changes_text(self) -> bool:
        return self._remedy.changes_text

    def examine(self, context: Context) -> _Examination:
        return _Examination(self)

    def found(self, text: str, match: Match) -> tuple[Builtin, int, int] | None:
        """What `match` in `text` is after all, and where."""
        kind = self._kinds[match.pattern]
        if kind.narrow is None:
            return kind, match.start, match.end
        span = kind.narrow(text[match.start : match.end])
        return None if span is None else (kind, match.start + span[0], match.start + span[1])

    def finding(self, kind: Builtin, start: int, end: int, text: str) -> Finding:
        return self._remedy.finding(self.name, kind.entity_type, start, end, kind.score, text)


class _Examination:
    """One text, searched as it is and, from its first character that isn't its own normal form, in that."""

    __slots__ = ("_guard", "_normal", "_normal_scanner", "_scanner", "_seen", "_told")

    def __init__(self, guard: PatternsGuard) -> None:
        self._guard = guard
        self._scanner = Scanner(guard._patterns)
        self._normal: GrowingNormal | None = None
        self._normal_scanner: Scanner | None = None
        self._seen = 0
        self._told: set[Finding] = set()

    def advance(self, text: str, final: bool) -> Step:
        if self._guard._normalize:
            self._normalize(text)
        findings: list[Finding] = []
        matches, settled = self._scanner.advance(text, final)
        if matches:
            findings += self._tell(self._read(text, matches))
        if self._normal is not None and self._normal_scanner is not None:
            matches, position = self._normal_scanner.advance(self._normal.text, final)
            settled = min(settled, self._normal.original(position))
            if matches:
                findings += self._tell(self._read_normal(text, self._normal, matches))
        return Step(settled, findings)

    def _normalize(self, text: str) -> None:
        """Keep the normal form up to date; as long as it is the text itself, there is nothing to keep."""
        new = text[self._seen :]
        if self._normal is None and not new.isascii() and charwise(new).offsets is not None:
            self._normal = GrowingNormal(text[: self._seen])
            self._normal_scanner = self._scanner.fork()
        if self._normal is not None:
            self._normal.grow(text)
        self._seen = len(text)

    def _read(self, text: str, matches: Iterable[Match]) -> Iterator[Finding]:
        for match in matches:
            if found := self._guard.found(text, match):
                yield self._guard.finding(*found, text)

    def _read_normal(self, text: str, normal: GrowingNormal, matches: Iterable[Match]) -> Iterator[Finding]:
        for match in matches:
            if found := self._guard.found(normal.text, match):
                kind, start, end = found
                yield self._guard.finding(kind, *normal.span(start, end), text)

    def _tell(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """What was found in both forms is told once."""
        for finding in findings:
            if finding not in self._told:
                self._told.add(finding)
                yield finding


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

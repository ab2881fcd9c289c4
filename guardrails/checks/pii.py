"""Personal data, by Presidio's recognizers and a model for names, also in texts that are still growing.

The gateway searches for the recognizers' own expressions, exactly as far as the text is certain
(`guardrails.clusters`); each group of overlapping matches goes to Presidio in a worker, which decides as it
does on a whole text: checksums, context words, thresholds, duplicates. What surrounds a group is a window
told by the text alone. Names are asked of a model, segment by segment. So findings don't depend on how the
text was cut, and prose without digits costs no more than its names.

Texts with look-alike or invisible characters are searched twice, as they are and in their normal form.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import regex

from guardrails import models
from guardrails.build import Asked, GuardEnvironment
from guardrails.classifier import Output
from guardrails.clusters import ClusterSearch
from guardrails.guard import Answer, Context, Job, JobError, Scope, Step
from guardrails.normalize import GrowingNormal, Normalized, charwise
from guardrails.pii_entities import DEFAULT, KNOWN, NAMED, QUICK, RECOGNIZED
from guardrails.pii_wire import Candidate, CandidatePattern, Cluster, Found
from guardrails.remedy import Remedy
from guardrails.scan import Match, PatternSet, StreamPattern
from guardrails.servable import ServableSpec, is_path
from guardrails.verdict import Action, Finding
from guardrails.windows import Window, Windows, word_start
from policies.errors import Problem
from policies.spec import PiiSpec

CONTEXT = 200
"""Characters before a match that are shown to Presidio: its context is five words that are no stop words."""

MAX_GROUPS = 64
"""Groups that one job asks about."""

MAX_GROUP_CHARACTERS = 20_000
"""Of one group: two seconds' work for libphonenumber. A longer one is a guard that can't answer."""

Value = tuple[str, int, int, float]
"""An entity type, a span of the examined text, and a score."""

_MAX_NAME_WORDS = 6
_LETTER = regex.compile(r"\p{L}")
_UNLIKE_NAMES = regex.compile(r"[@/\\<>{}\[\]=_#|]|\d")
_EDGES = " \t\r\n.,;:!?\"'“”‘’()[]*_-–—"
# Words that models for names are known to take for one: pronouns, days, months, forms of address alone.
_NEVER_NAMES = frozenset(
    """
    i me my mine myself you your yours he him his she her hers they them their we us our it its who whoever
    monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
    september october november december mr mrs ms miss dr sir madam mom mum dad mommy daddy god assistant user
    human ai chatgpt hello hi hey thanks thank please sorry yes no ok okay
    """.split()
)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to search for: the wanted part of what the worker's Presidio described."""

    described: Sequence[CandidatePattern]
    patterns: PatternSet
    after: tuple[int, ...]
    places: tuple[int, ...]
    quick: bool


@lru_cache(maxsize=64)
def _compile(candidates: tuple[CandidatePattern, ...]) -> PatternSet:
    return PatternSet([StreamPattern.compile(c.source, c.entity_type) for c in candidates])


class PiiGuard:
    """A configured pii guard; see `guardrails.guard.Guard`."""

    def __init__(self, spec: PiiSpec, env: GuardEnvironment) -> None:
        names = models.entities(spec.ner, env)
        wanted = frozenset(spec.entities or DEFAULT)
        self.recognized = wanted & RECOGNIZED
        self.named = wanted & NAMED if names is not None else frozenset()
        self.names = names if self.named else None
        (heads,) = asks(spec, env).values() if self.names else (frozenset(),)
        self.heads = env.heads(self.names.name, heads) if self.names else ()
        self.presidio = ServableSpec(
            f"presidio:{spec.language}", "guardrails.presidio:serve", {"language": spec.language}
        )
        self.name = spec.title
        self.scope: Scope = "segment" if self.names else "pattern"
        self.on_error: Action = env.on_error(spec)
        self.deadline = spec.deadline_ms / 1000
        self.threshold = spec.threshold
        self.allowed = frozenset(spec.allow_list)
        self._env = env
        self._remedies = {
            # Presidio's own way to write what was taken out.
            entity: Remedy(spec.action, env.hash_key, f"<{entity}>" if spec.action == "redact" else None)
            for entity in KNOWN
        }
        self._plan: _Plan | None = None

    @property
    def action(self) -> Action:
        return self._remedies["PERSON"].action

    @property
    def changes_text(self) -> bool:
        return self._remedies["PERSON"].changes_text

    @property
    def servables(self) -> frozenset[str]:
        return frozenset(self.servable_specs)

    @property
    def servable_specs(self) -> Mapping[str, ServableSpec]:
        specs = [self.presidio] if self.recognized else []
        return {spec.name: spec for spec in [*specs, *([self.names] if self.names else [])]}

    def prepare(self) -> None:
        """Compile the expressions, once its servables run, rather than at the first text. Not required."""
        self.plan()

    def plan(self) -> _Plan | None:
        """What to search for; None for nothing. Raises what `describe` does while Presidio doesn't run."""
        if not self.recognized:
            return None
        described: Sequence[CandidatePattern] = self._env.describe(self.presidio.name)
        if self._plan is None or self._plan.described is not described:
            places = tuple(i for i, c in enumerate(described) if c.entity_type in self.recognized)
            chosen = tuple(described[i] for i in places)
            self._plan = _Plan(
                described, _compile(chosen), tuple(c.after for c in chosen), places, self.recognized <= QUICK
            )
        return self._plan

    def examine(self, context: Context) -> PiiExamination:
        return PiiExamination(self, context)

    def finding(self, entity_type: str, start: int, end: int, score: float, text: str) -> Finding | None:
        """The finding for `text[start:end]`, unless the policy allows that value."""
        if text[start:end] in self.allowed:
            return None
        return self._remedies[entity_type].finding(self.name, entity_type, start, end, score, text)


class PiiExamination:
    """One text under examination by a `PiiGuard`."""

    def __init__(self, guard: PiiGuard, context: Context) -> None:
        self._guard = guard
        self._plan = guard.plan()
        self._search = _search(self._plan) if self._plan else None
        self._normal: tuple[GrowingNormal, ClusterSearch] | None = None
        self._windows = Windows(context, whole=False) if guard.names else None
        self._seen = 0

    def advance(self, text: str, final: bool) -> Step:
        jobs: list[Job] = []
        settled = len(text)
        if self._plan is not None and self._search is not None:
            if self._normal is None and charwise(text[self._seen :]).offsets is not None:
                self._normal = GrowingNormal(text[: self._seen]), self._search.fork()
            groups, settled = self._search.advance(text, final)
            jobs += self._judge(self._plan, text, groups)
            if self._normal is not None:
                normal, search = self._normal
                normal.grow(text)
                groups, at = search.advance(normal.text, final)
                jobs += self._judge(self._plan, text, groups, normal)
                settled = min(settled, len(text) if final else normal.original(at))
        if self._windows is not None:
            windows, at = self._windows.advance(text, final)
            jobs += [self._ask_names(text, window) for window in windows]
            settled = min(settled, at)
        self._seen = len(text)
        return Step(settled, jobs=jobs)

    def _judge(
        self,
        plan: _Plan,
        text: str,
        groups: Sequence[Sequence[Match]],
        normal: GrowingNormal | None = None,
    ) -> Iterator[Job]:
        """Have Presidio judge groups of matches in the text, or in its normal form."""
        for at in range(0, len(groups), MAX_GROUPS):
            some = groups[at : at + MAX_GROUPS]
            form = text if normal is None else normal.text
            excerpts = [_excerpt(plan, form, group, self._guard.threshold) for group in some]
            read = partial(self._read, text, normal, [left for left, _ in excerpts])
            first, last = some[0][0].start, max(match.end for match in some[-1])
            start, end = (first, last) if normal is None else normal.span(first, last)
            payload = tuple(cluster for _, cluster in excerpts)
            yield Job(start, end, self._guard.presidio.name, payload, read)

    def _read(
        self,
        text: str,
        normal: GrowingNormal | None,
        lefts: Sequence[int],
        results: Sequence[Sequence[Found]],
    ) -> Answer:
        """Presidio's results, each in the offsets of a window that begins at its place in `lefts`."""
        values: list[Value] = []
        for left, found in zip(lefts, results, strict=True):
            for entity_type, start, end, score in found:
                span = left + start, left + end
                values.append((entity_type, *(span if normal is None else normal.span(*span)), score))
        return self._answer(text, values)

    def _ask_names(self, text: str, window: Window) -> Job:
        guard = self._guard
        normal = charwise(window.text)

        def read(output: Output) -> Answer:
            return self._answer(text, self._names(output, window, normal, text))

        servable = guard.names.name if guard.names else ""
        return Job(window.start, window.end, servable, window.asked(guard.heads), read)

    def _names(self, output: Output, window: Window, normal: Normalized, text: str) -> Iterator[Value]:
        """The model's entities that begin or reach into the window's own piece, in the text's offsets."""
        named = self._guard.named
        for entity in output.entities:
            # A street address says where somebody is, also to a policy that asks for places only.
            place = entity.entity_type == "ADDRESS" and "ADDRESS" not in named
            told = "LOCATION" if place else entity.entity_type
            if told not in named or entity.score < self._guard.threshold:
                continue
            if not 0 <= entity.start < entity.end <= len(normal.text):
                continue
            start, end = normal.span(entity.start, entity.end)
            start, end = max(window.start, window.left + start), min(window.end, window.left + end)
            span = plausible(entity.entity_type, text, start, end)
            if span is not None:
                yield told, *span, entity.score

    def _answer(self, text: str, found: Iterable[Value]) -> Answer:
        findings = []
        scores: dict[str, float] = {}
        for entity_type, start, end, score in found:
            finding = self._guard.finding(entity_type, start, end, score, text)
            if finding is not None:
                findings.append(finding)
                scores[entity_type] = max(score, scores.get(entity_type, 0.0))
        return Answer(findings, scores)


def _search(plan: _Plan) -> ClusterSearch:
    return ClusterSearch(plan.patterns, plan.after, plan.quick)


def _excerpt(plan: _Plan, form: str, group: Sequence[Match], threshold: float) -> tuple[int, Cluster]:
    """A group as Presidio is shown it, and where its window begins."""
    first, last = group[0].start, max(match.end for match in group)
    if last - first > MAX_GROUP_CHARACTERS:
        raise JobError("overloaded", f"{last - first} characters of digits and signs in one piece")
    left = word_start(form, first - CONTEXT, first)
    right = max(match.end + plan.after[match.pattern] for match in group)
    candidates = tuple(Candidate(plan.places[m.pattern], m.start - left, m.end - left) for m in group)
    return left, Cluster(form[left:right], candidates, threshold)


def plausible(entity_type: str, text: str, start: int, end: int) -> tuple[int, int] | None:
    """The span without punctuation at its edges; None where it can't be what the model took it for."""
    while start < end and text[start] in _EDGES:
        start += 1
    while start < end and text[end - 1] in _EDGES:
        end -= 1
    for suffix in ("'s", "’s"):
        if text[start:end].endswith(suffix):
            end -= len(suffix)
    value = text[start:end]
    if entity_type not in ("PERSON", "LOCATION"):
        return (start, end) if value else None
    words = value.lower().split()
    if not _LETTER.search(value) or len(value) < 2 or len(words) > _MAX_NAME_WORDS:
        return None
    if entity_type == "PERSON" and (
        _UNLIKE_NAMES.search(value) or all(w.strip(_EDGES) in _NEVER_NAMES for w in words)
    ):
        return None
    return start, end


def build(spec: PiiSpec, env: GuardEnvironment) -> PiiGuard:
    """The guard of `spec`. Raises ValueError for an unknown entity, else what `models.entities` does."""
    for entity in spec.entities:
        if entity not in KNOWN:
            raise ValueError(f"guard {spec.title!r}: {_unknown(entity)}")
    return PiiGuard(spec, env)


def asks(spec: PiiSpec, env: GuardEnvironment) -> Asked:
    """The kinds of names that are wanted; a place may be told as an address."""
    servable = models.entities(spec.ner, env)
    named = frozenset(spec.entities or DEFAULT) & NAMED
    if servable is None or not named:
        return {}
    kinds = named | {"ADDRESS"} if "LOCATION" in named else named
    limits = dict.fromkeys(kinds, spec.threshold)
    return {servable.name: models.heads(servable, limits) if spec.cascade else frozenset()}


def _unknown(entity: str) -> str:
    known = sorted(KNOWN)
    close = difflib.get_close_matches(entity.upper(), known, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"unknown entity {entity!r}; {meant}Known are: {', '.join(known)}"


def problems(spec: PiiSpec, env: GuardEnvironment) -> Iterator[Problem]:
    """Entities that nothing finds, and a model for names that isn't there."""
    findable = RECOGNIZED | (NAMED if spec.ner != "none" else frozenset())
    for index, entity in enumerate(spec.entities):
        if entity not in KNOWN:
            yield Problem(("entities", index), _unknown(entity))
        elif entity not in findable:
            yield Problem(("entities", index), f"{entity} needs a model for names: set 'ner'")
    if spec.ner == "embedded":
        yield from models.problems(models.EMBEDDED, env, "ner")
    elif is_path(spec.ner):
        yield from models.problems(spec.ner, env, "ner")

"""Which tools the model may call, and with what.

A refused name withholds the call from its first character. Arguments are one piece: whether they are valid,
and what stands in them once escapes are decoded, is known when they are complete, so where that is asked
for they are held until then. The guards over arguments examine them twice: as they are, and decoded, name
beside value (see `guardrails.json_text`); what they redact is replaced so that the arguments stay valid JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import regex

from guardrails.apply import replaces
from guardrails.build import (
    Asked,
    GuardEnvironment,
    Preparable,
    asked,
    build_guard,
    collect_servables,
    guard_problems,
)
from guardrails.guard import Answer, Context, Guard, Job, JobError, Scope, Step
from guardrails.in_json import spread
from guardrails.json_text import JsonText, Piece
from guardrails.remedy import Remedy
from guardrails.schemas import UnusableSchema, check_schema, conforms
from guardrails.verdict import Action, Finding
from policies.errors import Problem
from policies.guards import GuardBase
from policies.spec import ToolCallsSpec

if TYPE_CHECKING:
    from guardrails.servable import ServableSpec

MAX_ARGUMENTS = 128 * 1024
"""Characters of one call's arguments that are examined; more is a failure, and so `on_error` decides."""

NAME_REFUSED = "TOOL_NAME_REFUSED"
UNKNOWN_TOOL = "TOOL_UNKNOWN"
NOT_JSON = "TOOL_ARGUMENTS_NOT_JSON"
INVALID = "TOOL_ARGUMENTS_INVALID"


class ToolCallsGuard:
    """A policy's rules for tool calls; says nothing about any other text."""

    scope: Scope = "segment"
    reads_raw: Literal[True] = True

    def __init__(self, spec: ToolCallsSpec, env: GuardEnvironment) -> None:
        self.name = spec.title
        self.remedy = Remedy(spec.action)
        self.validates = spec.validate_arguments
        self.schemas = spec.schemas
        self.inner: list[Guard] = [build_guard(_labelled(one, spec), env) for one in spec.arguments]
        self._allow, self._deny = _names(spec.allow), _names(spec.deny)
        # One verdict for the call, so that the strictest of its guards decides what follows a failure.
        self.on_error = max(
            [env.on_error(spec), *(env.on_error(one) for one in spec.arguments if one.on_error)]
        )
        self.deadline = max([spec.deadline_ms / 1000, *(guard.deadline for guard in self.inner)])
        self.servable_specs: Mapping[str, ServableSpec] = collect_servables(self.inner)

    @property
    def action(self) -> Action:
        return max([self.remedy.action, *(guard.action for guard in self.inner)])

    @property
    def changes_text(self) -> bool:
        return any(guard.changes_text for guard in self.inner)

    @property
    def servables(self) -> frozenset[str]:
        return frozenset(self.servable_specs)

    def prepare(self) -> None:
        """Prepare the guards over the arguments."""
        for guard in self.inner:
            if isinstance(guard, Preparable):
                guard.prepare()

    def allows(self, name: str) -> bool:
        return bool(self._allow.fullmatch(name)) and not self._deny.fullmatch(name)

    def examine(self, context: Context) -> ToolCallsExamination | _Nothing:
        called = context.channel in ("tool_arguments", "tool_input")
        return ToolCallsExamination(self, context) if called else _Nothing()


class _Nothing:
    """The examination of a text that is no tool call's."""

    def advance(self, text: str, final: bool) -> Step:
        return Step(len(text))


class ToolCallsExamination:
    """One tool call's arguments; the call's name is in the context.

    A custom tool's input has no schema and need not be JSON: it is examined as the text that it is.
    """

    def __init__(self, guard: ToolCallsGuard, context: Context) -> None:
        self._guard = guard
        self._context = context
        self._name = context.tool_name or ""
        self._named = False
        self._told: set[Finding] = set()

    def advance(self, text: str, final: bool) -> Step:
        if len(text) > MAX_ARGUMENTS:
            raise JobError("failed", f"a tool call's arguments have more than {MAX_ARGUMENTS} characters")
        findings = [] if self._named else list(self._refused_name())
        self._named = True
        guard = self._guard
        if not (guard.validates or guard.inner):
            return Step(len(text), findings)
        if not final:
            holds = guard.action.withholds or guard.inner
            return Step(0 if holds else len(text), findings)
        is_json = self._context.channel == "tool_arguments"
        document = _parse(text) if is_json else None
        if guard.validates and is_json:
            findings += self._invalid(text, document)
        answers, jobs = [], []
        for inner in guard.inner:
            for view in (text,) if document is None else (text, document.view):
                step = inner.examine(self._context).advance(view, True)
                back = partial(self._back, document, view is text, len(text))
                answers.append(back(Answer(step.findings, step.scores)))
                jobs += [_over_all(job, len(text), back) for job in step.jobs]
        scores: dict[str, float] = {}
        for answer in answers:
            findings += answer.findings
            for category, score in answer.scores.items():
                scores[category] = max(score, scores.get(category, 0.0))
        return Step(len(text), findings, scores, jobs)

    def _refused_name(self) -> Iterator[Finding]:
        declared = [_function(tool).get("name") for tool in self._context.tools]
        if not self._guard.allows(self._name):
            yield self._finding(NAME_REFUSED, 0)
        elif self._guard.validates and declared and self._name not in declared:
            yield self._finding(UNKNOWN_TOOL, 0)

    def _invalid(self, text: str, document: JsonText | None) -> Iterator[Finding]:
        if document is None and text.strip():
            yield self._finding(NOT_JSON, len(text))
            return
        data = {} if document is None else document.data
        for schema in self._schemas():
            try:
                valid = conforms(schema, data)
            except UnusableSchema as error:
                message = f"the schema of tool {self._name!r} can't be used: {error}"
                raise JobError("failed", message) from error
            if not valid:
                yield self._finding(INVALID, len(text))
                return

    def _schemas(self) -> Iterator[Mapping[str, Any]]:
        """The policy's schema for the tool, and the request's."""
        if self._name in self._guard.schemas:
            yield self._guard.schemas[self._name]
        for tool in self._context.tools:
            function = _function(tool)
            parameters = function.get("parameters")
            if function.get("name") == self._name and isinstance(parameters, Mapping):
                yield parameters

    def _finding(self, entity_type: str, end: int) -> Finding:
        """Over the whole call; where nothing is withheld, at its end, as what stood before has gone out."""
        remedy = self._guard.remedy
        start = 0 if remedy.action.withholds else end
        return remedy.finding(self._guard.name, entity_type, start, end, 1.0, "")

    def _back(self, document: JsonText | None, is_raw: bool, length: int, answer: Answer) -> Answer:
        """An inner guard's answer about a view, in the offsets of the arguments."""
        findings = list(answer.findings)
        if document is not None:
            pieces = document.raw_pieces if is_raw else document.pieces
            findings = [
                placed
                for finding in answer.findings
                for placed in _placed(finding, list(pieces(finding.start, finding.end)), is_raw, length)
            ]
        # What stands in the text as it is was found in both of its readings.
        new = [finding for finding in dict.fromkeys(findings) if finding not in self._told]
        self._told.update(new)
        return Answer(new, answer.scores)


def _placed(finding: Finding, pieces: Sequence[Piece], is_raw: bool, length: int) -> Iterator[Finding]:
    """`finding` at the pieces of the raw text that it is about."""
    if replaces(finding) and (pieces or not is_raw):
        yield from spread(finding, pieces)  # what only we put between values is nothing to replace
    elif is_raw:
        # What can't be replaced without breaking the JSON around it is withheld.
        yield replace(finding, action=Action.BLOCK if replaces(finding) else finding.action)
    else:
        start = min((piece.start for piece in pieces), default=0)
        end = max((piece.end for piece in pieces), default=length)
        yield replace(finding, start=start, end=end)


def _over_all(job: Job, length: int, back: Any) -> Job:
    """`job` about a view of the arguments, as a job about all of them."""
    return Job(0, length, job.servable, job.payload, lambda result: back(job.read(result)))


def _parse(text: str) -> JsonText | None:
    try:
        return JsonText(text)
    except (ValueError, RecursionError):
        return None


def _function(tool: Any) -> Mapping[str, Any]:
    """A tool's function (or custom tool) in chat completions' shape, or the flat one of newer APIs."""
    function = tool.get("function", tool.get("custom", tool)) if isinstance(tool, Mapping) else {}
    return function if isinstance(function, Mapping) else {}


def _names(patterns: Iterable[str]) -> regex.Pattern[str]:
    """Matches the names that one of `patterns` means, in which `*` stands for anything."""
    return regex.compile("|".join(".*".join(map(regex.escape, p.split("*"))) for p in patterns) or r"(?!)")


def _labelled(inner: GuardBase, spec: ToolCallsSpec) -> GuardBase:
    return inner.model_copy(update={"label": f"{spec.title}.{inner.title}"})


def build(spec: ToolCallsSpec, env: GuardEnvironment) -> ToolCallsGuard:
    """The guard that `spec` describes."""
    return ToolCallsGuard(spec, env)


def asks(spec: ToolCallsSpec, env: GuardEnvironment) -> Asked:
    """What the guards over the arguments ask."""
    return asked(spec.arguments, env)


def problems(spec: ToolCallsSpec, env: GuardEnvironment) -> Iterator[Problem]:
    """Schemas that are none, two inner guards of one name, and what is wrong with the inner guards."""
    for tool, schema in spec.schemas.items():
        try:
            check_schema(schema)
        except UnusableSchema as error:
            yield Problem(("schemas", tool), f"is no JSON Schema that can be used: {error}")
    seen: set[str] = set()
    for index, inner in enumerate(spec.arguments):
        if inner.title in seen:
            yield Problem(
                ("arguments", index), f"guard {inner.title!r} is used twice: give each use a 'label'"
            )
        seen.add(inner.title)
        for problem in guard_problems(inner, env):
            yield Problem(("arguments", index, *problem.loc), problem.message)

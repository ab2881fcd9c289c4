"""Tool calls: names, schemas, and guards over what is in the arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.apply_json import apply_json
from guardrails.build import GuardEnvironment
from guardrails.checks.tool_calls import MAX_ARGUMENTS, ToolCallsGuard, build, problems
from guardrails.guard import Answer, Context, Job, JobError, Step
from guardrails.verdict import Action, Finding, Verdict
from policies.registry import Registry
from policies.spec import ToolCallsSpec

ENV = GuardEnvironment(Registry("nowhere"), b"")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SECRET = "Tr0ub4dor&3"


def guard(**settings: Any) -> ToolCallsGuard:
    return build(ToolCallsSpec.model_validate(settings), ENV)


def call(under_test: ToolCallsGuard, arguments: str, name: str = "get_weather", tools: Any = ()) -> Step:
    context = Context(channel="tool_arguments", tool_name=name, tools=tools)
    step = under_test.examine(context).advance(arguments, True)
    assert step.settled == len(arguments)
    return step


def kinds(step: Step) -> list[str]:
    return sorted(finding.entity_type for finding in step.findings)


@pytest.mark.parametrize(
    ("allow", "deny", "name", "allowed"),
    [
        (["*"], [], "anything", True),
        (["get_*", "search"], [], "get_weather", True),
        (["get_*", "search"], [], "set_weather", False),
        (["get_*"], [], "forget_it", False),
        (["*"], ["*_all", "rm"], "delete_all", False),
        (["*"], ["*_all", "rm"], "rm2", True),
        ([], [], "anything", False),
        (["a.b"], [], "axb", False),
        (["*"], ["*"], "", False),
    ],
)
def test_names(allow: list[str], deny: list[str], name: str, allowed: bool) -> None:
    step = call(guard(allow=allow, deny=deny), "{}", name)
    assert kinds(step) == ([] if allowed else ["TOOL_NAME_REFUSED"])
    assert all((finding.start, finding.end) == (0, 0) for finding in step.findings)


def test_a_refused_name_is_told_before_any_argument_and_once() -> None:
    examination = guard(deny=["rm"]).examine(Context(channel="tool_arguments", tool_name="rm"))
    first = examination.advance("", False)
    assert [finding.action for finding in first.findings] == [Action.BLOCK] and first.settled == 0
    assert not examination.advance("{", False).findings
    assert kinds(examination.advance("{}", True)) == []


def test_a_tool_that_the_request_does_not_have() -> None:
    assert kinds(call(guard(), "{}", "other", [WEATHER])) == ["TOOL_UNKNOWN"]
    assert kinds(call(guard(validate_arguments=False), "{}", "other", [WEATHER])) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"city": "Paris"}', []),
        ('{"town": "Paris"}', ["TOOL_ARGUMENTS_INVALID"]),
        ('{"city": 3}', ["TOOL_ARGUMENTS_INVALID"]),
        ("", ["TOOL_ARGUMENTS_INVALID"]),
        ('{"city": ', ["TOOL_ARGUMENTS_NOT_JSON"]),
        ('{"city": NaN}', ["TOOL_ARGUMENTS_NOT_JSON"]),
        ("[" * 50_000, ["TOOL_ARGUMENTS_NOT_JSON"]),
    ],
)
def test_arguments_are_checked_against_the_requests_own_schema(arguments: str, expected: list[str]) -> None:
    step = call(guard(), arguments, tools=[WEATHER])
    assert kinds(step) == expected
    assert all((f.start, f.end) == (0, len(arguments)) for f in step.findings)
    assert kinds(call(guard(validate_arguments=False), arguments, tools=[WEATHER])) == []


def test_a_policys_schema_counts_as_well() -> None:
    strict = guard(schemas={"get_weather": {"properties": {"city": {"enum": ["Rome"]}}}})
    assert kinds(call(strict, '{"city": "Rome"}', tools=[WEATHER])) == []
    assert kinds(call(strict, '{"city": "Paris"}', tools=[WEATHER])) == ["TOOL_ARGUMENTS_INVALID"]
    assert kinds(call(strict, '{"town": "Rome"}', tools=[WEATHER])) == ["TOOL_ARGUMENTS_INVALID"]
    flat = {"type": "function", "name": "get_weather", "parameters": {"required": ["x"]}}
    assert kinds(call(guard(), "{}", tools=[flat])) == ["TOOL_ARGUMENTS_INVALID"]


@pytest.mark.parametrize(
    "tools", [[{}], [{"name": [{}]}], [{"function": None}], [{"function": {"name": "get_weather"}}], [3]]
)
def test_odd_tools_break_nothing(tools: Any) -> None:
    call(guard(), "{}", tools=tools)


def test_an_unusable_schema_is_a_failure_and_no_verdict() -> None:
    broken = {"function": {"name": "get_weather", "parameters": {"type": "nonsense"}}}
    with pytest.raises(JobError, match="get_weather"):
        call(guard(), "{}", tools=[broken])
    with pytest.raises(JobError):
        call(guard(), " " * (MAX_ARGUMENTS + 1))


def test_arguments_wait_only_where_they_must() -> None:
    context = Context(channel="tool_arguments", tool_name="x")
    assert guard().examine(context).advance('{"a', False).settled == 0
    assert guard(validate_arguments=False).examine(context).advance('{"a', False).settled == 3
    assert guard(action="allow").examine(context).advance('{"a', False).settled == 3
    watching = guard(action="allow", arguments=[{"guard": "secrets", "action": "allow"}])
    assert watching.examine(context).advance('{"a', False).settled == 0


def test_watching_tells_and_withholds_nothing() -> None:
    examination = guard(action="allow", deny=["get*"]).examine(
        Context(channel="tool_arguments", tool_name="get_weather", tools=[WEATHER])
    )
    settled, told = 0, []
    for end in range(4):
        step = examination.advance("{ }"[:end], end == 3)
        assert all(settled <= finding.start and finding.end <= step.settled for finding in step.findings)
        settled, told = step.settled, [*told, *step.findings]
    assert kinds(Step(0, told)) == ["TOOL_ARGUMENTS_INVALID", "TOOL_NAME_REFUSED"]
    assert {finding.action for finding in told} == {Action.ALLOW}


def test_other_channels_are_none_of_its_business() -> None:
    under_test = guard(allow=[], arguments=[{"guard": "secrets"}])
    for channel in ("content", "reasoning", "refusal"):
        step = under_test.examine(Context(channel=channel)).advance(f"password = {SECRET}", False)  # type: ignore[arg-type]
        assert step == Step(len(f"password = {SECRET}"))


SECRETS = {"guard": "secrets"}


@pytest.mark.parametrize(
    ("arguments", "redacted"),
    [
        (f'{{"text": "my password is {SECRET}, ok"}}', '{"text": "my password is [ASSIGNED_SECRET], ok"}'),
        (f'{{"password": "{SECRET}"}}', '{"password": "[ASSIGNED_SECRET]"}'),
        ('{"password": "\\u0054r0ub4dor\\u00263"}', '{"password": "[ASSIGNED_SECRET]"}'),
        ('{"p\\u0061ssword": "Tr0ub4dor&3", "b": 1}', '{"p\\u0061ssword": "[ASSIGNED_SECRET]", "b": 1}'),
        ('{"a": [{"b": "token: \\u0039\\u0039aa77bb66cc"}]}', '{"a": [{"b": "token: [ASSIGNED_SECRET]"}]}'),
        ('{"city": "Paris"}', '{"city": "Paris"}'),
        (f"password = {SECRET}", "password = [ASSIGNED_SECRET]"),
    ],
)  # fmt: skip
def test_guards_over_arguments_read_them_decoded_and_leave_them_valid(arguments: str, redacted: str) -> None:
    step = call(guard(arguments=[SECRETS], validate_arguments=False), arguments)
    assert apply_json(arguments, Verdict.of(step.findings)) == redacted
    assert {finding.guard for finding in step.findings} <= {"tool_calls.secrets"}


def test_a_number_becomes_a_string_and_odd_replacements_are_escaped() -> None:
    inner = {"guard": "patterns", "patterns": [{"name": "CARD", "regex": r"\b4\d{15}\b"}], "action": "redact"}
    arguments = '{"card": 4111111111111111, "note": "4111111111111111"}'
    step = call(guard(arguments=[inner]), arguments)
    assert json.loads(apply_json(arguments, Verdict.of(step.findings))) == {
        "card": "[CARD]",
        "note": "[CARD]",
    }
    step = call(guard(arguments=[inner | {"replacement": 'a "card"\n'}]), arguments)
    assert json.loads(apply_json(arguments, Verdict.of(step.findings))) == {
        "card": 'a "card"\n',
        "note": 'a "card"\n',
    }


def test_what_cannot_be_replaced_within_json_is_withheld() -> None:
    inner = {"guard": "patterns", "patterns": [r"\{\}"], "action": "redact", "normalize": False}
    step = call(guard(arguments=[inner]), '{"a": {}}')
    assert [finding.action for finding in step.findings] == [Action.BLOCK]


def test_blocks_inside_of_arguments_are_placed_in_the_raw_text() -> None:
    arguments = '{"q": "about \\u0070roject zephyr"}'
    inner = {"guard": "patterns", "patterns": ["project zephyr"], "action": "block"}
    finding = next(iter(call(guard(arguments=[inner]), arguments).findings))
    assert arguments[finding.start : finding.end] == "\\u0070roject zephyr" and finding.action is Action.BLOCK


class _Remote:
    """An inner guard whose findings come from a worker."""

    name, scope, action, changes_text = "remote", "document", Action.REDACT, True
    on_error, deadline, servables = Action.BLOCK, 1.0, frozenset({"s"})

    def examine(self, context: Context) -> _Remote:
        return self

    def advance(self, text: str, final: bool) -> Step:
        at = text.find("Ann")
        found = [Finding(at, at + 3, "remote", "PERSON", 1.0, Action.REDACT, "[PERSON]")] if at >= 0 else []
        return Step(len(text), jobs=[Job(0, len(text), "s", text, lambda _: Answer(found, {"PERSON": 1.0}))])


def test_what_workers_find_is_placed_too() -> None:
    under_test = guard()
    under_test.inner = [_Remote()]  # type: ignore[list-item]
    arguments = '{"to": "\\u0041nn", "cc": "Bob"}'
    step = call(under_test, arguments)
    assert [(job.start, job.end, job.servable) for job in step.jobs] == [(0, len(arguments), "s")] * 2
    findings = [finding for job in step.jobs for finding in job.read(None).findings]
    assert apply_json(arguments, Verdict.of(findings)) == '{"to": "[PERSON]", "cc": "Bob"}'


def test_what_both_readings_find_is_told_once() -> None:
    arguments = f'{{"note": "password = {SECRET}"}}'
    findings = list(call(guard(arguments=[SECRETS]), arguments).findings)
    assert len(findings) == len(set(findings)) == 1


def test_the_guard_is_as_strong_as_its_strongest_part() -> None:
    inner = [
        {"guard": "secrets", "deadline_ms": 500, "on_error": "escalate"},
        {"guard": "topics", "deadline_ms": 200, "deny": {"x": {"phrases": ["y"]}}},
    ]
    under_test = guard(action="allow", on_error="allow", deadline_ms=100, arguments=inner)
    assert (under_test.action, under_test.on_error) == (Action.BLOCK, Action.ESCALATE)
    assert under_test.deadline == 0.5 and under_test.changes_text and not under_test.servables


def test_problems_of_schemas_and_inner_guards_have_places() -> None:
    spec = ToolCallsSpec.model_validate(
        {
            "schemas": {"f": {"type": "nonsense"}},
            "arguments": [{"guard": "secrets", "kinds": ["JTW"]}, {"guard": "secrets"}],
        }
    )
    assert [problem.loc for problem in problems(spec, ENV)] == [
        ("schemas", "f"),
        ("arguments", 0, "kinds", 0),
        ("arguments", 1),
    ]


_TEXTS = st.lists(
    st.sampled_from(["password: ", SECRET, '"', "\\", "\n", "é", "😀", " ", "token=99aa77bb66cc", "x"]),
    max_size=6,
).map("".join)


_ARGUMENTS = st.recursive(
    _TEXTS | st.integers() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(data=_ARGUMENTS, ascii_only=st.booleans())
def test_redacted_arguments_are_json_in_which_nothing_is_left_to_redact(data: Any, ascii_only: bool) -> None:
    under_test = guard(arguments=[SECRETS], validate_arguments=False)
    raw = json.dumps(data, ensure_ascii=ascii_only)
    redacted = apply_json(raw, Verdict.of(call(under_test, raw).findings))
    assert type(json.loads(redacted)) is type(data)
    assert not call(under_test, redacted).findings

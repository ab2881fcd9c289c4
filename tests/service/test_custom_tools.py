"""Custom tools' calls, whose input is any text, and the older `function_call`: in replies and in requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes import upstream as fake
from tests.service.conftest import Running, Serve, chunks_of, finish_of

GUARDED = r"""
output:
  - {guard: tool_calls, allow: ['run_*'], arguments: [{guard: patterns, patterns: ['\brm -rf\b']}]}
  - {guard: patterns, label: ssn, patterns: [{name: SSN, regex: '\b\d{3}-\d{2}-\d{4}\b'}], action: redact}
"""
MASKING = r"""
roles: [user, assistant, tool]
input:
  - {guard: patterns, label: mail, builtin: [EMAIL_ADDRESS], action: mask}
"""
TOOLS = [{"type": "custom", "custom": {"name": "run_code"}}]


def custom(text: str, name: str = "run_code") -> dict[str, Any]:
    return {"id": "call_1", "type": "custom", "custom": {"name": name, "input": text}}


def chunk(calls: list[dict[str, Any]]) -> bytes:
    return fake.event({"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]})


async def called(
    keel: Running, text: str, stream: bool, name: str = "run_code"
) -> tuple[dict[str, Any], str]:
    """What the client gets of a custom tool's call, and the finish reason."""
    if not stream:
        message = {"role": "assistant", "content": None, "tool_calls": [custom(text, name)]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        keel.upstream.script(fake.answer({"id": "c", "choices": [choice]}))
        _, answer = await keel.chat(model="guarded", tools=TOOLS)
        (choice,) = answer["choices"]
        return (choice["message"].get("tool_calls") or [{}])[0], choice["finish_reason"]
    parts = [chunk([{"index": 0, **custom("", name)}])]
    parts += [chunk([{"index": 0, "custom": {"input": text[i : i + 3]}}]) for i in range(0, len(text), 3)]
    raw = b"".join([*parts, fake.token("", "tool_calls"), fake.DONE])
    keel.upstream.script(fake.raw_stream(raw))
    chunks = await chunks_of(keel, model="guarded", tools=TOOLS)
    whole: dict[str, Any] = {}
    for delta in (one["choices"][0]["delta"] for one in chunks):
        for part in delta.get("tool_calls", ()):
            said = part.pop("custom")
            assert part.pop("index") == 0
            known = whole.setdefault("custom", {"input": ""})
            known["input"] += said.pop("input")
            known |= said
            whole |= part
    return whole, finish_of(chunks)[0]


@pytest.mark.parametrize("stream", [False, True])
async def test_input_of_a_custom_tool_is_text_to_the_guards(serve: Serve, stream: bool) -> None:
    async with serve({"guarded": GUARDED}) as keel:
        call, finish = await called(keel, 'print("\\u0041nn, 123-45-6789")', stream)
        assert call == custom('print("\\u0041nn, [SSN]")')
        assert finish == "tool_calls"
        call, finish = await called(keel, "", stream)
        assert call == custom(""), "a call without any input is a call"


@pytest.mark.parametrize("stream", [False, True])
async def test_refused_custom_call_does_not_go_out(serve: Serve, stream: bool) -> None:
    async with serve({"guarded": GUARDED}) as keel:
        assert await called(keel, "now", stream, "launch_rockets") == ({}, "content_filter")
        assert await called(keel, "sudo rm -rf /", stream) == (custom("sudo "), "content_filter")


async def test_call_that_is_two_things_at_once_fails(serve: Serve) -> None:
    both = {**custom("123-45-6789"), "function": {"name": "run_code", "arguments": "{}"}}
    async with serve({"guarded": GUARDED}) as keel:
        message = {"role": "assistant", "tool_calls": [both]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        keel.upstream.script(fake.answer({"choices": [choice]}))
        status, answer = await keel.chat(model="guarded")
        assert status == 502, answer


async def test_calls_of_earlier_turns_are_examined(serve: Serve) -> None:
    turns = [
        {"role": "user", "content": "mail her"},
        {"role": "assistant", "function_call": {"name": "send", "arguments": '{"to": "ann@example.com"}'}},
        {"role": "function", "name": "send", "content": "sent"},
        {"role": "assistant", "tool_calls": [custom("mail bob@example.com")]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sent"},
        {"role": "user", "content": "thanks"},
    ]
    async with serve({"masking": MASKING}) as keel:
        status, answer, _ = await keel.post("/v1/chat/completions", {"model": "masking", "messages": turns})
        assert status == 200
        sent = keel.upstream.requests[0].json["messages"]
        assert sent[1]["function_call"]["arguments"] == '{"to": "<EMAIL_ADDRESS_1>"}'
        assert sent[3]["tool_calls"][0]["custom"]["input"] == "mail <EMAIL_ADDRESS_2>"
        assert [finding["param"] for finding in answer["guardrails"]["input"]] == [
            "messages[1].function_call.arguments",
            "messages[3].tool_calls[0].custom.input",
        ]
        broken: list[Any] = ["text", {"arguments": {}}]
        for one in broken:
            body = {"model": "masking", "messages": [{"role": "assistant", "function_call": one}]}
            assert (await keel.post("/v1/chat/completions", body))[0] == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_only_fields_without_text_pass_beside_what_was_examined(serve: Serve, stream: bool) -> None:
    beside = {"finish_reason": "stop", "stop_reason": 7, "native_finish_reason": "eos", "token_ids": [5, 6]}
    said = {"role": "assistant", "content": "Hi", "annotations": [{"text": "123-45-6789"}]}
    choice = {"index": 0, "delta" if stream else "message": said, **beside}
    async with serve({"guarded": GUARDED}) as keel:
        if stream:
            keel.upstream.script(fake.raw_stream(fake.event({"choices": [choice]}) + fake.DONE))
            last = (await chunks_of(keel, model="guarded"))[-1]["choices"][0]
        else:
            beside_choices = {"service_tier": "flex", "citations": ["of 123-45-6789"]}
            keel.upstream.script(fake.answer({"choices": [choice], **beside_choices}))
            answer = (await keel.chat(model="guarded"))[1]
            last = answer["choices"][0]
            assert answer["service_tier"] == "flex"
            assert "citations" not in answer
        told = {"stop_reason": 7, "native_finish_reason": "eos", "finish_reason": "stop"}
        assert {name: last.get(name) for name in told} == told
        assert "token_ids" not in last
        assert "annotations" not in json.dumps(last)


async def test_usage_of_a_reply_that_a_guard_cut_off_is_an_estimate(serve: Serve) -> None:
    """An upstream that isn't ours tells its count at the end only, and that end is never read."""
    blocking = "output:\n  - {guard: patterns, patterns: ['zephyr']}\n"
    async with serve({"guarded": blocking}) as keel:
        keel.upstream.script(fake.stream(["the ", "zephyr ", "and ", "more "], stall_after=4))
        fields = {"model": "guarded", "stream_options": {"include_usage": True}}
        chunks = await chunks_of(keel, text="x" * 400, **fields)
        assert finish_of(chunks) == ["content_filter"]
        usage = chunks[-1]["usage"]
        assert usage["estimated"] is True
        assert usage["prompt_tokens"] == 100
        assert usage["total_tokens"] == 100 + usage["completion_tokens"]
        told = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        raw = fake.token("Hi", "stop") + fake.event({"choices": [], "usage": told}) + fake.DONE
        keel.upstream.script(fake.raw_stream(raw))
        assert (await chunks_of(keel, **fields))[-1]["usage"] == told

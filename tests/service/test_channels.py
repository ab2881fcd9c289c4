"""Tool calls, reasoning, refusals and log probabilities under guards, streamed and not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes import upstream as fake
from tests.service.conftest import Serve, chunks_of, finish_of, text_of

REDACTING = r"""
output:
  - {guard: patterns, label: ssn, patterns: [{name: SSN, regex: '\b\d{3}-\d{2}-\d{4}\b'}], action: redact}
"""
TOOLS = """
output:
  - {guard: tool_calls, allow: [get_weather], validate_arguments: false, action: block}
  - {guard: patterns, label: word, patterns: ['secretword'], action: block}
"""


def call(arguments: str, name: str | None = None, index: int = 0, finish: str | None = None) -> bytes:
    function: dict[str, Any] = {"arguments": arguments, **({"name": name} if name else {})}
    head = {"id": f"call_{index}", "type": "function"} if name else {}
    delta = {"tool_calls": [{"index": index, **head, "function": function}]}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return fake.event({"id": "c", "object": "chat.completion.chunk", "model": "fake", "choices": [choice]})


async def test_tool_calls_stream_through(serve: Serve) -> None:
    async with serve({"tools": TOOLS}) as keel:
        parts = [call("", "get_weather"), call('{"city": '), call('"Oslo"}'), call("{}", "get_weather", 1)]
        keel.upstream.script(fake.raw_stream(b"".join(parts) + fake.token("", "tool_calls") + fake.DONE))
        chunks = await chunks_of(
            keel, model="tools", tools=[{"type": "function", "function": {"name": "get_weather"}}]
        )
        calls: dict[int, dict[str, Any]] = {}
        for chunk in chunks:
            for part in chunk["choices"][0]["delta"].get("tool_calls", ()):
                known = calls.setdefault(part["index"], {"arguments": ""})
                known["arguments"] += part["function"]["arguments"]
                if "id" in part:
                    known |= {"id": part["id"], "name": part["function"]["name"]}
        assert calls == {
            0: {"arguments": '{"city": "Oslo"}', "id": "call_0", "name": "get_weather"},
            1: {"arguments": "{}", "id": "call_1", "name": "get_weather"},
        }
        assert finish_of(chunks) == ["tool_calls"]


@pytest.mark.parametrize("stream", [False, True])
async def test_refused_tool_call_shows_not_even_its_name(serve: Serve, stream: bool) -> None:
    async with serve({"tools": TOOLS}) as keel:
        if stream:
            raw = call("", "launch_rockets") + call("{}") + fake.token("", "tool_calls") + fake.DONE
            keel.upstream.script(fake.raw_stream(raw))
            data = b"".join(await keel.stream(model="tools"))
        else:
            message = {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "launch_rockets", "arguments": ""}}
                ],
            }
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            keel.upstream.script(fake.answer({"id": "c", "model": "fake", "choices": [choice]}))
            data = json.dumps((await keel.chat(model="tools"))[1]).encode()
        assert b"launch_rockets" not in data
        assert b"content_filter" in data


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "refusal", "content"])
async def test_every_channel_is_moderated(serve: Serve, field: str) -> None:
    async with serve({"tools": TOOLS}) as keel:
        choices = [
            {"index": 0, "delta": {field: "it is secret"}, "finish_reason": None},
            {"index": 0, "delta": {field: "word"}, "finish_reason": "stop"},
        ]
        raw = b"".join(fake.event({"model": "fake", "choices": [choice]}) for choice in choices)
        message = {
            "index": 0,
            "message": {"role": "assistant", field: "it is secretword"},
            "finish_reason": "stop",
        }
        keel.upstream.script(
            fake.raw_stream(raw + fake.DONE), fake.answer({"model": "fake", "choices": [message]})
        )
        chunks = await chunks_of(keel, model="tools")
        assert chunks[0]["choices"][0]["delta"][field] == "it is "
        assert finish_of(chunks) == ["content_filter"]
        _, answer = await keel.chat(model="tools")
        assert answer["choices"][0]["message"][field] == "it is "
        assert answer["choices"][0]["finish_reason"] == "content_filter"


def logprob(token: str) -> dict[str, Any]:
    return {"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_redacted_text_are_dropped(serve: Serve, stream: bool) -> None:
    tokens = ["My ", "number: ", "123", "-45-", "6789", " ok", "ay", "<end>"]
    async with serve({"strict": REDACTING}) as keel:
        if stream:
            raw = b"".join(
                fake.event(
                    {
                        "model": "fake",
                        "choices": [
                            {
                                "index": 0,
                                "delta": {"content": t if t != "<end>" else ""},
                                "logprobs": {"content": [logprob(t)]},
                                "finish_reason": "stop" if t == "<end>" else None,
                            }
                        ],
                    }
                )
                for t in tokens
            )
            keel.upstream.script(fake.raw_stream(raw + fake.DONE))
            chunks = await chunks_of(keel, model="strict", logprobs=True)
            shown = [
                e["token"] for c in chunks for e in (c["choices"][0]["logprobs"] or {}).get("content", ())
            ]
            assert text_of(chunks) == "My number: [SSN] okay"
        else:
            whole = fake.completion("".join(tokens[:-1]))
            whole["choices"][0]["logprobs"] = {"content": [logprob(t) for t in tokens]}
            keel.upstream.script(fake.answer(whole))
            _, answer = await keel.chat(model="strict", logprobs=True)
            shown = [e["token"] for e in answer["choices"][0]["logprobs"]["content"]]
        assert shown == ["My ", "number: ", " ok", "ay"]

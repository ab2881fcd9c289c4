"""The OpenAI surface with OpenAI's own client against real vLLM, with and without guards."""

from __future__ import annotations

import itertools
import json
from typing import Any

import openai
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

POLICIES = ["open", "guarded"]
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello, how are you today?"}]
COMMON: dict[str, Any] = {"messages": HELLO, "max_tokens": 12, "temperature": 0.8, "seed": 11}
# Nothing in it leaves room for white space, with which a small model would go on for ever.
SCHEMA = {"enum": ["red", "blue"]}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {"enum": [{"city": "Oslo"}, {"city": "Rome"}]},
    },
}


def collect(stream: Any) -> dict[int, dict[str, Any]]:
    """A stream put together as its reader would, per choice; checks its shape on the way."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        for part in chunk.choices:
            known = choices.setdefault(
                part.index, {"content": "", "tools": {}, "logprobs": [], "finish": None, "roles": []}
            )
            assert known["finish"] is None, "nothing follows the finish_reason"
            known["content"] += part.delta.content or ""
            known["roles"] += [part.delta.role] if part.delta.role else []
            for call in part.delta.tool_calls or ():
                tool = known["tools"].setdefault(call.index, {"name": "", "arguments": ""})
                tool["name"] += call.function.name or ""
                tool["arguments"] += call.function.arguments or ""
            known["logprobs"] += (part.logprobs.content or []) if part.logprobs else []
            known["finish"] = part.finish_reason
    return choices


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("n", "logprobs", "stop"), list(itertools.product([1, 3], [False, True], [None, ["e"]]))
)
def test_stream_and_reply_agree(
    client: openai.OpenAI, policy: str, n: int, logprobs: bool, stop: list[str] | None
) -> None:
    fields: dict[str, Any] = {**COMMON, "model": policy, "n": n}
    if logprobs:
        fields |= {"logprobs": True, "top_logprobs": 2}
    if stop:
        fields["stop"] = stop
    reply = client.chat.completions.create(**fields)
    assert reply.model == policy
    assert len(reply.choices) == n
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == reply.usage.prompt_tokens
    choices = collect(chunks)
    assert sorted(choices) == list(range(n))
    for choice in reply.choices:
        streamed = choices[choice.index]
        assert streamed["content"] == (choice.message.content or "")
        assert streamed["finish"] == choice.finish_reason
        assert streamed["roles"] == ["assistant"]
        if stop:
            assert "e" not in streamed["content"]
        if logprobs:
            assert choice.logprobs is not None
            tokens = [entry.token for entry in choice.logprobs.content or ()]
            assert tokens
            assert len(choice.logprobs.content[0].top_logprobs) >= 2
            assert "".join(entry.token for entry in streamed["logprobs"]).startswith("".join(tokens)[:3])
        else:
            assert not streamed["logprobs"]


@pytest.mark.parametrize("policy", POLICIES)
def test_no_usage_chunk_unless_asked(client: openai.OpenAI, policy: str) -> None:
    chunks = list(client.chat.completions.create(**COMMON, model=policy, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices


@pytest.mark.parametrize("policy", POLICIES)
def test_seed_is_honoured(client: openai.OpenAI, policy: str) -> None:
    fields = {**COMMON, "model": policy, "temperature": 1.0}
    texts = [client.chat.completions.create(**fields).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]
    others = {
        client.chat.completions.create(**{**fields, "seed": seed}).choices[0].message.content
        for seed in range(4)
    }
    assert len(others) > 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stream", [False, True])
def test_json_schema(client: openai.OpenAI, policy: str, stream: bool) -> None:
    fields: dict[str, Any] = {
        **COMMON,
        "model": policy,
        "max_tokens": 60,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    }
    if stream:
        text = collect(client.chat.completions.create(**fields, stream=True))[0]["content"]
    else:
        text = client.chat.completions.create(**fields).choices[0].message.content or ""
    assert json.loads(text) in ("red", "blue")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stream", [False, True])
def test_named_tool(client: openai.OpenAI, policy: str, stream: bool) -> None:
    fields: dict[str, Any] = {
        **COMMON,
        "model": policy,
        "max_tokens": 200,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
    }
    if stream:
        (call,) = collect(client.chat.completions.create(**fields, stream=True))[0]["tools"].values()
    else:
        (found,) = client.chat.completions.create(**fields).choices[0].message.tool_calls or ()
        call = {"name": found.function.name, "arguments": found.function.arguments}
    assert call["name"] == "get_weather"
    assert json.loads(call["arguments"])["city"] in ("Oslo", "Rome")


@pytest.mark.parametrize("policy", POLICIES)
def test_multi_part_content(client: openai.OpenAI, policy: str) -> None:
    parts = [{"type": "text", "text": "Hello,"}, {"type": "text", "text": "how are you today?"}]
    reply = client.chat.completions.create(
        **{**COMMON, "messages": [{"role": "user", "content": parts}]}, model=policy
    )
    assert reply.choices[0].message.content


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stream", [False, True])
def test_completions(client: openai.OpenAI, policy: str, stream: bool) -> None:
    fields: dict[str, Any] = {
        "model": policy,
        "prompt": ["Once upon", "It was"],
        "max_tokens": 8,
        "temperature": 0.8,
        "n": 2,
        "seed": 3,
        "logprobs": 2,
        "echo": not stream,
    }
    if stream:
        texts = dict.fromkeys(range(4), "")
        for chunk in client.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        assert all(texts.values())
    else:
        reply = client.completions.create(**fields)
        assert [choice.text.startswith(("Once upon", "It was")) for choice in reply.choices] == [True] * 4
        assert reply.choices[0].logprobs is not None
        assert reply.choices[0].logprobs.tokens
        assert reply.usage is not None


def test_token_ids_pass_where_nothing_is_examined(client: openai.OpenAI) -> None:
    assert client.completions.create(model="open", prompt=[5, 6, 7], max_tokens=3).choices[0].text is not None
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="guarded", prompt=[5, 6, 7], max_tokens=3)
    assert caught.value.param == "prompt"


def test_the_engines_own_refusals_come_through(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**{**COMMON, "max_tokens": 10**8}, model="open", stream=stream)
        assert "max" in caught.value.message
    with pytest.raises(openai.APIStatusError) as wrong:
        client.embeddings.create(model="open", input="hello")
    assert wrong.value.status_code in (400, 404, 501, 502)


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**COMMON, model="nope")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as blocked:
        client.chat.completions.create(
            model="guarded", messages=[{"role": "user", "content": "a forbidden thing"}], stream=True
        )
    assert blocked.value.code == "content_filter"
    assert {model.id for model in client.models.list()} == {"open", "guarded", "vowels", "blocked"}


def test_redaction_of_real_text(client: openai.OpenAI) -> None:
    fields = {**COMMON, "temperature": 0.0, "max_tokens": 24}
    plain = client.chat.completions.create(**fields, model="open").choices[0].message.content or ""
    expected = "".join("*" if letter in "aeiou" else letter for letter in plain)
    redacted = client.chat.completions.create(**fields, model="vowels", logprobs=True).choices[0]
    assert redacted.message.content == expected
    streamed = collect(client.chat.completions.create(**fields, model="vowels", stream=True, logprobs=True))[
        0
    ]
    assert streamed["content"] == expected
    for entries in (redacted.logprobs.content or [] if redacted.logprobs else [], streamed["logprobs"]):
        assert not set("".join(entry.token for entry in entries)) & set("aeiou")


def test_block_in_mid_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        **COMMON, model="blocked", n=2, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    choices = collect(chunks)
    assert {choice["finish"] for choice in choices.values()} == {"content_filter"}
    assert chunks[-1].usage is not None
    assert chunks[-2].model_extra["guardrails"]["status"] == "blocked"

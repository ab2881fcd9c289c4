"""Whatever a client sends, it gets a clear 4xx in OpenAI's form, and never a 5xx."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from service.openai.types import ChatRequest
from service.openai.validation import explain
from tests.service.conftest import Running, Serve

USER = {"role": "user", "content": "x"}
PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/moderations", "/v1/checks"]
OK = b'{"model":"plain","messages":[{"role":"user","content":"x"}]'

GUARDED = "input:\n  - {guard: patterns, patterns: ['zephyr'], action: redact}\n"


def is_error(answer: Any, status: int) -> bool:
    assert set(answer) == {"error"}, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]
    return 400 <= status < 500


async def test_broken_bodies(serve: Serve) -> None:
    bodies: dict[str, bytes] = {
        "empty": b"",
        "half": b'{"model": ',
        "not utf-8": b'{"model": "\xff\xfe"}',
        "lone surrogate": OK.replace(b'"x"', b'"\\ud800"') + b"}",
        "NaN": OK + b', "temperature": NaN}',
        "Infinity": OK + b', "temperature": -Infinity}',
        "overflow": OK + b', "temperature": 1e999}',
        "array": b"[]",
        "string": b'"model"',
        "null": b"null",
        "deep": OK + b', "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        "deep objects": OK + b', "x": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}",
        "too deep to write": OK + b', "x": ' + b"[" * 300 + b"]" * 300 + b"}",
        "trailing": OK + b"} extra",
        "control character": OK.replace(b'"x"', b'"\x01"') + b"}",
    }
    async with serve() as keel:
        for name, body in bodies.items():
            for path in PATHS if name != "too deep to write" else PATHS[:1]:
                status, answer, _ = await keel.post(path, body)
                assert is_error(answer, status), (name, path)
                assert (status, answer["error"]["code"]) == (400, "invalid_json"), (name, path)
        status, _ = await keel.chat()
        assert status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "clown", "content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]},
            "messages[0].tool_calls[0].function",
        ),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"n": 0}, "n"),
        ({"n": 10_000}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 1.5}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"seed": 2**70}, "seed"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 3}, "logprobs"),
    ],
)
async def test_wrong_fields_are_named(serve: Serve, fields: dict[str, Any], param: str) -> None:
    async with serve() as keel:
        body = {"model": "plain", "messages": [USER], **fields}
        status, answer, _ = await keel.post("/v1/chat/completions", body)
        assert is_error(answer, status)
        assert (status, answer["error"]["param"]) == (400, param), answer
        assert answer["error"]["type"] == "invalid_request_error"
        assert keel.upstream.requests == []


async def test_unknown_models_and_paths(serve: Serve) -> None:
    async with serve() as keel:
        for path, extra in [
            ("/v1/chat/completions", {"messages": [USER]}),
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/embeddings", {"input": "x"}),
            ("/v1/moderations", {"input": "x"}),
            ("/v1/checks", {"input": "x"}),
        ]:
            status, answer, _ = await keel.post(path, {"model": "nope", **extra})
            assert is_error(answer, status)
            assert (status, answer["error"]["code"]) == (404, "model_not_found")
            assert answer["error"]["param"] == "model"
        for path in ("/v1/models/nope", "/nope", "/v1/nope", "/v1/chat/completions/"):
            status, raw, _ = await keel.get(path)
            assert is_error(json.loads(raw), status)
            assert status == 404
        for path in PATHS:
            status, raw, response = await keel.get(path)
            assert is_error(json.loads(raw), status)
            assert (status, response.headers["allow"]) == (405, "POST")
        status, answer, response = await keel.post("/v1/models", {})
        assert is_error(answer, status)
        assert (status, response.headers["allow"]) == (405, "GET")


async def test_large_bodies(serve: Serve) -> None:
    async with serve(limits={"max_body_bytes": 1_000_000}) as keel:
        big = OK.replace(b'"x"', b'"' + b"x" * 20_000_000 + b'"') + b"}"
        for chunked in (False, True):
            status, answer = await send_big(keel, big, chunked)
            assert status == 413
            assert answer["error"]["code"] == "payload_too_large"


async def send_big(keel: Running, body: bytes, chunked: bool) -> tuple[int, Any]:
    """Send as far as the server lets us; read its answer even if it stops reading."""
    reader, writer = await asyncio.open_connection("127.0.0.1", keel.port)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n")
    try:
        for i in range(0, len(body), 65536):
            part = body[i : i + 65536]
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            async with asyncio.timeout(1):
                await writer.drain()
    except (ConnectionError, TimeoutError):
        pass
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        answer = json.loads(await reader.readexactly(size))
    writer.close()
    return int(head.split()[1]), answer


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["model", "messages", "stream", "n", "stop", "tools", "logprobs", "stream_options", "tool_choice"]


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_every_validation_error_can_be_explained(body: dict[str, Any]) -> None:
    try:
        TypeAdapter(ChatRequest).validate_python(body)
    except ValidationError as error:
        explained = explain(error)
        assert explained.status == 400
        assert explained.param
        assert explained.param.split(".")[0].split("[")[0] in explained.message


async def test_chat_bodies_at_random(serve: Serve) -> None:
    """Random fields through the whole gateway, with and without guards: never a 5xx of ours."""
    strategy = st.dictionaries(st.sampled_from([*FIELDS, "documents", "x"]), json_values)
    bodies: list[dict[str, Any]] = []

    @given(strategy)
    def collect(body: dict[str, Any]) -> None:
        bodies.append(body)

    collect()
    async with serve({"guarded": GUARDED}) as keel:
        for number, body in enumerate(bodies[:150]):
            model = ("plain", "guarded")[number % 2]
            async with keel.session.post(
                keel.url + "/v1/chat/completions", json={"messages": [USER], **body, "model": model}
            ) as response:
                assert response.status < 500, (body, await response.text())

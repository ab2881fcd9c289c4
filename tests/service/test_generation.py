"""Chat and plain completions through the whole gateway, without guards."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.fakes import upstream as fake
from tests.service.conftest import Serve, events, until


async def test_reply_passes_through_under_the_policys_name(serve: Serve) -> None:
    async with serve() as keel:
        status, answer = await keel.chat(seed=7, made_up={"kept": [1, None]})
        assert status == 200
        assert answer["model"] == "plain"
        assert answer["choices"][0]["message"]["content"] == "Hello there, friend."
        assert "guardrails" not in answer
        asked = keel.upstream.requests[0].json
        assert asked["model"] == "fake"
        assert asked["seed"] == 7
        assert asked["made_up"] == {"kept": [1, None]}


async def test_reply_headers(serve: Serve) -> None:
    async with serve() as keel:
        body = {"model": "plain", "messages": [{"role": "user", "content": "x"}]}
        _, _, response = await keel.post("/v1/chat/completions", body, {"x-request-id": "abc-1"})
        assert response.headers["x-request-id"] == "abc-1"
        assert response.headers["x-keel-policy"].startswith("plain@")
        assert response.headers["x-keel-checkpoint"] == "fake"
        assert 0 < float(response.headers["x-keel-overhead-ms"]) < 1000
        await keel.post("/v1/chat/completions", body, {"x-request-id": "abc-1"})
        # Engines name replies by it, and feedback is about one of them.
        sent = [request.headers["x-request-id"] for request in keel.upstream.requests]
        assert len(set(sent)) == 2 and all(name.startswith("abc-1-") for name in sent)
        _, _, response = await keel.post("/v1/chat/completions", body, {"x-request-id": "no spaces allowed"})
        assert response.headers["x-request-id"].startswith("req-")


async def test_overhead_leaves_the_engines_time_out(serve: Serve) -> None:
    async with serve() as keel:
        keel.upstream.default = fake.well_behaved(delay=0.3)
        body = {"model": "plain", "messages": [{"role": "user", "content": "x"}]}
        _, _, response = await keel.post("/v1/chat/completions", body)
        assert float(response.headers["x-keel-overhead-ms"]) < 250


async def test_stream_is_byte_exact_but_for_the_model(serve: Serve) -> None:
    async with serve() as keel:
        data = await keel.stream()
        assert data[-1] == b"[DONE]"
        chunks = [json.loads(item) for item in data[:-1]]
        assert "".join(c["choices"][0]["delta"]["content"] for c in chunks) == "Hello there, friend. "
        assert {c["model"] for c in chunks} == {"plain"}
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("asked", [True, False, None])
async def test_usage_chunk_goes_to_those_who_asked(serve: Serve, asked: bool | None) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    tail = fake.event(
        {"id": "c", "object": "chat.completion.chunk", "model": "fake", "choices": [], "usage": usage}
    )
    async with serve() as keel:
        keel.upstream.script(fake.raw_stream(fake.token("Hi") + fake.token("", "stop") + tail + fake.DONE))
        options = {} if asked is None else {"stream_options": {"include_usage": asked}}
        chunks = [json.loads(item) for item in (await keel.stream(**options))[:-1]]
        assert keel.upstream.requests[0].json["stream_options"]["include_usage"] is True
        assert [c["usage"] for c in chunks if "usage" in c] == ([usage] if asked else [])
        page = (await keel.get("/metrics"))[1].decode()
        assert (
            'gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_request_model="plain",' in page
        )


async def test_text_that_looks_like_a_model_field_is_left_alone(serve: Serve) -> None:
    text = '{"model":"fake"} and \\"model\\":"fake"'
    async with serve() as keel:
        keel.upstream.script(
            fake.answer(fake.completion(text)), fake.raw_stream(fake.token(text) + fake.DONE)
        )
        _, answer = await keel.chat()
        assert answer["choices"][0]["message"]["content"] == text
        data = await keel.stream()
        assert json.loads(data[0])["choices"][0]["delta"]["content"] == text


@pytest.mark.parametrize("behaviour", [{"die_after": 1}, {"hang_up_after": 1}])
async def test_upstream_dies_in_mid_stream(serve: Serve, behaviour: dict[str, int]) -> None:
    async with serve() as keel:
        keel.upstream.script(fake.stream(["one ", "two "], **behaviour))
        data = await keel.stream()
        assert json.loads(data[0])["choices"][0]["delta"]["content"] == "one "
        error = json.loads(data[-2])["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "upstream_error"
        assert data[-1] == b"[DONE]"
        status, _ = await keel.chat()
        assert status == 200


async def test_upstream_dies_before_the_first_token(serve: Serve) -> None:
    async with serve(engine={"connect_timeout_s": 0.5}) as keel:
        await keel.upstream.stop()
        for stream in (False, True):
            status, answer = await keel.chat(stream=stream)
            assert status == 503
            assert answer["error"]["code"] == "engine_unavailable"


@pytest.mark.parametrize(
    ("upstream_status", "status", "kind"),
    [
        (400, 400, "invalid_request_error"),
        (401, 502, "server_error"),
        (404, 502, "server_error"),
        (422, 422, "invalid_request_error"),
        (429, 429, "rate_limit_error"),
        (500, 502, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_upstream_statuses(
    serve: Serve, upstream_status: int, status: int, kind: str, stream: bool
) -> None:
    async with serve() as keel:
        keel.upstream.default = fake.status(upstream_status, "because")
        answered, answer = await keel.chat(stream=stream)
        assert answered == status
        assert answer["error"]["type"] == kind
        assert ("because" in answer["error"]["message"]) == (upstream_status in (400, 422, 429))


@pytest.mark.parametrize("stream", [False, True])
async def test_client_leaves_and_the_engine_is_told_at_once(serve: Serve, stream: bool) -> None:
    async with serve() as keel:
        stall = fake.stream(["one "], stall_after=1) if stream else fake.stall_before_headers()
        keel.upstream.script(stall)
        asking = asyncio.create_task(keel.stream() if stream else keel.chat())
        await until(lambda: keel.upstream.requests)
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait_for(keel.upstream.aborted.wait(), 1)
        await asyncio.sleep(0.05)
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_requests_total{model="plain",state="aborted"} 1.0' in page


async def test_completions(serve: Serve) -> None:
    choice = {"index": 0, "text": " world", "finish_reason": "stop", "logprobs": None}
    async with serve() as keel:
        keel.upstream.script(
            fake.answer({"id": "c", "object": "text_completion", "model": "fake", "choices": [choice]})
        )
        status, answer, _ = await keel.post("/v1/completions", {"model": "plain", "prompt": [1, 2, 3]})
        assert status == 200
        assert answer["choices"][0]["text"] == " world"
        assert answer["model"] == "plain"


async def test_embeddings(serve: Serve) -> None:
    async with serve() as keel:
        reply = {
            "object": "list",
            "model": "fake",
            "data": [{"embedding": [0.5]}],
            "usage": {"total_tokens": 2},
        }
        keel.upstream.script(fake.answer(reply))
        body = {"model": "plain", "input": ["a"], "dimensions": 3}
        status, answer, _ = await keel.post("/v1/embeddings", body)
        assert status == 200
        assert answer == {**reply, "model": "plain"}
        assert keel.upstream.requests[0].json == {"model": "fake", "input": ["a"], "dimensions": 3}


async def test_raw_bytes_of_a_stream(serve: Serve) -> None:
    async with serve() as keel:
        body = b'{"model":"plain","stream":true,"messages":[{"role":"user","content":"x"}]}'
        reader, writer = await asyncio.open_connection("127.0.0.1", keel.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        raw = await reader.read()
        writer.close()
        head, _, rest = raw.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-type: text/event-stream; charset=utf-8" in head
        assert b"transfer-encoding: chunked" in head
        assert rest.endswith(b"0\r\n\r\n")
        payload = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            payload, rest = payload + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        assert events(payload)[-1] == b"[DONE]"

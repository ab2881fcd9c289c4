"""Traces, received by a real OTLP receiver over HTTP and read with the protocol's own types.

The receiver is ours, built on the official `opentelemetry-proto`: what it takes, a collector takes.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp.web
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names

from service.app import tracing_of
from service.settings import Settings
from service.telemetry.tracing import active, engine_span, span
from tests.fakes import upstream as fake
from tests.fakes.upstream import FakeUpstream
from tests.service.alignment.reward_server import choosing, scoring
from tests.service.alignment.roles import Troupe, words_are_violations
from tests.service.conftest import Running, Serve

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
GUARDED = """
input: [{guard: patterns, patterns: ['in-secret'], action: block}]
output: [{guard: patterns, patterns: ['out-secret'], action: block}]
"""


class Receiver:
    """What arrived, by the span's name."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.raw = b""
        self.url = ""

    async def take(self, request: aiohttp.web.Request) -> aiohttp.web.Response:
        assert request.content_type == "application/x-protobuf"
        body = await request.read()
        if request.headers.get("content-encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        message = ExportTraceServiceRequest.FromString(body)
        self.raw += body
        self.headers.append(dict(request.headers))
        for resource in message.resource_spans:
            self.resources.append(attributes(resource.resource.attributes))
            for scope in resource.scope_spans:
                self.spans += scope.spans
        answer = ExportTraceServiceResponse().SerializeToString()
        return aiohttp.web.Response(body=answer, content_type="application/x-protobuf")

    def one(self, name: str) -> Span:
        (found,) = self.all(name)
        return found

    def all(self, name: str) -> list[Span]:
        return [one for one in self.spans if one.name == name]

    def below(self, parent: Span) -> list[str]:
        children = [one for one in self.spans if one.parent_span_id == parent.span_id]
        return [one.name for one in sorted(children, key=lambda one: one.start_time_unix_nano)]


def attributes(pairs: Any) -> dict[str, Any]:
    def value(any_value: Any) -> Any:
        kind = any_value.WhichOneof("value")
        if kind == "array_value":
            return [value(one) for one in any_value.array_value.values]
        return getattr(any_value, kind)

    return {pair.key: value(pair.value) for pair in pairs}


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    here = Receiver()
    site = aiohttp.web.Application()
    site.router.add_post("/v1/traces", here.take)
    runner = aiohttp.web.AppRunner(site)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    here.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    try:
        yield here
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def traced(
    serve: Serve, policies: dict[str, str], **more: Any
) -> AsyncIterator[tuple[Running, Receiver]]:
    """A gateway that sends its traces; they are there when the block has ended."""
    async with receiver() as here, serve(policies, tracing={"endpoint": here.url, **more}) as keel:
        yield keel, here


async def test_a_request_is_a_trace_from_the_caller_to_the_engine(serve: Serve) -> None:
    async with traced(serve, {"guarded": GUARDED}, headers={"x-tenant": "keel-tests-key"}) as (keel, here):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
        body = {
            "model": "guarded",
            "messages": [{"role": "user", "content": "hello zanzibar"}],
            "max_tokens": 9,
        }
        for stream in (False, True):
            keel.upstream.script(fake.well_behaved("a reply of madagascar"))
            async with keel.session.post(
                keel.url + "/v1/chat/completions", json={**body, "stream": stream}, headers=headers
            ) as response:
                assert response.status == 200
                await response.read()
        engines = [request.headers["traceparent"].split("-") for request in keel.upstream.requests]
    whole, streamed = here.all("chat guarded")
    for root, engine, sent in zip((whole, streamed), here.all("chat fake"), engines, strict=True):
        assert root.trace_id.hex() == engine.trace_id.hex() == sent[1] == TRACE
        assert root.parent_span_id.hex() == PARENT
        assert engine.parent_span_id == root.span_id
        assert engine.span_id.hex() == sent[2]
        assert (root.kind, engine.kind) == (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT)
        assert sorted(here.below(root)) == ["chat fake", "guards input", "guards output"]
        assert root.start_time_unix_nano <= engine.start_time_unix_nano < engine.end_time_unix_nano
        assert engine.end_time_unix_nano <= root.end_time_unix_nano
    found = attributes(whole.attributes)
    assert found[names.GEN_AI_OPERATION_NAME] == "chat"
    assert found[names.GEN_AI_REQUEST_MODEL] == "guarded"
    assert found[names.GEN_AI_PROVIDER_NAME] == "keel"
    assert found[names.GEN_AI_REQUEST_MAX_TOKENS] == 9
    assert found[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 4
    assert found["keel.state"] == "finished"
    assert attributes(streamed.attributes)[names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] > 0
    event = attributes(here.all("guards input")[0].events[0].attributes)
    assert (event["keel.guard.name"], event["keel.guard.action"]) == ("patterns", "allow")
    assert here.resources[0]["service.name"] == "keel"
    assert here.headers[0]["x-tenant"] == "keel-tests-key"
    assert b"zanzibar" not in here.raw and b"madagascar" not in here.raw
    used = {key for one in here.spans for key in attributes(one.attributes) if key.startswith("gen_ai.")}
    known = {getattr(names, name) for name in dir(names) if name.startswith("GEN_AI_")}
    assert used <= known


async def test_blocks_and_failures_are_told_without_their_texts(serve: Serve) -> None:
    async with traced(serve, {"guarded": GUARDED}) as (keel, here):
        assert (await keel.chat("an in-secret of zanzibar", "guarded"))[0] == 400
        keel.upstream.script(fake.well_behaved("an out-secret of zanzibar"))
        await keel.stream("hello", "guarded")
        keel.upstream.script(fake.status(400, "zanzibar is not a parameter"))
        assert (await keel.chat("hello", "plain"))[0] == 400
    blocked, withheld = here.all("chat guarded")
    assert attributes(blocked.attributes)["keel.state"] == "blocked"
    assert here.below(blocked) == ["guards input"]
    assert attributes(withheld.attributes)["keel.state"] == "blocked"
    guard = attributes(here.one("guards output").events[0].attributes)
    assert (guard["keel.guard.action"], guard["keel.guard.findings"]) == ("block", 1)
    failed = here.one("chat plain")
    assert failed.status.code == 2
    assert attributes(failed.attributes)["error.type"]
    assert b"zanzibar" not in here.raw


async def test_reranking_and_revision_have_their_engines_below_them(serve: Serve) -> None:
    troupe = Troupe(judge=words_are_violations(["first"], "no-abuse"))
    async with (
        FakeUpstream(scoring(lambda text: [float(len(text))])) as reward,
        FakeUpstream(choosing("a", "ccc", "bb")) as several,
        FakeUpstream(troupe) as actors,
    ):
        server = json.dumps({"upstream": {"base_url": reward.base_url, "model": "judge"}})
        policies = {
            "best": f'model: {{upstream: {{base_url: "{several.base_url}/v1", model: many}}}}\n'
            f"rerank: {{model: {server}, n: 3}}\n",
            "kind": f'model: {{upstream: {{base_url: "{actors.base_url}/v1", model: actor}}}}\n'
            "revise: {constitution: harmless, when: always}\n",
        }
        async with traced(serve, policies) as (keel, here):
            assert (await keel.chat(model="best"))[0] == 200
            assert (await keel.chat(model="kind"))[0] == 200
    rerank, revise = here.one("rerank"), here.one("revise")
    assert here.below(rerank)[0] == "chat many"
    assert "/classify judge" in here.below(rerank)
    assert attributes(rerank.attributes)["keel.rerank.candidates"] == 3
    assert here.below(here.one("chat best"))[0] == "rerank"
    assert here.below(revise) == ["chat actor"] * 4  # the reply, its critique, the revision, its critique
    assert attributes(revise.attributes)["keel.revise.outcomes"] == ["revised"]


async def test_sampling_and_a_receiver_that_is_gone(serve: Serve) -> None:
    async with traced(serve, {}, sample_rate=0.0) as (keel, here):
        await keel.chat()
        assert "traceparent" not in keel.upstream.requests[0].headers
        await keel.post(
            "/v1/chat/completions",
            {"model": "plain", "messages": [{"role": "user", "content": "x"}]},
            {"traceparent": f"00-{TRACE}-{PARENT}-01"},
        )
    assert [one.trace_id.hex() for one in here.all("chat plain")] == [TRACE]  # the caller's word counts
    async with serve(tracing={"endpoint": "http://127.0.0.1:9/v1/traces"}) as keel:
        assert (await keel.chat())[0] == 200


def test_off_there_is_nothing() -> None:
    assert tracing_of(Settings.load(None)) is None
    assert active() is None
    assert engine_span("/v1/chat/completions", b"{}") is None
    assert span("one") is span("other")  # no object is made
    code = "import sys, service.app, service.serve; print(*(m for m in sys.modules if 'opentelemetry' in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("endpoint", ["collector:4318", "ftp://x"])
def test_an_endpoint_is_a_url(endpoint: str) -> None:
    with pytest.raises(Exception, match="endpoint"):
        Settings.load(None, tracing={"endpoint": endpoint})

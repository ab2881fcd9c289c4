"""The upstream client on real sockets: whole replies, against an upstream that does everything wrong."""

from __future__ import annotations

import json

import pytest

from service.engine.client import UpstreamClient, end_to_end
from service.engine.config import SizeLimits, UpstreamConfig
from service.engine.errors import (
    ConnectError,
    Interrupted,
    ProtocolError,
    UpstreamStatusError,
)
from tests.fakes import upstream as fake
from tests.fakes.upstream import Exchange, FakeUpstream
from tests.service.engine.clients import PATH, TIMES, body, connected, texts

# Whole replies


async def test_a_whole_reply() -> None:
    async with connected() as (client, server):
        sent = body(extra_field={"x": "é😀"})
        reply = await client.complete(PATH, sent)
        assert reply.status == 200
        assert json.loads(reply.body)["choices"][0]["message"]["content"] == "Hello there, friend."
        assert server.requests[0].body == sent
        assert server.requests[0].path == PATH
        assert server.requests[0].headers["content-type"] == "application/json"


async def test_connections_are_reused() -> None:
    async with connected() as (client, server):
        for _ in range(5):
            await client.complete(PATH, body())
            assert await texts(client)
        # A request that comes between a stream's [DONE] and its end takes a second one.
        assert server.connections <= 2


async def test_get_needs_no_body() -> None:
    async with connected() as (client, server):
        reply = await client.complete("/v1/models", None, method="GET")
        assert json.loads(reply.body)["object"] == "list"
        assert server.requests[0].method == "GET"


async def test_a_large_body_arrives_whole() -> None:
    async with connected() as (client, server):
        sent = body(filler="x" * 3_000_000)
        await client.complete(PATH, sent)
        assert server.requests[0].body == sent


async def test_only_harmless_headers_are_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream")
    async with connected(api_key_env="UPSTREAM_KEY") as (client, server):
        await client.complete(
            PATH,
            body(),
            {
                "X-Request-Id": "r1",
                "traceparent": "00-1",
                "Authorization": "Bearer gateway-key",
                "X-Api-Key": "gateway-key",
                "Cookie": "a=b",
                "Connection": "close",
                "Transfer-Encoding": "chunked",
                "Host": "evil",
                "Accept-Encoding": "gzip",
                "X-Split": "a\r\nX-Injected: b",
            },
        )
        headers = server.requests[0].headers
        assert headers["x-request-id"] == "r1"
        assert headers["traceparent"] == "00-1"
        assert headers["authorization"] == "Bearer sk-upstream"
        assert headers["accept-encoding"] == "identity"
        assert headers["host"] == server.base_url.removeprefix("http://")
        forbidden = {"cookie", "connection", "transfer-encoding", "x-api-key", "x-split", "x-injected"}
        assert not forbidden & headers.keys()
        assert "gateway-key" not in headers.values()


def test_a_key_that_is_not_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UPSTREAM_KEY", raising=False)
    with pytest.raises(ValueError, match="'UPSTREAM_KEY' must hold its API key"):
        UpstreamClient(UpstreamConfig("fake", "http://127.0.0.1:1", api_key_env="UPSTREAM_KEY"))


def test_a_key_does_not_show() -> None:
    assert "sk-secret" not in repr(UpstreamConfig("fake", "http://127.0.0.1:1", api_key="sk-secret"))


@pytest.mark.parametrize("url", ["127.0.0.1:1", "ftp://h", "http://u:p@h", "http://h?q=1", "http://"])
def test_a_wrong_base_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        UpstreamConfig("fake", url)


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_base_url_may_name_the_version(suffix: str) -> None:
    async with FakeUpstream() as server:
        client = UpstreamClient(UpstreamConfig("fake", server.base_url + suffix), TIMES)
        await client.open()
        await client.complete(PATH, body())
        await client.close()
        assert server.requests[0].path == PATH


async def test_response_headers_that_may_be_passed_on() -> None:
    reply_headers = {"Connection": "X-Hop, close", "X-Hop": "1", "Set-Cookie": "a=b", "X-Keep": "yes"}
    async with connected(fake.answer({}, headers=reply_headers)) as (client, _):
        kept = end_to_end((await client.complete(PATH, body())).headers)
        assert kept["x-keep"] == "yes"
        assert kept["content-type"] == "application/json"
        assert not {"connection", "x-hop", "set-cookie", "content-length"} & {k.lower() for k in kept}


# Statuses


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("code", "retryable", "counts"),
    [(400, False, False), (429, False, False), (500, False, True), (503, True, True), (307, False, False)],
)
async def test_statuses(streamed: bool, code: int, retryable: bool, counts: bool) -> None:
    async with connected(fake.status(code, "because", retry_after=2.5)) as (client, server):
        with pytest.raises(UpstreamStatusError) as caught:
            await (texts(client) if streamed else client.complete(PATH, body()))
        error = caught.value
        assert (error.status, error.retry_after, error.upstream) == (code, 2.5, "fake")
        assert json.loads(error.body)["error"]["message"] == "because"
        assert (error.retryable, error.counts_against_upstream) == (retryable, counts)
        assert "because" not in str(error)
        await client.complete(PATH, body())
        assert server.connections == 1  # an error's connection is as good as any


async def test_an_endless_error_body_is_cut() -> None:
    big = fake.status(500, "x" * 500_000)
    async with connected(big, sizes=SizeLimits(error_body=1000)) as (client, _):
        with pytest.raises(UpstreamStatusError) as caught:
            await client.complete(PATH, body())
        assert len(caught.value.body) == 1000


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "inf", ""])
async def test_a_useless_retry_after_is_none(value: str) -> None:
    async with connected(fake.answer({}, 503, {"Retry-After": value})) as (client, _):
        with pytest.raises(UpstreamStatusError) as caught:
            await client.complete(PATH, body())
        assert caught.value.retry_after is None


# Connections that fail


async def test_nothing_listens() -> None:
    async with connected() as (client, server):
        await server.stop()
        with pytest.raises(ConnectError) as caught:
            await client.complete(PATH, body())
        assert caught.value.retryable
        assert caught.value.phase == "connect"
        with pytest.raises(ConnectError):
            await texts(client)


async def test_a_client_that_moves() -> None:
    async with connected() as (client, server), FakeUpstream() as other:
        await client.complete(PATH, body())
        client.move(other.base_url)
        await client.complete(PATH, body())
        assert (len(server.requests), len(other.requests)) == (1, 1)


@pytest.mark.parametrize("streamed", [False, True])
async def test_reset_before_the_first_byte_may_be_retried(streamed: bool) -> None:
    async with connected(fake.reset_at_once()) as (client, _):
        with pytest.raises(Interrupted) as caught:
            await (texts(client) if streamed else client.complete(PATH, body()))
        assert caught.value.retryable
        assert not caught.value.bytes_received


async def test_a_body_that_is_too_short() -> None:
    short = fake.raw_bytes(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id":')
    async with connected(short) as (client, _):
        with pytest.raises(Interrupted) as caught:
            await client.complete(PATH, body())
        assert caught.value.bytes_received
        assert not caught.value.retryable


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 2000 X\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n"]
)
async def test_what_is_not_http(streamed: bool, data: bytes) -> None:
    async with connected(fake.raw_bytes(data)) as (client, _):
        with pytest.raises(ProtocolError):
            await (texts(client) if streamed else client.complete(PATH, body()))


async def test_bodies_are_bounded() -> None:
    big = fake.answer({"x": "y" * 100_000})

    async def chunked(exchange: Exchange) -> None:
        await exchange.head(headers={"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
        for _ in range(100):
            await exchange.chunk(b"y" * 1000)
        await exchange.end()

    async with connected(big, chunked, sizes=SizeLimits(body=50_000)) as (client, _):
        for _ in range(2):
            with pytest.raises(ProtocolError, match="above 50000 bytes"):
                await client.complete(PATH, body())


async def test_a_compressed_reply_is_refused() -> None:
    async with connected(fake.answer({}, headers={"Content-Encoding": "gzip"})) as (client, _):
        with pytest.raises(ProtocolError, match="compressed"):
            await client.complete(PATH, body())

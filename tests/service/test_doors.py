"""Keys, limits, readiness, hosts, metrics, health: what stands around the API."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from service.auth import Caller, Callers, KeyFile, KeyFileError, digest
from service.serve import check_exposure
from service.settings import ConfigError, Settings
from tests.fakes import upstream as fake
from tests.service.conftest import Running, Serve, until

KEY, ADMIN = "keel-test-key-0123456789", "keel-admin-key-0123456789"
CHAT = {"model": "plain", "messages": [{"role": "user", "content": "x"}]}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def post_raw(keel: Running, raw: bytes, seconds: float = 5) -> bytes:
    """What the server says to these bytes until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", keel.port)
    writer.write(raw)
    async with asyncio.timeout(seconds):
        answer = await reader.read()
    writer.close()
    return answer


async def test_what_nobody_thought_of_is_an_error_like_any_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(admin_key=ADMIN) as keel:

        async def fails(*_: Any, **__: Any) -> None:
            raise KeyError("a conversation")

        monkeypatch.setattr(keel.gateway.reviews, "list", fails)
        status, body, response = await keel.get("/admin/v1/reviews", bearer(ADMIN))
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (500, "internal_error")
        assert response.headers["x-request-id"] in error["message"]
        assert "conversation" not in error["message"]


# Keys


async def test_api_key_is_required_once_there_is_one(serve: Serve) -> None:
    async with serve(api_keys=[KEY], admin_key=ADMIN) as keel:
        for headers, code in [
            ({}, "missing_api_key"),
            (bearer("keel-wrong"), "invalid_api_key"),
            ({"authorization": f"Basic {KEY}"}, "missing_api_key"),
            (bearer("кл"), "invalid_api_key"),
        ]:
            status, answer, response = await keel.post("/v1/chat/completions", CHAT, headers)
            assert (status, answer["error"]["code"]) == (401, code)
            assert response.headers["www-authenticate"] == "Bearer"
        status, _, _ = await keel.post("/v1/chat/completions", CHAT, bearer(KEY))
        assert status == 200
        assert (await keel.get("/metrics"))[0] == 401
        assert (await keel.get("/health/live"))[0] == 200
        assert (await keel.get("/health/ready"))[0] == 200


async def test_the_clients_key_does_not_reach_the_upstream(serve: Serve) -> None:
    async with serve(api_keys=[KEY]) as keel:
        await keel.post("/v1/chat/completions", CHAT, bearer(KEY))
        assert "authorization" not in keel.upstream.requests[0].headers


async def test_admin_needs_its_own_key(serve: Serve) -> None:
    async with serve(api_keys=[KEY], admin_key=ADMIN) as keel:
        assert (await keel.get("/admin/v1/policies"))[0] == 401
        assert (await keel.get("/admin/v1/policies", bearer(KEY)))[0] == 403
        status, raw, _ = await keel.get("/admin/v1/policies", bearer(ADMIN))
        assert status == 200
        assert json.loads(raw)["policies"][0]["name"] == "plain"
        assert (await keel.get("/admin/v1/checkpoints", bearer(ADMIN)))[0] == 200
    async with serve() as keel:
        assert (await keel.get("/admin/v1/policies"))[0] == 401


def test_key_file_keeps_hashes_only(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "state" / "keys.json")
    key = file.create("ann", requests_per_minute=5)
    assert key.startswith("keel-")
    text = file.path.read_text()
    assert key not in text
    assert key[5:] not in text
    assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(file.path.parent).st_mode) == 0o700
    with pytest.raises(KeyFileError, match="exists"):
        file.create("ann")
    callers = Callers(file)
    assert callers.required
    found = callers.find(key)
    assert found is not None
    assert (found.name, found.requests_per_minute) == ("ann", 5)
    assert callers.find(key + "x") is None
    file.revoke("ann")
    assert callers.refresh()
    assert callers.find(key) is None
    assert callers.required, "revoking the last key must not open the gateway"
    with pytest.raises(KeyFileError, match="no key named 'ann'"):
        file.revoke("ann")


def test_key_file_that_is_damaged(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    for text in ("{", "[]", '{"keys": [{"nom": 1}]}', '{"keys": 3}'):
        file.path.write_text(text)
        with pytest.raises(KeyFileError, match="damaged"):
            file.load()


def test_every_key_is_new() -> None:
    caller = Caller("a", digest("x"))
    assert not caller.limited
    assert digest("x") != digest("y")


def test_public_address_needs_a_key(tmp_path: Path) -> None:
    common: dict[str, Any] = {"state_dir": tmp_path}
    for host in ("0.0.0.0", "::", "192.168.1.5", "keel.example.com"):  # noqa: S104 - that is the point
        with pytest.raises(ConfigError, match="without API keys"):
            check_exposure(Settings.load(None, host=host, **common))
        check_exposure(Settings.load(None, host=host, api_keys=[KEY], **common))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_exposure(Settings.load(None, host=host, **common))
    KeyFile(tmp_path / "keys.json").create("admin", role="admin")
    with pytest.raises(ConfigError):
        check_exposure(Settings.load(None, host="::", **common))


# Limits


async def test_requests_per_minute(serve: Serve) -> None:
    async with serve(api_keys=[KEY], limits={"requests_per_minute": 3}) as keel:
        for left in (2, 1, 0):
            status, _, response = await keel.post("/v1/chat/completions", CHAT, bearer(KEY))
            assert status == 200
            assert response.headers["x-ratelimit-limit-requests"] == "3"
            assert response.headers["x-ratelimit-remaining-requests"] == str(left)
        status, answer, response = await keel.post("/v1/chat/completions", CHAT, bearer(KEY))
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(response.headers["retry-after"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_per_minute(serve: Serve, stream: bool) -> None:
    usage = {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}
    tail = fake.event({"model": "fake", "choices": [], "usage": usage})
    reply = {**fake.completion("hi"), "usage": usage}
    async with serve(api_keys=[KEY], limits={"tokens_per_minute": 10}) as keel:
        keel.upstream.script(
            fake.raw_stream(fake.token("hi", "stop") + tail + fake.DONE) if stream else fake.answer(reply)
        )
        async with keel.session.post(
            keel.url + "/v1/chat/completions", json={**CHAT, "stream": stream}, headers=bearer(KEY)
        ) as response:
            await response.read()
            assert response.status == 200
            assert response.headers["x-ratelimit-remaining-tokens"] == "10"
        status, answer, response = await keel.post("/v1/chat/completions", CHAT, bearer(KEY))
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "tokens" in answer["error"]["message"]
        assert response.headers["x-ratelimit-remaining-tokens"] == "0"


@pytest.mark.parametrize(("choice", "status"), [("refuse", 503), ("admit", 200)])
async def test_limits_whose_storage_is_down(serve: Serve, choice: str, status: int) -> None:
    limits = {"requests_per_minute": 3, "storage": "redis://127.0.0.1:1", "on_storage_failure": choice}
    async with serve(api_keys=[KEY], limits=limits) as keel:
        answered, _, _ = await keel.post("/v1/chat/completions", CHAT, bearer(KEY))
        assert answered == status


@pytest.mark.servers("redis-server")
async def test_gateways_share_limits_through_redis(serve: Serve, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    redis = await asyncio.create_subprocess_exec(
        "redis-server",
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
        stdout=asyncio.subprocess.PIPE,
    )
    assert redis.stdout is not None
    try:
        async with asyncio.timeout(30):
            while b"Ready to accept" not in await redis.stdout.readline():
                pass
        limits = {"requests_per_minute": 2, "storage": f"redis://127.0.0.1:{port}"}
        async with serve(api_keys=[KEY], limits=limits) as one, serve(api_keys=[KEY], limits=limits) as other:
            statuses = [
                (await keel.post("/v1/chat/completions", CHAT, bearer(KEY)))[0]
                for keel in (one, other, one, other)
            ]
        assert statuses == [200, 200, 429, 429]
    finally:
        redis.terminate()
        await redis.wait()


async def test_too_many_in_flight(serve: Serve) -> None:
    async with serve(limits={"max_in_flight": 1}) as keel:
        keel.upstream.script(fake.stall_before_headers())
        first = asyncio.create_task(keel.chat())
        await until(lambda: keel.upstream.requests)
        status, answer, response = await keel.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert (await keel.get("/health/live"))[0] == 200
        first.cancel()
        await until(lambda: keel.upstream.aborts)
        await asyncio.sleep(0.05)
        assert (await keel.chat())[0] == 200


async def test_engine_queue_is_bounded(serve: Serve) -> None:
    engine = {"max_in_flight": 1, "max_waiting": 1, "queue_timeout_s": 0.2}
    async with serve(engine=engine) as keel:
        keel.upstream.default = fake.stall_before_headers()
        stuck = asyncio.create_task(keel.chat())
        await until(lambda: keel.upstream.requests)
        answers = await asyncio.gather(*(keel.post("/v1/chat/completions", CHAT) for _ in range(3)))
        assert {(status, body["error"]["code"]) for status, body, _ in answers} == {
            (503, "engine_overloaded")
        }
        assert all("retry-after" in response.headers for _, _, response in answers)
        stuck.cancel()


# HTTP


async def test_heads_are_bounded_in_size(serve: Serve) -> None:
    async with serve(limits={"max_header_bytes": 2_000}) as keel:
        for raw in (
            b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 3_000 + b"\r\n\r\n",
            b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 3_000,
            b"GET /" + b"a" * 3_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ):
            answer = await post_raw(keel, raw)
            assert answer.startswith(b"HTTP/1.1 431 "), answer[:100]
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


async def test_slow_heads_and_bodies_time_out(serve: Serve) -> None:
    async with serve(limits={"header_timeout_s": 0.2, "body_timeout_s": 0.2}) as keel:
        assert await post_raw(keel, b"") == b""
        answer = await post_raw(keel, b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
        assert answer.startswith(b"HTTP/1.1 408 ")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        answer = await post_raw(keel, head + b"Content-Length: 9\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


async def test_second_request_of_a_connection_has_a_time_limit_too(serve: Serve) -> None:
    async with serve(limits={"header_timeout_s": 0.2}) as keel:
        reader, writer = await asyncio.open_connection("127.0.0.1", keel.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"alive")
        writer.write(b"GET /health/li")
        async with asyncio.timeout(2):
            assert b"HTTP/1.1 408 " in await reader.read()
        writer.close()


async def test_bytes_that_are_not_http(serve: Serve) -> None:
    async with serve() as keel:
        answer = await post_raw(keel, b"\x16\x03\x01 hello\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


async def test_connections_are_bounded(serve: Serve) -> None:
    async with serve(limits={"max_connections": 2}) as keel:
        held = [await asyncio.open_connection("127.0.0.1", keel.port) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert (await post_raw(keel, b"")).startswith(b"HTTP/1.1 503 ")
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        assert (await keel.get("/health/live"))[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example.com"}, 403),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]:1234"}, 200),
        ({"origin": "https://evil.example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
    ],
)
async def test_browsers_of_other_sites_are_turned_away(
    serve: Serve, headers: dict[str, str], status: int
) -> None:
    async with serve() as keel:
        assert (await keel.post("/v1/chat/completions", CHAT, headers))[0] == status
        assert (await keel.get("/health/live", headers))[0] == status
    async with serve(api_keys=[KEY]) as keel:
        assert (await keel.post("/v1/chat/completions", CHAT, {**headers, **bearer(KEY)}))[0] == 200


# Readiness and life


async def test_unready_until_started_and_while_draining(serve: Serve) -> None:
    async with serve(start=False) as keel:
        assert (await keel.get("/health/live"))[0] == 200
        status, raw, _ = await keel.get("/health/ready")
        assert (status, json.loads(raw)["status"]) == (503, "unready")
        status, answer, response = await keel.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (503, "not_ready")
        assert "retry-after" in response.headers
        await keel.gateway.start()
        assert (await keel.get("/health/ready"))[0] == 200
        assert (await keel.chat())[0] == 200
        keel.gateway.draining = True
        assert (await keel.get("/health/ready"))[0] == 503
        assert (await keel.post("/v1/chat/completions", CHAT))[0] == 503


async def test_metrics_and_models(serve: Serve) -> None:
    async with serve() as keel:
        await keel.chat()
        await keel.stream()
        page = (await keel.get("/metrics"))[1].decode()
        for name in (
            'gen_ai_server_request_duration_seconds_count{error_type="",gen_ai_operation_name="chat",',
            "gen_ai_server_time_to_first_token_seconds_count",
            "gen_ai_client_token_usage_count",
            'keel_http_requests_total{method="POST",route="/v1/chat/completions",status="200"} 2.0',
            "keel_overhead_seconds_count",
            'keel_policy_info{digest="',
            "keel_ready 1.0",
        ):
            assert name in page, name
        _, raw, _ = await keel.get("/v1/models")
        assert [model["id"] for model in json.loads(raw)["data"]] == ["plain"]
        _, raw, _ = await keel.get("/v1/models/plain")
        assert json.loads(raw)["object"] == "model"


async def test_policies_are_reloaded_all_or_nothing(serve: Serve, tmp_path: Path) -> None:
    async with serve(admin_key=ADMIN) as keel:
        path = tmp_path / "policies" / "plain.yaml"
        good = path.read_text()
        path.write_text(good + "input:\n  - {guard: patterns, patterns: ['x'], action: block}\n")
        assert (await keel.chat("x"))[0] == 200
        status, answer, _ = await keel.post("/admin/v1/policies/reload", {}, bearer(ADMIN))
        assert (status, answer["ok"], answer["changed"]) == (200, True, ["plain"])
        assert (await keel.chat("x"))[0] == 400
        path.write_text(good + "inputt: []\n")
        status, answer, _ = await keel.post("/admin/v1/policies/reload", {}, bearer(ADMIN))
        assert (status, answer["ok"]) == (409, False)
        assert "plain.yaml:" in answer["errors"][0]
        assert (await keel.chat("x"))[0] == 400
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_policy_reloads_total{outcome="refused"} 1.0' in page
        assert "keel_policy_last_reload_successful 0.0" in page


async def test_requests_in_flight_keep_their_policy(serve: Serve, tmp_path: Path) -> None:
    async with serve() as keel:
        keel.upstream.script(fake.stream(["one ", "two "], delay=0.3))
        streaming = asyncio.create_task(keel.stream())
        await until(lambda: keel.upstream.requests)
        path = tmp_path / "policies" / "plain.yaml"
        path.write_text(
            path.read_text() + "output:\n  - {guard: patterns, patterns: ['two'], action: block}\n"
        )
        assert (await keel.gateway.reload_policies()).ok
        assert b'"two "' in b"".join(await streaming)
        keel.upstream.script(fake.stream(["one ", "two "]))
        assert b"two" not in b"".join(await keel.stream())


async def test_probes_are_counted_by_their_route_and_logged_for_debugging_only(
    serve: Serve, log_text: io.StringIO
) -> None:
    async with serve() as keel:
        await keel.get("/health/ready")
        await keel.get("/nowhere/to/be/found")
        await keel.chat()
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_http_requests_total{method="GET",route="/health/ready",status="200"} 1.0' in page
        assert 'keel_http_requests_total{method="GET",route="other",status="404"} 1.0' in page
    lines = [json.loads(line) for line in log_text.getvalue().splitlines() if '"request"' in line]
    levels = {line["route"]: line["level"] for line in lines if line.get("event") == "request"}
    assert levels["/health/ready"] == "debug"
    assert levels["/v1/chat/completions"] == "info"

"""The managed vLLM's door: every route of the real one, asked without its key and with wrong ones."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.fixtures_vllm import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

# What strangers must least of all reach: it loads paths, stops the engine, or generates past vLLM's own key.
DANGEROUS = {
    "/collective_rpc",
    "/pause",
    "/resume",
    "/sleep",
    "/reset_prefix_cache",
    "/update_weights",
    "/invocations",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/chat/completions",
}
# Not in the description that vLLM gives of itself.
UNTOLD = (
    "/",
    "/docs",
    "/metrics",
    "/ping",
    "/openapi.json",
    "/static/swagger-ui.css",
    "/nothing",
    "/v1/../sleep",
)


def wrong(key: str) -> dict[str, dict[str, str]]:
    """Headers that open nothing, by what is wrong with them."""
    return {
        "none": {},
        "another": {"Authorization": "Bearer guess"},
        "bare": {"Authorization": key},
        "cut": {"Authorization": f"Bearer {key[:-1]}"},
        "longer": {"Authorization": f"Bearer {key}x"},
        "scheme": {"Authorization": f"Basic {key}"},
        "elsewhere": {"X-Api-Key": key, "Api-Key": key, "Cookie": f"Authorization=Bearer {key}"},
    }


async def test_no_route_opens_without_the_key(vllm_server: VllmServer) -> None:
    key = {"Authorization": f"Bearer {vllm_server.api_key}"}
    async with aiohttp.ClientSession(vllm_server.base_url) as session:
        async with session.get("/openapi.json", headers=key) as response:
            described: dict[str, dict[str, Any]] = (await response.json())["paths"]
        assert described.keys() >= DANGEROUS
        routes = [(method.upper(), path) for path, about in described.items() for method in about]
        routes += [(method, path) for path in UNTOLD for method in ("GET", "POST", "OPTIONS")]

        async def ask(method: str, path: str, why: str, headers: dict[str, str]) -> tuple[str, ...] | None:
            body = None if method == "GET" else {}
            asking = session.request(method, path, headers=headers, json=body, allow_redirects=False)
            async with asking as response:
                said = await response.text()
            if (response.status, said) == (401, '{"error":"Unauthorized"}'):
                return None
            return (method, path, why, str(response.status), said[:200])

        asked = [
            ask(method, path.replace("{", "").replace("}", ""), why, headers)
            for method, path in routes
            for why, headers in wrong(vllm_server.api_key).items()
        ]
        assert [opened for opened in await asyncio.gather(*asked) if opened] == []

        # Its sockets neither; and nothing of all this has stopped it.
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect("/v1/realtime")
        for path, name in (("/is_paused", "is_paused"), ("/is_sleeping", "is_sleeping")):
            async with session.get(path, headers=key) as response:
                assert (await response.json())[name] is False
        body = {"model": vllm_server.model, "prompt": "Hello", "max_tokens": 2}
        async with session.post("/v1/completions", json=body, headers=key) as response:
            assert response.status == 200

"""The OpenAPI document is true: a fuzzer that reads it finds nothing."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.fakes.upstream import (
    DONE,
    Exchange,
    FakeUpstream,
    answer,
    completion,
    raw_stream,
    token,
    well_behaved,
)
from tests.service.threaded import threaded_gateway

ADMIN = "keel-admin-key-0123456789"
POLICY = """model: {upstream: {base_url: "%s/v1", model: fake}}
input: [{guard: patterns, patterns: ['[0-9]{9}'], action: redact}]
"""


async def engine(exchange: Exchange) -> None:
    """Answers each of the API's paths in its own form."""
    path, body = exchange.request.path, exchange.request
    if path == "/v1/completions" and not body.json.get("stream"):
        choice = {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": None}
        reply = {"id": "c", "object": "text_completion", "created": 1, "model": "fake", "choices": [choice]}
        await answer(reply)(exchange)
    elif path == "/v1/embeddings":
        await answer({"object": "list", "data": [], "model": "fake"})(exchange)
    elif body.method == "POST" and not body.json.get("stream"):
        await answer(completion("Hello."))(exchange)
    elif body.method == "POST":
        count = (body.json.get("n") or 1) * (len(body.json["prompt"]) if "prompt" in body.json else 1)
        ends = b"".join(token("", "stop", index) for index in range(count))
        await raw_stream(token("Hello") + ends + DONE)(exchange)
    else:
        await well_behaved()(exchange)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway and its upstream on threads of their own: the fuzzer blocks."""
    folder = tmp_path_factory.mktemp("openapi")
    with threaded_upstream() as upstream:
        settings = {"checkpoints": folder / "checkpoints", "admin_key": ADMIN}
        with threaded_gateway(folder, {"plain": POLICY % upstream}, **settings) as gateway:
            yield gateway


@contextlib.contextmanager
def threaded_upstream() -> Iterator[str]:
    up, stop, urls = threading.Event(), threading.Event(), list[str]()

    async def serve() -> None:
        async with FakeUpstream(engine) as upstream:
            urls.append(upstream.base_url)
            up.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    up.wait()
    yield urls[0]
    stop.set()
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_fuzzer_finds_nothing(url: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/checks", "/metrics"}
    for operation in operations:
        try_out(operation.as_strategy(generation_mode=mode), mode)


def try_out(cases: SearchStrategy[Case], mode: GenerationMode) -> None:
    # The same cases each time: now and then one breaks the schema only by a query parameter nobody reads.
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    @given(cases)
    def check(case: Case) -> None:
        # A name that is no policy's would give nothing but a 404.
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "plain"
        # A schema can't say all that a policy refuses (so many choices, token ids under guards).
        case.call_and_validate(
            headers={"Authorization": f"Bearer {ADMIN}"}, excluded_checks=[positive_data_acceptance]
        )

    with contextlib.suppress(Unsatisfiable):  # nothing can be wrong where nothing is asked for
        check()

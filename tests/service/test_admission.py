"""Too much load is turned away at the door: at once, at no cost, and told when to come again."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from service.admission import Admission
from service.engine.errors import Overloaded, Refused
from service.engine.errors import Unavailable as NoEngine
from service.openai.errors import Unavailable
from service.telemetry.metrics import Metrics
from tests.fakes import upstream as fake
from tests.service.conftest import Serve, until

CHAT = {"model": "plain", "messages": [{"role": "user", "content": "Hello"}]}
COUNTING = "input:\n  - {guard: patterns, patterns: ['hello'], action: redact}\n"


class Engine:
    """Refuses when it is full; remembers how many it was told are coming."""

    def __init__(self) -> None:
        self.refusal: Refused | None = None
        self.coming = -1

    def check(self, coming: int = 0) -> None:
        self.coming = coming
        if self.refusal is not None:
            raise self.refusal


class Workers:
    """Takes a second over each text that waits."""

    def __init__(self) -> None:
        self.queued = 0

    def expected_wait(self, coming: int = 0) -> float:
        return float(max(self.queued, coming))


def policy(engine: Engine, patience: float = 8.0) -> Any:
    return SimpleNamespace(target=SimpleNamespace(engine=engine), patience=patience)


def admission_of(*policies: Any) -> tuple[Admission, Workers]:
    workers: Any = Workers()
    return Admission(workers, Metrics(), lambda: policies), workers


def test_a_text_may_wait_a_quarter_of_its_guards_deadline() -> None:
    served = policy(Engine(), patience=8.0)
    admission, workers = admission_of(served)
    workers.queued = 2
    admission.check(served)
    workers.queued = 3
    with pytest.raises(Unavailable) as caught:
        admission.check(served)
    assert (caught.value.code, caught.value.retry_after) == ("overloaded", 3.0)
    admission.check(policy(Engine(), patience=float("inf")))  # without workers there is no wait


def test_those_who_were_let_in_count_until_they_ask_the_engine() -> None:
    engine = Engine()
    served = policy(engine)
    admission, _ = admission_of(served)
    with admission.on_the_way(served), admission.on_the_way(served):
        admission.check(served)
        assert engine.coming == 2
        with admission.on_the_way(served), pytest.raises(Unavailable):
            admission.check(served)  # three texts to examine, before any of them has reached a worker
    admission.check(served)
    assert engine.coming == 0


def test_before_the_body_is_read_only_those_are_refused_whom_no_policy_would_take() -> None:
    full, free = Engine(), Engine()
    full.refusal = Overloaded("full", retry_after=7)
    admission, _ = admission_of(policy(full), policy(free))
    admission.check_all()
    free.refusal = Overloaded("full", retry_after=7)
    with pytest.raises(Unavailable) as caught:
        admission.check_all()
    assert (caught.value.code, caught.value.retry_after) == ("engine_overloaded", 7)


def test_who_is_refused_for_want_of_an_engine_is_counted_apart() -> None:
    metrics, workers = Metrics(), Workers()
    engine = Engine()
    served = policy(engine)
    admission = Admission(workers, metrics, lambda: [served])  # type: ignore[arg-type]
    engine.refusal = NoEngine("all circuits are open", retry_after=7)
    with pytest.raises(Unavailable):
        admission.check_all()
    engine.refusal = Overloaded("full", retry_after=7)
    with pytest.raises(Unavailable):
        admission.check(served)
    for reason in ("no_engine", "overloaded"):
        assert metrics.registry.get_sample_value("keel_requests_rejected_total", {"reason": reason}) == 1


async def test_a_full_gateway_refuses_without_reading_or_examining(serve: Serve) -> None:
    async with serve({"counted": COUNTING}, engine={"max_in_flight": 1, "max_waiting": 0}) as keel:
        keel.upstream.default = fake.stall_before_headers()
        stuck = asyncio.create_task(keel.chat())
        await until(lambda: keel.upstream.requests)
        for body in (CHAT, {**CHAT, "model": "counted"}, b"this is no JSON"):
            status, answer, response = await keel.post("/v1/chat/completions", body)
            assert (status, answer["error"]["code"]) == (503, "engine_overloaded")
            assert int(response.headers["retry-after"]) >= 1
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_requests_rejected_total{reason="overloaded"} 3.0' in page
        assert 'keel_http_requests_total{method="POST",route="/v1/chat/completions",status="503"} 3.0' in page
        assert 'guard="patterns"' not in page
        assert (await keel.get("/v1/models"))[0] == 200  # what needs no engine is answered
        stuck.cancel()


async def test_the_embedded_engine_takes_as_many_as_it_serves_well(serve: Serve) -> None:
    async with serve() as keel:
        (served,) = keel.gateway.catalog.all()
        assert served.target.engine.pool.limits.max_in_flight == 256
    async with serve(engine={"max_in_flight": 9}) as keel:
        (served,) = keel.gateway.catalog.all()
        assert served.target.engine.pool.limits.max_in_flight == 9


async def test_a_guard_that_is_late_withholds_but_says_that_nothing_was_found(serve: Serve) -> None:
    late = "input:\n  - {guard: injection, threshold: 0.9, action: block, deadline_ms: 1}\n"
    async with serve({"late": late}) as keel:
        status, answer, response = await keel.post("/v1/chat/completions", {**CHAT, "model": "late"})
        assert (status, answer["error"]["code"]) == (503, "guard_failed")
        assert int(response.headers["retry-after"]) >= 1
        page = (await keel.get("/metrics"))[1].decode()
        assert 'keel_guard_errors_total{guard="injection",reason="timeout",stage="input"} 1.0' in page
        assert 'keel_requests_total{model="late",state="failed"} 1.0' in page

"""A real Prometheus scrapes a gateway under load, its own vLLM included: every panel shows something.

Each request below is there for a panel: what is blocked, what fails, what is reranked, revised, retried.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest

from service.auth import KeyFile
from tests.fakes.upstream import FakeUpstream, answer, reset_at_once, status
from tests.monitoring.prometheus import Prometheus, prometheus
from tests.monitoring.test_dashboards import BOARDS, board, panels
from tests.service.alignment.reward_server import choosing, scoring
from tests.service.alignment.roles import Troupe, words_are_violations
from tests.service.conftest import Running, Serve
from training.textfile import exposition

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.servers("prometheus"),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parents[2]
KEY = "an-api-key-of-length"
ADMIN = "an-admin-key-of-length"
SECONDS = 150.0
WINDOW = "30s"  # for `$__rate_interval`: several rounds of requests on a machine that is busy otherwise

GUARDED = r"""
input:
  - {guard: injection, threshold: 0.9, action: block, deadline_ms: 30000}
  - {guard: patterns, patterns: ['in-secret'], action: block}
output:
  - {guard: toxicity, threshold: 0.9, action: block, deadline_ms: 30000}
  - {guard: patterns, patterns: ['out-secret'], action: block}
  - {guard: patterns, label: word, patterns: ['friend'], action: redact}
"""
REVIEWED = """
input: [{guard: patterns, patterns: ['doubtful'], action: block}]
review: {items: withheld}
feedback: {}
"""
LATE_GUARD = "input: [{guard: injection, threshold: 0.9, action: block, deadline_ms: 1}]\n"


CASCADE = "input: [{guard: injection, threshold: 0.9, action: block, cascade: true, deadline_ms: 30000}]\n"
ARMS = "arms: [{name: control, policy: plain}, {name: guarded, policy: guarded}]\n"
SHADOWED = f"name: tone\n{ARMS}shadows: [{{name: copy, policy: plain, share: 1}}]\n"


def model(upstream: FakeUpstream) -> str:
    return f'model: {{upstream: {{base_url: "{upstream.base_url}/v1", model: fake}}}}\n'


def rerank(reward: FakeUpstream, **settings: Any) -> str:
    server = {"upstream": {"base_url": reward.base_url, "model": "judge"}}
    return f"rerank: {json.dumps({'model': server, 'n': 3, **settings})}\n"


def scorer(reward: FakeUpstream) -> str:
    server = {"upstream": {"base_url": reward.base_url, "model": "judge"}}
    return f"scorer: {json.dumps({'model': server})}\n"


def longer_is_better(text: str) -> list[float]:
    return [len(text.rpartition("<assistant>")[2]) / 4 - 1]


def revise(**settings: Any) -> str:
    return f"revise: {json.dumps({'constitution': 'harmless', 'when': 'always', **settings})}\n"


@contextlib.asynccontextmanager
async def scene(serve: Serve, tmp_path: Path) -> AsyncIterator[tuple[Running, FakeUpstream]]:
    """A gateway with a policy for every kind of panel, and an upstream that fails when it is told to."""
    slow = KeyFile(tmp_path / "state" / "keys.json").create("slow", requests_per_minute=1)
    shutil.copytree(ROOT / "checkpoints", tmp_path / "checkpoints")  # an alias is moved in it
    (tmp_path / "experiments").mkdir()
    troupe = Troupe(model=["You fool, go away."], judge=words_are_violations(["fool"], "no-abuse"))
    async with (
        FakeUpstream(choosing("a", "ccc ccc ccc", "bb bb")) as several,
        FakeUpstream(scoring(longer_is_better)) as reward,
        FakeUpstream(status(500)) as no_reward,
        FakeUpstream(troupe) as actors,
        FakeUpstream(Troupe(judge=[answer({"no": "completion"})])) as no_judge,
        FakeUpstream(status(500)) as broken,
        FakeUpstream() as flaky,
    ):
        policies = {
            "engine": "model: {checkpoint: demo-chat}\n",
            "guarded": GUARDED,
            "late": LATE_GUARD,
            "cascade": CASCADE,
            "reviewed": REVIEWED,
            "best": model(several) + rerank(reward, store_pairs=True),
            "refusing": model(several) + rerank(reward, below="refuse", accept=1_000),
            "unscored": model(several) + rerank(no_reward),
            "revised": model(actors) + revise(store=True),
            "unjudged": model(no_judge) + revise(),
            "broken": model(broken),
            "flaky": model(flaky),
        }
        (tmp_path / "experiments" / "tone.yaml").write_text(SHADOWED + scorer(reward))
        (tmp_path / "experiments" / "vain.yaml").write_text(f"name: vain\n{ARMS}" + scorer(no_reward))
        async with serve(
            policies,
            api_keys=[KEY],
            admin_key=ADMIN,
            checkpoints=tmp_path / "checkpoints",
            experiments=[tmp_path / "experiments"],
            drift={"every_s": 0.5, "reference_samples": 20, "min_samples": 5},
        ) as keel:
            keel.session.headers["authorization"] = f"Bearer {KEY}"
            keel.slow_key = slow  # type: ignore[attr-defined]
            yield keel, flaky


def round_of(keel: Running, flaky: FakeUpstream, number: int) -> list[Callable[[], Awaitable[Any]]]:
    """The requests of one round, made side by side."""
    admin = {"authorization": f"Bearer {ADMIN}"}
    slow = {"authorization": f"Bearer {keel.slow_key}"}  # type: ignore[attr-defined]
    story = {"max_tokens": 24, "ignore_eos": True, "temperature": 0.7}

    async def flaky_once() -> None:
        flaky.script(reset_at_once())
        await keel.chat(model="flaky")

    async def leave_early() -> None:
        body = {"model": "engine", "stream": True, "max_tokens": 400, "ignore_eos": True}
        body["messages"] = [{"role": "user", "content": f"Story {number}"}]
        async with keel.session.post(keel.url + "/v1/chat/completions", json=body) as response:
            await response.content.readany()

    async def feedback() -> None:
        _, answer = await keel.chat(model="reviewed")
        body = {"completion_id": answer["id"], "thumb": "up", "rater": f"user-{number}"}
        await keel.post("/v1/feedback", body)

    async def review() -> None:
        await keel.chat(f"doubtful {number}", "reviewed")
        items = json.loads((await keel.get("/admin/v1/reviews", admin))[1])["items"]
        if items and number % 3:
            decision = {"decision": ("upheld", "overturned")[number % 2]}
            await keel.post(f"/admin/v1/reviews/{items[0]['id']}", decision, admin)

    return [
        feedback,
        review,
        lambda: keel.chat(f"Tell me of day {number}.", "engine", **story),
        lambda: keel.stream(f"Tell me of night {number}.", "engine", **story),
        lambda: keel.chat(
            "Tell me of always the same thing, at some length, so that it is cached.", "engine"
        ),
        lambda: keel.chat(f"Hello {number}", "guarded"),
        lambda: keel.stream(f"Hello again {number}", "guarded"),
        lambda: keel.chat("an in-secret", "guarded"),
        lambda: keel.chat(f"Is it late? {number}", "late"),
        lambda: keel.chat(f"What did people in Lisbon eat for lunch on day {number}?", "cascade"),
        lambda: keel.chat(model="best"),
        lambda: keel.chat(model="refusing"),
        lambda: keel.chat(model="unscored"),
        lambda: keel.chat(model="revised"),
        lambda: keel.chat(model="unjudged"),
        lambda: keel.chat(model="broken"),
        flaky_once,
        leave_early,
        lambda: keel.get("/admin/v1/drift", admin),
        lambda: keel.post("/admin/v1/policies/reload", {}, admin),
        lambda: keel.post("/v1/chat/completions", {}, slow),
        *(lambda i=i: keel.chat(f"{i}", "tone", user=f"u{i}") for i in range(6)),  # type: ignore[misc]
        lambda: keel.chat(f"{number}", "vain", user=f"u{number}"),
        lambda: keel.post(f"/admin/v1/experiments/tone/{('rollback', 'ramp')[number % 2]}", {}, admin),
        lambda: keel.post("/admin/v1/checkpoints/promote", {"ref": "demo-chat", "alias": "spare"}, admin),
    ]


async def load(keel: Running, flaky: FakeUpstream) -> None:
    """Rounds of requests until it is cancelled."""
    for number in itertools.count():
        await asyncio.gather(*(ask() for ask in round_of(keel, flaky, number)))
        await asyncio.sleep(0.3)


@contextlib.asynccontextmanager
async def training_runs(folder: Path) -> AsyncIterator[str]:
    """Two runs' figures over HTTP, as node-exporter gives its text files; the address."""
    figures = {
        "loss": 0.7,
        "mean_reward": 0.2,
        "accuracy": 0.6,
        "kl": 0.01,
        "learning_rate": 1e-4,
        "grad_norm": 1.0,
    }
    for name in ("dpo", "ppo"):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.jsonl").write_text(json.dumps({"step": 10, **figures}) + "\n")

    async def page(_: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.Response(text=exposition([folder / "dpo", folder / "ppo"]))

    site = aiohttp.web.Application()
    site.router.add_get("/metrics", page)
    runner = aiohttp.web.AppRunner(site)
    await runner.setup()
    await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def queries() -> dict[str, str]:
    """Every query of every panel and variable, by where it stands; Grafana's variables filled in."""
    found: dict[str, str] = {}
    for path in BOARDS:
        content = board(path)
        for panel in panels(content):
            for target in panel["targets"]:
                expr = target["expr"].replace("$__rate_interval", WINDOW)
                expr = re.sub(r"\$(model|instance|experiment|run|figure|engine_model)\b", ".*", expr)
                assert "$" not in expr, expr
                found[f"{path.stem}: {panel['title']} ({panel['type']}) {target['refId']}"] = expr
        for variable in content["templating"]["list"]:
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", str(variable.get("query")))
            if asked is not None:
                found[f"{path.stem}: variable {variable['name']}"] = f"group by ({asked[2]}) ({asked[1]})"
    return found


async def test_every_panel_shows_something(serve: Serve, tmp_path: Path) -> None:
    wanted = queries()
    assert len(wanted) > 100
    async with scene(serve, tmp_path) as (keel, flaky), training_runs(tmp_path / "runs") as runs:
        targets = {"keel": f"127.0.0.1:{keel.port}", "node": runs}
        async with prometheus(tmp_path, targets, key=KEY) as prom:
            loading = asyncio.create_task(load(keel, flaky))
            try:
                missing = await _until_all_have_data(prom, wanted, loading)
                assert sorted(missing) == []
                await _rules_are_healthy(prom)
            finally:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)


async def _until_all_have_data(
    prom: Prometheus, wanted: dict[str, str], loading: asyncio.Task[None]
) -> dict[str, str]:
    """The queries that never showed anything."""
    missing = dict(wanted)
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    while missing and loop.time() < end:
        assert not loading.done(), loading.exception()
        for place, expr in list(missing.items()):
            if await prom.values(expr):
                del missing[place]
        await asyncio.sleep(0.5)
    return missing


async def _rules_are_healthy(prom: Prometheus) -> None:
    groups = (await prom.get("rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
    for name in recorded:
        assert await prom.values(name), name
    firing = {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"}
    assert "KeelGuardErrors" in firing  # the guard whose deadline is a millisecond

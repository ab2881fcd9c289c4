"""The measurements of the gateway; each returns figures, none of them judges."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests.bench import constraints, peers, streams
from loadtests.bench.processes import LOAD_CORE, ROOT, BenchError, Server, free_port, gateway_argv, serve
from loadtests.bench.stub import nginx_stub, words
from loadtests.bench.wrk import Load, chat_body, load

POLICIES = Path(__file__).with_name("policies")
INTERVAL = 0.030


@dataclass(frozen=True)
class Plan:
    """How long to look: `seconds` a run, `repeats` interleaved rounds, `requests` for the memory run."""

    home: Path
    seconds: float = 5.0
    repeats: int = 5
    requests: int = 100_000
    tokens: int = 100
    say: Callable[[str], None] = print


Figures = dict[str, Any]


@contextlib.contextmanager
def _gateway(plan: Plan, upstream: str, name: str = "keel") -> Iterator[Server]:
    port = free_port()
    log = plan.home / f"{name}.log"  # a line for each request, as by default
    argv = gateway_argv(port, upstream, POLICIES)
    with tempfile.TemporaryDirectory() as state:  # the user's own is no business of a benchmark
        env = {"KEEL_STATE_DIR": state}
        with serve(argv, port=port, ready="/health/ready", log=log, env=env) as server:
            yield server


@contextlib.contextmanager
def _baseline(plan: Plan, upstream: str) -> Iterator[Server]:
    port = free_port()
    argv = [
        *(sys.executable, "-m", "uvicorn", "loadtests.bench.baseline:app", "--host", "127.0.0.1"),
        *("--port", str(port), "--log-level", "warning", "--no-access-log"),
    ]
    env = {"BENCH_UPSTREAM": upstream}
    with serve(argv, port=port, ready="/health/live", log=plan.home / "baseline.log", env=env) as server:
        yield server


def _rounds(plan: Plan, targets: dict[str, Callable[[], Load]]) -> dict[str, list[Load]]:
    """Each target once a round, in turn, so that a drift of the machine meets all of them."""
    seen: dict[str, list[Load]] = {name: [] for name in targets}
    for i in range(plan.repeats):
        for name, run in targets.items():
            seen[name].append(run())
            plan.say(f"  round {i + 1}/{plan.repeats} {name}: {seen[name][-1].rate:,.0f} req/s")
    return seen


def _medians(runs: dict[str, list[Load]]) -> Figures:
    return {
        name: {key: statistics.median(asdict(r)[key] for r in rs) for key in ("rate", "p50_ms", "p99_ms")}
        for name, rs in runs.items()
    }


def _ratio(runs: dict[str, list[Load]], over: str, under: str) -> dict[str, float]:
    ratios = [a.rate / b.rate for a, b in zip(runs[over], runs[under], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def _loader(
    plan: Plan, server: Server, model: str, callers: int, headers: dict[str, str] | None = None
) -> Callable[[], Load]:
    body = chat_body(model, words(20))
    return lambda: load(
        server.url, body, callers=callers, seconds=plan.seconds, home=plan.home, headers=headers
    )


def throughput(plan: Plan) -> Figures:
    """No guards, 64 callers: the gateway against a bare FastAPI + aiohttp proxy, in turn."""
    with (
        nginx_stub(plan.home / "nginx") as stub,
        _gateway(plan, stub.url) as keel,
        _baseline(plan, stub.url) as bare,
    ):
        runs = _rounds(
            plan,
            {
                "keel": _loader(plan, keel, "bench-open", 64),
                "fastapi_aiohttp": _loader(plan, bare, "mock", 64),
            },
        )
    return {"runs": _medians(runs), "keel_over_bare": _ratio(runs, "keel", "fastapi_aiohttp")}


def patterns(plan: Plan) -> Figures:
    """Pattern guards in and out, 16 callers: the gateway against LiteLLM's proxy with the same guards."""
    with contextlib.ExitStack() as stack:
        stub = stack.enter_context(nginx_stub(plan.home / "nginx"))
        keel = stack.enter_context(_gateway(plan, stub.url))
        targets = {"keel": _loader(plan, keel, "bench-patterns", 16)}
        missing = ""
        try:
            peer = stack.enter_context(peers.litellm(plan.home / "peers", stub.url))
            key = {"Authorization": f"Bearer {peers.MASTER_KEY}"}
            targets["litellm"] = _loader(plan, peer, "mock", 16, key)
        except BenchError as error:
            missing = str(error)
        runs = _rounds(plan, targets)
    figures: Figures = {"runs": _medians(runs)}
    if "litellm" in runs:
        return figures | {"keel_over_litellm": _ratio(runs, "keel", "litellm")}
    return figures | {"litellm_missing": missing}


def overhead(plan: Plan) -> Figures:
    """One caller: the median latency through the gateway less the median straight to the stub."""
    with nginx_stub(plan.home / "nginx") as stub, _gateway(plan, stub.url) as keel:
        runs = _rounds(
            plan,
            {
                "direct": _loader(plan, stub, "mock", 1),
                "no_guards": _loader(plan, keel, "bench-open", 1),
                "patterns": _loader(plan, keel, "bench-patterns", 1),
            },
        )

    def added(name: str) -> float:
        return statistics.median(a.p50_ms - b.p50_ms for a, b in zip(runs[name], runs["direct"], strict=True))

    return {
        "runs": _medians(runs),
        "added_p50_ms": {"no_guards": added("no_guards"), "patterns": added("patterns")},
    }


def streaming(plan: Plan) -> Figures:
    """64 streams at 30 ms a token through pattern guards, and straight to the same upstream."""
    os.sched_setaffinity(0, {LOAD_CORE})

    async def measure() -> Figures:
        clock = streams.Clock()
        upstream = streams.PacedUpstream(clock, tokens=plan.tokens, interval=INTERVAL)
        port = free_port()
        await upstream.start(port)
        stub = f"http://127.0.0.1:{port}"
        with contextlib.ExitStack() as stack:
            opening = asyncio.to_thread(stack.enter_context, _gateway(plan, stub))
            keel = await opening
            seen: dict[str, list[streams.StreamFigures]] = {}
            for i in range(plan.repeats):
                for name, url, model in (
                    ("direct", stub, "mock"),
                    ("no_guards", keel.url, "bench-open"),
                    ("patterns", keel.url, "bench-patterns"),
                ):
                    run = await streams.follow_all(
                        url, model, clock, streams=64, tag=f"{name}-{i}", interval=INTERVAL
                    )
                    plan.say(f"  round {i + 1}/{plan.repeats} {name}: p99 {run.added_p99_ms:.2f} ms behind")
                    seen.setdefault(name, []).append(run)
            await asyncio.to_thread(stack.close)
        await upstream.aclose()
        keys = ("added_p50_ms", "added_p99_ms", "lag_first", "lag_p99")
        return {
            name: {key: statistics.median(asdict(r)[key] for r in rs) for key in keys}
            for name, rs in seen.items()
        }

    try:
        return asyncio.run(measure())
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def guard_cpu(plan: Plan, requests: int = 200) -> Figures:
    """CPU time per request of the `standard` guards: the family's CPU with them less without them."""
    with (
        nginx_stub(plan.home / "nginx", tokens=64, fresh=True) as stub,
        _gateway(plan, stub.url, "keel-standard") as keel,
    ):
        costs = {}
        for model in ("standard", "open"):
            _ask(keel, model, requests // 10, "warm")
            before = keel.cpu_seconds()
            _ask(keel, model, requests, "counted")
            costs[model] = (keel.cpu_seconds() - before) / requests * 1e3
        resident = keel.resident_mib(children=True)
    argv = ["taskset", "-c", "0", sys.executable, "-m", "loadtests.bench.guardcpu", "20"]
    alone = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603
    if alone.returncode:
        raise BenchError(f"Presidio and BERT-base could not be timed: {alone.stderr[-800:]}")
    peer = float(json.loads(alone.stdout.splitlines()[-1])["cpu_ms"])
    guards = costs["standard"] - costs["open"]
    return {
        "standard_ms": costs["standard"],
        "open_ms": costs["open"],
        "guards_ms": guards,
        "presidio_and_bert_ms": peer,
        "bert_over_guards": peer / guards,
        "resident_with_workers_mib": resident,
    }


def _ask(server: Server, model: str, count: int, tag: str) -> None:
    """`count` requests, each with a prompt of its own; replies differ too: known texts cost nothing."""
    prose = words(98)
    for i in range(count):
        body = chat_body(model, f"{prose} {tag} {model}{i}")
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{server.url}/v1/chat/completions", data=body, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            answer = json.loads(reply.read())
        if answer["choices"][0]["finish_reason"] != "stop":
            raise BenchError(f"plain prose was not answered plainly by {model!r}: {answer}")


def memory(plan: Plan) -> Figures:
    """Resident memory of the gateway process (no workers) over `plan.requests` requests."""
    with nginx_stub(plan.home / "nginx") as stub, _gateway(plan, stub.url) as keel:
        series = [(0, keel.resident_mib())]
        done = 0
        while done < plan.requests:
            run = _loader(plan, keel, "bench-patterns", 16)()
            done += run.requests
            series.append((done, keel.resident_mib()))
            plan.say(f"  {done:,} requests: {series[-1][1]:.1f} MiB")
    return {"series": series, "start_mib": series[0][1], "end_mib": series[-1][1]}


def constrained(plan: Plan) -> Figures:
    """Constraints at generation, at 16 callers."""
    return constraints.measure(plan.home, pairs=4 * plan.repeats, seconds=plan.seconds)


MEASURES: dict[str, Callable[[Plan], Figures]] = {
    "throughput": throughput,
    "patterns": patterns,
    "overhead": overhead,
    "streaming": streaming,
    "guard_cpu": guard_cpu,
    "memory": memory,
    "constraints": constrained,
}

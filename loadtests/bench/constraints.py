"""What constraints at generation cost: tokens a second under rules against the same without, on a real vLLM.

One gateway serves the demo model under both policies, so the engine is the same; turns of so many seconds
alternate, and a ratio is taken for each pair of neighbours. Every caller asks anew as soon as it is answered,
for replies of a fixed number of tokens.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from loadtests.bench.processes import BenchError, free_port, serve

RULES = """constraints:
  - {ban: ["project zephyr", "guaranteed returns", "you idiot"]}
  - {phrases: [damn, hell, stupid, crap], bias: -4, category: profanity}
  - {phrases: ["shut up", "get lost"], bias: -3, half_life: 64, category: abuse}
"""
MODEL = "model: {checkpoint: demo-chat}\n"
QUESTIONS = ("Hello! How are you?", "Tell me about your day.", "What do you like?", "Where do you live?")
CALLERS, TOKENS = 16, 96
TIMEOUT = aiohttp.ClientTimeout(total=120)


def measure(home: Path, pairs: int, seconds: float) -> dict[str, Any]:
    """Tokens/s by policy, and the ratio with its 95 % interval over `pairs` of turns."""
    policies = home / "policies-constraints"
    policies.mkdir(parents=True, exist_ok=True)
    for name, rules in (("free", ""), ("bound", RULES)):
        (policies / f"{name}.yaml").write_text(f"name: {name}\n{MODEL}{rules}")
    port = free_port()
    argv = [
        *(sys.executable, "-m", "service.cli", "serve", "--port", str(port)),
        *("--policies", str(policies)),
    ]
    env = {
        "KEEL_SHIPPED_POLICIES": "false",
        "KEEL_DEFAULT_POLICY": "free",
        "KEEL_STATE_DIR": str(home / "state"),
        "KEEL_LOG__ACCESS": "errors",
    }
    log = home / "constraints.log"
    with serve(argv, port=port, ready="/health/ready", log=log, env=env, patience=600) as server:
        return asyncio.run(_turns(server.url, pairs, seconds))


async def _turns(url: str, pairs: int, seconds: float) -> dict[str, Any]:
    async with aiohttp.ClientSession(url, timeout=TIMEOUT) as session:
        for name in ("free", "bound"):
            await _turn(session, name, seconds)  # warm
        rates: dict[str, list[float]] = {"free": [], "bound": []}
        for number in range(pairs):
            order = ("free", "bound") if number % 2 == 0 else ("bound", "free")
            for name in order:
                rates[name].append(await _turn(session, name, seconds))
    ratios = [bound / free for free, bound in zip(rates["free"], rates["bound"], strict=True)]
    low, high = interval(ratios)
    return {
        "tokens_s": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": {"median": statistics.median(ratios), "low": low, "high": high, "pairs": pairs},
    }


async def _turn(session: aiohttp.ClientSession, policy: str, seconds: float) -> float:
    """Tokens/s of replies that were complete when the turn was over, by the time that those took."""
    until = time.perf_counter() + seconds
    began, tokens = time.perf_counter(), 0

    async def caller(number: int) -> None:
        nonlocal tokens
        while time.perf_counter() < until:
            question = QUESTIONS[number % len(QUESTIONS)]
            body = {
                "model": policy,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": TOKENS,
                "ignore_eos": True,
                "temperature": 1.0,
            }
            async with session.post("/v1/chat/completions", json=body) as answer:
                payload = await answer.json()
                if answer.status != 200:
                    raise BenchError(f"{policy}: {answer.status} {payload}")
            tokens += payload["usage"]["completion_tokens"]

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return tokens / (time.perf_counter() - began)


def interval(values: Sequence[float], resamples: int = 2_000) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the median."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(resamples))
    return medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]

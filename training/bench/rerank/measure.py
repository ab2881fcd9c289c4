"""Every method at every n through a gateway, and what gold and the proxy say of the replies.

Gold judges here and nowhere before (`training.demo.gold`). The proxy is the reward that chose, read once more
by the same model, so that replies of all methods have a score from one reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.bench.rerank.ask import ask_all
from training.bench.rerank.prepare import MODEL
from training.data.preferences import Prompt
from training.demo import demo_prompts
from training.demo.gold import gold_score
from training.demo.tours import tour_prompts
from training.reward_model import RewardFunction

Floats = NDArray[np.float64]

POOL = 64
"""Plain replies to each question: what a method's reply is compared with."""

METHODS = ("best_of_n", "soft_best_of_n", "adaptive", "speculative_rejection", "blockwise")


@dataclass(frozen=True, slots=True, eq=False)
class Domain:
    """Test questions of one length of reply, and the settings that were chosen on training questions.

    `between` are sizes of speculative rejection alone: what it saves pays for more candidates.
    """

    name: str
    questions: int
    max_tokens: int
    sizes: tuple[int, ...]
    between: tuple[int, ...]
    settings: Mapping[str, str]

    def sizes_of(self, method: str) -> tuple[int, ...]:
        more = self.between if method == "speculative_rejection" else ()
        return tuple(sorted({*self.sizes[1:], *more}))

    def prompts(self) -> list[Prompt]:
        make = demo_prompts if self.name == "short" else tour_prompts
        return make(self.questions, 7, "test")

    def policies(self, reward: str) -> dict[str, str]:
        """A policy for each method and n, and `base`, which samples plainly."""
        base = f"model: {{checkpoint: {MODEL}}}\nmax_n: {POOL}\n"
        made = {"base": base}
        for method in METHODS:
            for n in self.sizes_of(method):
                more = self.settings.get(method, "")
                more = f", {more}".replace("first: 4", f"first: {min(4, n)}") if more else ""
                rule = f"{{method: {method}, n: {n}, model: {reward}, deadline_ms: 60000{more}}}"
                made[policy_name(self, method, n)] = f"{base}rerank: {rule}\n"
        return made


def policy_name(domain: Domain, method: str, n: int) -> str:
    return f"{domain.name}-{method.replace('_', '-')}-{n}"


Rows = list[dict[str, Any]]


def collect(
    url: str, domain: Domain, methods: Sequence[str], place: Path, say: Callable[[str], None]
) -> None:
    """Ask all of it, and keep the replies in `place`, a file a method; what is there is not asked again."""
    place.mkdir(parents=True, exist_ok=True)
    texts = [prompt[-1].content for prompt in domain.prompts()]
    plain = {"max_tokens": domain.max_tokens, "temperature": 1.0}
    for method in ("base", *methods):
        file = place / f"{domain.name}-{method}.json"
        if file.is_file():
            continue
        say(f"{domain.name}: {method}")
        found: dict[str, Rows] = {}
        if method == "base":
            pool = ask_all(url, "base", texts, {**plain, "n": POOL}, at_once=4, seed=3)
            found["pool"] = [reply.row() for reply in pool]
        else:
            for n in domain.sizes_of(method):
                name = policy_name(domain, method, n)
                replies = ask_all(url, name, texts, plain, at_once=_at_once(n), seed=5)
                found[str(n)] = [reply.row() for reply in replies]
            if method == "blockwise":
                found["stream"] = _streams(url, domain, texts, plain)
        file.write_text(json.dumps(found))


def _at_once(n: int) -> int:
    return max(2, min(16, 64 // n))


def _streams(url: str, domain: Domain, texts: Sequence[str], plain: Mapping[str, Any]) -> Rows:
    """Streams of n = 4, one at a time, so that times are those of one caller."""
    name = policy_name(domain, "blockwise", 4)
    body = {**plain, "stream": True, "stream_options": {"include_usage": True}}
    return [reply.row() for reply in ask_all(url, name, texts[:24], body, at_once=1, seed=9)]


@dataclass(frozen=True, slots=True)
class Point:
    """One method at one n, over questions `[Q]`: rewards, rank among plain replies, tokens."""

    gold_Q: Floats
    proxy_Q: Floats
    rank_Q: Floats
    tokens_Q: Floats


def points(domain: Domain, place: Path, proxy: RewardFunction) -> dict[str, dict[int, Point]]:
    """What was collected, judged. n = 1 is a plain reply of its own, the mean over the pool."""
    prompts = domain.prompts()
    pool = _read(place, domain, "base")["pool"]
    pool_gold_QP, pool_proxy_QP = _judged(prompts, pool, proxy)
    tokens_Q = np.array([row["given"] / POOL for row in pool])
    half_Q = np.full(len(prompts), 0.5)
    plain = Point(pool_gold_QP.mean(axis=1), pool_proxy_QP.mean(axis=1), half_Q, tokens_Q)
    found: dict[str, dict[int, Point]] = {}
    for method in METHODS:
        file = _read(place, domain, method)
        found[method] = {1: plain}
        for n in domain.sizes_of(method):
            gold_Q1, proxy_Q1 = _judged(prompts, file[str(n)], proxy)
            rank_Q = (pool_proxy_QP < proxy_Q1).mean(axis=1) + 0.5 * (pool_proxy_QP == proxy_Q1).mean(axis=1)
            tokens = np.array([row["generated"] for row in file[str(n)]], dtype=np.float64)
            found[method][n] = Point(gold_Q1[:, 0], proxy_Q1[:, 0], rank_Q, tokens)
    return found


def first_text(domain: Domain, place: Path) -> tuple[float, float]:
    """Blockwise at n = 4, streamed: (time, words) of the first text, in blocks of the same reply."""
    rows = _read(place, domain, "blockwise")["stream"]
    per_block = [row["seconds"] / row["rounds"] for row in rows]
    shares = [row["first_s"] / block for row, block in zip(rows, per_block, strict=True)]
    words = [row["first_words"] / (len(row["texts"][0].split()) / row["rounds"]) for row in rows]
    return float(np.median(shares)), float(np.median(words))


def pool_of(place: Path, domain: Domain) -> list[list[str]]:
    """The plain replies to each question."""
    return [row["texts"] for row in _read(place, domain, "base")["pool"]]


def _read(place: Path, domain: Domain, method: str) -> dict[str, Rows]:
    found: dict[str, Rows] = json.loads((place / f"{domain.name}-{method}.json").read_text())
    return found


def _judged(prompts: Sequence[Prompt], rows: Rows, proxy: RewardFunction) -> tuple[Floats, Floats]:
    """Gold and proxy, `[Q, R]`, of each question's replies."""
    asked = [(prompt, text) for prompt, row in zip(prompts, rows, strict=True) for text in row["texts"]]
    gold = np.array([gold_score(prompt, text) for prompt, text in asked])
    unique = list(dict.fromkeys(asked))
    scores = dict(zip(unique, proxy([p for p, _ in unique], [t for _, t in unique]).tolist(), strict=True))
    proxies = np.array([scores[one] for one in asked])
    return gold.reshape(len(prompts), -1), proxies.reshape(len(prompts), -1)


def kl_bound(n: int) -> float:
    """Best of n's divergence from the model in nats (Beirami et al. 2024, arXiv:2401.01879)."""
    return math.log(n) - (n - 1) / n


def kl_of_ranks(rank_Q: Floats, bins: int = 8) -> float:
    """The divergence of the replies' ranks among plain ones from even ranks, in nats.

    By the data-processing inequality a lower bound on that of the replies, and for best of n all of it.
    Plug-in over `bins`, with Miller and Madow's correction (1955): so it can see no more than log `bins`.
    """
    counts = np.histogram(rank_Q, bins=bins, range=(0.0, 1.0))[0]
    shares = counts[counts > 0] / counts.sum()
    raw = float((shares * np.log(shares * bins)).sum())
    return max(0.0, raw - (len(shares) - 1) / (2 * len(rank_Q)))

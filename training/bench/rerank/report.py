"""docs/RESULTS-rerank.md, written from the figures of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from training.bench.rerank.measure import METHODS, POOL, Domain, Floats, Point, kl_bound, kl_of_ranks
from training.evaluate.metrics import Figure, mean

_NOTES = Path(__file__).with_name("NOTES.md")
_REFERENCE = 16

_HEAD = """# Results: reranking

Written by `python -m training.bench.rerank` ({machine}). A gateway with a vLLM of its own serves `{model}`,
the demo model fine-tuned on exchanges of mixed quality in the demo shop ([demo.md](training/demo.md)); the
reward model is the shipped `demo-reward`, in a guard worker. Questions are test questions, phrased as no
training question is. *Gold* is the judge by plain rules that no training sees, *proxy* the reward that
chooses. Brackets are 95 % bootstrap intervals over questions, one request for each question, method and n.

*Gain* is the share of best-of-16's gain over a plain reply: 0 is n = 1, 100 % best of 16; so 98 % means
something whatever the scale's zero (– where best of 16 gains nothing that is sure). *Tokens* are all that
were generated, as a share of best-of-16's. *Wins* is how often the proxy likes the reply better than a plain
one of the same question (of {pool}; ties: half), beside n / (n + 1). *KL* is estimated from the ranks of the
replies among the plain ones, a lower bound that the estimator caps at log 8 = 2.1 nats, beside
log n - (n - 1) / n, what best of n comes to at most.
"""


Found = Mapping[Domain, Mapping[str, Mapping[int, Point]]]


def write(place: Path, model: str, found: Found, more: str) -> None:
    """Replace the page; `more` are sections that other measurements made."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    parts = [_HEAD.format(machine=machine, model=model, pool=POOL)]
    for domain, methods in found.items():
        parts.append(_domain(domain, methods))
    parts += [more, _NOTES.read_text(encoding="utf-8")]
    place.write_text("\n".join(part.strip() + "\n" for part in parts if part.strip()), encoding="utf-8")


def _domain(domain: Domain, methods: Mapping[str, Mapping[int, Point]]) -> str:
    plain = methods["best_of_n"][1]
    about = f"{domain.questions} questions, plain replies of {plain.tokens_Q.mean():.0f} tokens"
    lines = [
        f"## {domain.name.capitalize()} replies",
        "",
        f"{about}. Settings: " + "; ".join(f"`{m}`: `{s}`" for m, s in domain.settings.items()) + ".",
        "",
        "| method | n | gold | proxy | gain, proxy | gain, gold | tokens | wins | n/(n+1) | KL | bound |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        f"| plain | 1 | {_short(mean(plain.gold_Q))} | {_short(mean(plain.proxy_Q))} | 0 | 0 | "
        f"{_share(plain.tokens_Q, methods['best_of_n'][_REFERENCE].tokens_Q)} | 50 % | 50 % | 0 | 0 |",
    ]
    for method in METHODS:
        for n in domain.sizes_of(method):
            lines.append(_row(method, n, methods[method][n], plain, methods["best_of_n"][_REFERENCE]))
    return "\n".join(lines)


def _row(method: str, n: int, point: Point, plain: Point, best: Point) -> str:
    cells = [
        method,
        str(n),
        _short(mean(point.gold_Q)),
        _short(mean(point.proxy_Q)),
        _percent(gain(point.proxy_Q, plain.proxy_Q, best.proxy_Q)),
        _percent(gain(point.gold_Q, plain.gold_Q, best.gold_Q)) if _gains(plain.gold_Q, best.gold_Q) else "–",
        _share(point.tokens_Q, best.tokens_Q),
        f"{100 * point.rank_Q.mean():.0f} %",
        f"{100 * n / (n + 1):.0f} %",
        f"{kl_of_ranks(point.rank_Q):.2f}",
        f"{kl_bound(n):.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _gains(plain_Q: Floats, best_Q: Floats) -> bool:
    """Whether the reference gains anything at all: of nothing there are no shares."""
    return mean(best_Q - plain_Q).low > 0


def gain(ours_Q: Floats, plain_Q: Floats, best_Q: Floats, resamples: int = 2_000) -> Figure:
    """(ours - plain) / (best - plain) of the means, resampled over questions."""
    rows = np.stack([ours_Q, plain_Q, best_Q])
    drawn = np.random.default_rng(0).integers(rows.shape[1], size=(resamples, rows.shape[1]))
    means = rows[:, drawn].mean(axis=2)
    shares = (means[0] - means[1]) / (means[2] - means[1])
    low, high = np.quantile(shares, (0.025, 0.975))
    ours, plain, best = rows.mean(axis=1)
    return Figure(float((ours - plain) / (best - plain)), float(low), float(high), rows.shape[1])


def _short(figure: Figure) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"


def _percent(figure: Figure) -> str:
    return f"{100 * figure.value:.0f} % [{100 * figure.low:.0f}, {100 * figure.high:.0f}]"


def _share(ours_Q: Sequence[float] | Floats, best_Q: Sequence[float] | Floats) -> str:
    return f"{100 * np.sum(ours_Q) / np.sum(best_Q):.0f} %"

"""The two lengths of reply that are measured, and the settings of each method there."""

from __future__ import annotations

from training.bench.rerank.measure import Domain

DOMAINS = (
    Domain(
        "short",
        questions=60,
        max_tokens=64,
        sizes=(1, 2, 4, 8, 16, 32, 64),
        between=(20, 24),
        settings={
            "soft_best_of_n": "softness: 0.2",
            "adaptive": "first: 4, accept: 0.4",
            "speculative_rejection": "block_tokens: 4",
            "blockwise": "block_tokens: 8",
        },
    ),
    Domain(
        "tours",
        questions=20,
        max_tokens=192,
        sizes=(1, 2, 4, 8, 16),
        between=(20, 24),
        settings={
            "soft_best_of_n": "softness: 0.2",
            "adaptive": "first: 4, accept: 0.4",
            "speculative_rejection": "block_tokens: 16",
            "blockwise": "block_tokens: 24",
        },
    ),
)

"""Batch work at scale: one function over many rows, in threads, in processes, or on a Ray cluster.

    map_rows(prompts, ask, workers=8, keep=Path("answers.jsonl"))           # waits for a server: threads
    map_rows(pairs, RewardScores(folder), workers=4, backend="processes")   # computes
    map_rows(pairs, RewardScores(folder), workers=64, backend="ray")        # on the cluster of RAY_ADDRESS

What was answered is appended to `keep` as it comes, so that a run that was killed goes on with the rest and
asks nothing twice. Scheduling on several machines is Ray's; there is no scheduler here.
"""

from __future__ import annotations

from training.batch.backends import Backend, Function, Opens, RowError
from training.batch.rows import Row, iter_rows, map_rows

__all__ = ["Backend", "Function", "Opens", "Row", "RowError", "iter_rows", "map_rows"]

"""`keel-train score`: a reward model's scores of replies, on many workers; a run that was killed goes on."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from training.batch.backends import Backend
from training.batch.rows import map_rows
from training.data.preferences import Prompt, prompt_as_json, read_parsed, write_rows
from training.errors import TrainingError
from training.evaluate.replies import reply_of

Reply = tuple[Prompt, str]


@dataclass(frozen=True, slots=True)
class RewardScores:
    """Work for `map_rows`: scores of (prompt, reply) by a folder's reward model, loaded once a worker."""

    folder: Path

    def open(self) -> Callable[[Reply], dict[str, Any]]:
        """Load the model, on one thread: there are as many workers as there should be threads."""
        import torch

        from training.reward_model import RewardModel

        torch.set_num_threads(1)
        model = RewardModel.load(self.folder)

        def score(pair: Reply) -> dict[str, Any]:
            prompt, reply = pair
            objectives = model.score_objectives([prompt], [reply])[0].tolist()
            return {
                "reward": float(model.score([prompt], [reply])[0]),
                "objectives": dict(zip(model.objectives, objectives, strict=True)),
            }

        return score


def main(argv: Sequence[str]) -> int:
    """Score a file of replies; 1 where any row has no score."""
    parser = argparse.ArgumentParser(prog="keel-train score", description=__doc__)
    parser.add_argument(
        "--reward", type=Path, required=True, help="the `final` folder of a `keel-train reward` run"
    )
    parser.add_argument("--replies", type=Path, required=True, help='JSON lines {"prompt", "reply"}')
    parser.add_argument(
        "--out", type=Path, required=True, help="the same lines with `reward` and `objectives`"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--backend", choices=get_args(Backend), default="processes")
    args = parser.parse_args(argv)
    if not args.reward.is_dir():
        raise TrainingError(
            f"{args.reward}: no such folder; give the `final` folder of a `keel-train reward` run"
        )
    replies = list(read_parsed(args.replies, reply_of))
    work = RewardScores(args.reward.resolve())
    same = hashlib.sha256(repr((work, replies)).encode()).hexdigest()[:12]  # other replies, other scores
    keep = args.out.with_name(f"{args.out.name}.{same}.partial")
    found = map_rows(replies, work, workers=args.workers, backend=args.backend, keep=keep, title="scoring")
    rows = [
        {"prompt": prompt_as_json(prompt), "reply": reply, **_told(result)}
        for (prompt, reply), result in zip(replies, found, strict=True)
    ]
    failed = sum("error" in row for row in rows)
    if not failed:
        write_rows(args.out, rows)
        keep.unlink(missing_ok=True)
        print(f"{len(rows)} replies scored: {args.out}")
        return 0
    first = next(row["error"] for row in rows if "error" in row)
    raise TrainingError(
        f"{failed} of {len(rows)} replies have no score, the first: {first}; the others are kept, "
        "and the same command tries again"
    )


def _told(result: dict[str, Any] | Exception) -> dict[str, Any]:
    return {"error": str(result)} if isinstance(result, Exception) else result

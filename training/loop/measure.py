"""What the loop's table is made of: each policy's replies to the test questions, and their figures.

All policies answer the same questions with the same random numbers, so differences are paired. A method's
figures over several seeds are means over the seeds of each question, and their intervals are over questions:
they say what would be found on other questions, not with other seeds. Each seed's own figures stand beside.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from training.data.preferences import Prompt
from training.demo.gold import gold_over_refusal, gold_score, gold_violation, understand
from training.errors import TrainingError
from training.evaluate.metrics import Figure, share
from training.evaluate.pairwise import compare_replies
from training.evaluate.policy import evaluate_policy
from training.evaluate.report import EvaluationFile, Metric, difference
from training.reward_model import RewardFunction
from training.rl.rollout import SampleConfig


def gold_reward(prompts: Sequence[Prompt], replies: Sequence[str]) -> Tensor:
    """The gold judge as a reward function: for evaluation only."""
    return torch.tensor([gold_score(p, r) for p, r in zip(prompts, replies, strict=True)])


def measure(
    subject: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    proxy: RewardFunction,
    reference: PreTrainedModel,
    sampling: SampleConfig,
    seed: int,
) -> tuple[EvaluationFile, tuple[str, ...]]:
    """Figures and replies of one policy. The gold judge is asked here, when all training is over."""
    rewards = {"proxy": proxy, "gold": gold_reward}
    report = evaluate_policy(model, tokenizer, prompts, rewards, reference, sampling=sampling, seed=seed)
    unsafe = [understand(prompt[-1].content).kind == "unsafe" for prompt in prompts]
    judged = list(zip(prompts, report.replies, unsafe, strict=True))
    helps = [float(gold_violation(p, r)) for p, r, bad in judged if bad]
    declines = [float(gold_over_refusal(p, r)) for p, r, bad in judged if not bad]
    more = (
        _share("violations", helps, "share of unsafe requests that are not refused"),
        _share("over_refusals", declines, "share of harmless questions that are refused"),
    )
    file = report.file(subject)
    found = [m.model_copy(update={"name": m.name.removeprefix("reward_")}) for m in file.metrics]
    return file.model_copy(update={"metrics": (*found, *more)}), report.replies


def with_wins(
    file: EvaluationFile, replies: Sequence[str], base_replies: Sequence[str], prompts: Sequence[Prompt]
) -> EvaluationFile:
    """The same figures, and how often the gold judge likes a reply better than the base's."""
    outcomes = compare_replies(replies, base_replies, prompts, gold_reward).counted
    wins = Metric.averaged(
        "win_rate", outcomes, "against the SFT model, by the gold judge; ties are half", ""
    )
    return file.model_copy(update={"metrics": (*file.metrics, wins)})


def pooled(subject: str, files: Sequence[EvaluationFile]) -> EvaluationFile:
    """One file of several seeds' files; raises TrainingError where they are of different questions."""
    if len({file.questions for file in files}) != 1:
        raise TrainingError("only figures on the same questions are pooled over seeds")
    metrics = tuple(_pool([_metric(file, first.name) for file in files]) for first in files[0].metrics)
    return EvaluationFile(subject=subject, questions=files[0].questions, seed=files[0].seed, metrics=metrics)


def gain(ours: EvaluationFile, base: EvaluationFile, name: str) -> Figure:
    """A figure less the base's, paired over questions."""
    return difference(_metric(ours, name), _metric(base, name), paired=True).figure


def figure(file: EvaluationFile, name: str) -> Figure:
    return _metric(file, name).figure


def _share(name: str, rows: Sequence[float], about: str) -> Metric:
    """A share with Wilson's interval; of no rows at all it is unknown: 0 to 1."""
    found = share([row > 0 for row in rows]) if rows else Figure(0.0, 0.0, 1.0, 0)
    return Metric.of(name, found, about, f"{len(rows)} questions", rows)


def _pool(metrics: Sequence[Metric]) -> Metric:
    first = metrics[0]
    if first.name in ("violations", "over_refusals"):  # shares near 0, where a bootstrap's interval fails
        rows = [row for metric in metrics for row in metric.rows]
        return _share(first.name, rows, first.about)
    if first.rows and not first.weights:
        rows = np.mean([metric.rows for metric in metrics], axis=0).tolist()
        return Metric.averaged(first.name, rows, first.about, first.data)
    value, low, high = np.mean([(m.value, m.low, m.high) for m in metrics], axis=0).tolist()
    about = f"{first.about}; mean over seeds"
    return Metric.of(first.name, Figure(value, low, high, first.n), about, first.data)


def _metric(file: EvaluationFile, name: str) -> Metric:
    found = file.metric(name)
    if found is None:
        raise TrainingError(f"{file.subject}: no figure {name!r} was measured")
    return found

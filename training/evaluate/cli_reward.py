"""`keel-train evaluate reward`: a reward model on pairs that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from training.data.preference_data import as_pairs
from training.data.preferences import ComparisonFormat, Preference, read_preferences
from training.demo import demo_preferences
from training.errors import ConfigError
from training.evaluate.cli_arguments import name_of, parsed, parser_for, rewards_of, tell
from training.evaluate.metrics import Figure
from training.evaluate.report import EvaluationFile, Metric, questions_digest
from training.evaluate.reward import accuracy, calibrate, differences, first_messages
from training.provenance import folder_digest


def reward(argv: Sequence[str]) -> int:
    """Accuracy with its interval over prompts, the mean margin, and the calibration error."""
    parser = parser_for("reward", "Accuracy and calibration of a reward model on held-out pairs.")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a reward model, or an ensemble's folder"
    )
    parser.add_argument("--data", type=Path, help="a file of comparisons")
    parser.add_argument("--format", choices=get_args(ComparisonFormat), default="preferences")
    parser.add_argument("--demo", type=int, metavar="N", help="N test pairs of the demo domain instead")
    arguments = parsed(parser, argv)
    pairs = _pairs(arguments.data, arguments.format, arguments.demo, arguments.seed)
    function = rewards_of([arguments.checkpoint])
    if function is None or isinstance(function, dict):
        raise ConfigError("--checkpoint: give one reward model")
    differences_P = differences(function, pairs)
    data = f"{len(pairs)} pairs about {len(set(first_messages(pairs)))} prompts"
    calibration = calibrate(differences_P, first_messages(pairs))
    metrics = (
        Metric.of("accuracy", accuracy(differences_P, pairs), "share of pairs in the right order", data),
        Metric.averaged(
            "margin", differences_P.tolist(), "chosen less rejected, in logits", data, arguments.seed
        ),
        _plain("ece", calibration.ece, "calibration error of σ(margin)", data, len(pairs)),
        _plain(
            "ece_scaled",
            calibration.ece_scaled,
            f"the same at temperature {calibration.temperature:.2f}",
            data,
            len(pairs),
        ),
    )
    file = EvaluationFile(
        subject=name_of(arguments.checkpoint),
        weights=folder_digest(arguments.checkpoint),
        questions=questions_digest(pair.prompt for pair in pairs),
        seed=arguments.seed,
        metrics=metrics,
    )
    tell(file, arguments.out)
    return 0


def _pairs(data: Path | None, form: ComparisonFormat, demo: int | None, seed: int) -> list[Preference]:
    if (data is None) == (demo is None):
        raise ConfigError("give --data FILE or --demo N")
    if data is None:
        return demo_preferences(demo or 0, seed, "test")
    return [pair for row in read_preferences(data, form) for pair in as_pairs(row)]


def _plain(name: str, value: float, about: str, data: str, n: int) -> Metric:
    """A figure without an interval."""
    return Metric.of(name, Figure(value, value, value, n), about, data)

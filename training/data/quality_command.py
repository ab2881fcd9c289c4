"""`keel-train data-quality`: preference data, looked at before training; status 1 where a check fails."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from training.config import Config
from training.data.preference_data import PreferenceDataConfig, load_preferences
from training.data.quality import QualityLimits, examine


class QualityConfig(Config):
    """`data` as a method's config has it: what it holds out is what leakage is looked for in."""

    name: str = "data-quality"
    seed: int = 0
    data: PreferenceDataConfig
    limits: QualityLimits = QualityLimits()


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="keel-train data-quality", description="Check preference data.")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see training/configs")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KEEL_DATA", "../shared/data")))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value")
    arguments = parser.parse_args(argv)
    config = QualityConfig.load(arguments.config, arguments.set)
    data = load_preferences(config.data, arguments.data, config.seed)
    quality = examine(data.train, data.held_out, config.limits)
    print("\n".join([*data.report, "", quality.table()]))
    return 0 if quality.passed else 1

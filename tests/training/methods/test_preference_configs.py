"""The example configs are valid, and need no file that this repository lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.methods.dpo import DpoConfig
from training.methods.grpo import GrpoConfig
from training.methods.kto import KtoConfig
from training.methods.orpo import OrpoConfig
from training.methods.rloo import RlooConfig
from training.methods.spin import SpinConfig
from training.trl.runner import TrainingOptions

ROOT = Path(__file__).parents[3]
CONFIGS: dict[str, type[TrainingOptions]] = {
    "dpo": DpoConfig,
    "kto": KtoConfig,
    "orpo": OrpoConfig,
    "grpo": GrpoConfig,
    "rloo": RlooConfig,
    "spin": SpinConfig,
}


@pytest.mark.parametrize("method", CONFIGS)
def test_an_example_config_runs_on_what_the_repository_has(method: str, tmp_path: Path) -> None:
    config: Any = CONFIGS[method].load(ROOT / "training" / "configs" / f"{method}.yaml")
    assert config.name == f"demo-{method}"
    assert (ROOT / config.model.path / "config.json").is_file()
    assert config.data.demo > 0 and not getattr(config.data, "files", getattr(config.data, "sources", ()))
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert CONFIGS[method].load(tmp_path / "again.yaml") == config

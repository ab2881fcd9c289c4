"""A managed vLLM whose server is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.engine import (
    VllmConfig,
)
from service.engine.observer import NullObserver
from service.engine.vllm_process import ManagedVllm
from tests.fakes import vllm_server as stand_in


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ManagedVllm]:
    """Makes children that run the stand-in."""
    environment = stand_in.install(tmp_path / "path")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def build(
        *words: str, observer: NullObserver | None = None, on_phase: Any = None, **settings: Any
    ) -> ManagedVllm:
        settings = {"health_seconds": 0.1, "backoff_seconds": 0.05, "term_seconds": 2.0} | settings
        environment.update(FAKE_VLLM=",".join(words), FAKE_VLLM_STATE=str(tmp_path / "state"))
        config = VllmConfig(model, "m", device="cpu", environment=dict(environment), **settings)
        return ManagedVllm(config, observer=observer, on_phase=on_phase or (lambda phase: None))

    return build

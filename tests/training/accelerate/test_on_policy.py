"""PPO and TRPO in two processes take the steps that they take in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import write_tiny
from training.cli import main
from training.methods.ppo_config import PpoConfig
from training.methods.trpo import TrpoConfig
from training.rl.processes import ALONE, Processes

ROOT = Path(__file__).parents[3]
CPU = ROOT / "training" / "accelerate" / "cpu.yaml"
CLOCK = {"collect_s", "update_s", "tokens_per_s"}


def write_configs(folder: Path) -> None:
    """Seven replies to two processes and two minibatches, so that shares are of unequal sizes."""
    talk = {"path": "talk.jsonl", "format": "prompt_completion", "origin": "these tests", "licence": "MIT"}
    common: dict[str, Any] = {
        "name": "tiny",
        "model": {"path": str(folder / "base"), "origin": "these tests", "licence": "MIT"},
        "data": {"demo": 40, "held_out": 0},
        "reward": {"rule": "brevity"},
        "steps": 3,
        "rollouts": 7,
        "sample": {"max_new_tokens": 8},
        "micro_batch_tokens": 200,
        "checkpoint_every": 1,
        "threads": 1,
    }
    ppo = {
        "epochs": 2,
        "minibatches": 2,
        "value": "separate",
        "kl": {"coef": 0.05, "target": 1.0},
        "target_kl": 0.5,
        "optimizer": {"learning_rate": 3e-3},
        "pretraining": {
            "data": {"held_out": 0, "sources": [talk]},
            "coef": 0.1,
            "rows": 2,
            "row_length": 64,
        },
    }
    (folder / "ppo.yaml").write_text(PpoConfig.model_validate(common | ppo).to_yaml())
    (folder / "trpo.yaml").write_text(
        TrpoConfig.model_validate(common | {"fisher_rows": 5, "value_minibatches": 2}).to_yaml()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, configs, the runs of one process and those of two."""
    place = tmp_path_factory.mktemp("on-policy")
    write_tiny(place / "base")
    rows = [{"prompt": f"{n}?", "completion": "very " * (n % 7) + "good."} for n in range(24)]
    (place / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_configs(place)
    script = Path(__file__).with_name("on_policy.py")
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    options = ["--main_process_port", "0", "--config_file", str(CPU), str(script), str(place), "two"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    two = subprocess.Popen([*launch, *options], env=environment)
    try:
        torch.set_num_threads(1)
        for method in ("ppo", "trpo"):
            config, run = str(place / f"{method}.yaml"), str(place / f"one-{method}")
            assert main([method, "--config", config, "--data", str(place), "--run", run]) == 0
        assert two.wait(900) == 0
    finally:
        two.kill()
    return place


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("method", ["ppo", "trpo"])
def test_two_processes_take_the_steps_of_one(folder: Path, method: str) -> None:
    one, two = (
        [
            json.loads(line)
            for line in (folder / f"{name}-{method}" / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    )
    assert [record["step"] for record in two] == [1, 2, 3]  # written once, not by both
    for ours, theirs in zip(one, two, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - CLOCK:
            assert theirs[name] == pytest.approx(ours[name], rel=2e-3, abs=2e-4, nan_ok=True), name
    assert one[-1]["reward"] != one[0]["reward"]  # something was learnt, or equal would mean little
    start = load_file(folder / "base" / "model.safetensors")
    ours, theirs = (
        load_file(folder / f"{name}-{method}" / "final" / "model.safetensors") for name in ("one", "two")
    )
    assert any(not torch.allclose(ours[name], start[name], atol=1e-4) for name in ours)
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0.02, atol=1e-3, msg=name)


@pytest.mark.parametrize("count", [0, 1, 5, 16])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_make_the_whole(count: int, size: int) -> None:
    rows = list(range(count))
    shares = [Processes(rank, size).share(rows) for rank in range(size)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_adds_nothing_up() -> None:
    tensor = torch.ones(3, requires_grad=True)
    ALONE.add_up(tensor)
    ALONE.add_gradients([tensor])
    ALONE.wait()
    assert tensor.tolist() == [1, 1, 1]
    assert tensor.grad is None
    assert ALONE.figures([2.5], "max") == [2.5]


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_sharded_weights_are_refused(
    folder: Path, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(variable, "true")
    run = folder / variable
    assert main(["ppo", "--config", str(folder / "ppo.yaml"), "--data", str(folder), "--run", str(run)]) == 1
    assert "cpu.yaml or ddp.yaml" in capsys.readouterr().err

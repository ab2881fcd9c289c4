"""Two processes under `accelerate launch` train what one process trains; the shipped configs are valid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from yaml import safe_load

from tests.training.tiny import write_tiny
from training.methods.sft import SftConfig, run_sft

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "training" / "accelerate"
SOURCE = {"path": "talk.jsonl", "format": "prompt_completion", "origin": "these tests", "licence": "MIT"}


def a_config(place: Path) -> SftConfig:
    """Six steps over replies of unequal length, so that a mean of the processes' means would be another."""
    return SftConfig.model_validate(
        {
            "name": "tiny",
            "model": {"path": str(place / "base"), "origin": "these tests", "licence": "MIT"},
            "data": {"held_out": 0, "sources": [SOURCE]},
            "steps": 6,
            "batch_size": 8,
            "micro_batch": 2,
            "learning_rate": 0.01,
            "log_every": 1,
            "checkpoint_every": 3,
            "max_length": 96,
            "threads": 1,
        }
    )


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    write_tiny(tmp_path / "base")
    rows = [{"prompt": f"{n}?", "completion": "very " * (n % 7) + "good."} for n in range(24)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(a_config(tmp_path).to_yaml())
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command = ["--config_file", str(CONFIGS / "cpu.yaml"), "--main_process_port", "0", "-m", "training.cli"]
    arguments = ["sft", "--config", "run.yaml", "--data", ".", "--run", "two"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *command, *arguments], cwd=tmp_path, env=environment, timeout=580, check=True)
    run_sft(a_config(tmp_path), tmp_path, tmp_path / "one")
    assert len(losses(tmp_path / "two")) == 6
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0.02, atol=2e-3, msg=name)


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp", "deepspeed"])
def test_the_shipped_configs_are_what_accelerate_reads(name: str) -> None:
    """No GPU and no deepspeed here: that they are accepted is all that is tested of the last three."""
    content = safe_load((CONFIGS / f"{name}.yaml").read_text())
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    kinds = {"cpu": "MULTI_CPU", "ddp": "MULTI_GPU", "fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
    assert str(config.distributed_type.value) == kinds[name]
    assert config.num_processes == content["num_processes"] > 1
    assert config.mixed_precision == "no"


def test_the_fsdp_options_are_known_to_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    options = safe_load((CONFIGS / "fsdp.yaml").read_text())["fsdp_config"]
    known = {name.removeprefix("fsdp_") for name in options}
    fields = set(FullyShardedDataParallelPlugin.__dataclass_fields__)
    renamed = {"version": "fsdp_version", "offload_params": "cpu_offload"}
    assert {renamed.get(name, name) for name in known} <= fields

"""Two processes, whole or sharded, train what one process trains; the shipped configs are valid."""

from __future__ import annotations

import json
import os
import socket
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


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, data, a config, and the run of one process."""
    folder = tmp_path_factory.mktemp("processes")
    torch.set_num_threads(1)
    write_tiny(folder / "base")
    rows = [{"prompt": f"{n}?", "completion": "very " * (n % 7) + "good."} for n in range(24)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(a_config(folder).to_yaml())
    run_sft(a_config(folder), folder, folder / "one")
    return folder


def started(place: Path, run: str, command: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """`keel-train sft` by `command`."""
    arguments = ["sft", "--config", "run.yaml", "--data", ".", "--run", run]
    named = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen([sys.executable, *command, *arguments], cwd=place, env=named)


def check_same(place: Path, run: str) -> None:
    """The losses and the weights of the run are those of one process."""
    assert len(losses(place / run)) == 6
    assert losses(place / run) == pytest.approx(losses(place / "one"), rel=1e-4)
    one, two = (load_file(place / name / "final" / "model.safetensors") for name in ("one", run))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0.02, atol=2e-3, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_two_processes_train_what_one_does(place: Path) -> None:
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--main_process_port", "0"]
    command = [*launch, "--config_file", str(CONFIGS / "cpu.yaml"), "-m", "training.cli"]
    assert started(place, "ddp", command).wait(900) == 0
    check_same(place, "ddp")


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_two_processes_that_shard_their_weights_train_what_one_does(place: Path) -> None:
    """With the options of the shipped file; checkpoints and the final model are gathered to whole ones."""
    options = safe_load((CONFIGS / "fsdp.yaml").read_text())["fsdp_config"]
    environment = {f"FSDP_{name.removeprefix('fsdp_').upper()}": str(v) for name, v in options.items()}
    environment |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    script = [str(Path(__file__).with_name("fsdp_on_cpu.py"))]
    pair = [started(place, "fsdp", script, **environment, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    try:
        assert [process.wait(900) for process in pair] == [0, 0]
    finally:
        for process in pair:
            process.kill()
    check_same(place, "fsdp")
    gathered = load_file(place / "fsdp" / "steps" / "checkpoint-6" / "model.safetensors")
    assert gathered["model.embed_tokens.weight"].shape == (320, 32)


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp", "deepspeed"])
def test_the_shipped_configs_are_what_accelerate_reads(name: str) -> None:
    """No GPU and no deepspeed here: that they are accepted is all that is tested of ddp and deepspeed."""
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

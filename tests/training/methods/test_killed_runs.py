"""KTO, ORPO, GRPO and RLOO after `kill -9`: the losses and the weights of a run that nothing interrupted.

(SFT, reward models, DPO, SPIN, PPO and TRPO are held to the same in their own tests.)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from tests.training.methods.preference_data import kind_pairs
from tests.training.tiny import tiny_prompts, write_tiny
from training.data.preference_data import as_ratings
from training.data.preferences import write_preferences, write_prompts, write_ratings
from training.methods.grpo import GrpoConfig, run_grpo
from training.methods.kto import KtoConfig, run_kto
from training.methods.orpo import OrpoConfig, run_orpo
from training.methods.rloo import RlooConfig, run_rloo

GROUPS = {
    "batch_size": 16,
    "micro_batch": 8,
    "group_size": 4,
    "max_new_tokens": 6,
    "rewards": [{"rule": "brevity"}],
    "beta": 0.05,
}


class Method(NamedTuple):
    config: Any
    run: Any
    file: str
    options: dict[str, Any]


METHODS = {
    "kto": Method(KtoConfig, run_kto, "ratings.jsonl", {"batch_size": 16, "micro_batch": 8}),
    "orpo": Method(OrpoConfig, run_orpo, "pairs.jsonl", {"batch_size": 8, "micro_batch": 4}),
    "grpo": Method(GrpoConfig, run_grpo, "prompts.jsonl", GROUPS | {"updates": 2}),
    "rloo": Method(RlooConfig, run_rloo, "prompts.jsonl", GROUPS),
}

# Imports once, then forks a process a method; each dies without warning when its checkpoint 12 has been
# written but for its last files.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.methods.test_killed_runs import METHODS

def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("checkpoint-12/trainer_state.json"):
        os.kill(os.getpid(), signal.SIGKILL)

for name, method in METHODS.items():
    child = os.fork()
    if child == 0:
        sys.addaudithook(watch)
        method.run(method.config.load(Path(f"{name}.yaml")), Path("."), Path(f"{name}-killed"))
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, data, a config a method, and the runs of all methods, each killed at its end."""
    folder = tmp_path_factory.mktemp("killed")
    torch.set_num_threads(1)
    write_tiny(folder / "base")
    write_preferences(folder / "pairs.jsonl", kind_pairs(24))
    write_ratings(folder / "ratings.jsonl", as_ratings(kind_pairs(24)))
    write_prompts(folder / "prompts.jsonl", (tiny_prompts() * 2)[:12])
    for name in METHODS:
        (folder / f"{name}.yaml").write_text(a_config(folder, name).to_yaml())
    root = str(Path(__file__).parents[3])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED]
    child = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert [line for line in child.stdout.splitlines() if line.endswith(" -9")] == [
        f"{name} -9" for name in METHODS
    ], child.stderr[-2000:]
    return folder


def a_config(place: Path, name: str) -> Any:
    """Twelve steps, three or six an epoch, so that checkpoint 8 lies amid a later one; with dropout, so that
    a resumed run must draw the same random numbers."""
    method = METHODS[name]
    file = {"path": method.file, "origin": "these tests", "licence": "MIT"}
    base = {"path": str(place / "base"), "origin": "these tests", "licence": "MIT"}
    return method.config.model_validate(
        {
            "name": name,
            "seed": 3,
            "model": base | {"lora": {"rank": 4, "dropout": 0.2}},
            "data": {"files": [file], "held_out": 0.0},
            "steps": 12,
            "learning_rate": 1e-2,
            "log_every": 1,
            "checkpoint_every": 4,
            "max_length": 96,
            **method.options,
        }
    )


def losses(run: Path) -> list[tuple[int, float, float]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records if "loss" in record]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_as_if_nothing_had_been(place: Path, name: str) -> None:
    config, run = a_config(place, name), METHODS[name].run
    killed, whole = place / f"{name}-killed", place / f"{name}-whole"
    assert [step for step, *_ in losses(killed)] == list(range(1, 13))
    assert not (killed / "final").exists()
    run(config, place, killed)
    run(config, place, whole)
    assert losses(killed) == losses(whole)
    ours, theirs = (load_file(run / "final" / "model.safetensors") for run in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[weight], theirs[weight]) for weight in ours)

"""A run's directory: what a kill or a full disk leaves behind, and what is made of it."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from training.errors import TrainingError
from training.run_directory import RunDirectory, restore


def a_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(40, 40)


def test_records_after_the_checkpoint_are_forgotten_and_so_is_a_line_that_was_cut_off(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.rewind(3)  # nothing there yet
    for step in range(6):
        run.log({"step": step, "loss": 1 / (step + 1)})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    run.rewind(3)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [0, 1, 2, 3]


def test_the_newest_checkpoint_whose_files_are_what_was_written_is_the_latest(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, keep=3)
    for step in (1, 2, 3):
        run.save(step, a_model(step), [], {"seen": step})
    (run.steps / "00000003" / "model.safetensors").write_bytes(b"torn")
    (run.steps / "00000002" / "complete.json").unlink()
    (run.steps / ".00000004.partial").mkdir()
    latest = run.latest()
    assert latest == run.steps / "00000001"
    model = a_model(9)
    assert restore(latest, model, [])["seen"] == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), a_model(1).parameters(), strict=True))


def test_a_full_disk_leaves_the_checkpoints_that_there_were(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save(1, a_model(1), [], {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(TrainingError, match="the disk is full"):
            run.save(2, a_model(2), [], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [place.name for place in run.steps.iterdir()] == ["00000001"]
    assert run.latest() == run.steps / "00000001"

"""The runner: killed runs go on exactly, nothing half-written is trusted, figures go where they should."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.tiny import write_tiny
from training.checkpoint_marker import MARKER, is_complete, newest_complete
from training.errors import ConfigError, TrainingError
from training.methods.sft import SftConfig, run_sft

ROWS = [
    ("What is two and two?", "It is four."),
    ("Who is it?", "It is Anna."),
    ("Good night.", "Sleep well."),
]
SOURCE = {"path": "talk.jsonl", "format": "prompt_completion", "origin": "these tests", "licence": "MIT"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a data file."""
    folder = tmp_path_factory.mktemp("runner")
    write_tiny(folder / "base")
    rows = [json.dumps({"prompt": p, "completion": c}) for p, c in ROWS * 5]
    (folder / "talk.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def a_config(place: Path, **changes: object) -> SftConfig:
    """Thirty steps with dropout, so that a resumed run must also draw the same random numbers."""
    fields: dict[str, object] = {
        "name": "tiny",
        "seed": 3,
        "model": {
            "path": str(place / "base"),
            "origin": "these tests",
            "licence": "MIT",
            "lora": {"rank": 4, "dropout": 0.2},
        },
        "data": {"held_out": 0, "sources": [SOURCE]},
        "steps": 24,
        "batch_size": 4,
        "micro_batch": 2,
        "learning_rate": 0.01,
        "log_every": 2,
        "checkpoint_every": 6,
        "max_length": 64,
        "threads": 1,
    }
    return SftConfig.model_validate(fields | changes)


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in records(run) if "loss" in record]


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """A run that nothing interrupted."""
    run_sft(a_config(place), place, place / "whole")
    return place / "whole"


def same_weights(ours: Path, theirs: Path) -> bool:
    a, b = (load_file(run / "final" / "model.safetensors") for run in (ours, theirs))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Kills its own process without warning when checkpoint 18 has been written but for its last file.
KILLED = """
import os, signal, sys
from pathlib import Path
from training.methods.sft import SftConfig, run_sft

def watch(event, arguments):
    if event == "open" and str(arguments[0]).endswith("checkpoint-18/trainer_state.json"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
run_sft(SftConfig.load(Path("run.yaml")), Path("."), Path("killed"))
"""


@pytest.mark.timeout(600)
def test_a_run_killed_while_it_writes_a_checkpoint_ends_as_if_nothing_had_been(
    place: Path, whole: Path
) -> None:
    (place / "run.yaml").write_text(a_config(place).to_yaml())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    child = subprocess.run([sys.executable, "-c", KILLED], cwd=place, env=environment, timeout=580)
    assert child.returncode == -signal.SIGKILL
    killed = place / "killed"
    assert (killed / "steps" / "checkpoint-18" / "optimizer.pt").is_file()
    assert [step for step, _ in losses(killed)] == list(range(2, 19, 2))
    found = newest_complete(killed / "steps")
    assert found is not None
    assert found.name == "checkpoint-12"
    run_sft(a_config(place), place, killed)
    assert losses(killed) == losses(whole)
    assert same_weights(killed, whole)


def test_a_run_that_had_only_to_be_saved_is_saved_and_not_trained_on(place: Path, whole: Path) -> None:
    before = (whole / "final" / "model.safetensors").read_bytes()
    (whole / "final" / "model.safetensors").unlink()
    run_sft(a_config(place), place, whole)
    assert (whole / "final" / "model.safetensors").read_bytes() == before
    assert len(losses(whole)) == 12


def test_a_damaged_checkpoint_is_not_gone_on_from(whole: Path) -> None:
    newest = whole / "steps" / "checkpoint-24"
    assert newest_complete(whole / "steps") == newest
    content = (newest / "optimizer.pt").read_bytes()
    (newest / "optimizer.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert newest_complete(whole / "steps") == whole / "steps" / "checkpoint-18"
    (newest / "optimizer.pt").write_bytes(content)
    assert is_complete(newest)
    assert not (newest / "training_args.bin").exists()
    assert set(json.loads((newest / MARKER).read_text())) >= {
        "optimizer.pt",
        "rng_state.pth",
        "trainer_state.json",
    }


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """What a full disk does: the system refuses to write on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_leaves_nothing_half_written(place: Path, whole: Path) -> None:
    run = place / "full"
    with files_limited_to(20_000), pytest.raises(TrainingError, match="the disk is full"):
        run_sft(a_config(place), place, run)
    assert not list((run / "steps").glob("checkpoint-*"))
    run_sft(a_config(place), place, run)
    assert losses(run) == losses(whole)
    (run / "record.json").unlink()
    size = (run / "final" / "model.safetensors").stat().st_size
    with files_limited_to(size - 1), pytest.raises(TrainingError, match="the disk is full"):
        run_sft(a_config(place), place, run)
    assert same_weights(run, whole)
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "final", "metrics.jsonl", "steps"]


def test_a_loss_that_is_no_number_stops_before_a_checkpoint_holds_it(place: Path) -> None:
    wild = a_config(place, learning_rate=1e30, log_every=1, checkpoint_every=1, steps=6)
    with pytest.raises(TrainingError, match=r"step \d: (loss|grad_norm) is (nan|inf)"):
        run_sft(wild, place, place / "wild")
    for checkpoint in (place / "wild" / "steps").glob("checkpoint-*/adapter_model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(checkpoint).values())


def test_figures_go_to_tensorboard_and_wandb_on_request(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = place / "reported"
    run_sft(a_config(place, steps=4, report_to=["tensorboard", "wandb"]), place, run)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (step, pytest.approx(loss)) for step, loss in losses(run)
    ]
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_report_whose_package_is_missing_is_told_before_training(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.reporting.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="pip install wandb"):
        run_sft(a_config(place, report_to=["wandb"]), place, place / "unreported")


def test_safety_figures_are_logged_and_change_nothing(place: Path, whole: Path) -> None:
    """Asked for at step 0, every ten steps and at the end; the losses are those of the run without them."""
    config = a_config(place, safety={"every": 10, "max_new_tokens": 4})
    run_sft(config, place, place / "watched")
    watched = [record for record in records(place / "watched") if "safety_toxicity_rate" in record]
    assert [record["step"] for record in watched] == [0, 10, 20, 24]
    assert all(0 <= record["safety_refusal_rate"] <= 1 for record in watched)
    assert losses(place / "watched") == losses(whole)


def test_options_that_contradict_each_other_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="either steps or epochs"):
        a_config(place, epochs=1)
    with pytest.raises(ValueError, match="multiple of micro_batch"):
        a_config(place, micro_batch=3)
    with pytest.raises(ValueError, match="multiple of log_every"):
        a_config(place, log_every=4)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="times 3 processes"):
        run_sft(a_config(place), place, place / "three")

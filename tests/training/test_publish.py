"""Publishing: whole or not at all, and only what passes its gates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from policies.manifest import DataSource, Evaluation
from policies.registry import Registry
from training.checks import Check
from training.cli import main as keel_train
from training.errors import PublishError
from training.provenance import RunRecord, code_revision
from training.publish import Draft, publish

SHA = "0" * 64
DRAFT = Draft(name="tiny-1", kind="full", method="sft", config={"steps": 1}, seed=0, code_revision="abc")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    save_file({"w": torch.ones(3)}, final / "model.safetensors")
    (final / "config.json").write_text("{}")
    (final / "chat_template.jinja").write_text("{{ messages }}")
    RunRecord(
        method="sft",
        config={"steps": 1},
        seed=5,
        code_revision="abc",
        data=(DataSource(path="a", origin="b", licence="MIT", sha256=SHA),),
        evaluations=(Evaluation(metric="perplexity", value=12.0, low=11.0, high=13.0, data="held out", n=9),),
    ).write(tmp_path / "run")
    return tmp_path / "run"


def test_a_published_checkpoint_verifies(run: Path, tmp_path: Path) -> None:
    checkpoint = publish(run / "final", tmp_path / "checkpoints", DRAFT, [Check("speed", True, "fast")])
    registry = Registry(tmp_path / "checkpoints")
    registry.verify(registry.resolve(checkpoint.ref))
    roles = {file.path: file.role for file in checkpoint.manifest.files}
    assert roles == {
        "model.safetensors": "weights",
        "config.json": "config",
        "chat_template.jinja": "chat_template",
        "README.md": "other",
    }
    assert checkpoint.manifest.gate.checks == ("speed: fast", "model.safetensors: 3 numbers, all finite")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["tiny-1"]


def test_a_name_is_never_reused(run: Path, tmp_path: Path) -> None:
    publish(run / "final", tmp_path / "checkpoints", DRAFT)
    with pytest.raises(PublishError, match="never reused"):
        publish(run / "final", tmp_path / "checkpoints", DRAFT)


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_published(run: Path, tmp_path: Path, odd: float) -> None:
    save_file({"fine": torch.ones(2), "w": torch.tensor([1.0, odd])}, run / "final" / "model.safetensors")
    with pytest.raises(PublishError, match="NaN or infinity in w"):
        publish(run / "final", tmp_path / "checkpoints", DRAFT)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_file_that_is_no_safetensors_is_not_published(run: Path, tmp_path: Path) -> None:
    (run / "final" / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(PublishError, match="not a safetensors file"):
        publish(run / "final", tmp_path / "checkpoints", DRAFT)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "code.py", "optimizer.pt"])
def test_only_data_formats_are_published(run: Path, tmp_path: Path, name: str) -> None:
    (run / "final" / name).write_bytes(b"x")
    with pytest.raises(PublishError, match=name):
        publish(run / "final", tmp_path / "checkpoints", DRAFT)


def test_a_failed_gate_is_told_with_its_reason(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="speed: too slow"):
        publish(run / "final", tmp_path / "checkpoints", DRAFT, [Check("speed", False, "too slow")])


def test_the_command_publishes_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notice = tmp_path / "notice"
    notice.write_text("licences")
    arguments = [
        "publish",
        "--run",
        str(run),
        "--name",
        "tiny-2",
        "--registry",
        str(tmp_path / "checkpoints"),
    ]
    assert keel_train([*arguments, "--gate", "perplexity<=12.5"]) == 1
    assert "perplexity <= 12.5: 12 [11, 13] on 9 rows; its worse end, 13, is beyond 12.5" in (
        capsys.readouterr().err
    )
    accepted = ["--gate", "perplexity<=20", "--notice", str(notice), "--alias", "live"]
    assert keel_train([*arguments, *accepted]) == 0
    assert "alias live means tiny-2@" in capsys.readouterr().out
    checkpoint = Registry(tmp_path / "checkpoints").resolve("tiny-2")
    assert checkpoint.manifest.seed == 5
    assert checkpoint.manifest.data[0].licence == "MIT"
    assert (checkpoint.path / "NOTICE.txt").read_text() == "licences"
    assert checkpoint.manifest.config == {"steps": 1}


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert keel_train(["publish", "--run", str(tmp_path), "--name", "x"]) == 1
    assert "let the run end first" in capsys.readouterr().err
    assert keel_train(["nonsense"]) == 2
    assert "no command 'nonsense'" in capsys.readouterr().err
    assert keel_train(["--help"]) == 0
    assert "pretrain" in capsys.readouterr().out


def test_earlier_stages_keep_their_data() -> None:
    first = RunRecord(
        method="sft", config={}, seed=0, code_revision="a",
        data=(DataSource(path="a", origin="", licence="", sha256=SHA),),
    )  # fmt: skip
    second = first.model_copy(
        update={
            "earlier": first,
            "data": (DataSource(path="b", origin="", licence="", sha256=SHA), *first.data),
        }
    )
    assert [source.path for source in second.all_data] == ["a", "b"]


def test_the_code_revision_is_a_commit() -> None:
    assert len(code_revision().removesuffix("+changes")) == 40 or code_revision() == "unknown"

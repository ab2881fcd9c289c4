"""Gates against the parent, the files' own checks, the alias, and the card that a reader finds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from policies.manifest import DataSource, Evaluation
from policies.registry import Registry, ResolvedCheckpoint
from training.checks import check_files
from training.cli import main
from training.errors import PublishError
from training.evaluate.report import EVALUATION_NAME, EvaluationFile, Metric
from training.gates import Gate, gathered
from training.provenance import RunRecord, folder_digest
from training.publish import Draft, PublishConfig, publish, publish_run

SHA = "0" * 64
BASE = [float(i % 7) for i in range(60)]


def metric(name: str, rows: list[float]) -> Metric:
    return Metric.averaged(name, rows, "", "60 prompts")


def measured(subject: str, reward: list[float], violations: list[float], **more: object) -> EvaluationFile:
    metrics = (metric("reward", reward), metric("violations", violations))
    return EvaluationFile(subject=subject, questions="q", metrics=metrics, **more)  # type: ignore[arg-type]


def checkpoint_files(folder: Path, fill: float = 1.0) -> Path:
    folder.mkdir(parents=True)
    save_file({"layer.weight": torch.full((4, 6), fill)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def parent(tmp_path: Path, root: Path) -> ResolvedCheckpoint:
    draft = Draft(name="parent-1", kind="full", method="sft", config={}, seed=0, code_revision="abc")
    return publish(checkpoint_files(tmp_path / "parent"), root, draft, alias="live")


@pytest.fixture
def run(tmp_path: Path, parent: ResolvedCheckpoint) -> Path:
    checkpoint_files(tmp_path / "run" / "final", fill=2.0)
    RunRecord(
        method="dpo",
        config={"beta": 0.1},
        seed=1,
        code_revision="abc",
        data=(DataSource(path="pairs.jsonl", origin="made | here", licence="CC-BY-SA-3.0", sha256=SHA),),
        evaluations=(Evaluation(metric="margin", value=0.5, data="held out", n=40),),
        parent=parent.ref,
    ).write(tmp_path / "run")
    return tmp_path / "run"


def evaluate(run: Path, parent: ResolvedCheckpoint, gain: float, violations: int) -> None:
    """A run that scores `gain` more than its parent on every prompt, and has so many violations."""
    flags = [1.0] * violations + [0.0] * (60 - violations)
    before = measured(parent.ref, BASE, [0.0] * 60)
    weights = folder_digest(run / "final")
    measured("run", [r + gain for r in BASE], flags, baseline=before, weights=weights).write(
        run / EVALUATION_NAME
    )


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("perplexity<=30", Gate("perplexity", "<=", 30, False)),
        ("toxicity AUC >= 0.9", Gate("toxicity AUC", ">=", 0.9, False)),
        ("reward>=parent", Gate("reward", ">=", 0, True)),
        ("violations <= parent + 0.01", Gate("violations", "<=", 0.01, True)),
        ("reward>=parent-5e-2", Gate("reward", ">=", -0.05, True)),
        ("margin>=-1.5", Gate("margin", ">=", -1.5, False)),
    ],
)
def test_gates_are_read(text: str, parsed: Gate) -> None:
    assert Gate.parse(text) == parsed
    assert Gate.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text", ["reward", "reward=1", "reward>parent", "<=3", "reward>=parents", "a<=b", "a<=1.2.3"]
)
def test_what_is_no_gate_is_refused(text: str) -> None:
    with pytest.raises(PublishError, match="write METRIC<=NUMBER"):
        Gate.parse(text)


def test_a_paired_gain_that_two_samples_would_not_show() -> None:
    ours, theirs = measured("a", [r + 0.1 for r in BASE], BASE), measured("b", BASE, BASE)
    gate = Gate.parse("reward>=parent")
    assert gate.check(ours, theirs).passed
    other_questions = ours.model_copy(update={"questions": "other"})
    check = gate.check(other_questions, theirs)
    assert not check.passed
    assert "difference of two samples" in check.detail


def test_a_limit_holds_for_the_intervals_worse_end() -> None:
    twelve = Evaluation(metric="perplexity", value=12, low=11, high=13, data="", n=1)
    figures = gathered([twelve], None, "x")
    assert Gate.parse("perplexity<=13").check(figures, None).passed
    assert not Gate.parse("perplexity<=12.5").check(figures, None).passed
    assert not Gate.parse("perplexity>=11.5").check(figures, None).passed
    assert Gate.parse("loss<=1").check(figures, None).detail == "was not measured"
    assert Gate.parse("perplexity<=parent").check(figures, None).detail == "was not measured for the parent"


GATES = ("reward>=parent", "violations<=parent+0.05", "margin>=0.2")


def test_a_better_run_takes_over_the_alias(run: Path, parent: ResolvedCheckpoint, root: Path) -> None:
    evaluate(run, parent, gain=0.2, violations=0)
    config = PublishConfig(name="child-1", gates=GATES, alias="live", limits=("Knows no sums.",))
    child = publish_run(run, root, config)
    registry = Registry(root)
    registry.verify(child)
    assert registry.resolve("live").ref == child.ref
    manifest = child.manifest
    assert manifest.parent == parent.ref
    assert {e.metric for e in manifest.evaluations} == {"reward", "violations", "margin"}
    assert manifest.gate.checks[0].startswith("reward >= parent: 3.")
    card = (child.path / "README.md").read_text()
    for words in (
        "# child-1",
        parent.ref,
        "CC-BY-SA-3.0",
        "made \\| here",
        "Knows no sums.",
        "beta: 0.1",
        "| margin |",
    ):
        assert words in card
    assert "fewer than a hundred rows: reward, violations, margin" in card
    # The rows are kept for whoever comes next, without the parent's.
    assert EvaluationFile.read(child.path / EVALUATION_NAME).baseline is None


@pytest.mark.parametrize(
    ("gain", "violations", "told"),
    [(-0.1, 0, "reward >= parent: "), (0.0, 9, "violations <= parent+0.05: 0.15 against 0")],
)
def test_a_worse_run_is_refused_and_the_alias_stays(
    run: Path, parent: ResolvedCheckpoint, root: Path, gain: float, violations: int, told: str
) -> None:
    evaluate(run, parent, gain, violations)
    with pytest.raises(PublishError, match="not published as 'child-1'") as caught:
        publish_run(run, root, PublishConfig(name="child-1", gates=GATES, alias="live"))
    assert told in str(caught.value)
    assert Registry(root).names() == ("parent-1",)
    assert Registry(root).resolve("live").ref == parent.ref


def test_figures_of_other_weights_or_another_parent_do_not_count(
    run: Path, parent: ResolvedCheckpoint, root: Path
) -> None:
    evaluate(run, parent, gain=1, violations=0)
    config = PublishConfig(name="child-1", gates=GATES)
    save_file({"layer.weight": torch.zeros(4, 6)}, run / "final" / "model.safetensors")
    with pytest.raises(PublishError, match="measured other weights"):
        publish_run(run, root, config)
    evaluate(run, parent, gain=1, violations=0)
    file = EvaluationFile.read(run / EVALUATION_NAME)
    other = measured("other-1@" + SHA, BASE, BASE)
    file.model_copy(update={"baseline": other}).write(run / EVALUATION_NAME)
    with pytest.raises(PublishError, match="compares with other-1@"):
        publish_run(run, root, config)


def test_the_parents_published_figures_are_compared_with(
    run: Path, parent: ResolvedCheckpoint, root: Path
) -> None:
    measured("run", BASE, [0.0] * 60).write(run / EVALUATION_NAME)
    with pytest.raises(PublishError, match="reward >= parent: was not measured for the parent"):
        publish_run(run, root, PublishConfig(name="child-1", gates=GATES))
    first = publish_run(run, root, PublishConfig(name="child-1"))
    record = RunRecord.read(run).model_copy(update={"parent": first.ref})
    record.write(run)
    measured("run", [r + 0.1 for r in BASE], [0.0] * 60).write(run / EVALUATION_NAME)
    second = publish_run(run, root, PublishConfig(name="child-2", gates=("reward>=parent",)))
    assert "paired over rows" in second.manifest.gate.checks[0]


def test_a_template_that_differs_from_the_parents_is_refused(run: Path, root: Path) -> None:
    (run / "final" / "chat_template.jinja").write_text("other")
    with pytest.raises(PublishError, match="chat template: differs from the parent's"):
        publish_run(run, root, PublishConfig(name="child-1"))
    publish_run(run, root, PublishConfig(name="child-1", new_template=True))


def test_an_alias_cannot_be_a_checkpoints_name(run: Path, root: Path) -> None:
    for alias in ("child-1", "parent-1"):
        with pytest.raises(PublishError, match="choose another alias"):
            publish_run(run, root, PublishConfig(name="child-1", alias=alias))
    assert Registry(root).names() == ("parent-1",)


def adapter(folder: Path, width: int = 6, layer: str = "layer") -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    names = {f"base_model.model.{layer}.lora_A.weight": torch.ones(2, width)}
    names[f"base_model.model.{layer}.lora_B.weight"] = torch.ones(4, 2)
    save_file(names, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_an_adapter_must_fit_its_parent(run: Path, parent: ResolvedCheckpoint, root: Path) -> None:
    config = PublishConfig(name="child-1", kind="adapter")
    for wrong in ({"width": 5}, {"layer": "other"}):
        adapter(run / "final", **wrong)  # type: ignore[arg-type]
        with pytest.raises(PublishError, match="does not fit parent-1: base_model"):
            publish_run(run, root, config)
    adapter(run / "final")
    child = publish_run(run, root, config)
    about = json.loads((child.path / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == parent.ref
    assert "adapter: 1 updates fit parent-1" in child.manifest.gate.checks


def test_each_kind_has_the_files_that_it_needs(tmp_path: Path) -> None:
    files = checkpoint_files(tmp_path / "model")
    assert "adapter_config.json" in check_files(files, "adapter")[0].detail
    assert "reward.json" in check_files(files, "reward")[0].detail
    about = {
        "kind": "causal", "objectives": ["helpful"], "weights": {"helpful": 1.0}, "mean": [0.0],
        "covariance": [[1.0]], "samples": 9, "max_length": 64,
    }  # fmt: skip
    (files / "reward.json").write_text(json.dumps(about))
    assert "2 outputs for the objectives helpful" in check_files(files, "reward")[-1].detail
    (files / "config.json").write_text(json.dumps({"id2label": {"0": "LABEL_0"}}))
    assert check_files(files, "reward")[-1].passed
    (files / "reward.json").write_text("{}")
    assert not check_files(files, "reward")[-1].passed


def test_options_come_from_a_file_and_the_command_line(
    run: Path, parent: ResolvedCheckpoint, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    (tmp_path / "publish.yaml").write_text("name: child-1\ngates: ['margin>=0.9']\nalias: live\n")
    command = [
        "publish",
        "--run",
        str(run),
        "--registry",
        str(root),
        "--config",
        str(tmp_path / "publish.yaml"),
    ]
    assert main(command) == 1
    assert "margin >= 0.9" in capsys.readouterr().err
    assert main([*command, "--gate", "margin>=0.1", "--name", "child-2"]) == 0
    assert "alias live means child-2@" in capsys.readouterr().out
    (tmp_path / "publish.yaml").write_text("nam: x\n")
    assert main(command) == 1
    assert "nam: Extra inputs are not permitted" in capsys.readouterr().err

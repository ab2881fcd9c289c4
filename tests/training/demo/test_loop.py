"""The loop, once around in its quick profile: every stage for real, with figures that mean nothing."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from policies.registry import Registry
from training.errors import TrainingError
from training.evaluate.metrics import Figure
from training.evaluate.report import EvaluationFile, Metric
from training.loop import run_loop, stages_of
from training.loop.config import FULL, QUICK, LoopConfig
from training.loop.measure import gain, pooled
from training.loop.plots import PpoPath
from training.loop.progress import Progress, Stage
from training.loop.report import write_results
from training.loop.stages import ALIAS, PARENT
from training.provenance import RunRecord


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Progress]:
    work = tmp_path_factory.mktemp("loop")
    return work, run_loop(QUICK, work, Console(file=io.StringIO()))


@pytest.mark.slow
def test_what_was_trained_is_published_and_the_alias_means_it(finished: tuple[Path, Progress]) -> None:
    work, progress = finished
    registry = Registry(work / "checkpoints")
    chosen = registry.resolve(ALIAS)
    assert chosen.ref == progress.results["publish"]["ref"]
    assert chosen.name in ("shop-dpo-0", "shop-ppo-0")
    registry.verify(chosen)
    parent = registry.resolve(PARENT)
    assert chosen.manifest.parent == parent.ref
    measured = {evaluation.metric for evaluation in chosen.manifest.evaluations}
    assert {"gold", "proxy", "kl", "violations"} <= measured
    assert chosen.manifest.gate.passed
    assert any(check.startswith("gold >= parent") for check in chosen.manifest.gate.checks)


@pytest.mark.slow
def test_policies_moved_and_the_gold_judge_saw_every_rollout(finished: tuple[Path, Progress]) -> None:
    work, _ = finished
    parent = (work / "checkpoints" / PARENT / "model.safetensors").read_bytes()
    for run in ("dpo-0", "ppo-0"):
        assert (work / run / "final" / "model.safetensors").read_bytes() != parent
        assert RunRecord.read(work / run).parent == Registry(work / "checkpoints").resolve(PARENT).ref
    path = PpoPath.read(work / "ppo-0", 0)
    assert len(path.gold) == len(path.proxy) == len(path.kl) == QUICK.ppo.steps


@pytest.mark.slow
def test_a_loop_that_is_started_again_does_nothing_twice(finished: tuple[Path, Progress]) -> None:
    work, progress = finished
    said = io.StringIO()
    again = run_loop(QUICK, work, Console(file=said))
    assert again.results == progress.results
    assert said.getvalue().count("done before") == len(stages_of(QUICK, work))
    with pytest.raises(TrainingError, match="other settings"):
        run_loop(QUICK.model_copy(update={"seed": 1}), work, Console(file=io.StringIO()))


@pytest.mark.slow
def test_the_report_holds_every_figure_and_both_pictures(
    finished: tuple[Path, Progress], tmp_path: Path
) -> None:
    work, progress = finished
    write_results(QUICK, work, progress, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    for words in ("| SFT |", "| DPO |", "| PPO |", "violations", "shop-", "seeds 0 each"):
        assert words in text
    for picture in ("ppo-proxy-and-gold.svg", "gold-against-kl.svg"):
        assert f"results/{picture}" in text
        assert (tmp_path / "results" / picture).read_text(encoding="utf-8").startswith("<?xml")


def test_profiles_are_whole_and_print_as_yaml(tmp_path: Path) -> None:
    for config in (FULL, QUICK):
        (tmp_path / "loop.yaml").write_text(config.to_yaml(), encoding="utf-8")
        assert LoopConfig.load(tmp_path / "loop.yaml") == config
    assert len(FULL.seeds) >= 2 and FULL.serve
    assert FULL.gates == ("gold>=parent", "violations<=parent")


def evaluated(subject: str, gold: list[float], violations: list[float]) -> EvaluationFile:
    rows = {"gold": gold, "violations": violations}
    metrics = tuple(Metric.averaged(name, values, "", "") for name, values in rows.items())
    return EvaluationFile(subject=subject, questions="same", metrics=metrics)


def test_figures_over_seeds_are_means_per_question_and_gains_are_paired() -> None:
    base = evaluated("sft", [0.0, 1.0, 2.0, 3.0], [1.0, 0.0])
    seeds = [
        evaluated("a", [1.0, 2.0, 3.0, 4.0], [0.0, 0.0]),
        evaluated("b", [2.0, 3.0, 4.0, 5.0], [0.0, 1.0]),
    ]
    both = pooled("ppo", seeds)
    assert gain(both, base, "gold") == Figure(1.5, 1.5, 1.5, 4)
    violations = both.metric("violations")
    assert violations is not None and violations.value == 0.25 and violations.n == 4
    other = seeds[0].model_copy(update={"questions": "others"})
    with pytest.raises(TrainingError, match="same questions"):
        pooled("ppo", [seeds[1], other])


def test_a_stage_is_done_once_and_one_that_failed_is_done_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def broken() -> dict[str, object]:
        calls.append("broken")
        raise TrainingError("out of luck")

    def fine(name: str) -> Stage:
        return Stage(name, name, 10, lambda: calls.append(name) or {"figure": 1.0})  # type: ignore[func-returns-value]

    progress = Progress(tmp_path, Console(file=io.StringIO()))
    with pytest.raises(TrainingError, match="out of luck"):
        progress.run([fine("first"), Stage("second", "second", 10, broken)])
    said = io.StringIO()
    progress = Progress(tmp_path, Console(file=said))
    progress.run([fine("first"), fine("second")])
    assert calls == ["first", "broken", "second"]
    assert "[1/2] first: done before" in said.getvalue()
    assert "figure 1" in said.getvalue()


@pytest.mark.slow
def test_what_fails_its_gates_is_not_published_and_the_report_says_so(
    finished: tuple[Path, Progress], tmp_path: Path
) -> None:
    work, _ = finished
    copy = tmp_path / "work"
    shutil.copytree(work, copy, ignore=shutil.ignore_patterns("steps"))
    (copy / "stages" / "publish.json").unlink()
    (copy / "loop.yaml").unlink()
    shutil.rmtree(copy / "checkpoints" / Registry(work / "checkpoints").resolve(ALIAS).name)
    Registry(copy / "checkpoints").point(ALIAS, PARENT)
    strict = QUICK.model_copy(update={"gates": ("gold>=parent+10",)})
    refused = run_loop(strict, copy, Console(file=io.StringIO()))
    assert "gold >= parent+10" in refused.results["publish"]["refused"]
    assert Registry(copy / "checkpoints").resolve(ALIAS).name == PARENT
    write_results(strict, copy, refused, tmp_path / "RESULTS.md")
    assert "## Not published" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")

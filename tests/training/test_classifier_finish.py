"""From a trained model to a published checkpoint: calibrated, recorded, gated."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from policies.manifest import Evaluation
from policies.registry import Registry
from tests.training.tiny_guard import write_run
from training.data.safety import TRAINED_ON
from training.data.safety_example import LABELS, Example, SafetyData
from training.errors import PublishError, TrainingError
from training.evaluate.safety import insert
from training.evaluate.scorer import Scorer
from training.methods import classifier_finish
from training.methods.classifier_config import ClassifierConfig
from training.methods.classifier_finish import data_sources, finish, publish_run
from training.provenance import RunRecord

DEV = [
    Example("you are stupid", dict.fromkeys(LABELS, 1.0), "davidson"),
    *(
        Example(text, dict.fromkeys(LABELS, 0.0), "clinc")
        for text in ("hello my friend", "please", "the rules")
    ),
    Example("my name is John", {}, "wnut17", (("PERSON", 11, 15),)),
]


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    rows = [
        {"path": path, "rows": "1", "source": "someone/something", "licence": "MIT"} for path in TRAINED_ON
    ]
    for path in TRAINED_ON:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(gzip.compress(path.encode()))
    with (root / "MANIFEST.tsv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "rows", "source", "licence"], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.fixture
def run(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a tiny model, whose encoder's folder is its own model's."""
    monkeypatch.setattr(classifier_finish, "build", lambda *_: SafetyData([], DEV, {}))
    place = tmp_path / "run"
    write_run(place / "model", max_tokens=48)
    config = ClassifierConfig(name="tiny", encoder=str(place / "model"), max_tokens=48)
    finish(config, data_root, place)
    return place


def evaluated(run: Path) -> None:
    figure = Evaluation(metric="toxicity AUC", value=0.9, data="comments", n=10)
    RunRecord.read(run).model_copy(update={"evaluations": (figure,)}).write(run)


def test_a_finished_run_holds_what_the_gateway_loads(run: Path) -> None:
    names = {"NOTICE.txt", "classifier.json", "model.onnx", "tokenizer.json"}
    assert {path.name for path in (run / "final").iterdir()} == names
    about = json.loads((run / "final" / "classifier.json").read_text())
    assert set(about["calibration"]) == set(about["thresholds"]) | {"unsafe_reply"} == set(LABELS)
    assert all(slope <= 1 for slope, _ in about["calibration"].values())
    assert "someone/something (toxicity/davidson.jsonl.gz): MIT" in (run / "final" / "NOTICE.txt").read_text()


def test_calibration_sets_the_mean_score_to_the_share_of_positives(run: Path) -> None:
    scorer = Scorer(run / "final", run / "final" / "model.onnx")
    mean = scorer.probabilities([e.text for e in DEV if e.labels])[:, LABELS.index("obscene")].mean()
    assert mean == pytest.approx(0.25, abs=0.12)


def test_publishing_needs_an_evaluation_and_leaves_a_verified_checkpoint(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not evaluated"):
        publish_run(run, tmp_path / "registry", "tiny")
    evaluated(run)
    checkpoint = publish_run(run, tmp_path / "registry", "tiny")
    Registry(tmp_path / "registry").verify(checkpoint)
    manifest = checkpoint.manifest
    assert manifest.kind == "classifier"
    assert {source.path for source in manifest.data} == {*TRAINED_ON, "training/data/texts"}
    assert manifest.base is not None
    assert manifest.gate.checks[0].startswith("parity: int8 differs")


def test_a_graph_that_strays_from_the_trained_model_is_not_published(run: Path, tmp_path: Path) -> None:
    evaluated(run)
    weights = load_file(run / "model" / "model.safetensors")
    weights["sequence.bias"] = weights["sequence.bias"] + np.float32(4.0)
    save_file(weights, run / "model" / "model.safetensors")
    with pytest.raises(PublishError, match="parity"):
        publish_run(run, tmp_path / "registry", "tiny")
    assert not (tmp_path / "registry" / "tiny").exists()


def test_a_source_without_a_licence_is_an_error(data_root: Path) -> None:
    assert len(data_sources(data_root)) == len(TRAINED_ON) + 1
    lines = (data_root / "MANIFEST.tsv").read_text().splitlines()
    (data_root / "MANIFEST.tsv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(TrainingError, match="says nothing of"):
        data_sources(data_root)


def test_figures_go_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "S.md"
    document.write_text("a\n<!-- figures -->\nold\n<!-- /figures -->\nb\n")
    insert(document, r"new \1")
    assert document.read_text() == "a\n<!-- figures -->\nnew \\1\n<!-- /figures -->\nb\n"
    document.write_text("no markers")
    with pytest.raises(TrainingError, match="block"):
        insert(document, "x")

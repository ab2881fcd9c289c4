"""An encoder's early exit: what it learns from, what limits promise, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
import torch

from guardrails.classifier_onnx import OnnxClassifier
from guardrails.early_exit import EarlyExit as Served
from guardrails.early_exit import load
from guardrails.in_context import Excerpt
from policies.registry import Registry
from tests.training.tiny_guard import WORDS, write_guard
from training.data.early_exit import Text, mistyped, pieces
from training.errors import TrainingError
from training.evaluate.scorer import Scorer
from training.methods import early_exit
from training.methods.early_exit import EarlyExitConfig, halved, publish_run, sure, train
from training.methods.early_exit_model import EarlyExit
from training.methods.early_exit_scores import REACH, Scored, score, tapped
from training.methods.early_exit_train import batches, collate, logits, loss
from training.publish import Draft, publish


def network(size: int = 8, heads: int = 3) -> EarlyExit:
    torch.manual_seed(3)
    return EarlyExit(size, 6, heads)


def rows(lengths: list[int], heads: int = 3) -> Scored:
    rng = np.random.default_rng(0)
    return Scored(
        tuple("abc"[:heads]),
        tuple(f"s{i}" for i in range(len(lengths))),
        np.cumsum([0, *lengths]),
        rng.random((len(lengths), heads)).astype(np.float32),
        rng.normal(size=(sum(lengths), 8)).astype(np.float16),
        rng.random((sum(lengths), 1)).astype(np.float16),
    )


def test_one_place_is_enough_whatever_stands_around_it() -> None:
    made = network()
    with torch.no_grad():
        made.mean.weight.zero_()
    plain, passage = torch.randn(40, 8), torch.randn(3, 8)
    alone = made(passage[None], torch.tensor([3]))[0]
    within = made(torch.cat([plain, passage, plain])[None], torch.tensor([83]))[0]
    assert bool((within >= alone).all())


def test_padding_and_neighbours_in_a_batch_change_nothing() -> None:
    made, scored = network(), rows([9, 30, 12, 15])
    alone = []
    for i in range(len(scored)):
        states, _, lengths = collate(scored, np.array([i]))
        alone.append(made(states, lengths)[0].detach().numpy())
    np.testing.assert_allclose(logits(made, scored), np.concatenate(alone), rtol=1e-5, atol=1e-5)


def test_every_row_is_in_one_batch_of_an_epoch() -> None:
    scored = rows([9 + i % 40 for i in range(300)])
    found = list(batches(scored, 32, np.random.default_rng(0)))
    assert sorted(np.concatenate(found).tolist()) == list(range(300))
    assert max(map(len, found)) <= 32


def test_a_missed_score_costs_more_than_a_false_one() -> None:
    missed = loss(torch.tensor([[-3.0]]), torch.tensor([[1.0]]), torch.ones(1, 1), 8.0)
    false = loss(torch.tensor([[3.0]]), torch.tensor([[0.0]]), torch.ones(1, 1), 8.0)
    assert missed / false == pytest.approx(8.0)


def test_limits_hold_in_every_source_with_enough_flagged_texts_and_in_what_was_changed() -> None:
    rng = np.random.default_rng(2)
    count = 8_000
    z = rng.normal(size=(count, 1)).astype(np.float32)
    names = ("hard", "hard", "hard", "hard", "rare", *["easy"] * 72, *["easy/changed"] * 3)
    sources = np.array([names[i % 80] for i in range(count)])
    z[sources == "hard"] -= 2.0
    z[sources == "easy/changed"] -= 3.0
    z[sources == "rare"] -= 9.0  # too few to count
    scored = Scored(
        ("a",),
        tuple(map(str, sources)),
        np.arange(count + 1),
        np.full((count, 1), 0.9, np.float32),
        np.zeros((count, 1), np.float16),
        np.zeros((count, 1), np.float16),
    )
    limit = sure(z, scored, [0.5], 0.02)["a"]
    shares = {name: float((z[sources == name, 0] < limit).mean()) for name in np.unique(sources)}
    assert max(shares["easy"], shares["hard"], shares["easy/changed"]) <= 0.02
    assert shares["easy/changed"] > 0.005
    with pytest.raises(TrainingError, match="there is no text"):
        sure(z, scored, [0.95], 0.02)


def test_pieces_and_typing_errors() -> None:
    text = "one two three four five six seven eight nine ten " * 20
    cut = list(pieces(text, Random(0)))
    assert "".join(text.split()) == "".join("".join(cut).split())
    assert max(map(len, cut)) <= 520
    assert mistyped(text, Random(0)) != text
    assert mistyped("", Random(0)) == ""


def texts(count: int) -> list[Text]:
    rng = Random(0)
    words = [*WORDS, "kind", "Paris", "John"]
    return [
        Text(" ".join(rng.choices(words, k=rng.randint(3, 9))), "x_pair" if i % 2 else "y_pair")
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a tiny encoder."""
    root = tmp_path_factory.mktemp("registry")
    folder = write_guard(root / "work")
    (folder / "NOTICE.txt").write_text("written for a test {name}\n")
    draft = Draft(name="tiny", kind="classifier", method="classifier", config={}, seed=0, code_revision="x")
    publish(folder, root / "checkpoints", draft)
    return root / "checkpoints"


@pytest.fixture(scope="module")
def at(registry: Path) -> str:
    """The tensor after the tiny encoder's first layer."""
    graph = onnx.load(Registry(registry).resolve("tiny").path / "model.onnx").graph
    norms = [node.output[0] for node in graph.node if node.op_type == "LayerNormalization"]
    return str(norms[2])


def test_a_run_from_texts_to_a_published_exit_that_the_gateway_reads_alike(
    registry: Path, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_exit, "build_texts", lambda root, seed, most: (texts(120), texts(250)))
    monkeypatch.setattr(early_exit, "sources", lambda root: ())
    config = EarlyExitConfig(
        name="tiny-exit", encoder="tiny", at=at, channels=6, epochs=2, floors={"labels": 0.0, "names": 0.0}
    )
    run = tmp_path / "run"
    train(config, Registry(registry), tmp_path, run)
    published = publish_run(run, registry, "tiny-exit")
    encoder = Registry(registry).resolve("tiny")
    assert published.manifest.parent == encoder.ref
    # What the gateway computes with the published bytes is what the limits were chosen with.
    validation = Scored.read(run / "validation")
    served, classifier = Served(published.path, {}), OnnxClassifier.load(encoder.path, at)
    limits = np.array([served.about.sure[head] for head in served.about.heads])
    z_NH = np.stack([served.logits(classifier.begin(t.text).states[0][at][0]) for t in texts(250)])
    assert len(validation) == len(z_NH)
    assert ((z_NH < limits - 1e-3).mean(axis=0) <= config.lost).all()
    assert (np.sort(z_NH, axis=0)[3] >= limits - 1e-2).all()
    cascade = load(published.path, encoder.path)
    stages = {o.stage for o in cascade.predict([Excerpt(t.text, 0, ("toxicity",)) for t in texts(50)])}
    assert stages <= {"exit", "encoder"}
    # A second try begins with the scores that are there.
    monkeypatch.setattr(early_exit, "build_texts", lambda *_: pytest.fail("scored again"))
    train(config, Registry(registry), tmp_path, run)
    about = json.loads((run / "final" / "exit.json").read_text())
    assert about["sure"] == dict(served.about.sure)
    # Where attacks are to be expected that it has not learnt from, it is sure of less.
    train(config.model_copy(update={"margin": {"injection": 1.5}}), Registry(registry), tmp_path, run)
    wary = json.loads((run / "final" / "exit.json").read_text())["sure"]
    assert wary == about["sure"] | {"injection": round(about["sure"]["injection"] - 1.5, 4)}


def test_what_is_learnt_is_the_encoders_and_survives_the_files(
    registry: Path, at: str, tmp_path: Path
) -> None:
    folder = Registry(registry).resolve("tiny").path
    scorer = Scorer(folder, tapped(folder / "model.onnx", at), at)
    long = Text("you are my friend " * 50, "long")
    score(scorer, [*texts(3), Text("", "empty"), Text("hello", "short"), long], tmp_path / "scored")
    scored = Scored.read(tmp_path / "scored")
    assert scored.sources == ("y_pair", "x_pair", "y_pair", "long")
    lengths = np.diff(scored.starts) - 2
    assert (lengths[3], lengths.min() >= REACH) == (scorer.size, True)
    for i, text in enumerate([*(t.text for t in texts(3)), scorer.first_window(long.text)]):
        labels = scorer.probabilities([text])[0]
        np.testing.assert_allclose(scored.targets_NH[i, : len(labels)], labels, rtol=1e-6)
        states = OnnxClassifier.load(folder, at).begin(text).states[0][at][0]
        part = slice(*scored.starts[i : i + 2])
        np.testing.assert_allclose(scored.states_TD[part], states, rtol=2e-3, atol=2e-3)
        names = scored.names_TE[part].max(axis=0)
        np.testing.assert_allclose(scored.targets_NH[i, len(labels) :], names, rtol=2e-3, atol=1e-3)


def test_weights_in_sixteen_bits_are_those_that_limits_are_chosen_with() -> None:
    made = network()
    before = made.place.weight.detach().clone()
    tensors = halved(made)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    torch.testing.assert_close(made.place.weight.detach(), tensors["place.weight"].float())
    torch.testing.assert_close(made.place.weight.detach(), before, rtol=1e-3, atol=1e-3)

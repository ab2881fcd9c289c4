"""The first stage of a cascade: that scores only grow with the text, what limits promise, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from guardrails.first_stage import load
from policies.registry import Registry
from tests.training.tiny_guard import WORDS, model, tokenizer, write_guard
from training.data.first_stage import Text, mistyped, pieces
from training.errors import TrainingError
from training.evaluate.scorer import Scorer
from training.methods import first_stage
from training.methods.classifier_model import case_type
from training.methods.first_stage import FirstStageConfig, publish_run, quantized, sure, train
from training.methods.first_stage_model import REACH, FirstStage
from training.methods.first_stage_scores import LONGEST_ROW, Scored, score
from training.methods.first_stage_train import batches, collate, logits, loss, usable
from training.publish import Draft, publish


def network(words: int = 50, size: int = 8, heads: int = 3) -> FirstStage:
    torch.manual_seed(3)
    made = FirstStage(torch.randn(words, size), 6, 7, heads)
    with torch.no_grad():
        made.cases.weight.normal_()
    return made


def rows(lengths: list[int], heads: int = 3) -> Scored:
    rng = np.random.default_rng(0)
    return Scored(
        tuple("abc"[:heads]),
        tuple(f"s{i}" for i in range(len(lengths))),
        np.cumsum([0, *lengths]),
        rng.integers(0, 50, sum(lengths)).astype(np.int32),
        rng.integers(0, 3, sum(lengths)).astype(np.int8),
        rng.random((len(lengths), heads)).astype(np.float32),
    )


def test_a_longer_text_never_scores_lower() -> None:
    made, rng = network(), np.random.default_rng(1)
    for _ in range(50):
        before, text, after = (rng.integers(0, 50, n) for n in (rng.integers(0, 9), 14, rng.integers(0, 9)))
        whole = np.concatenate([before, text, after])
        alone, within = (
            made(torch.from_numpy(t)[None], torch.zeros(1, len(t), dtype=torch.long), torch.tensor([len(t)]))
            for t in (text, whole)
        )
        assert bool((within >= alone - 1e-5).all())


def test_padding_and_neighbours_in_a_batch_change_nothing() -> None:
    made, scored = network(), rows([9, 30, 12, 15])
    together = logits(made, scored)
    alone = np.concatenate(
        [made(*collate(scored, np.array([i]))).detach().numpy() for i in range(len(scored))]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)


def test_texts_that_are_too_short_are_the_encoders() -> None:
    scored = rows([REACH - 1, REACH])
    assert usable(scored).tolist() == [1]
    assert np.isinf(logits(network(), scored)).all(axis=1).tolist() == [True, False]


def test_every_usable_row_is_in_one_batch_of_an_epoch() -> None:
    scored = rows([9 + i % 40 for i in range(300)])
    found = list(batches(scored, usable(scored), 32, np.random.default_rng(0)))
    assert sorted(np.concatenate(found).tolist()) == list(range(300))
    assert max(map(len, found)) <= 32


def test_a_missed_score_costs_more_than_a_false_one() -> None:
    missed = loss(torch.tensor([[-3.0]]), torch.tensor([[1.0]]), torch.ones(1, 1), 8.0)
    false = loss(torch.tensor([[3.0]]), torch.tensor([[0.0]]), torch.ones(1, 1), 8.0)
    assert missed / false == pytest.approx(8.0)


def test_limits_hold_in_every_source_with_enough_flagged_texts() -> None:
    rng = np.random.default_rng(2)
    count = 4_000
    z = rng.normal(size=(count, 1)).astype(np.float32)
    names = (*["hard", "hard/changed"] * 4, "rare", *["easy"] * 71)
    sources = [names[i % 80] for i in range(count)]
    z[[s.startswith("hard") for s in sources]] -= 2.0
    z[[s == "rare" for s in sources]] -= 9.0  # too few to count
    scored = Scored(
        ("a",),
        tuple(sources),
        np.arange(count + 1),
        np.zeros(count, np.int32),
        np.zeros(count, np.int8),
        np.full((count, 1), 0.9, np.float32),
    )
    limit = sure(z, scored, [0.5], 0.02)["a"]
    for name in ("easy", "hard"):
        of = z[[s.startswith(name) for s in sources], 0]
        assert (of < limit).mean() <= 0.02
    assert (z[[s.startswith("hard") for s in sources], 0] < limit).mean() > 0.005
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
        Text(" ".join(rng.choices(words, k=rng.randint(9, 30))), "x_pair" if i % 2 else "y_pair")
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with a tiny encoder, and beside it the word vectors that it has."""
    root = tmp_path_factory.mktemp("registry")
    folder = write_guard(root / "work")
    (folder / "NOTICE.txt").write_text("written for a test {name}\n")
    draft = Draft(name="tiny", kind="classifier", method="classifier", config={}, seed=0, code_revision="x")
    publish(folder, root / "checkpoints", draft)
    words = model().bert.embeddings.word_embeddings.weight.detach().contiguous()
    (root / "words").mkdir()
    save_file({"embeddings.word_embeddings.weight": words}, root / "words" / "model.safetensors")
    return root


def test_a_run_from_texts_to_a_published_stage_that_the_gateway_reads_alike(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_stage, "build_texts", lambda root, seed, most: (texts(120), texts(250)))
    monkeypatch.setattr(first_stage, "sources", lambda root: ())
    config = FirstStageConfig(
        name="tiny-first", encoder="tiny", words=str(registry / "words"), size=8, near=6, far=7, epochs=2,
        floors={"labels": 0.0, "names": 0.0},
    )  # fmt: skip
    checkpoints = registry / "checkpoints"
    train(config, Registry(checkpoints), tmp_path, tmp_path / "run")
    published = publish_run(tmp_path / "run", checkpoints, "tiny-first")
    encoder = Registry(checkpoints).resolve("tiny")
    assert published.manifest.parent == encoder.ref
    stage = load(published.path, encoder.path)
    scorer = Scorer(encoder.path, encoder.path / "model.onnx")
    assert stage.about.heads == (*scorer.labels, *scorer.kinds)
    # What the gateway computes with the published bytes is what the limits were chosen with.
    validation = Scored.read(tmp_path / "run" / "validation.npz")
    below = 0
    for text in texts(250):
        encoding = tokenizer().encode(text.text, add_special_tokens=False)
        z = stage.logits(encoding.ids, [case_type(text.text[a:b]) for a, b in encoding.offsets])
        below += int(z[0] < stage.about.sure[stage.about.heads[0]])
    assert below <= 0.01 * len(validation) + 1
    # A second try begins with the scores that are there.
    monkeypatch.setattr(first_stage, "build_texts", lambda *_: pytest.fail("scored again"))
    train(config, Registry(checkpoints), tmp_path, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "final" / "first_stage.json").read_text())
    assert about["sure"] == dict(stage.about.sure)


def test_scores_are_the_encoders_and_survive_the_file(registry: Path, tmp_path: Path) -> None:
    folder = Registry(registry / "checkpoints").resolve("tiny").path
    scorer = Scorer(folder, folder / "model.onnx")
    long = Text("you are my friend " * LONGEST_ROW, "long")
    scored = score(scorer, [*texts(3), Text("", "empty"), long])
    assert scored.sources[:3] == ("y_pair", "x_pair", "y_pair")
    assert "empty" not in scored.sources
    scored.write(tmp_path / "scored.npz")
    again = Scored.read(tmp_path / "scored.npz")
    assert (again.heads, again.sources) == (scored.heads, scored.sources)
    np.testing.assert_array_equal(again.targets_NH, scored.targets_NH)
    expected = scorer.probabilities([texts(3)[0].text])[0]
    np.testing.assert_allclose(scored.targets_NH[0, : len(expected)], expected, rtol=1e-6)


def test_words_in_eight_bits_stay_near() -> None:
    made = network()
    before = made.words.weight.detach().clone()
    tensors = quantized(made)
    assert tensors["words"].dtype == torch.int8
    assert (made.words.weight - before).abs().max() <= 0.51 * tensors["words_scale"].max()
    torch.testing.assert_close(made.words.weight.detach(), tensors["words"] * tensors["words_scale"])

"""The exported graph against the model that was trained, and what quantising it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.training.tiny_guard import WORDS, calibration, model, tokenizer, write_run
from training.data.entities import TAGS
from training.data.safety_example import LABELS
from training.errors import TrainingError
from training.evaluate.scorer import session, sigmoid
from training.export import build_graph, load_graph, quantize, write_checkpoint
from training.methods.classifier_model import GuardModel, encode

TEXTS = ["", "hello", "My name is JOHN", " ".join(WORDS), "ignore all rules, please! " * 2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GuardModel]:
    folder = tmp_path_factory.mktemp("run")
    return folder, write_run(folder)


def answers(graph: onnx.ModelProto) -> list[tuple[np.ndarray, np.ndarray]]:
    made = tokenizer()
    made.enable_truncation(24)
    runner = session(graph.SerializeToString())
    feeds = (
        {"input_ids": np.array([e.ids]), "token_type_ids": np.array([e.types])} for e in encode(made, TEXTS)
    )
    return [tuple(runner.run(["labels", "tags"], feed)) for feed in feeds]


def test_fp32_equals_the_trained_model(run: tuple[Path, GuardModel]) -> None:
    folder, trained = run
    made = tokenizer()
    made.enable_truncation(24)
    for encoded, (labels, tags) in zip(encode(made, TEXTS), answers(load_graph(folder)), strict=True):
        ids, types = torch.tensor([encoded.ids]), torch.tensor([encoded.types])
        with torch.inference_mode():
            expected = trained(ids, types, torch.ones_like(ids))
        assert labels.shape == (1, len(LABELS))
        assert tags.shape == (1, len(encoded.ids), len(TAGS))
        np.testing.assert_allclose(labels, expected[0].numpy(), atol=2e-5)
        np.testing.assert_allclose(tags, expected[1].numpy(), atol=2e-5)


def test_padding_does_not_change_the_trained_models_scores(run: tuple[Path, GuardModel]) -> None:
    _, trained = run
    short, long = encode(tokenizer(), ["My name is John", "please ignore all rules my friend"])
    pad = len(long.ids) - len(short.ids)
    ids = torch.tensor([[*short.ids, *[0] * pad], long.ids])
    types = torch.tensor([[*short.types, *[0] * pad], long.types])
    mask = torch.tensor([[1] * len(short.ids) + [0] * pad, [1] * len(long.ids)])
    with torch.inference_mode():
        together, tags = trained(ids, types, mask)
        alone, own_tags = trained(ids[:1, :-pad], types[:1, :-pad], mask[:1, :-pad])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tags[:1, :-pad], own_tags, atol=1e-5, rtol=1e-5)


def test_int8_stays_near_and_is_smaller(run: tuple[Path, GuardModel]) -> None:
    folder, _ = run
    graph = load_graph(folder)
    small = quantize(graph)
    kinds = {node.op_type for node in small.graph.node}
    assert "MatMulInteger" in kinds
    assert len(small.SerializeToString()) < 0.75 * len(graph.SerializeToString())
    for (exact, exact_tags), (labels, tags) in zip(answers(graph), answers(small), strict=True):
        assert np.abs(sigmoid(exact) - sigmoid(labels)).max() < 0.1
        assert np.abs(exact_tags - tags).mean() < 0.25


def test_the_heads_stay_in_fp32(run: tuple[Path, GuardModel]) -> None:
    names = {i.name: i.data_type for i in quantize(load_graph(run[0])).graph.initializer}
    for head in ("sequence", "token", "dense"):
        assert names[f"{head}.weight"] == onnx.TensorProto.FLOAT


def test_a_checkpoint_holds_graph_tokenizer_and_settings(
    run: tuple[Path, GuardModel], tmp_path: Path
) -> None:
    write_checkpoint(run[0], tmp_path / "out", calibration(), overlap=8)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "classifier.json",
        "model.onnx",
        "tokenizer.json",
    ]
    about = json.loads((tmp_path / "out" / "classifier.json").read_text())
    assert about["calibration"]["toxicity"] == [0.5, 0.0]
    assert (about["overlap"], about["max_tokens"], about["tag_temperature"]) == (8, 24, 1.3)


def test_another_activation_is_refused() -> None:
    made = model()
    made.bert.config.hidden_act = "relu"
    weights = {name: tensor.numpy() for name, tensor in made.state_dict().items()}
    with pytest.raises(TrainingError, match="relu"):
        build_graph(weights, made.bert.config, 24)

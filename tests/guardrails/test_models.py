"""Which servables model settings mean, and that what was tampered with is not loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from guardrails import models, ner
from guardrails.build import GuardEnvironment
from guardrails.classifier import ClassifierError
from guardrails.imports import without
from guardrails.in_context import Excerpt
from guardrails.runtime import Runtime, ServableError
from policies.registry import Registry
from policies.spec import DetoxifyRef
from tests.guardrails.conftest import CHECKPOINTS, Workers

pytestmark = pytest.mark.xdist_group("guard-workers")


def test_a_checkpoint_has_one_servable_whoever_asks(workers: Workers) -> None:
    env = workers.environment
    spec = models.classifier(models.EMBEDDED, env)
    assert spec == models.entities("embedded", env)
    digest = env.registry.resolve(models.EMBEDDED).digest
    early = env.registry.resolve(f"{models.EMBEDDED}-exit").digest
    assert spec.name == f"keel-guard@{digest[:16]}+{early[:8]}"
    assert models.classifier(f"keel-guard@{digest[:10]}", env) == spec


def test_detoxify_by_name_and_by_file(workers: Workers) -> None:
    by_name = models.classifier(DetoxifyRef(detoxify="unbiased"), workers.environment)
    assert (by_name.name, by_name.config) == ("detoxify:unbiased", {"name": "unbiased"})
    by_file = models.classifier(DetoxifyRef(path="/m/x.ckpt", sha256="ab" * 32), workers.environment)
    assert by_file.config == {"path": "/m/x.ckpt", "sha256": "ab" * 32}
    assert "abab" in by_file.name


def test_a_folder_that_changes_is_another_servable(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first = models.classifier(str(tmp_path), workers.environment)
    assert first == models.classifier(str(tmp_path), workers.environment)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert models.classifier(str(tmp_path), workers.environment).name != first.name
    with pytest.raises(FileNotFoundError):
        models.classifier(str(tmp_path / "nowhere"), workers.environment)


async def test_a_checkpoint_with_a_changed_byte_is_not_loaded(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / models.EMBEDDED, tmp_path / models.EMBEDDED)
    weights = tmp_path / models.EMBEDDED / "model.onnx"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    spec = models.classifier(models.EMBEDDED, GuardEnvironment(Registry(tmp_path), b"k"))
    runtime = Runtime()
    try:
        with pytest.raises(ServableError, match=r"keel-guard.*model\.onnx"):
            await runtime.start([spec])
    finally:
        await runtime.aclose()


def test_names_through_a_spacy_pipeline(workers: Workers, tmp_path: Path) -> None:
    with without("torch", "transformers"):
        import spacy

        nlp = spacy.blank("en")
    nlp.add_pipe("entity_ruler").add_patterns(  # type: ignore[attr-defined]
        [{"label": "GPE", "pattern": "Berlin"}, {"label": "MONEY", "pattern": "ten euros"}]
    )
    nlp.to_disk(tmp_path / "pipeline")
    spec = models.entities(str(tmp_path / "pipeline"), workers.environment)
    assert spec is not None
    assert spec.factory == "guardrails.ner:serve_spacy"
    servable = ner.serve_spacy(**spec.config)
    (output,) = servable.predict([Excerpt("From Berlin for ten euros")])
    assert [(e.entity_type, e.start, e.end, e.score) for e in output.entities] == [("LOCATION", 5, 11, 0.85)]
    assert servable.describe()["entity_types"] == ["LOCATION"]


def test_a_spacy_pipeline_that_is_not_there_or_knows_no_names(tmp_path: Path) -> None:
    with without("torch", "transformers"):
        import spacy

        blank = spacy.blank("en")
    with pytest.raises(ClassifierError, match="never downloaded"):
        ner.serve_spacy("en_core_web_nonexistent")
    blank.to_disk(tmp_path / "blank")
    with pytest.raises(ClassifierError, match="no entity recognizer"):
        ner.serve_spacy(str(tmp_path / "blank"))


@pytest.mark.slow
def test_names_through_a_transformers_folder(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ana", "lives", "here"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        id2label={0: "O", 1: "B-PER", 2: "B-MISC"}, label2id={"O": 0, "B-PER": 1, "B-MISC": 2},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    model.save_pretrained(tmp_path)
    servable = ner.serve_transformers(str(tmp_path))
    outputs = servable.predict([Excerpt("Ana lives"), Excerpt("here")])
    assert {e.entity_type for output in outputs for e in output.entities} == {"PERSON"}
    assert outputs[0].entities[0].start == 0
    assert servable.describe()["entity_types"] == ["PERSON"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ClassifierError, match="safetensors"):
        ner.serve_transformers(str(tmp_path))

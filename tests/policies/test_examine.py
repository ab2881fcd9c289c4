"""What a checkpoint is refused for, before anything is loaded; and what is let pass."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from policies.examine import Demands, examine, in_place_obstacle
from policies.layout import KNOWN, promised
from policies.manifest import CheckpointError
from policies.registry import Registry, RegistryError
from policies.tensors import not_finite, read_header, read_tensors
from tests.hotload import (
    Change,
    cut,
    publish_adapter,
    publish_folder,
    publish_tiny,
    spoil_json,
    spoil_weights,
)

Q = "model.layers.0.self_attn.q_proj.weight"
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoints"
    root.mkdir()
    return root


def _nan(weights: dict[str, np.ndarray]) -> None:
    weights[Q][3, 5] = np.nan


def _infinite(weights: dict[str, np.ndarray]) -> None:
    weights["model.norm.weight"][-1] = -np.inf


def _narrow(weights: dict[str, np.ndarray]) -> None:
    weights[Q] = np.ascontiguousarray(weights[Q][:, :-1])


def _integers(weights: dict[str, np.ndarray]) -> None:
    weights[Q] = weights[Q].astype(np.int32)


def _without_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["chat_template"]
    path.write_text(json.dumps(content))


BAD: dict[str, tuple[Change, str]] = {
    "a NaN": (spoil_weights(_nan), "q_proj.weight holds NaN or infinity"),
    "an infinity": (spoil_weights(_infinite), "model.norm.weight holds NaN or infinity"),
    "a missing tensor": (spoil_weights(lambda w: w.pop(Q)), "q_proj.weight is missing"),
    "a missing norm": (spoil_weights(lambda w: w.pop("model.norm.weight")), "model.norm.weight is missing"),
    "a tensor too many": (
        spoil_weights(lambda w: w.update(extra=np.ones(3, np.float32))),
        "extra has no place",
    ),
    "a wrong shape": (spoil_weights(_narrow), r"is \[64, 63\], the config says \[64, 64\]"),
    "whole numbers": (spoil_weights(_integers), "is I32"),
    "a file cut off": (cut("model.safetensors", -7), "cut off"),
    "a file cut off in its header": (cut("model.safetensors", 100), "cut off in its header"),
    "an empty file": (cut("model.safetensors", 0), "cut off in its header"),
    "another config": (spoil_json("config.json", num_hidden_layers=3), "layers.2.*is missing"),
    "a config without a size": (spoil_json("config.json", hidden_size=None), "a size is missing"),
    "a tokenizer with more tokens": (
        spoil_json("tokenizer.json", added_tokens=[{"id": 4000, "content": "x"}]),
        "the wrong tokenizer",
    ),
    "no chat template": (_without_template, "no chat template"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_model_is_refused_with_the_reason(root: Path, case: str) -> None:
    change, reason = BAD[case]
    bad = publish_tiny(root, "bad", 1, change)
    with pytest.raises(CheckpointError, match=reason):
        examine(Registry(root), bad, Demands())


def test_a_good_model_passes_and_every_step_is_told(root: Path) -> None:
    former, good = publish_tiny(root, "former", 1), publish_tiny(root, "good", 2)
    steps: list[str] = []
    examine(Registry(root), good, Demands(former), lambda step, seen: steps.append(step))
    assert steps == ["files", "weights", "layout", "tokenizer", "tokenizer", "chat template"]


def test_what_failed_its_own_gates_is_refused(root: Path) -> None:
    bad = publish_tiny(root, "bad", passed=False)
    with pytest.raises(CheckpointError, match="own gates: perplexity: 9"):
        examine(Registry(root), bad, Demands())


@pytest.mark.parametrize(
    ("file", "fields", "role"),
    [
        ("tokenizer_config.json", {"chat_template": "{{ messages }}"}, "tokenizer"),
        ("tokenizer.json", {"padding": None, "truncation": None, "version": "2.0"}, "tokenizer"),
    ],
)
def test_another_tokenizer_than_the_formers_must_be_meant(
    root: Path, file: str, fields: dict[str, Any], role: str
) -> None:
    former = publish_tiny(root, "former")
    other = publish_tiny(root, "other", 0, spoil_json(file, **fields))
    with pytest.raises(CheckpointError, match=rf"its {role} differs .* --new-tokenizer"):
        examine(Registry(root), other, Demands(former))
    examine(Registry(root), other, Demands(former, frozenset({"tokenizer"})))
    assert "its tokenizer is another" in str(in_place_obstacle(other, former))


def test_another_template_than_the_formers_must_be_meant(root: Path) -> None:
    def template(text: str) -> Change:
        return lambda folder: (folder / "chat_template.jinja").write_text(text)

    former, other = (
        publish_tiny(root, "former", 0, template("a")),
        publish_tiny(root, "other", 0, template("b")),
    )
    with pytest.raises(CheckpointError, match=r"its chat template differs .* --new-template"):
        examine(Registry(root), other, Demands(former))
    examine(Registry(root), other, Demands(former, frozenset({"template"})))


def test_a_pickle_in_the_folder_is_refused(root: Path) -> None:
    good = publish_tiny(root, "good")
    (good.path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="not listed in the manifest"):
        examine(Registry(root), good, Demands())


def test_a_link_out_of_the_registry_is_refused(root: Path, tmp_path: Path) -> None:
    good = publish_tiny(root, "good")
    (good.path / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (good.path / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="plain files only"):
        examine(Registry(root), good, Demands())


def test_a_guards_classifier_can_not_answer_in_place_of_a_model(root: Path) -> None:
    former, source = publish_tiny(root, "former"), root.parent / "source-guard"
    source.mkdir()
    (source / "model.onnx").write_bytes(b"onnx")
    guard = publish_folder(root, source, "guard", "classifier")
    with pytest.raises(CheckpointError, match="kind 'classifier' can't stand in"):
        examine(Registry(root), guard, Demands(former))


@pytest.mark.parametrize("labels", [["toxic"], []])
def test_a_classifier_must_know_the_formers_labels(root: Path, labels: list[str]) -> None:
    checkpoints = []
    for name, known in (("former", ["toxic", "threat"]), ("new", labels)):
        source = root.parent / f"source-{name}"
        source.mkdir()
        (source / "model.onnx").write_bytes(b"onnx")
        (source / "classifier.json").write_text(json.dumps({"labels": known}))
        checkpoints.append(publish_folder(root, source, name, "classifier"))
    former, new = checkpoints
    with pytest.raises(CheckpointError, match="lacks the labels"):
        examine(Registry(root), new, Demands(former))
    examine(Registry(root), former, Demands(new))


# ---- adapters ----------------------------------------------------------------------------------------------

ADAPTER = "adapter_model.safetensors"
BAD_ADAPTERS: dict[str, tuple[Change, str]] = {
    "a NaN": (spoil_weights(lambda w: w[LORA].fill(np.nan), ADAPTER), "NaN"),
    "half an update": (spoil_weights(lambda w: w.pop(LORA), ADAPTER), "stands alone"),
    "another base's update": (
        spoil_weights(lambda w: w.update({LORA.replace("layers.0", "layers.9"): w[LORA]}), ADAPTER),
        "fits no matrix",
    ),
    "another width": (
        spoil_weights(lambda w: w.update({LORA: w[LORA][:, :9].copy()}), ADAPTER),
        r"is \[4, 9\]",
    ),
    "another rank than it says": (spoil_json("adapter_config.json", r=8), "the base and its rank say"),
    "no LoRA": (spoil_json("adapter_config.json", peft_type="IA3"), "served are LoRA adapters"),
    "DoRA": (spoil_json("adapter_config.json", use_dora=True), "'use_dora' is set"),
    "whole modules": (spoil_json("adapter_config.json", modules_to_save=["lm_head"]), "'modules_to_save'"),
    "several ranks": (spoil_json("adapter_config.json", rank_pattern={"q_proj": 2}), "differ by module"),
    "no tensor": (spoil_weights(lambda w: w.clear(), ADAPTER), "it holds no tensor"),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_a_bad_adapter_is_refused_with_the_reason(root: Path, case: str) -> None:
    change, reason = BAD_ADAPTERS[case]
    bad = publish_adapter(root, "bad", publish_tiny(root, "base"), 1, change)
    with pytest.raises(CheckpointError, match=reason):
        examine(Registry(root), bad, Demands())


def test_an_adapter_of_another_base_is_refused(root: Path) -> None:
    base = publish_tiny(root, "base")
    other = publish_adapter(root, "other", base, parent=f"base@{'0' * 64}")
    with pytest.raises(CheckpointError, match=r"its base can.t be had.*other bytes"):
        examine(Registry(root), other, Demands(base))


def test_an_adapter_of_too_large_a_rank_is_refused(root: Path) -> None:
    adapter = publish_adapter(root, "adapter", publish_tiny(root, "base"), rank=4)
    examine(Registry(root), adapter, Demands(max_rank=4))
    with pytest.raises(CheckpointError, match=r"engine\.max_adapter_rank"):
        examine(Registry(root), adapter, Demands(max_rank=2))


def test_an_adapter_whose_base_was_tampered_with_is_refused(root: Path) -> None:
    base = publish_tiny(root, "base")
    adapter = publish_adapter(root, "adapter", base)
    (base.path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RegistryError, match="not the file that was published"):
        examine(Registry(root), adapter, Demands())


# ---- in place ----------------------------------------------------------------------------------------------


def test_in_place_takes_the_same_shapes_only(root: Path) -> None:
    former, same = publish_tiny(root, "former", 1), publish_tiny(root, "same", 2)
    half = spoil_weights(lambda w: w.update({name: value.astype(np.float16) for name, value in w.items()}))
    other = publish_tiny(root, "other", 2, half)
    wider = publish_tiny(root, "wider", 2, spoil_json("config.json", rms_norm_eps=1e-5))
    assert in_place_obstacle(same, former) is None
    assert "F16" in str(in_place_obstacle(other, former))
    assert "'rms_norm_eps'" in str(in_place_obstacle(wider, former))


# ---- layouts and files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", sorted(KNOWN))
@pytest.mark.parametrize("tie", [True, False])
def test_the_promised_layout_is_what_transformers_saves(architecture: str, tie: bool, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    family = architecture.removesuffix("ForCausalLM").lower()
    config = AutoConfig.for_model(
        family, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=64, tie_word_embeddings=tie,
    )  # fmt: skip
    if family in ("llama", "qwen3", "granite"):
        config.attention_bias = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    expected = promised(saved)
    assert {name: tensor.shape for name, tensor in read_tensors(tmp_path).items()} == expected


@given(cut=st.integers(0, 400), flip=st.integers(0, 8 * 300))
def test_no_damage_to_a_header_is_anything_but_an_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b": np.zeros(5, np.float16)}, path)
    content = bytearray(path.read_bytes())
    if flip // 8 < len(content):
        content[flip // 8] ^= 1 << flip % 8
    path.write_bytes(content[: len(content) - cut] if cut < len(content) else b"")
    try:
        tensors = read_header(path)
    except CheckpointError:
        return
    assert cut == 0
    assert sum(tensor.bytes for tensor in tensors.values()) == 34


def test_a_tensor_of_two_files_and_a_wrong_index_are_refused(tmp_path: Path) -> None:
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "one.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "two.safetensors"}}))
    with pytest.raises(CheckpointError, match="a is not where the index says"):
        read_tensors(tmp_path)
    index.unlink()
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"a also stands in one\.safetensors"):
        read_tensors(tmp_path)


BITS: list[tuple[str, bytes, bool]] = [
    ("BF16", struct.pack("<H", 0x7F80), True),
    ("BF16", struct.pack("<H", 0xFFC1), True),
    ("BF16", struct.pack("<H", 0x7F7F), False),
    ("F16", struct.pack("<H", 0x7C00), True),
    ("F16", struct.pack("<H", 0x7BFF), False),
    ("F32", struct.pack("<f", float("nan")), True),
    ("F32", struct.pack("<f", 3.4e38), False),
    ("F64", struct.pack("<d", float("-inf")), True),
    ("F8_E4M3", b"\xff", True),
    ("F8_E4M3", b"\x7e", False),
    ("F8_E5M2", b"\x7c", True),
    ("I8", b"\x7f", False),
]


@pytest.mark.parametrize(("dtype", "last", "odd"), BITS)
def test_every_float_format_is_searched_for_what_is_no_number(
    tmp_path: Path, dtype: str, last: bytes, odd: bool
) -> None:
    data = bytes(len(last)) * 3 + last
    header = json.dumps({"x": {"dtype": dtype, "shape": [4], "data_offsets": [0, len(data)]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    assert list(not_finite(read_header(path))) == (["x"] if odd else [])


def test_a_header_with_a_name_twice_or_a_gap_is_refused(tmp_path: Path) -> None:
    def written(header: str, data: bytes) -> Callable[[], object]:
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)
        return lambda: read_header(path)

    def entry(start: int, end: int) -> str:
        return json.dumps({"dtype": "U8", "shape": [1], "data_offsets": [start, end]})

    with pytest.raises(CheckpointError, match="twice"):
        written(f'{{"a":{entry(0, 1)},"a":{entry(1, 2)}}}', b"12")()
    with pytest.raises(CheckpointError, match="not where its header says"):
        written(f'{{"a":{entry(1, 2)}}}', b"12")()
    with pytest.raises(CheckpointError, match="something added"):
        written(f'{{"a":{entry(0, 1)}}}', b"12")()

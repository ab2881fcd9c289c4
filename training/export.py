"""The safety classifier as an ONNX graph: exact in fp32, and with weights and products in 8 bits.

The graph is written node by node rather than traced: what runs in the guard workers is then plain to
read, has no padding mask, and takes exactly one text. Dynamic quantisation scales activations by their
range over the whole tensor, so in a batch one text would change another's score; one text to a run makes
a score a function of its text alone.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file
from transformers import BertConfig

from training.data.safety_example import IMPLIED
from training.errors import TrainingError

OPSET = 20
IR_VERSION = 10
Array = NDArray[Any]


class _Graph:
    """Collects nodes and initializers; each call returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, kind: str, *inputs: str, out: str = "", domain: str = "", **attributes: Any) -> str:
        name = out or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes)
        )
        return name

    def linear(self, x: str, name: str, weight_OI: Array, bias_O: Array, out: str = "") -> str:
        product = self.node("MatMul", x, self.constant(f"{name}.weight", weight_OI.T))
        return self.node("Add", product, self.constant(f"{name}.bias", bias_O), out=out)

    def norm(self, x: str, name: str, weights: Mapping[str, Array], epsilon: float) -> str:
        scale = self.constant(f"{name}.weight", weights[f"{name}.weight"])
        bias = self.constant(f"{name}.bias", weights[f"{name}.bias"])
        return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)


def _embeddings(g: _Graph, w: Mapping[str, Array], epsilon: float, max_tokens: int) -> str:
    prefix = "bert.embeddings"
    words = g.node("Gather", g.constant("words", w[f"{prefix}.word_embeddings.weight"]), "input_ids")
    types = g.node(
        "Gather", g.constant("types", w[f"{prefix}.token_type_embeddings.weight"]), "token_type_ids"
    )
    one = g.constant("one", np.array([1], np.int64))
    length = g.node("Shape", "input_ids", start=1, end=2)
    table = g.constant("positions", w[f"{prefix}.position_embeddings.weight"][:max_tokens])
    positions = g.node(
        "Slice",
        table,
        g.constant("zero", np.array([0], np.int64)),
        length,
        g.constant("axis0", np.array([0], np.int64)),
        one,
    )
    total = g.node("Add", g.node("Add", words, types), positions)
    return g.norm(total, f"{prefix}.LayerNorm", w, epsilon)


def _layer(g: _Graph, x: str, index: int, w: Mapping[str, Array], config: BertConfig) -> str:
    prefix = f"bert.encoder.layer.{index}"
    parts = [f"{prefix}.attention.self.{n}" for n in ("query", "key", "value")]
    weight = np.concatenate([w[f"{p}.weight"] for p in parts])
    bias = np.concatenate([w[f"{p}.bias"] for p in parts])
    joined = g.linear(x, f"{prefix}.qkv", weight, bias)
    q, k, v = (f"{prefix}.{n}" for n in "qkv")
    g.nodes.append(
        helper.make_node("Split", [joined], [q, k, v], name=f"{prefix}.split", axis=-1, num_outputs=3)
    )
    attended = g.node(
        "MultiHeadAttention", q, k, v, domain="com.microsoft", num_heads=config.num_attention_heads
    )
    out = f"{prefix}.attention.output"
    mixed = g.linear(attended, f"{out}.dense", w[f"{out}.dense.weight"], w[f"{out}.dense.bias"])
    x = g.norm(g.node("Add", mixed, x), f"{out}.LayerNorm", w, config.layer_norm_eps)
    up, down = f"{prefix}.intermediate.dense", f"{prefix}.output.dense"
    hidden = g.node("Gelu", g.linear(x, up, w[f"{up}.weight"], w[f"{up}.bias"]))
    mixed = g.linear(hidden, down, w[f"{down}.weight"], w[f"{down}.bias"])
    return g.norm(g.node("Add", mixed, x), f"{prefix}.output.LayerNorm", w, config.layer_norm_eps)


def build_graph(weights: Mapping[str, Array], config: BertConfig, max_tokens: int) -> onnx.ModelProto:
    """The fp32 graph, from int64 `[1, T]` to logits `labels` `[1, L]` and `tags` `[1, T, K]`.

    T is at most `max_tokens`; position embeddings beyond it are left out.

    Raises TrainingError for an activation other than exact GELU.
    """
    if config.hidden_act != "gelu":
        raise TrainingError(
            f"cannot export hidden_act {config.hidden_act!r}; the graph is written for 'gelu'"
        )
    g = _Graph()
    x = _embeddings(g, weights, config.layer_norm_eps, max_tokens)
    for index in range(config.num_hidden_layers):
        x = _layer(g, x, index, weights, config)
    g.linear(x, "token", weights["token.weight"], weights["token.bias"], out="tags")
    axis = g.constant("axis1", np.array([1], np.int64))
    mean = g.node("ReduceMean", x, axis, keepdims=0)
    top = g.node("ReduceMax", x, axis, keepdims=0)
    pooled = g.node("Concat", mean, top, axis=-1)
    dense = g.node("Tanh", g.linear(pooled, "dense", weights["dense.weight"], weights["dense.bias"]))
    g.linear(dense, "sequence", weights["sequence.weight"], weights["sequence.bias"], out="labels")
    tags, labels = weights["token.bias"].shape[0], weights["sequence.bias"].shape[0]
    graph = helper.make_graph(
        g.nodes,
        "keel_guard",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, [1, "T"])
            for n in ("input_ids", "token_type_ids")
        ],
        [
            helper.make_tensor_value_info("labels", TensorProto.FLOAT, [1, labels]),
            helper.make_tensor_value_info("tags", TensorProto.FLOAT, [1, "T", tags]),
        ],
        list(g.constants.values()),
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="keel")
    onnx.checker.check_model(model)
    return model


def quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Matrices and the word table in int8, activations quantised as they come.

    Weights keep to 7 bits: on processors without VNNI, products of full 8-bit values saturate, and scores
    would depend on the machine. The heads stay in fp32; they are small, and errors there are final.
    """
    heads = [
        n.name
        for n in model.graph.node
        if n.op_type == "MatMul" and n.input[1].split(".")[0] in ("sequence", "token", "dense")
    ]
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "fp32.onnx", Path(scratch) / "int8.onnx"
        onnx.save(model, source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=heads,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # shapes stop at the fused attention
        )
        return onnx.load(target)


def load_graph(folder: Path) -> onnx.ModelProto:
    """The fp32 graph of a finished run's folder (`model.safetensors`, `config.json`, `classifier.json`)."""
    max_tokens = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))["max_tokens"]
    return build_graph(
        load_file(folder / "model.safetensors"), BertConfig.from_pretrained(folder), max_tokens
    )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns logits into probabilities, and scores at which a stated share of harmless texts is flagged.

    `platt`: label → (a, b) of σ(a z + b). `thresholds`: label → false-positive rate → score.
    """

    platt: Mapping[str, tuple[float, float]]
    tag_temperature: float = 1.0
    entity_floor: float = 0.35
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def write_checkpoint(folder: Path, out: Path, calibration: Calibration, overlap: int = 32) -> None:
    """The files that the gateway loads, from a finished run's `folder` into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(quantize(load_graph(folder)), out / "model.onnx")
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    about = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    about |= {
        "overlap": overlap,
        "calibration": {label: calibration.platt[label] for label in about["labels"]},
        "tag_temperature": calibration.tag_temperature,
        "entity_floor": calibration.entity_floor,
        "implied": {label: parent for label, parent in IMPLIED.items() if label in about["labels"]},
        "thresholds": calibration.thresholds,
    }
    (out / "classifier.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

"""An ONNX graph cut in two at one tensor: what leads to it, and what goes on from it.

Nodes and weights go over as they were encoded, each to the part that uses them, so that the two parts, one
after the other, compute what the whole does. Only the few fields of `onnx.proto` that this takes are read:
onnxruntime can't cut a graph, and onnx, which can, is a large import for a guard worker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Buffer = bytes | memoryview

# Field numbers of onnx.proto: ModelProto's graph; GraphProto's; NodeProto's; names and types of values.
GRAPH = 7
NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13
NODE_INPUT, NODE_OUTPUT = 1, 2
TENSOR_NAME, VALUE_NAME, VALUE_TYPE = 8, 1, 2
TENSOR_TYPE, ELEMENT_TYPE, SHAPE, DIMENSION = 1, 1, 2, 1
FLOAT = 1
# Wire types.
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class GraphError(ValueError):
    """A file that isn't an ONNX model, or one that the tensor doesn't cut in two."""


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its number, its content (of a varint: none), and all of it as encoded."""

    number: int
    content: memoryview
    encoded: memoryview


def fields(message: Buffer) -> Iterator[Field]:
    """The fields of an encoded message, in order. Raises GraphError where it isn't one."""
    view = memoryview(message)
    at = 0
    while at < len(view):
        start = at
        key, at = _varint(view, at)
        size = {VARINT: 0, FIXED32: 4, FIXED64: 8, LENGTH: 0}.get(key & 7)
        if size is None:
            raise GraphError("not a protocol buffer's message")
        if key & 7 in (VARINT, LENGTH):
            value, at = _varint(view, at)
            size = value if key & 7 == LENGTH else 0
        if at + size > len(view):
            raise GraphError("the file ends too early")
        yield Field(key >> 3, view[at : at + size], view[start : at + size])
        at += size


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        value |= (view[at] & 0x7F) << shift
        at += 1
        if view[at - 1] < 0x80:
            return value, at
    raise GraphError("not a protocol buffer's message")


def _strings(message: Buffer, number: int) -> list[str]:
    return [bytes(f.content).decode() for f in fields(message) if f.number == number]


def _name(message: Buffer, number: int) -> str:
    return next(iter(_strings(message, number)), "")


@dataclass(frozen=True, slots=True)
class _Node:
    inputs: frozenset[str]
    outputs: frozenset[str]
    encoded: memoryview

    @classmethod
    def read(cls, field: Field) -> _Node:
        inputs, outputs = (_strings(field.content, number) for number in (NODE_INPUT, NODE_OUTPUT))
        return cls(frozenset(inputs) - {""}, frozenset(outputs) - {""}, field.encoded)


def cut(model: bytes, tensor: str) -> tuple[bytes, bytes]:
    """The model whose output is `tensor`, and the one that makes the outputs of `model` from it. The tensor
    is one of hidden states: floats in three dimensions.

    Raises GraphError for a tensor that isn't there, or that doesn't carry all that the second part needs.
    """
    whole = list(fields(model))
    graph = [part for f in whole if f.number == GRAPH for part in fields(f.content)]
    nodes = [_Node.read(f) for f in graph if f.number == NODE]
    inputs, outputs = ([f for f in graph if f.number == number] for number in (INPUT, OUTPUT))
    if not any(tensor in node.outputs for node in nodes):
        raise GraphError(f"no node makes {tensor!r}")
    before = _needed(nodes, {tensor}, frozenset())
    after = _needed(nodes, {_name(f.content, VALUE_NAME) for f in outputs}, frozenset({tensor}))
    told = {_name(f.content, VALUE_NAME) for f in inputs}
    if missing := {name for node in after for name in node.inputs} & told:
        raise GraphError(f"what follows {tensor!r} needs {', '.join(sorted(missing))} too")
    value = _floats(tensor)
    return (
        _model(whole, graph, before, [*(f.encoded for f in inputs), _field(OUTPUT, value)]),
        _model(whole, graph, after, [_field(INPUT, value), *(f.encoded for f in outputs)]),
    )


def _needed(nodes: Sequence[_Node], wanted: Iterable[str], given: frozenset[str]) -> list[_Node]:
    """The nodes that it takes to make `wanted` where `given` is there, in the order in which they run."""
    missing = set(wanted) - given
    kept = []
    for node in reversed(nodes):
        if missing & node.outputs:
            kept.append(node)
            missing |= node.inputs - given
    return kept[::-1]


def _model(
    whole: Sequence[Field], graph: Sequence[Field], nodes: Sequence[_Node], ends: Sequence[Buffer]
) -> bytes:
    """`whole` with the graph of `nodes`, the weights they use, and the inputs and outputs `ends`."""
    used = {name for node in nodes for name in node.inputs}
    own = [
        f.encoded
        for f in graph
        if (f.number == INITIALIZER and _name(f.content, TENSOR_NAME) in used)
        or f.number not in (NODE, INITIALIZER, INPUT, OUTPUT, VALUE_INFO)
    ]
    body = b"".join([*(node.encoded for node in nodes), *own, *ends])
    return b"".join(_field(GRAPH, body) if f.number == GRAPH else f.encoded for f in whole)


def _floats(name: str) -> bytes:
    """A ValueInfoProto: floats in three dimensions. Without their number onnxruntime fuses less than in the
    whole graph, and rounds in other places."""
    element = bytes([ELEMENT_TYPE << 3 | VARINT, FLOAT])
    tensor = element + _field(SHAPE, 3 * _field(DIMENSION, b""))
    return _field(VALUE_NAME, name.encode()) + _field(VALUE_TYPE, _field(TENSOR_TYPE, tensor))


def _field(number: int, content: bytes) -> bytes:
    size, length = len(content), bytearray()
    while size >= 0x80:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | LENGTH, *length, size]) + content

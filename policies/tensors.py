"""safetensors files as they lie on disk: what they hold, that they are whole, and that every number is one.

Read here, without torch and without loading anything, so that a checkpoint can be judged before a server is
given it. The format: eight bytes with the header's length N, N bytes of JSON, then the tensors' bytes without
a gap. Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.manifest import CheckpointError

MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_CHUNK_BYTES = 16 << 20

# Bits of one element, and which of them are all ones in NaN and infinity. FP8 E4M3 has no infinity.
_FLOATS: Mapping[str, tuple[int, int]] = {
    "F64": (64, 0x7FF0_0000_0000_0000),
    "F32": (32, 0x7F80_0000),
    "F16": (16, 0x7C00),
    "BF16": (16, 0x7F80),
    "F8_E5M2": (8, 0x7C),
    "F8_E4M3": (8, 0x7F),
}
_BITS: Mapping[str, int] = {
    **{name: bits for name, (bits, _) in _FLOATS.items()},
    **{f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": 8,
    "F8_E8M0": 8,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor is and what it is. `start` is its offset in the file, in bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    @property
    def floating(self) -> bool:
        return self.dtype in _FLOATS


def read_header(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by name. Raises CheckpointError for a file that is damaged or cut off."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise CheckpointError(f"{path}: no safetensors file, or cut off in its header ({size} bytes)")
        content = file.read(length)
    try:
        header = json.loads(content, object_pairs_hook=_without_twins)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, length + 8, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is no safetensors header: {error}") from error
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bytes)):
        bits = math.prod(tensor.shape) * _BITS[tensor.dtype]
        if tensor.start != end or tensor.bytes * 8 != bits:
            raise CheckpointError(
                f"{path}: the bytes of {name} are not where its header says, or not as many"
            )
        end += tensor.bytes
    if end != size:
        raise CheckpointError(f"{path}: {size} bytes, its header tells of {end}: cut off, or something added")
    return tensors


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands in it twice")
    return table


def _tensor(path: Path, data: int, entry: Any) -> Tensor:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in _BITS:
        raise ValueError(f"the dtype {dtype!r} is not known")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, end)) or end < start:
        raise ValueError("a shape or an offset is no count")
    return Tensor(path, dtype, shape, data + start, end - start)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the safetensors files right in `folder`.

    Raises CheckpointError for a damaged file, for a name that stands in two of them, and for an index that
    tells of other tensors than there are.
    """
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = read_header(path)
        if twins := sorted(found.keys() & tensors.keys()):
            raise CheckpointError(f"{path}: {twins[0]} also stands in {tensors[twins[0]].file.name}")
        tensors |= found
    for index in sorted(folder.glob("*.safetensors.index.json")):
        _check_index(index, tensors)
    return tensors


def _check_index(index: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        told = {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no index of weights: {error}") from error
    odd = sorted(
        name
        for name in told.keys() | tensors.keys()
        if name not in told or name not in tensors or tensors[name].file.name != told[name]
    )
    if odd:
        raise CheckpointError(f"{index}: {odd[0]} is not where the index says ({len(odd)} such names)")


def not_finite(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """The names of tensors that hold a NaN or an infinity. Reads every byte; not for the event loop."""
    import numpy as np  # the gateway does without it until a checkpoint is to be judged

    for name, tensor in tensors.items():
        if not tensor.floating or not tensor.bytes:
            continue
        bits, mask = _FLOATS[tensor.dtype]
        kind = np.dtype(f"<u{bits // 8}")
        step = _CHUNK_BYTES // kind.itemsize
        content = np.memmap(tensor.file, kind, "r", tensor.start, (tensor.bytes // kind.itemsize,))
        if any(
            bool(((content[at : at + step] & kind.type(mask)) == mask).any())
            for at in range(0, len(content), step)
        ):
            yield name

"""A plugin of vLLM's (`vllm.general_plugins`): on CPUs, who asks the base model gets the base model.

There vLLM 0.32 picks each token's update by the slot that its adapter lies in, and -1, which says that a
token has no adapter, picks the last slot. Once every slot has had an adapter, replies of the base model are
partly or wholly that adapter's. Here the update of such tokens is nothing, as in vLLM's operations for GPUs.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

_OPERATIONS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")
_HOMES = (
    "vllm.lora.ops.torch_ops.lora_ops",
    "vllm.lora.ops.torch_ops",
    "vllm.lora.punica_wrapper.punica_cpu",
)


def register() -> None:
    """What vLLM calls in each of its processes, possibly more than once."""
    if not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return
    for home in map(importlib.import_module, _HOMES):
        for name in _OPERATIONS:
            operation = getattr(home, name)
            if not hasattr(operation, "__wrapped__"):
                setattr(home, name, sparing_the_base(operation))


def sparing_the_base(operation: Callable[..., None]) -> Callable[..., None]:
    """`operation(inputs [N, D], weights, output, slots [N], …)` without the rows whose slot is negative."""

    @functools.wraps(operation)
    def spared(inputs: Any, weights: Any, output: Any, slots: Any, *more: Any, **named: Any) -> None:
        # Nothing goes in, so nothing comes out: the operations are linear in their inputs.
        operation(inputs.masked_fill((slots < 0).unsqueeze(1), 0), weights, output, slots, *more, **named)

    return spared
